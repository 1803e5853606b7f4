#include "router/fleet/membership.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <future>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "tests/support/temp_folder.h"

namespace glm::router {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(ParseMemberList, OneALineEachOnce) {
  EXPECT_THAT(
      *ParseMemberList("# all of them\n a:1 \n\nb:2 # the big one\r\n[::1]:3\nunix:/w\na:1"),
      ElementsAre("a:1", "b:2", "[::1]:3", "unix:/w"));
  EXPECT_TRUE(ParseMemberList("")->empty());
  EXPECT_THAT(std::string(ParseMemberList("a:1\nb\n").status().message()),
              HasSubstr("line 2: 'b' must be host:port"));
}

TEST(ResolveHost, KnowsThisHost) {
  const auto addresses = ResolveHost("localhost");
  ASSERT_TRUE(addresses.ok()) << addresses.status();
  EXPECT_THAT(*addresses, ::testing::AnyOf(Contains("127.0.0.1"), Contains("[::1]")));
  EXPECT_THAT(*ResolveHost("::1"), ElementsAre("[::1]"));
  EXPECT_EQ(ResolveHost("no-such-host.invalid").status().code(), absl::StatusCode::kUnavailable);
}

class MembershipTest : public ::testing::Test {
 protected:
  void WriteFile(const std::string& text) {
    std::ofstream(path_ + ".new") << text;
    std::filesystem::rename(path_ + ".new", path_);
  }
  absl::Status Start(const MembershipOptions& options, Membership::Resolve resolve = ResolveHost) {
    auto membership = Membership::Start(
        options,
        [this](MemberSource source, std::vector<std::string> addresses) {
          MutexLock lock(&mutex_);
          if (addresses.size() > 2) return absl::ResourceExhaustedError("the limit is 2");
          members_[source] = std::move(addresses);
          ++calls_;
          return absl::OkStatus();
        },
        &metrics_, std::move(resolve));
    if (membership.ok()) membership_ = *std::move(membership);
    return membership.status();
  }
  std::vector<std::string> Members(MemberSource source) {
    MutexLock lock(&mutex_);
    return members_[source];
  }
  int32_t Calls() {
    MutexLock lock(&mutex_);
    return calls_;
  }
  template <typename Condition>
  static bool Await(Condition condition) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(30);
    while (!condition()) {
      if (std::chrono::steady_clock::now() > deadline) return false;
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    return true;
  }
  bool Errors(const std::string& source, int32_t count) const {
    return metrics_.Text().find("glmserve_router_member_errors_total{source=\"" + source + "\"} " +
                                std::to_string(count)) != std::string::npos;
  }

  const test::TempFolder folder_;
  const std::string path_ = folder_.path() + "/workers";
  RouterMetrics metrics_;
  Mutex mutex_;
  std::map<MemberSource, std::vector<std::string>> members_ ABSL_GUARDED_BY(mutex_);
  int32_t calls_ ABSL_GUARDED_BY(mutex_) = 0;
  std::unique_ptr<Membership> membership_;
};

TEST_F(MembershipTest, AFileIsFollowedAndABadOneChangesNothing) {
  WriteFile("a:1\n");
  ASSERT_TRUE(Start({.file = path_}).ok());
  EXPECT_THAT(Members(MemberSource::kFile), ElementsAre("a:1"));
  WriteFile("a:1\nb:2\n");
  EXPECT_TRUE(Await([&] { return Members(MemberSource::kFile).size() == 2; }));
  WriteFile("b:2\nnonsense\n");
  EXPECT_TRUE(Await([&] { return Errors("file", 1); }));
  WriteFile("a:1\nb:2\nc:3\n");  // more than are taken
  EXPECT_TRUE(Await([&] { return Errors("file", 2); }));
  std::filesystem::remove(path_);
  EXPECT_TRUE(Await([&] { return Errors("file", 3); }));
  EXPECT_THAT(Members(MemberSource::kFile), ElementsAre("a:1", "b:2"));
  WriteFile("");  // an empty list is a list
  EXPECT_TRUE(Await([&] { return Members(MemberSource::kFile).empty(); }));
}

TEST_F(MembershipTest, AFileThatIsBadAtTheStartIsAWrongFlag) {
  const absl::Status missing = Start({.file = path_});
  EXPECT_EQ(missing.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(missing.message()), HasSubstr("--workers-file=" + path_));
  WriteFile("nonsense");
  EXPECT_THAT(std::string(Start({.file = path_}).message()), HasSubstr("line 1: 'nonsense'"));
}

TEST_F(MembershipTest, ANameIsResolvedAgainAndAFailureEvictsNobody) {
  std::atomic<int32_t> mode{0};
  std::atomic<int32_t> looked{0};
  ASSERT_TRUE(Start({.dns = "workers.local:7", .dns_interval_s = 1},
                    [&](const std::string& host) -> absl::StatusOr<std::vector<std::string>> {
                      EXPECT_EQ(host, "workers.local");
                      ++looked;
                      if (mode == 0) return std::vector<std::string>{"10.0.0.1", "[fd00::2]"};
                      if (mode == 1) return absl::UnavailableError("SERVFAIL");
                      return std::vector<std::string>{"10.0.0.3"};
                    })
                  .ok());
  EXPECT_TRUE(Await([&] { return Members(MemberSource::kDns).size() == 2; }));
  EXPECT_THAT(Members(MemberSource::kDns), ElementsAre("10.0.0.1:7", "[fd00::2]:7"));
  mode = 1;
  EXPECT_TRUE(Await([&] { return Errors("dns", 1); }));
  EXPECT_THAT(Members(MemberSource::kDns), ElementsAre("10.0.0.1:7", "[fd00::2]:7"));
  mode = 2;
  EXPECT_TRUE(Await([&] { return Members(MemberSource::kDns).size() == 1; }));
  EXPECT_THAT(Members(MemberSource::kDns), ElementsAre("10.0.0.3:7"));
}

TEST_F(MembershipTest, TheEndDoesNotWaitForALookUpThatHangs) {
  auto release = std::make_shared<std::promise<void>>();
  auto hanging = std::make_shared<std::promise<void>>();
  ASSERT_TRUE(Start({.dns = "[::1]:7"},
                    [release,
                     hanging](const std::string& host) -> absl::StatusOr<std::vector<std::string>> {
                      EXPECT_EQ(host, "::1");
                      hanging->set_value();
                      release->get_future().wait();
                      return std::vector<std::string>{"10.0.0.1"};
                    })
                  .ok());
  hanging->get_future().wait();
  membership_ = nullptr;
  release->set_value();
  EXPECT_EQ(Calls(), 0);
}

}  // namespace
}  // namespace glm::router
