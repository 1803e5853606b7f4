#include "tests/support/fake_runner.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <numeric>

#include "proto/base/log.h"

namespace glm::engine {
namespace {

constexpr float kBan = -std::numeric_limits<float>::infinity();

uint64_t Mix(uint64_t a, uint64_t b) {
  uint64_t x = a + 0x9E3779B97F4A7C15u * (b + 1);
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

float Unit(uint64_t hash) { return static_cast<float>(hash >> 40) * (1.0f / (1 << 24)); }

/// What the fake model says of every id after `tokens`.
std::vector<float> Logits(const std::vector<int32_t>& tokens, int32_t vocabulary) {
  uint64_t hash = 1;
  for (const int32_t token : tokens) hash = Mix(hash, static_cast<uint32_t>(token));
  std::vector<float> logits(vocabulary);
  for (int32_t id = 0; id < vocabulary; ++id) logits[id] = 8 * Unit(Mix(hash, id)) - 2;
  return logits;
}

struct Drawing {
  SampleRow row;           // edits and mask apart
  std::vector<float> add;  // by id
};

/// The id drawn at the position after `tokens`.
int32_t Draw(std::vector<float> logits, const std::vector<int32_t>& tokens, const Drawing& how) {
  const SampleRow& row = how.row;
  std::vector<int32_t> all(logits.size(), 0);
  std::vector<int32_t> answer(logits.size(), 0);
  for (size_t i = 0; i < tokens.size(); ++i) {
    ++all[tokens[i]];
    if (static_cast<int32_t>(i) >= row.prompt_tokens) ++answer[tokens[i]];
  }
  uint64_t noise = Mix(row.seed, Mix(row.choice, row.position));
  noise = Mix(noise, std::bit_cast<uint32_t>(row.temperature));
  noise = Mix(noise, Mix(std::bit_cast<uint32_t>(row.top_p), std::bit_cast<uint32_t>(row.min_p)));
  noise = Mix(noise, row.top_k);
  int32_t best = -1;
  float best_score = kBan;
  for (int32_t id = 0; id < static_cast<int32_t>(logits.size()); ++id) {
    float score = logits[id];
    if (all[id] > 0) {
      score = score > 0 ? score / row.repetition_penalty : score * row.repetition_penalty;
    }
    score -= row.frequency_penalty * answer[id] + (answer[id] > 0 ? row.presence_penalty : 0);
    score += how.add[id] + 4 * Unit(Mix(noise, id));
    if (best >= 0 && !(score > best_score)) continue;
    best = id;
    best_score = score;
  }
  return best;
}

/// Ids from the likeliest on.
std::vector<int32_t> Ranked(const std::vector<float>& logits) {
  std::vector<int32_t> ids(logits.size());
  std::iota(ids.begin(), ids.end(), 0);
  std::stable_sort(ids.begin(), ids.end(),
                   [&](int32_t a, int32_t b) { return logits[a] > logits[b]; });
  return ids;
}

TokenLogprobs LogprobsOf(const std::vector<float>& logits, int32_t id, int32_t alternatives) {
  TokenLogprobs token;
  token.id = id;
  token.logprob = logits[id];
  for (const float other : logits) token.rank += other > logits[id] ? 1 : 0;
  ++token.rank;
  const std::vector<int32_t> ranked = Ranked(logits);
  for (int32_t i = 0; i < alternatives; ++i) token.top.push_back({ranked[i], logits[ranked[i]]});
  return token;
}

bool EndsWith(const std::vector<int32_t>& tokens, const int32_t* run, size_t count) {
  return count <= tokens.size() && std::equal(run, run + count, tokens.end() - count);
}

/// What the request's own rules add to each id after `tokens`.
std::vector<float> AddsOf(const Request& request, const std::vector<int32_t>& tokens,
                          int32_t answer_begins, int32_t vocabulary) {
  std::vector<float> add(vocabulary, 0);
  const SamplingParams& sampling = request.sampling;
  for (const LogitBias& bias : sampling.logit_bias) add[bias.id] += bias.add;
  for (const std::vector<int32_t>& word : sampling.bad_words) {
    if (EndsWith(tokens, word.data(), word.size() - 1)) add[word.back()] = kBan;
  }
  if (static_cast<int32_t>(tokens.size()) - answer_begins < request.stop.min_tokens) {
    for (const int32_t id : request.stop.stop_ids) add[id] = kBan;
  }
  std::vector<uint32_t> words((vocabulary + 31) / 32, ~0u);
  if (request.token_mask != nullptr) {
    request.token_mask->Restrict(std::span(tokens).subspan(answer_begins), words);
  }
  const std::vector<int32_t>& allowed = sampling.allowed_ids;
  for (int32_t id = 0; id < vocabulary; ++id) {
    const bool listed =
        allowed.empty() || std::find(allowed.begin(), allowed.end(), id) != allowed.end();
    if (!listed || (words[id / 32] >> (id % 32) & 1) == 0) add[id] = kBan;
  }
  return add;
}

}  // namespace

FakeAnswer FakeAnswerTo(const Request& request, int32_t vocabulary) {
  FakeAnswer answer;
  std::vector<int32_t> tokens = request.prompt_ids;
  const auto prompt = static_cast<int32_t>(tokens.size());
  const int32_t begins = prompt - request.generated_before;
  const SamplingParams& sampling = request.sampling;
  for (int32_t p = 1; sampling.prompt_logprobs >= 0 && p < begins; ++p) {
    const std::vector<int32_t> before(tokens.begin(), tokens.begin() + p);
    answer.prompt_logprobs.push_back(
        LogprobsOf(Logits(before, vocabulary), tokens[p], sampling.prompt_logprobs));
  }
  while (answer.finish == FinishReason::kNone) {
    Drawing how;
    how.row.temperature = sampling.temperature;
    how.row.top_p = sampling.top_p;
    how.row.min_p = sampling.min_p;
    how.row.top_k = sampling.top_k;
    how.row.repetition_penalty = sampling.repetition_penalty;
    how.row.frequency_penalty = sampling.frequency_penalty;
    how.row.presence_penalty = sampling.presence_penalty;
    how.row.seed = sampling.seed;
    how.row.choice = sampling.choice;
    how.row.position = static_cast<uint32_t>(tokens.size());
    how.row.prompt_tokens = begins;
    how.add = AddsOf(request, tokens, begins, vocabulary);
    const std::vector<float> logits = Logits(tokens, vocabulary);
    const int32_t id = Draw(logits, tokens, how);
    tokens.push_back(id);
    answer.token_ids.push_back(id);
    if (sampling.logprobs >= 0) {
      answer.logprobs.push_back(LogprobsOf(logits, id, sampling.logprobs));
    }
    const std::vector<int32_t>& stop_ids = request.stop.stop_ids;
    if (static_cast<int32_t>(tokens.size()) - begins > request.stop.min_tokens &&
        std::find(stop_ids.begin(), stop_ids.end(), id) != stop_ids.end()) {
      answer.finish = FinishReason::kStop;
      answer.stop_id = id;
    } else if (static_cast<int32_t>(tokens.size()) - prompt == request.stop.max_tokens) {
      answer.finish = FinishReason::kLength;
    }
  }
  return answer;
}

FakeDevice::FakeDevice(const SchedulerLimits& limits)
    : limits_(limits),
      cache_(limits.kv_blocks * limits.block_size, -1),
      drafts_(limits.kv_blocks * limits.block_size),
      last_ids_(limits.sequences_max, -1) {}

StepResult FakeDevice::Run(const StepPlan& plan) {
  CheckShape(plan);
  StepResult result;
  result.step = plan.step;
  result.seconds = seconds(plan);
  StoreTokens(plan);
  Sample(plan, &result);
  Draft(plan, &result);
  return result;
}

void FakeDevice::CheckShape(const StepPlan& plan) const {
  const size_t sequences = plan.kv_lengths.size();
  CHECK_LE(plan.token_ids.size(), static_cast<size_t>(limits_.batched_tokens_max));
  CHECK_LE(plan.logit_tokens.size(), static_cast<size_t>(limits_.logit_rows_max));
  CHECK_LE(sequences, static_cast<size_t>(limits_.sequences_max));
  CHECK_EQ(plan.query_starts.size(), sequences + 1);
  CHECK_EQ(plan.block_tables.size(), sequences * plan.blocks_max);
  CHECK_EQ(plan.sample_rows.size(), plan.logit_tokens.size());
  CHECK_LE(plan.edits.size(), static_cast<size_t>(limits_.edits_max));
  CHECK_LE(plan.edit_contexts.size(), static_cast<size_t>(limits_.edit_contexts_max));
  CHECK_LE(plan.masks.size(),
           static_cast<size_t>(limits_.masks_max) * ((limits_.vocabulary + 31) / 32));
  CHECK(plan.drafts <= limits_.drafts_max && (plan.drafts == 0) == plan.draft_rows.empty());
  CHECK_EQ(plan.next_ids.size(), limits_.drafts_max > 0 ? plan.token_ids.size() : 0);
}

int64_t FakeDevice::Place(const StepPlan& plan, int32_t sequence, int32_t position) const {
  CHECK(position >= 0 && position < limits_.length_max) << position;
  const int32_t entry = position / limits_.block_size;
  CHECK_LT(entry, plan.blocks_max);
  const int32_t block = plan.block_tables[int64_t{sequence} * plan.blocks_max + entry];
  CHECK(block >= 0 && block < limits_.kv_blocks) << block;
  return int64_t{block} * limits_.block_size + position % limits_.block_size;
}

std::vector<int32_t> FakeDevice::TokensUpTo(const StepPlan& plan, int32_t sequence,
                                            int32_t position) const {
  std::vector<int32_t> tokens(position + 1);
  for (int32_t p = 0; p <= position; ++p) {
    tokens[p] = cache_[Place(plan, sequence, p)];
    CHECK(tokens[p] >= 0 && tokens[p] < limits_.vocabulary) << tokens[p];
  }
  return tokens;
}

void FakeDevice::StoreTokens(const StepPlan& plan) {
  for (size_t t = 0; t < plan.token_ids.size(); ++t) {
    const int32_t sequence = plan.token_sequences[t];
    CHECK_GE(static_cast<int32_t>(t), plan.query_starts[sequence]);
    CHECK_LT(static_cast<int32_t>(t), plan.query_starts[sequence + 1]);
    const int32_t from_end = plan.query_starts[sequence + 1] - static_cast<int32_t>(t);
    CHECK_EQ(plan.positions[t], plan.kv_lengths[sequence] - from_end);
    const int32_t id = plan.token_ids[t];
    cache_[Place(plan, sequence, plan.positions[t])] = id >= 0 ? id : last_ids_[~id];
  }
}

void FakeDevice::Sample(const StepPlan& plan, StepResult* result) {
  const size_t words = (limits_.vocabulary + 31) / 32;
  for (size_t r = 0; r < plan.logit_tokens.size(); ++r) {
    const int32_t t = plan.logit_tokens[r];
    const SampleRow& row = plan.sample_rows[r];
    CHECK_EQ(static_cast<int32_t>(row.position), plan.positions[t] + 1);
    CHECK_EQ(row.sequence, plan.token_sequences[t]);
    const std::vector<int32_t> tokens = TokensUpTo(plan, row.sequence, plan.positions[t]);
    Drawing how{.row = row, .add = std::vector<float>(limits_.vocabulary, 0)};
    for (int32_t e = row.edits_begin; e < row.edits_begin + row.edits_count; ++e) {
      const LogitEdit& edit = plan.edits.at(e);
      const int32_t* context = plan.edit_contexts.data() + edit.context_begin;
      CHECK_LE(static_cast<size_t>(edit.context_begin + edit.context_count),
               plan.edit_contexts.size());
      if (static_cast<int32_t>(row.position) >= edit.until_position) continue;
      if (EndsWith(tokens, context, edit.context_count)) how.add[edit.id] += edit.add;
    }
    for (int32_t id = 0; row.mask >= 0 && id < limits_.vocabulary; ++id) {
      const uint32_t word = plan.masks.at(row.mask * words + id / 32);
      if ((word >> (id % 32) & 1) == 0) how.add[id] = kBan;
    }
    const std::vector<float> logits = Logits(tokens, limits_.vocabulary);
    const int32_t id = row.target_id >= 0 ? row.target_id : Draw(logits, tokens, how);
    result->ids.push_back(id);
    if (row.slot >= 0) last_ids_.at(row.slot) = id;
    if (!plan.logprobs) continue;
    const TokenLogprobs told = LogprobsOf(logits, id, std::min(kLogprobsMax, limits_.vocabulary));
    result->logprobs.ids.push_back(id);
    result->logprobs.values.push_back(told.logprob);
    result->logprobs.ranks.push_back(told.rank);
    for (int32_t i = 0; i < kLogprobsMax; ++i) {
      const bool there = i < static_cast<int32_t>(told.top.size());
      result->logprobs.ids.push_back(there ? told.top[i].id : -1);
      result->logprobs.values.push_back(there ? told.top[i].logprob : 0);
    }
  }
}

void FakeDevice::Draft(const StepPlan& plan, StepResult* result) {
  for (size_t t = 0; t < plan.next_ids.size(); ++t) {
    const int32_t next = plan.next_ids[t];
    const int64_t place = Place(plan, plan.token_sequences[t], plan.positions[t]);
    drafts_[place] = {.token = cache_[place], .next = next >= 0 ? next : result->ids.at(~next)};
  }
  for (const DraftRow& draft : plan.draft_rows) DraftOf(plan, draft, result);
}

void FakeDevice::DraftOf(const StepPlan& plan, const DraftRow& draft, StepResult* result) {
  int32_t row = draft.first_logit_row;
  const auto t = [&] { return plan.logit_tokens[row]; };
  CHECK_EQ(plan.token_sequences[t()], draft.sequence);
  CHECK_EQ(t() + draft.drafts, plan.query_starts[draft.sequence + 1] - 1);
  for (int32_t a = 0; a < draft.drafts && plan.token_ids[t() + 1] == result->ids[row]; ++a) ++row;

  int32_t position = plan.positions[t()];
  std::vector<int32_t> tokens = TokensUpTo(plan, draft.sequence, position);
  tokens.push_back(result->ids[row]);
  for (int32_t p = 0; p <= position; ++p) {
    const DraftCell& cell = drafts_[Place(plan, draft.sequence, p)];
    CHECK_EQ(cell.token, tokens[p]) << "the draft layer's cache at " << p;
    // What followed at the end of a block is not in its key.
    const bool shared_end = (p + 1) % limits_.block_size == 0;
    CHECK(shared_end || cell.next == tokens[p + 1]) << "the draft layer's cache at " << p;
  }
  Drawing how{.row = plan.sample_rows[row], .add = std::vector<float>(limits_.vocabulary, 0)};
  how.row.repetition_penalty = 1;
  how.row.frequency_penalty = how.row.presence_penalty = 0;
  for (int32_t j = 0; j < plan.drafts; ++j) {
    ++how.row.position;
    int32_t id = Draw(Logits(tokens, limits_.vocabulary), tokens, how);
    const uint64_t luck = Mix(Mix(plan.step, draft.sequence), j);
    if (static_cast<int32_t>(luck % 100) >= drafts_right_percent) {
      id = static_cast<int32_t>(luck / 100 % limits_.vocabulary);
    }
    result->drafts.push_back(id);
    if (j + 1 == plan.drafts) break;
    ++position;
    drafts_[Place(plan, draft.sequence, position)] = {.token = tokens.back(), .next = id};
    tokens.push_back(id);
  }
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
