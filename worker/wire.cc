#include "worker/wire.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace glm::worker {

namespace pb = ::glmserve::worker::v1;

namespace {

constexpr uint32_t kIntegerMax = std::numeric_limits<int32_t>::max();

/// Takes fields over one by one; the first that does not fit is kept, and the rest is harmless.
class Fields {
 public:
  void Take(absl::string_view name, uint32_t value, int32_t* out) {
    if (value > kIntegerMax) return Fail(name, value, kIntegerMax);
    *out = static_cast<int32_t>(value);
  }

  template <typename Ids>
  void TakeIds(absl::string_view name, const Ids& ids, size_t count_max,
               std::vector<int32_t>* out) {
    const size_t count = static_cast<size_t>(ids.size());
    if (!CheckCount(name, count, count_max)) return;
    out->resize(count);
    for (size_t i = 0; i < count; ++i) {
      const uint32_t id = ids.Get(static_cast<int>(i));
      if (id > kIntegerMax) return Fail(absl::StrCat(name, "[", i, "]"), id, kIntegerMax);
      (*out)[i] = static_cast<int32_t>(id);
    }
  }

  bool CheckCount(absl::string_view name, size_t count, size_t count_max) {
    if (count <= count_max) return true;
    Fail(absl::StrCat(name, " (how many)"), count, count_max);
    return false;
  }

  const absl::Status& status() const { return status_; }

 private:
  void Fail(absl::string_view name, size_t value, size_t limit) {
    if (!status_.ok()) return;
    status_ =
        absl::InvalidArgumentError(absl::StrCat(name, "=", value, " must be at most ", limit));
  }

  absl::Status status_;
};

void TakeSampling(const pb::Sampling& wire, Fields* fields, engine::SamplingParams* sampling) {
  sampling->temperature = wire.temperature();
  sampling->top_p = wire.top_p();
  sampling->min_p = wire.min_p();
  sampling->top_k = wire.top_k();
  if (wire.has_repetition_penalty()) sampling->repetition_penalty = wire.repetition_penalty();
  sampling->frequency_penalty = wire.frequency_penalty();
  sampling->presence_penalty = wire.presence_penalty();
  sampling->seed = wire.seed();
  sampling->choice = wire.choice();
  if (wire.has_logprobs()) fields->Take("logprobs", wire.logprobs(), &sampling->logprobs);
  if (wire.has_prompt_logprobs()) {
    fields->Take("prompt_logprobs", wire.prompt_logprobs(), &sampling->prompt_logprobs);
  }
  fields->TakeIds("allowed_ids", wire.allowed_ids(), kIntegerMax, &sampling->allowed_ids);
  if (fields->CheckCount("logit_bias", static_cast<size_t>(wire.logit_bias_size()),
                         engine::kLogitBiasMax)) {
    for (const pb::LogitBias& bias : wire.logit_bias()) {
      engine::LogitBias& taken = sampling->logit_bias.emplace_back();
      fields->Take("logit_bias.id", bias.id(), &taken.id);
      taken.add = bias.add();
    }
  }
  if (fields->CheckCount("bad_words", static_cast<size_t>(wire.bad_words_size()),
                         engine::kBadWordsMax)) {
    for (int i = 0; i < wire.bad_words_size(); ++i) {
      fields->TakeIds(absl::StrCat("bad_words[", i, "]"), wire.bad_words(i).ids(),
                      engine::kBadWordTokensMax, &sampling->bad_words.emplace_back());
    }
  }
}

pb::Finish ToWire(engine::FinishReason reason) {
  switch (reason) {
    case engine::FinishReason::kNone:
      return pb::FINISH_NONE;
    case engine::FinishReason::kStop:
      return pb::FINISH_STOP;
    case engine::FinishReason::kLength:
      return pb::FINISH_LENGTH;
    case engine::FinishReason::kCancelled:
      return pb::FINISH_CANCELLED;
  }
  return pb::FINISH_NONE;
}

/// Rounded up: 0 stands for "none".
uint32_t Milliseconds(double seconds) {
  constexpr double kMost = std::numeric_limits<uint32_t>::max();
  return static_cast<uint32_t>(std::clamp(std::ceil(1e3 * seconds), 0.0, kMost));
}

void ToWire(const engine::TokenLogprobs& token, pb::TokenLogprobs* wire) {
  wire->set_id(static_cast<uint32_t>(token.id));
  wire->set_logprob(token.logprob);
  wire->set_rank(static_cast<uint32_t>(token.rank));
  for (const engine::TokenLogprobs::Alternative& alternative : token.top) {
    wire->add_top_ids(static_cast<uint32_t>(alternative.id));
    wire->add_top_logprobs(alternative.logprob);
  }
}

}  // namespace

absl::StatusOr<engine::Request> FromWire(const pb::Submit& submit, engine::RequestId engine_id) {
  engine::Request request;
  Fields fields;
  request.id = engine_id;
  fields.TakeIds("prompt_ids", submit.prompt_ids(), kIntegerMax, &request.prompt_ids);
  fields.Take("generated_before", submit.generated_before(), &request.generated_before);
  TakeSampling(submit.sampling(), &fields, &request.sampling);
  const pb::Stop& stop = submit.stop();
  fields.TakeIds("stop_ids", stop.stop_ids(), engine::kStopIdsMax, &request.stop.stop_ids);
  fields.Take("max_tokens", stop.max_tokens(), &request.stop.max_tokens);
  fields.Take("min_tokens", stop.min_tokens(), &request.stop.min_tokens);
  request.priority = submit.priority();
  if (fields.CheckCount("cache_salt bytes", submit.cache_salt().size(), engine::kCacheSaltMax)) {
    request.cache_salt = submit.cache_salt();
  }
  if (!fields.status().ok()) return fields.status();
  return request;
}

void ToWire(const engine::StepEvents& events, pb::CacheChanges* wire) {
  wire->set_sequence(events.cache_sequence);
  wire->set_digest(events.cache_digest);
  for (const engine::CacheChange& change : events.cache_changes) {
    wire->add_stored(change.stored);
    wire->add_blocks(change.block.high);
    wire->add_blocks(change.block.low);
  }
}

std::vector<pb::WorkerFrame> ToWire(const engine::CacheSnapshot& snapshot) {
  std::vector<pb::WorkerFrame> frames;
  size_t next = 0;
  do {
    pb::CacheSnapshot* frame = frames.emplace_back().mutable_cache_snapshot();
    frame->set_sequence(snapshot.sequence);
    frame->set_digest(snapshot.digest);
    frame->set_first(next == 0);
    const size_t end = std::min(next + kSnapshotFrameBlocks, snapshot.blocks.size());
    for (; next < end; ++next) {
      frame->add_blocks(snapshot.blocks[next].block.high);
      frame->add_blocks(snapshot.blocks[next].block.low);
    }
    frame->set_last(next == snapshot.blocks.size());
  } while (next < snapshot.blocks.size());
  return frames;
}

void ToWire(const engine::EngineLoad& load, pb::Load* wire) {
  wire->set_requests_running(static_cast<uint32_t>(load.requests_running));
  wire->set_requests_waiting(static_cast<uint32_t>(load.requests_waiting));
  wire->set_tokens_waiting(static_cast<uint64_t>(load.tokens_waiting));
  wire->set_kv_blocks_used(static_cast<uint64_t>(load.kv_blocks_used));
  wire->set_kv_blocks_total(static_cast<uint64_t>(load.kv_blocks_total));
  wire->set_context_tokens(static_cast<uint64_t>(load.context_tokens));
}

void ToWire(const engine::StepTimes& times, pb::StepTimes* wire) {
  wire->set_base_us(static_cast<float>(times.base_us));
  wire->set_sequence_us(static_cast<float>(times.sequence_us));
  wire->set_prompt_token_us(static_cast<float>(times.prompt_token_us));
  wire->set_context_token_us(static_cast<float>(times.context_token_us));
}

void ToWire(const engine::EngineStats& stats, pb::Heartbeat* wire) {
  wire->set_step(stats.steps);
  wire->set_step_age_ms(Milliseconds(stats.step_age_s));
  wire->set_step_expected_ms(Milliseconds(stats.step_expected_s));
  ToWire(stats.load, wire->mutable_load());
}

void ToWire(const engine::RequestEvent& event, uint64_t request_id, pb::Output* wire) {
  wire->set_request_id(request_id);
  wire->mutable_token_ids()->Add(event.token_ids.begin(), event.token_ids.end());
  for (const engine::TokenLogprobs& token : event.logprobs) ToWire(token, wire->add_logprobs());
  for (const engine::TokenLogprobs& token : event.prompt_logprobs) {
    ToWire(token, wire->add_prompt_logprobs());
  }
  wire->set_finish(ToWire(event.finish));
  wire->set_stop_id(event.stop_id);
  wire->set_prompt_tokens(static_cast<uint32_t>(event.prompt_tokens));
  wire->set_cached_tokens(static_cast<uint32_t>(event.cached_tokens));
}

}  // namespace glm::worker
