// Workers that register themselves: the real worker's end against the real router's.
#include "router/fleet/registry.h"

#include <gmock/gmock.h>
#include <grpcpp/create_channel.h>
#include <gtest/gtest.h>

#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "proto/bearer_token.h"
#include "proto/registry.grpc.pb.h"
#include "tests/support/temp_folder.h"
#include "worker/registration.h"

namespace glm::router {
namespace {

using std::chrono::milliseconds;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using worker::Registration;

/// Longer than any test waits: what goes within it was told to.
constexpr int32_t kLongGraceS = 3600;

TEST(AnnouncedAddress, TakesTheCallersHostWhenNoneIsSaid) {
  EXPECT_EQ(*AnnouncedAddress("host:7", "ipv4:10.0.0.1:4711"), "host:7");
  EXPECT_EQ(*AnnouncedAddress(":7", "ipv4:10.0.0.1:4711"), "10.0.0.1:7");
  EXPECT_EQ(*AnnouncedAddress(":7", "ipv6:%5B::1%5D:4711"), "[::1]:7");
  EXPECT_EQ(*AnnouncedAddress("unix:/w", "unix:"), "unix:/w");
  for (const char* bad : {"", "host", ":7", "host:0"}) {
    EXPECT_THAT(std::string(AnnouncedAddress(bad, "unix:").status().message()),
                HasSubstr("must be host:port"))
        << bad;
  }
  EXPECT_FALSE(AnnouncedAddress(std::string(300, 'a') + ":7", "unix:").ok());
}

class RegistrationsTest : public ::testing::Test {
 protected:
  bool Forget(milliseconds at) {
    return registrations_.ForgetLost(start_ + at, [this](const auto&) { return reached_; });
  }
  const Registrations::Clock::time_point start_ = Registrations::Clock::now();
  Registrations registrations_{milliseconds(1000)};
  bool reached_ = false;
};

TEST_F(RegistrationsTest, WhoLeavesIsForgottenAtOnce) {
  registrations_.Join("a:1");
  registrations_.Join("a:1");  // it came back before its old stream was seen to break
  registrations_.Part("a:1", /*leaves=*/false, start_);
  EXPECT_FALSE(Forget(milliseconds(5000))) << "a stream is left";
  registrations_.Part("a:1", /*leaves=*/true, start_);
  EXPECT_TRUE(registrations_.Addresses().empty());
}

TEST_F(RegistrationsTest, WhoBreaksIsKeptForTheGraceAndWhileItIsReached) {
  registrations_.Join("b:1");
  registrations_.Join("a:1");
  registrations_.Part("a:1", /*leaves=*/false, start_);
  EXPECT_THAT(registrations_.Addresses(), ElementsAre("a:1", "b:1"));
  EXPECT_FALSE(Forget(milliseconds(999)));
  reached_ = true;
  EXPECT_FALSE(Forget(milliseconds(60'000))) << "its session lives: the registry is not its health";
  reached_ = false;
  EXPECT_FALSE(Forget(milliseconds(60'999)));
  EXPECT_TRUE(Forget(milliseconds(61'000)));
  EXPECT_THAT(registrations_.Addresses(), ElementsAre("b:1"));
}

class RegistryTest : public ::testing::Test {
 protected:
  void Start(int32_t grace_s, int32_t port = 0) {
    std::ofstream(folder_.path() + "/token") << "0123456789abcdef\n";
    std::ofstream(folder_.path() + "/wrong") << "fedcba9876543210\n";
    // Not when it starts anew: registrations use them.
    if (tokens_ == nullptr) tokens_ = *TokenFile::Open("token-file", folder_.path() + "/token");
    if (wrong_ == nullptr) wrong_ = *TokenFile::Open("token-file", folder_.path() + "/wrong");
    MembershipOptions options;
    options.registry_listen = "127.0.0.1:" + std::to_string(port);
    options.registration_grace_s = grace_s;
    auto registry = Registry::Start(
        options, {.set_members =
                      [this](MemberSource source, std::vector<std::string> addresses) {
                        EXPECT_EQ(source, MemberSource::kRegistry);
                        MutexLock lock(&mutex_);
                        if (addresses.size() > 2) return absl::ResourceExhaustedError("limit 2");
                        members_ = std::move(addresses);
                        return absl::OkStatus();
                      },
                  .reached = [](const std::string&) { return false; },
                  .metrics = &metrics_,
                  .tokens = tokens_.get()});
    ASSERT_TRUE(registry.ok()) << registry.status();
    registry_ = *std::move(registry);
  }
  std::unique_ptr<Registration> Register(const std::string& announcement, const TokenFile* tokens) {
    Registration::Options options;
    options.router = "127.0.0.1:" + std::to_string(registry_->port());
    options.announcement = announcement;
    options.backoff_initial = milliseconds(5);
    options.backoff_max = milliseconds(50);
    return std::make_unique<Registration>(options, grpc::InsecureChannelCredentials(), tokens);
  }
  bool AwaitMembers(const std::vector<std::string>& members) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(30);
    while (std::chrono::steady_clock::now() < deadline) {
      {
        MutexLock lock(&mutex_);
        if (members_ == members) return true;
      }
      std::this_thread::sleep_for(milliseconds(2));
    }
    return false;
  }
  /// What the registry says to an announcement.
  grpc::Status Announce(uint32_t version, const std::string& address, int32_t times = 1) {
    const auto stub = glmserve::registry::v1::Registry::NewStub(grpc::CreateChannel(
        "127.0.0.1:" + std::to_string(registry_->port()), grpc::InsecureChannelCredentials()));
    grpc::ClientContext call;
    call.AddMetadata("authorization", tokens_->Authorization());
    const auto stream = stub->Register(&call);
    glmserve::registry::v1::Announcement announcement;
    announcement.set_protocol_version(version);
    announcement.set_address(address);
    for (int32_t i = 0; i < times; ++i) stream->Write(announcement);
    glmserve::registry::v1::Registered answer;
    while (stream->Read(&answer)) {
    }
    return stream->Finish();
  }

  const test::TempFolder folder_;
  RouterMetrics metrics_;
  Mutex mutex_;
  std::vector<std::string> members_ ABSL_GUARDED_BY(mutex_);
  std::unique_ptr<TokenFile> tokens_;
  std::unique_ptr<TokenFile> wrong_;
  std::unique_ptr<Registry> registry_;
};

TEST_F(RegistryTest, AWorkerComesAndLeaves) {
  Start(kLongGraceS);
  const auto first = Register(":7", tokens_.get());
  EXPECT_TRUE(AwaitMembers({"127.0.0.1:7"}));
  const auto second = Register("unix:/w", tokens_.get());
  EXPECT_TRUE(AwaitMembers({"127.0.0.1:7", "unix:/w"}));
  first->Leave();
  EXPECT_TRUE(AwaitMembers({"unix:/w"}));
}

TEST_F(RegistryTest, AStreamThatBreaksIsForgottenAfterTheGrace) {
  Start(/*grace_s=*/0);
  auto registration = Register("a:7", tokens_.get());
  EXPECT_TRUE(AwaitMembers({"a:7"}));
  registration = nullptr;  // as if the process had died
  EXPECT_TRUE(AwaitMembers({}));
}

TEST_F(RegistryTest, OnlyTheTokenOpens) {
  Start(kLongGraceS);
  const auto none = Register("a:7", nullptr);
  const auto wrong = Register("b:7", wrong_.get());
  const auto good = Register("c:7", tokens_.get());
  EXPECT_TRUE(AwaitMembers({"c:7"}));
  while (metrics_.Text().find("member_errors_total{source=\"registry\"} 0") != std::string::npos) {
    std::this_thread::sleep_for(milliseconds(2));
  }
  EXPECT_TRUE(AwaitMembers({"c:7"}));
}

TEST_F(RegistryTest, ARouterThatComesBackIsToldAgain) {
  Start(kLongGraceS);
  const auto registration = Register("a:7", tokens_.get());
  EXPECT_TRUE(AwaitMembers({"a:7"}));
  const int32_t port = registry_->port();
  registry_ = nullptr;
  EXPECT_TRUE(AwaitMembers({"a:7"})) << "a registry that ends evicts nobody";
  {
    MutexLock lock(&mutex_);
    members_.clear();
  }
  Start(kLongGraceS, port);
  EXPECT_TRUE(AwaitMembers({"a:7"}));
}

TEST_F(RegistryTest, BadAnnouncementsAreRefusedByName) {
  Start(/*grace_s=*/0);
  EXPECT_THAT(Announce(1, "nonsense").error_message(), HasSubstr("address='nonsense'"));
  EXPECT_EQ(Announce(2, "a:7").error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_EQ(Announce(1, "a:7", 2).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_TRUE(AwaitMembers({})) << "and what it said first is forgotten";
}

TEST_F(RegistryTest, MoreThanAreTakenAreRefused) {
  Start(kLongGraceS);
  const auto first = Register("a:7", tokens_.get());
  const auto second = Register("b:7", tokens_.get());
  EXPECT_TRUE(AwaitMembers({"a:7", "b:7"}));
  EXPECT_EQ(Announce(1, "c:7").error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_TRUE(AwaitMembers({"a:7", "b:7"}));
}

}  // namespace
}  // namespace glm::router
