#include "proto/bearer_token.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <thread>

#include "tests/support/temp_folder.h"

namespace glm {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr char kOne[] = "0123456789abcdef";
constexpr char kTwo[] = "fedcba9876543210fedcba9876543210";

class TokenFileTest : public ::testing::Test {
 protected:
  void Write(const std::string& text) {
    std::ofstream(path_ + ".new") << text;
    std::filesystem::rename(path_ + ".new", path_);
  }
  static grpc::StatusCode Check(const TokenFile& tokens, const std::string& shown) {
    return tokens.Check({{"authorization", shown}}).error_code();
  }

  const test::TempFolder folder_;
  const std::string path_ = folder_.path() + "/token";
};

TEST(ParseTokens, OneALine) {
  EXPECT_THAT(*ParseTokens(std::string("# new\n") + kOne + "\r\n\n  " + kTwo + "\n"),
              ElementsAre(kOne, kTwo));
}

TEST(ParseTokens, RefusesWithoutSayingTheToken) {
  const auto message = [](const std::string& text) {
    return std::string(ParseTokens(text).status().message());
  };
  EXPECT_EQ(message(""), "it has 0 tokens; it must have from 1 to 16");
  EXPECT_THAT(message("\n0123456789abcde"), HasSubstr("line 2 has a token of 15 bytes"));
  EXPECT_THAT(message("0123456789 abcdef"), HasSubstr("line 1 has a token with bytes that"));
  EXPECT_THAT(message("0123456789abcde"), Not(HasSubstr("0123")));
  std::string many;
  for (int i = 0; i < 17; ++i) many += std::string(kOne) + "\n";
  EXPECT_THAT(message(many), HasSubstr("it has 17 tokens"));
  EXPECT_THAT(message(std::string(4097, 'a')), HasSubstr("4097 bytes"));
}

TEST_F(TokenFileTest, AcceptsItsTokensAlone) {
  Write(std::string(kOne) + "\n" + kTwo + "\n");
  const auto tokens = TokenFile::Open("token-file", path_);
  ASSERT_TRUE(tokens.ok()) << tokens.status();
  EXPECT_EQ((*tokens)->Authorization(), std::string("Bearer ") + kOne);
  EXPECT_EQ(Check(**tokens, std::string("Bearer ") + kOne), grpc::StatusCode::OK);
  EXPECT_EQ(Check(**tokens, std::string("bearer ") + kTwo), grpc::StatusCode::OK);
  for (const std::string& bad : {std::string("Bearer ") + kOne + "x", std::string("Bearer "),
                                 std::string("Bearer 0123456789abcdeg"),
                                 std::string("Basic ") + kOne, std::string(kOne), std::string()}) {
    EXPECT_EQ(Check(**tokens, bad), grpc::StatusCode::UNAUTHENTICATED) << bad;
  }
  EXPECT_EQ((*tokens)->Check({}).error_code(), grpc::StatusCode::UNAUTHENTICATED);
  const std::string good = std::string("Bearer ") + kOne;
  EXPECT_EQ((*tokens)->Check({{"authorization", good}, {"authorization", good}}).error_code(),
            grpc::StatusCode::UNAUTHENTICATED)
      << "which of two counts is not for the peer to play with";
}

TEST_F(TokenFileTest, IsReadAgainAndABadFileKeepsWhatWasKnown) {
  Write(kOne);
  const auto tokens = TokenFile::Open("token-file", path_);
  ASSERT_TRUE(tokens.ok()) << tokens.status();
  Write(kTwo);
  const std::string two = std::string("Bearer ") + kTwo;
  while ((*tokens)->Authorization() != two) std::this_thread::yield();
  EXPECT_EQ(Check(**tokens, two), grpc::StatusCode::OK);
  EXPECT_EQ(Check(**tokens, std::string("Bearer ") + kOne), grpc::StatusCode::UNAUTHENTICATED);
  Write("short");
  std::this_thread::sleep_for(std::chrono::milliseconds(1200));  // past its next look
  EXPECT_EQ((*tokens)->Authorization(), two);
  EXPECT_EQ(Check(**tokens, two), grpc::StatusCode::OK);
}

TEST_F(TokenFileTest, ABadFileIsRefusedByName) {
  EXPECT_THAT(std::string(TokenFile::Open("token-file", path_).status().message()),
              HasSubstr("--token-file: " + path_));
  Write("short");
  EXPECT_THAT(std::string(TokenFile::Open("token-file", path_).status().message()),
              HasSubstr("--token-file=" + path_ + ": line 1 has a token of 5 bytes"));
}

}  // namespace
}  // namespace glm
