#include "worker/wire.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <string>

namespace glm::worker {
namespace {

namespace pb = ::glmserve::worker::v1;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(WireTest, ARequestArrivesWhole) {
  pb::Submit submit;
  submit.add_prompt_ids(5);
  submit.add_prompt_ids(6);
  submit.set_generated_before(1);
  submit.set_priority(-7);
  submit.set_cache_salt("tenant\0a", 8);
  pb::Sampling* sampling = submit.mutable_sampling();
  sampling->set_temperature(0.5f);
  sampling->set_top_p(0.75f);
  sampling->set_top_k(9);
  sampling->set_seed(0xFFFF'FFFF'FFFF'FFFFu);
  sampling->set_min_p(0.125f);
  sampling->set_repetition_penalty(1.5f);
  sampling->set_frequency_penalty(-0.5f);
  sampling->set_presence_penalty(0.25f);
  sampling->set_choice(3);
  pb::LogitBias* bias = sampling->add_logit_bias();
  bias->set_id(11);
  bias->set_add(-100);
  sampling->add_bad_words()->add_ids(12);
  sampling->add_bad_words()->add_ids(13);
  sampling->mutable_bad_words(1)->add_ids(14);
  sampling->add_allowed_ids(15);
  sampling->set_logprobs(4);
  sampling->set_prompt_logprobs(0);
  submit.mutable_stop()->add_stop_ids(2);
  submit.mutable_stop()->set_max_tokens(20);
  submit.mutable_stop()->set_min_tokens(10);

  const absl::StatusOr<engine::Request> request = FromWire(submit, 77);
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_EQ(request->id, 77u);
  EXPECT_THAT(request->prompt_ids, ElementsAre(5, 6));
  EXPECT_EQ(request->generated_before, 1);
  EXPECT_EQ(request->priority, -7);
  EXPECT_EQ(request->cache_salt, std::string("tenant\0a", 8));
  EXPECT_EQ(request->sampling.temperature, 0.5f);
  EXPECT_EQ(request->sampling.top_p, 0.75f);
  EXPECT_EQ(request->sampling.top_k, 9);
  EXPECT_EQ(request->sampling.seed, 0xFFFF'FFFF'FFFF'FFFFu);
  EXPECT_EQ(request->sampling.min_p, 0.125f);
  EXPECT_EQ(request->sampling.repetition_penalty, 1.5f);
  EXPECT_EQ(request->sampling.frequency_penalty, -0.5f);
  EXPECT_EQ(request->sampling.presence_penalty, 0.25f);
  EXPECT_EQ(request->sampling.choice, 3u);
  ASSERT_EQ(request->sampling.logit_bias.size(), 1u);
  EXPECT_EQ(request->sampling.logit_bias[0].id, 11);
  EXPECT_EQ(request->sampling.logit_bias[0].add, -100);
  EXPECT_THAT(request->sampling.bad_words, ElementsAre(ElementsAre(12), ElementsAre(13, 14)));
  EXPECT_THAT(request->sampling.allowed_ids, ElementsAre(15));
  EXPECT_EQ(request->sampling.logprobs, 4);
  EXPECT_EQ(request->sampling.prompt_logprobs, 0);
  EXPECT_THAT(request->stop.stop_ids, ElementsAre(2));
  EXPECT_EQ(request->stop.max_tokens, 20);
  EXPECT_EQ(request->stop.min_tokens, 10);
}

TEST(WireTest, WhatIsNotSaidIsTheEnginesDefault) {
  const absl::StatusOr<engine::Request> request = FromWire(pb::Submit(), 1);
  ASSERT_TRUE(request.ok());
  EXPECT_EQ(request->sampling.repetition_penalty, 1.0f);
  EXPECT_EQ(request->sampling.logprobs, -1);
  EXPECT_EQ(request->sampling.prompt_logprobs, -1);
  EXPECT_EQ(request->generated_before, 0);
}

TEST(WireTest, RefusesByNameWhatDoesNotFit) {
  const struct {
    std::function<void(pb::Submit*)> spoil;
    std::string message;
  } kCases[] = {
      {[](pb::Submit* s) { s->add_prompt_ids(0x8000'0000u); },
       "prompt_ids[0]=2147483648 must be at most 2147483647"},
      {[](pb::Submit* s) { s->set_generated_before(0xFFFF'FFFFu); }, "generated_before="},
      {[](pb::Submit* s) { s->mutable_stop()->set_max_tokens(0x8000'0000u); }, "max_tokens="},
      {[](pb::Submit* s) { s->mutable_stop()->set_min_tokens(0x8000'0000u); }, "min_tokens="},
      {[](pb::Submit* s) {
         for (int i = 0; i < 129; ++i) s->mutable_stop()->add_stop_ids(1);
       },
       "stop_ids (how many)=129 must be at most 128"},
      {[](pb::Submit* s) { s->mutable_sampling()->set_logprobs(0x8000'0000u); }, "logprobs="},
      {[](pb::Submit* s) { s->mutable_sampling()->set_prompt_logprobs(0x8000'0000u); },
       "prompt_logprobs="},
      {[](pb::Submit* s) { s->mutable_sampling()->add_allowed_ids(0x8000'0000u); },
       "allowed_ids[0]="},
      {[](pb::Submit* s) { s->mutable_sampling()->add_logit_bias()->set_id(0x8000'0000u); },
       "logit_bias.id="},
      {[](pb::Submit* s) {
         for (int i = 0; i < 1025; ++i) s->mutable_sampling()->add_logit_bias();
       },
       "logit_bias (how many)=1025 must be at most 1024"},
      {[](pb::Submit* s) {
         for (int i = 0; i < 257; ++i) s->mutable_sampling()->add_bad_words()->add_ids(1);
       },
       "bad_words (how many)=257 must be at most 256"},
      {[](pb::Submit* s) {
         pb::TokenRun* run = s->mutable_sampling()->add_bad_words();
         for (int i = 0; i < 33; ++i) run->add_ids(1);
       },
       "bad_words[0] (how many)=33 must be at most 32"},
      {[](pb::Submit* s) { s->set_cache_salt(std::string(257, 'x')); },
       "cache_salt bytes (how many)=257 must be at most 256"},
  };
  for (const auto& c : kCases) {
    pb::Submit submit;
    c.spoil(&submit);
    const absl::Status status = FromWire(submit, 1).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << c.message;
    EXPECT_THAT(std::string(status.message()), HasSubstr(c.message));
  }
}

TEST(WireTest, AnEventLeavesWhole) {
  engine::RequestEvent event;
  event.id = 5;
  event.token_ids = {8, 9};
  event.logprobs = {{8, -0.5f, 1, {{8, -0.5f}, {3, -1.5f}}}, {9, -4.0f, 12, {}}};
  event.prompt_logprobs = {{4, -2.0f, 2, {}}};
  event.finish = engine::FinishReason::kStop;
  event.stop_id = 9;
  event.prompt_tokens = 2;
  event.cached_tokens = 1;
  pb::Output output;
  ToWire(event, 41, &output);
  EXPECT_EQ(output.request_id(), 41u);
  EXPECT_THAT(output.token_ids(), ElementsAre(8, 9));
  EXPECT_EQ(output.finish(), pb::FINISH_STOP);
  EXPECT_EQ(output.stop_id(), 9);
  EXPECT_EQ(output.prompt_tokens(), 2u);
  EXPECT_EQ(output.cached_tokens(), 1u);
  ASSERT_EQ(output.logprobs_size(), 2);
  EXPECT_EQ(output.logprobs(0).id(), 8u);
  EXPECT_EQ(output.logprobs(0).logprob(), -0.5f);
  EXPECT_EQ(output.logprobs(0).rank(), 1u);
  EXPECT_THAT(output.logprobs(0).top_ids(), ElementsAre(8, 3));
  EXPECT_THAT(output.logprobs(0).top_logprobs(), ElementsAre(-0.5f, -1.5f));
  EXPECT_EQ(output.logprobs(1).rank(), 12u);
  EXPECT_EQ(output.logprobs(1).top_ids_size(), 0);
  ASSERT_EQ(output.prompt_logprobs_size(), 1);
  EXPECT_EQ(output.prompt_logprobs(0).id(), 4u);
}

TEST(WireTest, EveryFinishHasItsName) {
  const struct {
    engine::FinishReason reason;
    pb::Finish finish;
  } kCases[] = {
      {engine::FinishReason::kNone, pb::FINISH_NONE},
      {engine::FinishReason::kStop, pb::FINISH_STOP},
      {engine::FinishReason::kLength, pb::FINISH_LENGTH},
      {engine::FinishReason::kCancelled, pb::FINISH_CANCELLED},
  };
  for (const auto& c : kCases) {
    engine::RequestEvent event;
    event.finish = c.reason;
    pb::Output output;
    ToWire(event, 1, &output);
    EXPECT_EQ(output.finish(), c.finish);
  }
}

TEST(WireTest, ALoadLeavesWhole) {
  pb::Load load;
  ToWire(engine::EngineLoad{1,
                            2,
                            int64_t{3} << 32,
                            int64_t{4} << 32,
                            int64_t{5} << 32,
                            int64_t{6} << 32,
                            {7, 8, 9, 10}},
         &load);
  EXPECT_EQ(load.requests_running(), 1u);
  EXPECT_EQ(load.requests_waiting(), 2u);
  EXPECT_EQ(load.tokens_waiting(), uint64_t{3} << 32);
  EXPECT_EQ(load.kv_blocks_used(), uint64_t{4} << 32);
  EXPECT_EQ(load.kv_blocks_total(), uint64_t{5} << 32);
  EXPECT_EQ(load.context_tokens(), uint64_t{6} << 32);
  EXPECT_FALSE(load.has_step_times()) << "the session knows whether they are news";
}

TEST(WireTest, StepTimesLeaveWhole) {
  pb::StepTimes times;
  ToWire(
      engine::StepTimes{
          .base_us = 1.5, .sequence_us = 2.5, .prompt_token_us = 3.5, .context_token_us = 0.0625},
      &times);
  EXPECT_EQ(times.base_us(), 1.5f);
  EXPECT_EQ(times.sequence_us(), 2.5f);
  EXPECT_EQ(times.prompt_token_us(), 3.5f);
  EXPECT_EQ(times.context_token_us(), 0.0625f);
}

TEST(WireTest, AHeartbeatRoundsUpAndStaysInRange) {
  engine::EngineStats stats;
  stats.steps = 12;
  stats.load.requests_running = 3;
  pb::Heartbeat none;
  ToWire(stats, &none);
  EXPECT_EQ(none.step(), 12u);
  EXPECT_EQ(none.step_age_ms(), 0u);
  EXPECT_EQ(none.step_expected_ms(), 0u);
  EXPECT_EQ(none.load().requests_running(), 3u);
  stats.step_age_s = 1e-6;  // a step is under way
  stats.step_expected_s = 0.0201;
  pb::Heartbeat some;
  ToWire(stats, &some);
  EXPECT_EQ(some.step_age_ms(), 1u);
  EXPECT_EQ(some.step_expected_ms(), 21u);
  stats.step_age_s = 1e12;
  ToWire(stats, &some);
  EXPECT_EQ(some.step_age_ms(), 0xFFFF'FFFFu);
}

}  // namespace
}  // namespace glm::worker
