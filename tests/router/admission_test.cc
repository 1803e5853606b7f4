#include "router/admit/admission.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "router/admit/retry_after.h"
#include "tests/router/virtual/virtual_time.h"

namespace glm::router {
namespace {

using std::chrono::milliseconds;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

class AdmissionTest : public ::testing::Test {
 protected:
  void Make() {
    admission_ = std::make_unique<Admission>(
        options_, *ParseHashKey(""),
        AdmissionRooms{.loop = &loop_, .metrics = &metrics_, .room = [this] { return room_; }});
  }

  WaitRequest Of(std::string_view tenant, int64_t prompt_tokens = 100) {
    return {.tenant = admission_->TenantOf(tenant),
            .prompt_tokens = prompt_tokens,
            .answer_tokens_max = 1,
            .timeout_ms = 60'000};
  }

  /// Lines `name` up. When it is its turn it is sent at once, and takes room; a name in `in_vain_`
  /// is put back. Returns its ticket, 0 when it was refused.
  uint64_t Wait(const std::string& name, const WaitRequest& request) {
    const auto ticket = std::make_shared<uint64_t>(0);
    const absl::StatusOr<uint64_t> made =
        admission_->Wait(request, &other_loop_, [this, name, ticket] {
          turns_.push_back(name);
          if (in_vain_.contains(name)) return admission_->PutBack(*ticket, others_fit_);
          --room_;
          sent_.push_back(name);
          admission_->Sent(*ticket, now_ms());
        });
    refusal_ = made.status();
    if (made.ok()) *ticket = *made;
    return *ticket;
  }

  int64_t now_ms() const { return NowMs(loop_); }
  void Pass(milliseconds time) { time_.RunUntil(time_.now() + time); }

  void MakeRoom(int64_t requests) {
    room_ += requests;
    admission_->RoomChanged();
    Pass(milliseconds(1));
  }

  AdmitOptions options_;
  VirtualTime time_{1};
  VirtualLoop loop_{&time_, 0};
  VirtualLoop other_loop_{&time_, 1};
  RouterMetrics metrics_;
  int64_t room_ = 0;
  std::unique_ptr<Admission> admission_;
  std::vector<std::string> turns_;
  std::vector<std::string> sent_;
  std::set<std::string> in_vain_;
  bool others_fit_ = false;
  absl::Status refusal_;
};

TEST_F(AdmissionTest, WhoWaitsGoesWhenThereIsRoom) {
  Make();
  EXPECT_FALSE(admission_->IsLinedUp());
  Wait("a", Of("one"));
  Wait("b", Of("one"));
  Wait("c", Of("one"));
  EXPECT_TRUE(admission_->IsLinedUp());
  Pass(milliseconds(1000));
  EXPECT_THAT(turns_, ElementsAre());
  MakeRoom(2);
  EXPECT_THAT(sent_, ElementsAre("a", "b"));
  MakeRoom(5);
  EXPECT_THAT(sent_, ElementsAre("a", "b", "c"));
  EXPECT_FALSE(admission_->IsLinedUp());
  EXPECT_EQ(admission_->counts(), Admission::Counts{});
  EXPECT_THAT(metrics_.Text(), HasSubstr("glmserve_router_queue_wait_seconds_count 3"));
}

TEST_F(AdmissionTest, RoomThatNobodySpokeOfIsFoundAllTheSame) {
  Make();
  Wait("a", Of("one"));
  Pass(milliseconds(10));
  room_ = 1;
  Pass(milliseconds(60));
  EXPECT_THAT(sent_, ElementsAre("a"));
}

TEST_F(AdmissionTest, PutBackStaysFirst) {
  Make();
  Wait("a", Of("one"));
  Wait("b", Of("two"));
  in_vain_ = {"a"};
  room_ = 1;
  Pass(milliseconds(1));
  EXPECT_EQ(turns_.at(0), "a");
  EXPECT_THAT(sent_, ElementsAre());
  in_vain_ = {};
  MakeRoom(0);
  EXPECT_THAT(sent_, ElementsAre("a"));
  MakeRoom(1);
  EXPECT_THAT(sent_, ElementsAre("a", "b"));
}

TEST_F(AdmissionTest, WhatFitsNowhereLetsOthersPass) {
  Make();
  Wait("long", Of("one"));
  Wait("b", Of("two"));
  in_vain_ = {"long"};
  others_fit_ = true;
  room_ = 1;
  Pass(milliseconds(5));
  EXPECT_THAT(sent_, ElementsAre("b"));
  const size_t turns = turns_.size();
  MakeRoom(1);
  Pass(milliseconds(1000));
  EXPECT_LE(turns_.size() - turns, 101u);  // it tries again, and not all the time
  EXPECT_GE(turns_.size() - turns, 20u);
  in_vain_ = {};
  Pass(milliseconds(100));
  EXPECT_THAT(sent_, ElementsAre("b", "long"));
  EXPECT_EQ(admission_->counts(), Admission::Counts{});
}

TEST_F(AdmissionTest, AReplayGoesBeforeAllAndNeedsNoRoom) {
  options_.queue_requests_max = 1;
  Make();
  room_ = -1;  // no worker is ready
  Wait("new", Of("one"));
  WaitRequest request = Of("one", options_.queue_tokens_max + 1);
  request.replay = true;
  EXPECT_NE(Wait("replay", request), 0u);  // whatever the bounds
  Pass(milliseconds(100));
  EXPECT_THAT(turns_, ElementsAre());
  room_ = 0;  // a worker came, and is full
  admission_->RoomChanged();
  Pass(milliseconds(1));
  EXPECT_THAT(sent_, ElementsAre("replay"));
  MakeRoom(3);
  EXPECT_THAT(sent_, ElementsAre("replay", "new"));
}

TEST_F(AdmissionTest, TheNumberOfThoseThatWaitIsBounded) {
  options_.queue_requests_max = 3;
  options_.queue_tenant_share = 1;
  Make();
  for (int i = 0; i < 3; ++i) EXPECT_NE(Wait(absl::StrCat(i), Of("one")), 0u);
  EXPECT_EQ(Wait("x", Of("two")), 0u);
  EXPECT_EQ(refusal_.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(refusal_.message(),
            "3 requests wait for a worker; the limit is 3 (--queue-requests-max)");
  EXPECT_EQ(RetryAfterOf(refusal_), 1);
  // Known before a body is read, too.
  EXPECT_EQ(admission_->CheckBounds({}, now_ms()).message(), refusal_.message());
  EXPECT_FALSE(admission_->Enter({}, 0, 1000, now_ms()).ok());
  EXPECT_THAT(metrics_.Text(), HasSubstr("refusals_total{reason=\"queue_requests\"} 3"));
  MakeRoom(1);
  EXPECT_NE(Wait("y", Of("two")), 0u);
  MakeRoom(3);
}

TEST_F(AdmissionTest, TheTokensOfThoseThatWaitAreBounded) {
  options_.queue_tokens_max = 1000;
  options_.queue_tenant_share = 1;
  Make();
  EXPECT_EQ(Wait("all", Of("one", 1001)), 0u);
  EXPECT_NE(Wait("a", Of("one", 600)), 0u);
  EXPECT_EQ(Wait("b", Of("two", 401)), 0u);
  EXPECT_EQ(refusal_.message(),
            "requests of 600 prompt tokens wait for a worker; the limit is 1000 "
            "(--queue-tokens-max)");
  EXPECT_NE(Wait("c", Of("two", 400)), 0u);
  EXPECT_EQ(admission_->counts().waiting_tokens, 1000);
  MakeRoom(2);
  EXPECT_EQ(admission_->counts().waiting_tokens, 0);
}

TEST_F(AdmissionTest, ATenantHasItsShareOfTheQueue) {
  options_.queue_requests_max = 8;
  options_.queue_tokens_max = 1000;
  options_.queue_tenant_share = 0.5;
  Make();
  for (int i = 0; i < 4; ++i) EXPECT_NE(Wait(absl::StrCat(i), Of("one", 1)), 0u);
  EXPECT_EQ(Wait("x", Of("one", 1)), 0u);
  EXPECT_THAT(std::string(refusal_.message()), HasSubstr("4 requests of this API key"));
  EXPECT_NE(Wait("y", Of("two", 300)), 0u);
  EXPECT_EQ(Wait("z", Of("two", 201)), 0u);
  EXPECT_NE(Wait("z", Of("two", 200)), 0u);
  EXPECT_NE(Wait("w", Of("three", 490)), 0u);  // more than half of the rest, and its only one
  EXPECT_THAT(metrics_.Text(), HasSubstr("refusals_total{reason=\"tenant_share\"} 2"));
  MakeRoom(10);
}

TEST_F(AdmissionTest, TheNumberOfRequestsInTheRouterIsBounded) {
  options_.requests_max = 2;
  Make();
  EXPECT_TRUE(admission_->Enter({}, 0, 1000, 0).ok());
  EXPECT_TRUE(admission_->Enter({}, 0, 1000, 0).ok());
  const absl::Status refusal = admission_->Enter({}, 0, 1000, 0);
  EXPECT_EQ(refusal.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(refusal.message(), "2 requests are in the router; the limit is 2 (--requests-max)");
  EXPECT_TRUE(RetryAfterOf(refusal).has_value());
  admission_->Leave({}, 5);
  EXPECT_TRUE(admission_->Enter({}, 0, 1000, 0).ok());
  admission_->Leave({}, 5);
  admission_->Leave({}, 0);
  EXPECT_THAT(metrics_.Text(), HasSubstr("glmserve_router_requests_open 0"));
}

TEST_F(AdmissionTest, WhoWouldWaitTooLongIsToldAtOnceAndForHowLong) {
  options_.queue_wait_max_ms = 5000;
  options_.queue_tenant_share = 1;
  Make();
  // 10 requests a second of 101 tokens are served.
  for (int i = 0; i < 60; ++i) ASSERT_NE(Wait(absl::StrCat(i), Of("one")), 0u);
  for (int i = 0; i < 30; ++i) {
    MakeRoom(1);
    Pass(milliseconds(99));
  }
  EXPECT_EQ(sent_.size(), 30u);
  const TenantId one = admission_->TenantOf("one");
  const int64_t now_ms = this->now_ms();
  EXPECT_TRUE(admission_->Enter(one, 0, 60'000, now_ms).ok());  // 3 s
  // Its own limit counts too.
  const absl::Status own = admission_->Enter(one, 0, 2000, now_ms);
  EXPECT_THAT(std::string(own.message()), HasSubstr("the limit is 2000 ms (the request's own)"));
  for (int i = 0; i < 25; ++i) Wait(absl::StrCat(i), Of("one"));
  const absl::Status refusal = admission_->Enter(one, 0, 60'000, now_ms);
  EXPECT_EQ(refusal.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(refusal.message()), HasSubstr("the limit is 5000 ms (--queue-wait-max"));
  EXPECT_EQ(RetryAfterOf(refusal), 6);  // 5.5 s
  EXPECT_EQ(Wait("late", Of("one")), 0u);
  // Another's turn comes sooner, and so does that of the important.
  EXPECT_TRUE(admission_->Enter(admission_->TenantOf("two"), 0, 60'000, now_ms).ok());
  EXPECT_TRUE(admission_->Enter(one, -1, 60'000, now_ms).ok());
  for (int i = 0; i < 3; ++i) admission_->Leave(one, 0);
  MakeRoom(100);
}

TEST_F(AdmissionTest, WhereNothingMovesTheWaitSoFarIsTheGuess) {
  options_.queue_wait_max_ms = 10'000;
  Make();
  Wait("a", Of("one"));
  Pass(milliseconds(9900));
  EXPECT_TRUE(admission_->Enter(admission_->TenantOf("one"), 0, 60'000, now_ms()).ok());
  admission_->Leave({}, 0);
  Pass(milliseconds(200));
  const absl::Status refusal = admission_->Enter(admission_->TenantOf("one"), 0, 60'000, now_ms());
  EXPECT_EQ(RetryAfterOf(refusal), 11);
  MakeRoom(1);
}

TEST_F(AdmissionTest, WithoutAWorkerThereIsNoPrediction) {
  Make();
  room_ = -1;
  Wait("a", Of("one"));
  Pass(std::chrono::seconds(100));
  EXPECT_NE(Wait("b", Of("one")), 0u);
  room_ = 5;
  Pass(milliseconds(100));
  EXPECT_EQ(sent_.size(), 2u);
}

TEST_F(AdmissionTest, TimedOutSaysSo) {
  Make();
  const absl::Status status = admission_->TimedOut({}, 0, 30'000, 0);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("within 30000 ms (--queue-timeout-ms"));
  EXPECT_EQ(RetryAfterOf(status), 1);
  EXPECT_THAT(metrics_.Text(), HasSubstr("refusals_total{reason=\"timeout\"} 1"));
}

TEST_F(AdmissionTest, TenantsAreToldApartByDigest) {
  Make();
  EXPECT_EQ(admission_->TenantOf(""), TenantId{});
  EXPECT_EQ(admission_->TenantOf("Bearer a"), admission_->TenantOf("Bearer a"));
  EXPECT_NE(admission_->TenantOf("Bearer a"), admission_->TenantOf("Bearer b"));
  EXPECT_NE(admission_->TenantOf("Bearer a"), TenantId{});
}

TEST_F(AdmissionTest, ACancelInAnyPhaseLeavesNothingBehind) {
  Make();
  const uint64_t queued = Wait("queued", Of("one"));
  admission_->Cancel(queued);
  EXPECT_EQ(admission_->counts(), Admission::Counts{});

  WaitRequest request = Of("one");
  request.replay = true;
  room_ = -1;
  admission_->Cancel(Wait("replay", request));
  EXPECT_EQ(admission_->counts(), Admission::Counts{});

  // When it is its turn, and it does not know yet.
  std::vector<uint64_t> granted;
  room_ = 1;
  const auto first = admission_->Wait(Of("one"), &other_loop_, [&] { granted.push_back(1); });
  Wait("second", Of("one"));
  while (granted.empty()) ASSERT_TRUE(time_.RunNext());
  EXPECT_EQ(admission_->counts().granted, 1);
  admission_->Cancel(*first);
  Pass(milliseconds(1));
  EXPECT_THAT(sent_, ElementsAre("second"));  // its room is another's
  EXPECT_EQ(admission_->counts(), Admission::Counts{});

  in_vain_ = {"first", "parked"};
  room_ = 1;
  const uint64_t put_back = Wait("first", Of("one"));
  Pass(milliseconds(1));
  room_ = 0;
  Pass(milliseconds(1));
  admission_->Cancel(put_back);
  others_fit_ = true;
  room_ = 1;
  const uint64_t parked = Wait("parked", Of("one"));
  Pass(milliseconds(1));
  EXPECT_EQ(admission_->counts().lined_up, 0);  // nobody waits for it
  EXPECT_EQ(admission_->counts().waiting, 1);
  admission_->Cancel(parked);
  EXPECT_EQ(admission_->counts(), Admission::Counts{});
  Pass(milliseconds(1000));
  EXPECT_FALSE(time_.RunNext());  // nothing goes on ticking
}

}  // namespace
}  // namespace glm::router
