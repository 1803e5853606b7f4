#include "worker/speculative_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace glm::worker {
namespace {

using ::testing::HasSubstr;

TEST(SpeculativeConfigTest, BothFormsSayTheSame) {
  EXPECT_EQ(*DraftsAsked("", {}), 0);
  EXPECT_EQ(*DraftsAsked("", {.method = "mtp", .num_speculative_tokens = 3}), 3);
  EXPECT_EQ(*DraftsAsked(R"({"method":"mtp","num_speculative_tokens":3})", {}), 3);
  EXPECT_EQ(*DraftsAsked("", {.method = "mtp", .num_speculative_tokens = {}}), 1);
  EXPECT_EQ(*DraftsAsked(R"({"method":"mtp"})", {}), 1);
  EXPECT_EQ(*DraftsAsked(R"({"method":"mtp","num_speculative_tokens":5})", {}), 5);
}

TEST(SpeculativeConfigTest, RefusesByName) {
  const struct {
    std::string json;
    SpeculativeConfig parts;
    std::string message;
  } kCases[] = {
      {"{", {}, "must be a JSON object"},
      {"[1]", {}, "must be a JSON object"},
      {"{}", {}, "--speculative-config.method is not given"},
      {R"({"num_speculative_tokens":3})", {}, "--speculative-config.method is not given"},
      {R"({"method":"mtp","model":"x"})", {}, "'model' is not known"},
      {R"({"method":5})", {}, "method is 5, it must be a string"},
      {R"({"method":"eagle"})", {}, "method is \"eagle\", it must be \"mtp\""},
      {R"({"method":"mtp","num_speculative_tokens":"3"})", {}, "num_speculative_tokens is \"3\""},
      {R"({"method":"mtp","num_speculative_tokens":1.5})", {}, "num_speculative_tokens is 1.5"},
      {R"({"method":"mtp","num_speculative_tokens":18446744073709551615})",
       {},
       "num_speculative_tokens is 18446744073709551615"},
      {R"({"method":"mtp","num_speculative_tokens":0})", {}, "is 0, it must be from 1 to 5"},
      {R"({"method":"mtp","num_speculative_tokens":6})", {}, "is 6, it must be from 1 to 5"},
      {"", {.method = "", .num_speculative_tokens = 2}, "--speculative-config.method is not given"},
      {"", {.method = "mtp", .num_speculative_tokens = -1}, "is -1, it must be from 1 to 5"},
      {R"({"method":"mtp"})", {.method = "mtp", .num_speculative_tokens = {}}, "both given"},
  };
  for (const auto& c : kCases) {
    const absl::Status status = DraftsAsked(c.json, c.parts).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << c.json;
    EXPECT_THAT(std::string(status.message()), HasSubstr(c.message)) << c.json;
  }
}

}  // namespace
}  // namespace glm::worker
