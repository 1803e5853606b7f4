#include "tests/support/fake_runner.h"

#include <algorithm>

#include "proto/base/log.h"

namespace glm::engine {

int32_t FakeNextToken(const std::vector<int32_t>& tokens, uint64_t seed, int32_t vocabulary) {
  uint64_t hash = 14695981039346656037u ^ seed;
  for (const int32_t token : tokens) {
    hash = (hash ^ static_cast<uint32_t>(token)) * 1099511628211u;
    hash ^= hash >> 29;
  }
  return static_cast<int32_t>((hash >> 16) % static_cast<uint64_t>(vocabulary));
}

FakeAnswer FakeAnswerTo(const Request& request, int32_t vocabulary) {
  FakeAnswer answer;
  std::vector<int32_t> tokens = request.prompt_ids;
  while (answer.finish == FinishReason::kNone) {
    const int32_t id = FakeNextToken(tokens, request.sampling.seed, vocabulary);
    tokens.push_back(id);
    answer.token_ids.push_back(id);
    const auto count = static_cast<int32_t>(answer.token_ids.size());
    const std::vector<int32_t>& stop_ids = request.stop.stop_ids;
    if (count >= request.stop.min_tokens &&
        std::find(stop_ids.begin(), stop_ids.end(), id) != stop_ids.end()) {
      answer.finish = FinishReason::kStop;
      answer.stop_id = id;
    } else if (count == request.stop.max_tokens) {
      answer.finish = FinishReason::kLength;
    }
  }
  return answer;
}

FakeDevice::FakeDevice(const SchedulerLimits& limits, int32_t vocabulary)
    : limits_(limits),
      vocabulary_(vocabulary),
      cache_(limits.kv_blocks * limits.block_size, -1),
      last_ids_(limits.sequences_max, -1) {}

StepResult FakeDevice::Run(const StepPlan& plan) {
  const size_t sequences = plan.kv_lengths.size();
  CHECK_LE(plan.token_ids.size(), static_cast<size_t>(limits_.batched_tokens_max));
  CHECK_LE(sequences, static_cast<size_t>(limits_.sequences_max));
  CHECK_EQ(plan.query_starts.size(), sequences + 1);
  CHECK_EQ(plan.block_tables.size(), sequences * plan.blocks_max);
  CHECK_EQ(plan.sample_rows.size(), plan.logit_tokens.size());

  const auto place = [&](size_t sequence, int32_t position) -> int32_t& {
    const int32_t entry = position / limits_.block_size;
    CHECK_LT(entry, plan.blocks_max);
    const int32_t block = plan.block_tables[sequence * plan.blocks_max + entry];
    CHECK(block >= 0 && block < limits_.kv_blocks) << block;
    return cache_[int64_t{block} * limits_.block_size + position % limits_.block_size];
  };
  for (size_t t = 0; t < plan.token_ids.size(); ++t) {
    const auto sequence = static_cast<size_t>(plan.token_sequences[t]);
    CHECK_GE(static_cast<int32_t>(t), plan.query_starts[sequence]);
    CHECK_LT(static_cast<int32_t>(t), plan.query_starts[sequence + 1]);
    const int32_t from_end = plan.query_starts[sequence + 1] - static_cast<int32_t>(t);
    CHECK_EQ(plan.positions[t], plan.kv_lengths[sequence] - from_end);
    const int32_t id = plan.token_ids[t];
    place(sequence, plan.positions[t]) = id >= 0 ? id : last_ids_[~id];
  }
  StepResult result;
  result.step = plan.step;
  result.seconds = 0.001;
  for (size_t r = 0; r < plan.logit_tokens.size(); ++r) {
    const int32_t t = plan.logit_tokens[r];
    const SampleRow& row = plan.sample_rows[r];
    CHECK_EQ(static_cast<int32_t>(row.position), plan.positions[t] + 1);
    std::vector<int32_t> tokens;
    for (int32_t position = 0; position <= plan.positions[t]; ++position) {
      tokens.push_back(place(plan.token_sequences[t], position));
    }
    result.ids.push_back(FakeNextToken(tokens, row.seed, vocabulary_));
    last_ids_[row.slot] = result.ids.back();
  }
  return result;
}

StepResult FakeRunner::Wait() {
  CHECK(!plans_.empty());
  {
    MutexLock lock(&gate_mutex_);
    waiter_ = true;
    gate_changed_.SignalAll();
    while (closed_ && passes_ == 0) gate_changed_.Wait(&gate_mutex_);
    waiter_ = false;
    passes_ = closed_ ? passes_ - 1 : 0;
  }
  const StepPlan* plan = plans_.front();
  plans_.pop_front();
  return device_.Run(*plan);
}

void FakeRunner::CloseGate() {
  MutexLock lock(&gate_mutex_);
  closed_ = true;
}

void FakeRunner::OpenGate() {
  MutexLock lock(&gate_mutex_);
  closed_ = false;
  gate_changed_.SignalAll();
}

void FakeRunner::AwaitWaiter() {
  MutexLock lock(&gate_mutex_);
  while (!waiter_ || passes_ > 0) gate_changed_.Wait(&gate_mutex_);
}

void FakeRunner::PassOne() {
  MutexLock lock(&gate_mutex_);
  ++passes_;
  gate_changed_.SignalAll();
}

}  // namespace glm::engine
