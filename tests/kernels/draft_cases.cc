// Cases of store_tokens, begin_drafts and advance_drafts.
#include <algorithm>

#include "tests/kernels/case_parts.h"

namespace glm::test {
namespace {

/// A step of `sequences` sequences, of which each drafts or not, and has had drafts or not.
struct DraftSpec {
  std::string name;
  int32_t sequences;
  int32_t drafts_max;  // K
  int32_t padding;     // of draft rows
};

/// The step, and what the draft layer is to go on from, as the oracle has it.
struct DraftStep {
  DraftStep(Random& random, const DraftSpec& spec);

  std::vector<int32_t> drafts;  // of each sequence; -1: it has no logit row
  BatchSpec batch_spec;         // its making fills drafts
  CaseBatch batch;
  std::vector<int32_t> ids;  // [R]
  std::vector<SampleRow> rows;
  std::vector<DraftRow> draft_rows;
  std::vector<int32_t> accepted;  // of draft rows

 private:
  BatchSpec MakeSpec(Random& random, const DraftSpec& spec);
  void AddRows(Random& random, int32_t sequence);
};

BatchSpec DraftStep::MakeSpec(Random& random, const DraftSpec& spec) {
  BatchSpec made;
  int32_t logit_rows = 0;
  for (int32_t s = 0; s < spec.sequences; ++s) {
    // A chunk of a prompt that goes on, the end of one, or a decode with drafts.
    const auto kind = static_cast<int32_t>(random.Below(4));
    drafts.push_back(kind == 0 ? -1
                     : kind == 1
                         ? 0
                         : static_cast<int32_t>(random.Below(int64_t{spec.drafts_max} + 1)));
    const int32_t tokens = kind < 2 ? static_cast<int32_t>(1 + random.Below(20)) : 1 + drafts[s];
    made.sequences.push_back({static_cast<int32_t>(random.Below(60)), tokens});
    logit_rows += 1 + drafts[s];
  }
  made.padding_tokens = 3;
  made.padding_sequences = 1;
  made.padding_logit_rows = 2;
  made.logit_rows = logit_rows;
  return made;
}

DraftStep::DraftStep(Random& random, const DraftSpec& spec)
    : batch_spec(MakeSpec(random, spec)), batch(random, batch_spec, 100) {
  batch.logit_tokens.clear();
  for (int32_t s = 0; s < spec.sequences; ++s) AddRows(random, s);
  ids.resize(batch.logit_rows_padded, 0x7F7F7F7F);
  rows.resize(batch.logit_rows_padded);
  batch.logit_tokens.resize(batch.logit_rows_padded, 0x7F7F7F7F);
}

void DraftStep::AddRows(Random& random, int32_t sequence) {
  const int32_t count = drafts[sequence];
  const auto first = static_cast<int32_t>(ids.size());
  const int32_t end = batch.query_starts[sequence + 1];
  for (int32_t i = 0; i <= count; ++i) {
    batch.logit_tokens.push_back(end - 1 - count + i);
    SampleRow row;
    row.temperature = static_cast<float>(random.Uniform(0, 2));
    row.top_p = static_cast<float>(random.Uniform(0.1, 1));
    row.min_p = static_cast<float>(random.Uniform(0, 1));
    row.top_k = static_cast<int32_t>(random.Below(100));
    row.repetition_penalty = 1.5f;
    row.frequency_penalty = 0.5f;
    row.presence_penalty = 0.25f;
    row.seed = static_cast<uint64_t>(random.Below(int64_t{1} << 62));
    row.choice = static_cast<uint32_t>(random.Below(5));
    row.sequence = sequence;
    row.prompt_tokens = 3;
    row.slot = sequence;
    row.logprobs = 4;
    row.mask = 1;
    row.edits_begin = 2;
    row.edits_count = 6;
    row.position = static_cast<uint32_t>(batch.positions[batch.logit_tokens.back()] + 1);
    rows.push_back(row);
    ids.push_back(static_cast<int32_t>(random.Below(100)));
  }
  // Those of an accepted draft come as it proposed; a later one may again agree, which is too late.
  const auto right = static_cast<int32_t>(random.Below(count + 2));
  for (int32_t i = 0; i < count; ++i) {
    const int32_t proposed = batch.token_ids[batch.logit_tokens[first + i + 1]];
    if (i < right || random.Below(2) == 0) ids[first + i] = proposed;
    if (i == right) ids[first + i] = proposed + 1;
  }
  if (count < 0 || random.Below(5) == 0) return;
  draft_rows.push_back({sequence, first, count});
  accepted.push_back(std::min(right, count));
}

/// What the ops are to leave, after `advances` of advance_drafts.
struct WantDrafts {
  std::vector<int32_t> positions, kv_lengths, logit_tokens, block_tables;
  std::vector<SampleRow> rows;
};

WantDrafts Want(const DraftStep& step, int32_t advances) {
  WantDrafts want;
  for (size_t d = 0; d < step.draft_rows.size(); ++d) {
    const DraftRow& draft = step.draft_rows[d];
    const int32_t logit_row = draft.first_logit_row + step.accepted[d];
    const int32_t token = step.batch.logit_tokens[logit_row];
    const int32_t position = step.batch.positions[token] + advances;
    want.positions.push_back(position);
    want.kv_lengths.push_back(position + 1);
    want.logit_tokens.push_back(advances == 0 ? token : static_cast<int32_t>(d));
    const auto table = step.batch.block_tables.begin() + draft.sequence * step.batch.blocks_max;
    want.block_tables.insert(want.block_tables.end(), table, table + step.batch.blocks_max);
    SampleRow row = step.rows[logit_row];
    row.repetition_penalty = 1;
    row.frequency_penalty = 0;
    row.presence_penalty = 0;
    row.position = static_cast<uint32_t>(position + 2);
    row.sequence = static_cast<int32_t>(d);
    row.slot = static_cast<int32_t>(d);
    row.logprobs = -1;
    row.mask = -1;
    row.edits_count = 0;
    want.rows.push_back(row);
  }
  return want;
}

/// Rows by what counts of them: of what is not there, the rest does not matter.
bool SameRow(const SampleRow& a, const SampleRow& b) {
  return a.temperature == b.temperature && a.top_p == b.top_p && a.min_p == b.min_p &&
         a.top_k == b.top_k && a.repetition_penalty == b.repetition_penalty &&
         a.frequency_penalty == b.frequency_penalty && a.presence_penalty == b.presence_penalty &&
         a.position == b.position && a.seed == b.seed && a.choice == b.choice &&
         a.sequence == b.sequence && a.slot == b.slot && a.target_id == b.target_id &&
         a.logprobs == b.logprobs && a.mask == b.mask && a.edits_count == b.edits_count;
}

template <typename T>
T* UploadArray(Device& device, const std::vector<T>& values) {
  const auto bytes = static_cast<int64_t>(values.size() * sizeof(T));
  auto* memory = static_cast<T*>(device.Allocate(bytes));
  device.CopyToDevice(memory, values.data(), bytes);
  device.Synchronize();
  return memory;
}

BatchView NewDraftView(Device& device, int64_t rows, int64_t blocks_max) {
  const auto ints = [&](int64_t count) { return HostTensor(DType::kI32, {count}).Upload(device); };
  BatchView view;
  view.token_ids = ints(rows);
  view.positions = ints(rows);
  view.token_sequences = ints(rows);
  view.query_starts = ints(rows + 1);
  view.kv_lengths = ints(rows);
  view.block_tables = HostTensor(DType::kI32, {rows, blocks_max}).Upload(device);
  view.logit_tokens = ints(rows);
  view.counts = ints(3);
  view.last_ids = ints(rows);
  return view;
}

void JudgeDrafts(Device& device, const DraftStep& step, const BatchView& view,
                 const SampleRow* device_rows, int32_t advances, Verdict* verdict) {
  const WantDrafts want = Want(step, advances);
  const auto count = static_cast<int32_t>(step.draft_rows.size());
  const auto rows = static_cast<int32_t>(view.token_ids.shape[0]);
  const auto equal = [&](const char* name, const Tensor& tensor,
                         const std::vector<int32_t>& expected) {
    verdict->Equal(name, DownloadInts(device, tensor, static_cast<int64_t>(expected.size())),
                   expected);
  };
  std::vector<int32_t> slots, sequences, starts;
  for (int32_t d = 0; d < count; ++d) slots.push_back(~d);
  for (int32_t d = 0; d < count; ++d) sequences.push_back(d);
  for (int32_t d = 0; d <= rows; ++d) starts.push_back(std::min(d, count));
  equal("token_ids", view.token_ids, slots);
  equal("positions", view.positions, want.positions);
  equal("token_sequences", view.token_sequences, sequences);
  equal("query_starts", view.query_starts, starts);
  equal("kv_lengths", view.kv_lengths, want.kv_lengths);
  equal("block_tables", view.block_tables, want.block_tables);
  equal("logit_tokens", view.logit_tokens, want.logit_tokens);
  equal("counts", view.counts, {count, count, count});
  std::vector<SampleRow> got(want.rows.size());
  device.CopyToHost(got.data(), device_rows, static_cast<int64_t>(got.size() * sizeof(SampleRow)));
  device.Synchronize();
  for (size_t d = 0; d < got.size(); ++d) {
    if (!SameRow(got[d], want.rows[d])) verdict->Fail("row " + std::to_string(d));
  }
}

CaseResult RunDrafts(Device& device, const DraftSpec& spec) {
  Random random(SeedOf(spec.name));
  const DraftStep step(random, spec);
  const auto count = static_cast<int32_t>(step.draft_rows.size());
  const int32_t rows = count + spec.padding;
  std::vector<DraftRow> padded = step.draft_rows;
  padded.resize(rows, {0x7F7F7F7F, 0x7F7F7F7F, 0x7F7F7F7F});
  const BatchView batch = step.batch.Upload(device);
  const BatchView view = NewDraftView(device, rows, step.batch.blocks_max);
  SampleRow* out_rows = UploadArray(device, std::vector<SampleRow>(rows));
  device.ops().begin_drafts(
      device, {.batch = batch,
               .ids = HostTensor::OfInts(step.ids, {step.batch.logit_rows_padded}).Upload(device),
               .rows = UploadArray(device, step.rows),
               .draft_rows = UploadArray(device, padded),
               .draft_count = HostTensor::OfInts({count}, {1}).Upload(device),
               .out = view,
               .out_rows = out_rows});
  Verdict verdict;
  JudgeDrafts(device, step, view, out_rows, 0, &verdict);
  for (int32_t advances = 1; advances < spec.drafts_max; ++advances) {
    device.ops().advance_drafts(device, {.drafts = view, .rows = out_rows});
    JudgeDrafts(device, step, view, out_rows, advances, &verdict);
  }
  return verdict.Finish();
}

CaseResult RunStoreTokens(Device& device, const std::string& name, const BatchSpec& spec) {
  Random random(SeedOf(name));
  CaseBatch batch(random, spec);
  std::vector<int32_t> want(static_cast<size_t>(batch.blocks) * batch.block_size, -7);
  for (int32_t t = 0; t < batch.tokens; ++t) {
    const int32_t id = batch.token_ids[t];
    // Some ids are known to the device only.
    const auto slot = static_cast<int32_t>(random.Below(2 * batch.last_ids.size()));
    const bool known = slot >= static_cast<int32_t>(batch.last_ids.size());
    if (!known) batch.token_ids[t] = ~slot;
    want[batch.Cell(batch.token_sequences[t], batch.positions[t], 1, 0, 1)] =
        known ? id : batch.last_ids[slot];
  }
  const BatchView view = batch.Upload(device);
  const HostTensor before =
      HostTensor::OfInts(std::vector<int32_t>(want.size(), -7), {batch.blocks, batch.block_size});
  const TokenCache cache{before.Upload(device)};
  device.ops().store_tokens(device, {.batch = view, .cache = cache});
  Verdict verdict;
  verdict.Equal("cache", DownloadInts(device, cache.ids, static_cast<int64_t>(want.size())), want);
  return verdict.Finish();
}

}  // namespace

std::vector<OpCase> StoreTokensCases() {
  std::vector<OpCase> cases;
  BatchSpec mixed;
  mixed.sequences = {{0, 17}, {40, 1}, {15, 2}, {31, 33}, {64, 1}};
  mixed.padding_tokens = 5;
  mixed.padding_sequences = 2;
  for (const int32_t block_size : {16, 64}) {
    for (const BatchSpec& spec : {BatchSpec::OneSequence(1, 0), mixed}) {
      BatchSpec sized = spec;
      sized.block_size = block_size;
      const std::string name = "store_tokens of " + std::to_string(spec.sequences.size()) +
                               " sequences, blocks of " + std::to_string(block_size);
      cases.push_back(
          {name, DType::kBF16, {.tokens_max = 64, .sequences_max = 8}, [=](Device& device) {
             return RunStoreTokens(device, name, sized);
           }});
    }
  }
  return cases;
}

std::vector<OpCase> DraftCases() {
  std::vector<OpCase> cases;
  for (const int32_t drafts_max : {1, 3, 5}) {
    for (const int32_t sequences : {1, 7, 64, 200}) {
      const std::string name = "drafts " + std::to_string(drafts_max) + " of " +
                               std::to_string(sequences) + " sequences";
      const DraftSpec spec{name, sequences, drafts_max, sequences == 1 ? 0 : 4};
      cases.push_back(
          {name, DType::kBF16, {.tokens_max = 5000, .sequences_max = 256}, [=](Device& device) {
             return RunDrafts(device, spec);
           }});
    }
  }
  return cases;
}

}  // namespace glm::test
