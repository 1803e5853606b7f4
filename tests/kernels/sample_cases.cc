// Cases of sample and choose_candidates.
#include <algorithm>
#include <cmath>
#include <limits>
#include <set>

#include "kernels/philox.h"
#include "tests/kernels/case_parts.h"

namespace glm::test {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int32_t kPaddingRows = 2;
constexpr int32_t kMasks = 2;

struct SampleShape {
  int32_t rows;
  int64_t vocabulary;  // columns
  int64_t used;
};

/// What of the contract a case has.
struct SampleSpec {
  std::string name;
  SampleShape shape;
  float temperature = 1;
  float top_p = 1;
  float min_p = 0;
  int32_t top_k = 0;
  bool ties = false;       // logits are whole numbers
  bool holes = false;      // some logits are NaN or minus infinity, of some rows all
  bool penalties = false;  // each row its own
  bool edits = false;
  bool masks = false;
  bool targets = false;   // some rows have one
  bool logprobs = false;  // some rows want them
  int32_t slices = 1;     // ranks that have as many columns each
};

/// A case's inputs on the host.
struct SampleInputs {
  SampleInputs(Random& random, const SampleSpec& spec);

  int32_t IdAt(int32_t sequence, int32_t position) const {
    const int32_t block =
        batch.block_tables[sequence * batch.blocks_max + position / batch.block_size];
    return tokens[block * batch.block_size + position % batch.block_size];
  }

  CaseBatch batch;
  HostTensor logits;
  std::vector<int32_t> tokens;  // [B, P]
  std::vector<SampleRow> rows;
  std::vector<LogitEdit> edits;
  std::vector<int32_t> contexts;
  std::vector<int32_t> masks;

 private:
  void FillLogits(Random& random, const SampleSpec& spec);
  SampleRow MakeRow(Random& random, const SampleSpec& spec, int32_t r) const;
  void AddEdits(Random& random, const SampleSpec& spec, SampleRow* row);
  void AddContext(Random& random, const SampleRow& row, LogitEdit* edit);
};

BatchSpec SpecOf(const SampleSpec& spec) {
  BatchSpec batch;
  batch.sequences = {{0, 1}, {37, 3}, {90, 1}};
  batch.padding_sequences = 1;
  batch.logit_rows = spec.shape.rows;
  batch.padding_logit_rows = kPaddingRows;
  return batch;
}

SampleInputs::SampleInputs(Random& random, const SampleSpec& spec)
    : batch(random, SpecOf(spec)),
      logits(random, DType::kF32, {spec.shape.rows + kPaddingRows, spec.shape.vocabulary}, 6,
             spec.shape.rows) {
  FillLogits(random, spec);
  // Few different ids, so that they repeat; where no position is, anything.
  tokens.assign(static_cast<size_t>(batch.blocks) * batch.block_size, 0x7F7F7F7F);
  for (int32_t s = 0; s < 3; ++s) {
    for (int32_t position = 0; position < batch.kv_lengths[s]; ++position) {
      const int32_t block = batch.block_tables[s * batch.blocks_max + position / batch.block_size];
      tokens[block * batch.block_size + position % batch.block_size] =
          static_cast<int32_t>(random.Below(std::min<int64_t>(spec.shape.used, 30)));
    }
  }
  const int64_t words = (spec.shape.used + 31) / 32;
  for (int64_t i = 0; i < kMasks * words; ++i) {
    masks.push_back(static_cast<int32_t>(random.Below(int64_t{1} << 32)));
  }
  for (int32_t r = 0; r < spec.shape.rows + kPaddingRows; ++r) {
    SampleRow row = MakeRow(random, spec, r);
    if (spec.edits && r % 4 != 1) AddEdits(random, spec, &row);
    rows.push_back(row);
  }
}

void SampleInputs::FillLogits(Random& random, const SampleSpec& spec) {
  for (int32_t r = 0; r < spec.shape.rows; ++r) {
    for (int64_t i = 0; i < spec.shape.vocabulary; ++i) {
      const int64_t at = r * spec.shape.vocabulary + i;
      if (spec.ties) logits.Set(at, std::round(logits.At(at)));
      if (spec.holes) {
        const int64_t kind = r % 5 == 3 ? random.Below(2) : random.Below(6);
        if (kind == 0) logits.Set(at, std::numeric_limits<double>::quiet_NaN());
        if (kind == 1) logits.Set(at, -kInfinity);
      }
      // Larger than all: must not be sampled.
      if (i >= spec.shape.used) logits.Set(at, 100);
    }
  }
}

SampleRow SampleInputs::MakeRow(Random& random, const SampleSpec& spec, int32_t r) const {
  SampleRow row;
  row.temperature = spec.temperature;
  row.top_p = spec.top_p;
  row.min_p = spec.min_p;
  row.top_k = spec.top_k;
  row.sequence = r % 3;
  const int32_t length = batch.kv_lengths[row.sequence];
  row.position = static_cast<uint32_t>(1 + random.Below(length));
  row.prompt_tokens = static_cast<int32_t>(random.Below(row.position + 1));
  row.seed = static_cast<uint64_t>(random.Below(int64_t{1} << 62));
  row.choice = static_cast<uint32_t>(random.Below(4));
  row.slot = r % 3 == 2 ? -1 : r;
  if (spec.penalties) {
    row.repetition_penalty = r % 4 == 0 ? 1 : static_cast<float>(random.Uniform(0.5, 2));
    row.frequency_penalty = r % 4 == 1 ? 0 : static_cast<float>(random.Uniform(-2, 2));
    row.presence_penalty = r % 4 == 2 ? 0 : static_cast<float>(random.Uniform(-2, 2));
  }
  if (spec.masks && r % 4 != 3) row.mask = r % kMasks;
  if (spec.targets && r % 2 == 1) {
    row.target_id = static_cast<int32_t>(random.Below(spec.shape.used));
  }
  if (spec.logprobs && r % 5 != 2) row.logprobs = r % 5 == 0 ? kLogprobsMax : r % 4;
  return row;
}

void SampleInputs::AddContext(Random& random, const SampleRow& row, LogitEdit* edit) {
  // One that holds, one that does not, one that is longer than what is before the position.
  const int64_t kind = random.Below(4);
  const auto position = static_cast<int32_t>(row.position);
  edit->context_begin = static_cast<int32_t>(contexts.size());
  edit->context_count = static_cast<int32_t>(1 + random.Below(std::min(position, 5)));
  if (kind == 3) edit->context_count = position + 1;
  for (int32_t i = 0; i < edit->context_count; ++i) {
    const int32_t at = std::max(position - edit->context_count + i, 0);
    contexts.push_back(IdAt(row.sequence, at));
  }
  if (kind == 2) contexts[edit->context_begin + random.Below(edit->context_count)] += 1000;
}

void SampleInputs::AddEdits(Random& random, const SampleSpec& spec, SampleRow* row) {
  row->edits_begin = static_cast<int32_t>(edits.size());
  row->edits_count = static_cast<int32_t>(1 + random.Below(12));
  std::set<int32_t> biased;
  for (int32_t i = 0; i < row->edits_count; ++i) {
    LogitEdit edit;
    edit.id = static_cast<int32_t>(random.Below(spec.shape.used));
    edit.add = static_cast<float>(random.Uniform(-20, 20));
    // Sums of several biases would hang on their order.
    if (i % 3 == 0 || !biased.insert(edit.id).second) edit.add = -kInfinity;
    if (i % 4 == 1) {
      edit.until_position = static_cast<int32_t>(row->position + random.Below(3)) - 1;
    }
    if (random.Below(2) == 0) AddContext(random, *row, &edit);
    edits.push_back(edit);
  }
}

// ---- The oracle
// ----------------------------------------------------------------------------------

float Number(double logit) { return std::isnan(logit) ? -kInfinity : static_cast<float>(logit); }

std::vector<float> RawRow(const SampleInputs& in, const SampleSpec& spec, int32_t r) {
  std::vector<float> logits;
  for (int64_t i = 0; i < spec.shape.used; ++i) {
    logits.push_back(Number(in.logits.At(r * spec.shape.vocabulary + i)));
  }
  return logits;
}

bool EditHolds(const SampleInputs& in, const SampleRow& row, const LogitEdit& edit) {
  const auto position = static_cast<int32_t>(row.position);
  if (position >= edit.until_position || edit.context_count > position) return false;
  for (int32_t i = 0; i < edit.context_count; ++i) {
    const int32_t want = in.contexts[edit.context_begin + i];
    if (in.IdAt(row.sequence, position - edit.context_count + i) != want) return false;
  }
  return true;
}

bool MaskAllows(const SampleInputs& in, const SampleSpec& spec, const SampleRow& row, int64_t id) {
  if (row.mask < 0) return true;
  const int64_t words = (spec.shape.used + 31) / 32;
  const auto word = static_cast<uint32_t>(in.masks[row.mask * words + id / 32]);
  return ((word >> (id % 32)) & 1) == 1;
}

/// Penalties, edits and mask, each result a float.
std::vector<float> Shaped(const SampleInputs& in, const SampleSpec& spec, const SampleRow& row,
                          std::vector<float> logits) {
  std::vector<int> anywhere(logits.size(), 0);
  std::vector<int> generated(logits.size(), 0);
  for (int32_t position = 0; position < static_cast<int32_t>(row.position); ++position) {
    const int32_t id = in.IdAt(row.sequence, position);
    ++anywhere[id];
    if (position >= row.prompt_tokens) ++generated[id];
  }
  for (size_t i = 0; i < logits.size(); ++i) {
    float& logit = logits[i];
    if (anywhere[i] > 0) {
      logit = logit > 0 ? logit / row.repetition_penalty : logit * row.repetition_penalty;
    }
    if (generated[i] == 0) continue;
    const float frequency = row.frequency_penalty * static_cast<float>(generated[i]);
    logit -= frequency;
    logit -= row.presence_penalty;
  }
  for (int32_t i = 0; i < row.edits_count; ++i) {
    const LogitEdit& edit = in.edits[row.edits_begin + i];
    if (EditHolds(in, row, edit)) logits[edit.id] += edit.add;
  }
  for (size_t i = 0; i < logits.size(); ++i) {
    if (!MaskAllows(in, spec, row, static_cast<int64_t>(i))) logits[i] = -kInfinity;
  }
  return logits;
}

/// Ids in falling order, ties by lower id.
std::vector<int32_t> FallingIds(const std::vector<float>& values) {
  std::vector<int32_t> ids(values.size());
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(i);
  std::stable_sort(ids.begin(), ids.end(),
                   [&](int32_t a, int32_t b) { return values[a] > values[b]; });
  return ids;
}

/// What the limits keep, in falling order, if top_p and min_p were `seam` stricter.
std::vector<int32_t> Kept(const SampleRow& row, const std::vector<float>& scaled, double seam) {
  std::vector<int32_t> ids = FallingIds(scaled);
  std::erase_if(ids, [&](int32_t id) { return scaled[id] == -kInfinity; });
  if (row.top_k > 0 && row.top_k < static_cast<int32_t>(ids.size())) ids.resize(row.top_k);
  const auto share = [&](int32_t id) {
    return std::exp(static_cast<double>(scaled[id]) - scaled[ids[0]]);
  };
  if (row.top_p < 1) {
    double total = 0;
    for (const int32_t id : ids) total += share(id);
    double mass = 0;
    size_t kept = 0;
    while (kept < ids.size() && (kept == 0 || mass < (row.top_p - seam) * total)) {
      mass += share(ids[kept++]);
    }
    ids.resize(kept);
  }
  if (row.min_p > 0) {
    while (ids.size() > 1 && share(ids.back()) < row.min_p * (1 + seam)) ids.pop_back();
  }
  return ids;
}

/// Empty if `id` is what the contract draws, where float sums leave room at the seams.
std::string JudgeDraw(const SampleRow& row, const std::vector<float>& logits, int32_t id) {
  std::vector<float> scaled;
  for (const float logit : logits) scaled.push_back(logit / row.temperature);
  const auto score = [&](int32_t i) {
    return scaled[i] - std::log(static_cast<double>(
                           PhiloxExponential(row.seed, PhiloxStream::kSample, row.position,
                                             row.choice, static_cast<uint32_t>(i))));
  };
  constexpr double kSeam = 2e-5;
  const std::vector<int32_t> loose = Kept(row, scaled, -kSeam);
  if (std::find(loose.begin(), loose.end(), id) == loose.end()) {
    return "id " + std::to_string(id) + " is not among those kept";
  }
  double best = -kInfinity;
  for (const int32_t i : Kept(row, scaled, kSeam)) best = std::max(best, score(i));
  const double room = 2e-5 + 1e-6 * std::abs(scaled[id]);
  if (score(id) >= best - room) return "";
  return "id " + std::to_string(id) + " has " + std::to_string(score(id)) + ", the best " +
         std::to_string(best);
}

std::string JudgeId(const SampleInputs& in, const SampleSpec& spec, int32_t r, int32_t id) {
  const SampleRow& row = in.rows[r];
  if (row.target_id >= 0) return id == row.target_id ? "" : "not the target";
  const std::vector<float> logits = Shaped(in, spec, row, RawRow(in, spec, r));
  const auto best = std::max_element(logits.begin(), logits.end());
  int32_t want = static_cast<int32_t>(best - logits.begin());
  if (*best == -kInfinity) {
    want = 0;
    while (want < spec.shape.used && !MaskAllows(in, spec, row, want)) ++want;
    if (want == spec.shape.used) want = 0;
  } else if (row.temperature > 0) {
    return JudgeDraw(row, logits, id);
  }
  return id == want ? "" : "id " + std::to_string(id) + ", expected " + std::to_string(want);
}

/// Row r of the logprobs, of `id`.
std::string JudgeLogprobs(const SampleInputs& in, const SampleSpec& spec, int32_t r, int32_t id,
                          const HostTensor& values, const HostTensor& ids, int32_t rank) {
  const std::vector<float> logits = RawRow(in, spec, r);
  const float largest = *std::max_element(logits.begin(), logits.end());
  const auto below = [&](float logit) {
    return logit == largest ? 0.0 : static_cast<double>(logit) - largest;
  };
  double total = 0;
  for (const float logit : logits) total += std::exp(below(logit));
  const auto near = [&](int64_t at, int32_t of) {
    const double want = below(logits[of]) - std::log(total);
    const double got = values.At(r * (1 + kLogprobsMax) + at);
    return got == want || std::abs(got - want) <= 2e-5 + 2e-6 * std::abs(want);
  };
  int32_t want_rank = 1;
  for (const float logit : logits) want_rank += logit > logits[id] ? 1 : 0;
  if (rank != want_rank) return "rank " + std::to_string(rank);
  if (ids.At(r * (1 + kLogprobsMax)) != id || !near(0, id)) return "logprob of the id";
  const std::vector<int32_t> falling = FallingIds(logits);
  for (int32_t i = 0; i < in.rows[r].logprobs; ++i) {
    const bool there = i < static_cast<int32_t>(falling.size());
    const int32_t want = there ? falling[i] : -1;
    if (ids.At(r * (1 + kLogprobsMax) + 1 + i) != want) return "alternative " + std::to_string(i);
    if (there && !near(1 + i, want)) return "logprob of alternative " + std::to_string(i);
  }
  return "";
}

// ---- Running
// -------------------------------------------------------------------------------------

template <typename T>
const T* UploadArray(Device& device, const std::vector<T>& values) {
  const auto bytes = static_cast<int64_t>(values.size() * sizeof(T));
  void* memory = device.Allocate(bytes);
  device.CopyToDevice(memory, values.data(), bytes);
  return static_cast<const T*>(memory);
}

SampleArgs Upload(Device& device, const SampleInputs& in, const SampleSpec& spec,
                  const BatchView& view) {
  const int64_t rows = spec.shape.rows + kPaddingRows;
  const int64_t words = (spec.shape.used + 31) / 32;
  SampleArgs args{.batch = view,
                  .logits = in.logits.Upload(device),
                  .vocabulary_used = spec.shape.used,
                  .rows = UploadArray(device, in.rows),
                  .out_ids = HostTensor(DType::kI32, {rows}).Upload(device)};
  if (spec.penalties || spec.edits) {
    args.tokens.ids =
        HostTensor::OfInts(in.tokens, {in.batch.blocks, in.batch.block_size}).Upload(device);
  }
  if (spec.edits) {
    args.edits = UploadArray(device, in.edits);
    args.edit_contexts = UploadArray(device, in.contexts);
  }
  if (spec.masks) args.masks = HostTensor::OfInts(in.masks, {kMasks, words}).Upload(device);
  if (spec.logprobs) {
    args.logprobs.values = HostTensor(DType::kF32, {rows, 1 + kLogprobsMax}).Upload(device);
    args.logprobs.ids = HostTensor(DType::kI32, {rows, 1 + kLogprobsMax}).Upload(device);
    args.logprobs.ranks = HostTensor(DType::kI32, {rows}).Upload(device);
  }
  device.Synchronize();
  return args;
}

/// The bits that a row's logprobs specify.
void AddLogprobBits(const HostTensor& tensor, int32_t r, int32_t entries, Verdict* verdict) {
  const auto begin = tensor.bytes().begin() + int64_t{r} * (1 + kLogprobsMax) * 4;
  verdict->AddBits({begin, begin + int64_t{entries} * 4});
}

CaseResult RunSample(Device& device, const SampleSpec& spec) {
  Random random(SeedOf(spec.name));
  const SampleInputs in(random, spec);
  const BatchView view = in.batch.Upload(device);
  const SampleArgs args = Upload(device, in, spec, view);
  device.ops().sample(device, args);

  Verdict verdict;
  const auto judge = [&](int32_t r, const std::string& fault) {
    if (!fault.empty()) verdict.Fail("row " + std::to_string(r) + ": " + fault);
  };
  const std::vector<int32_t> ids = DownloadInts(device, args.out_ids, spec.shape.rows);
  std::vector<int32_t> want_last = in.batch.last_ids;
  for (int32_t r = 0; r < spec.shape.rows; ++r) {
    judge(r, JudgeId(in, spec, r, ids[r]));
    if (in.rows[r].slot >= 0) want_last[in.rows[r].slot] = ids[r];
  }
  if (spec.logprobs) {
    const HostTensor values = HostTensor::Download(device, args.logprobs.values);
    const HostTensor top = HostTensor::Download(device, args.logprobs.ids);
    const std::vector<int32_t> ranks = DownloadInts(device, args.logprobs.ranks, spec.shape.rows);
    for (int32_t r = 0; r < spec.shape.rows; ++r) {
      if (in.rows[r].logprobs < 0) continue;
      judge(r, JudgeLogprobs(in, spec, r, ids[r], values, top, ranks[r]));
      AddLogprobBits(values, r, 1 + in.rows[r].logprobs, &verdict);
      AddLogprobBits(top, r, 1 + in.rows[r].logprobs, &verdict);
    }
  }
  verdict.Equal("last_ids",
                DownloadInts(device, view.last_ids, static_cast<int64_t>(want_last.size())),
                want_last);
  verdict.Equal("out_ids", ids, ids);
  return verdict.Finish();
}

/// What the ranks' slices of the logits give, each with candidates of its own. `args` are those of
/// the whole logits.
void SampleSlices(Device& device, const SampleInputs& in, const SampleSpec& spec,
                  const SampleArgs& args) {
  const int64_t rows = spec.shape.rows + kPaddingRows;
  const int64_t columns = spec.shape.vocabulary / spec.slices;
  std::vector<int32_t> all(rows * 2 * spec.slices, -1);
  for (int32_t s = 0; s < spec.slices; ++s) {
    HostTensor part(DType::kF32, {rows, columns});
    for (int64_t i = 0; i < spec.shape.rows * columns; ++i) {
      const int64_t row = i / columns;
      part.Set(i, in.logits.At(row * spec.shape.vocabulary + s * columns + i % columns));
    }
    SampleArgs slice = args;
    slice.logits = part.Upload(device);
    slice.out_ids = {};
    slice.candidates = HostTensor(DType::kF32, {rows, 2}).Upload(device);
    slice.vocabulary_begin = s * columns;
    device.ops().sample(device, slice);
    const std::vector<int32_t> words = DownloadInts(device, slice.candidates, rows * 2);
    for (int64_t r = 0; r < rows; ++r) {
      std::copy_n(words.begin() + r * 2, 2, all.begin() + (s * rows + r) * 2);
    }
  }
  Tensor candidates = HostTensor::OfInts(all, {spec.slices, rows, 2}).Upload(device);
  candidates.dtype = DType::kF32;  // raw bits
  device.ops().choose_candidates(
      device,
      {.batch = args.batch, .candidates = candidates, .rows = args.rows, .out_ids = args.out_ids});
}

/// Slices give what the whole gives.
CaseResult RunSlices(Device& device, const SampleSpec& spec) {
  Random random(SeedOf(spec.name));
  const SampleInputs in(random, spec);
  const BatchView whole_view = in.batch.Upload(device);
  const SampleArgs whole = Upload(device, in, spec, whole_view);
  device.ops().sample(device, whole);
  const BatchView view = in.batch.Upload(device);
  const SampleArgs args = Upload(device, in, spec, view);
  SampleSlices(device, in, spec, args);

  Verdict verdict;
  const auto slots = static_cast<int64_t>(in.batch.last_ids.size());
  verdict.Equal("out_ids", DownloadInts(device, args.out_ids, spec.shape.rows),
                DownloadInts(device, whole.out_ids, spec.shape.rows));
  verdict.Equal("last_ids", DownloadInts(device, view.last_ids, slots),
                DownloadInts(device, whole_view.last_ids, slots));
  return verdict.Finish();
}

OpCase SampleCase(SampleSpec spec) {
  spec.name += " " + std::to_string(spec.shape.rows) + "x" + std::to_string(spec.shape.used) +
               " of " + std::to_string(spec.shape.vocabulary) + " temperature " +
               std::to_string(spec.temperature) + " top_p " + std::to_string(spec.top_p) +
               " min_p " + std::to_string(spec.min_p) + " top_k " + std::to_string(spec.top_k) +
               (spec.ties ? " ties" : "") +
               (spec.slices > 1 ? " slices " + std::to_string(spec.slices) : "");
  StepLimits limits;
  limits.tokens_max = 5;
  limits.sequences_max = 4;
  limits.logit_rows_max = spec.shape.rows + kPaddingRows;
  limits.vocabulary = spec.shape.vocabulary;
  return {spec.name, DType::kBF16, limits, [spec](Device& device) {
            return spec.slices > 1 ? RunSlices(device, spec) : RunSample(device, spec);
          }};
}

void AddLimitCases(const SampleShape& shape, bool ties, std::vector<OpCase>* cases) {
  const auto add = [&](float temperature, float top_p, float min_p, int32_t top_k) {
    cases->push_back(SampleCase({.name = "sample",
                                 .shape = shape,
                                 .temperature = temperature,
                                 .top_p = top_p,
                                 .min_p = min_p,
                                 .top_k = top_k,
                                 .ties = ties}));
  };
  add(0, 1, 0, 0);
  add(1, 1, 0, 0);
  add(0.7f, 0.9f, 0, 0);
  add(2.5f, 1, 0, 10);
  add(1, 0.5f, 0, 20);
  add(1, 0.95f, 0, 1);
  add(0.01f, 0.99f, 0, 1000000);
  add(1.5f, 1, 0.05f, 0);
  add(3, 0.9f, 0.2f, 40);
}

/// Every feature alone and all at once, greedy and drawn.
void AddFeatureCases(const SampleShape& shape, bool ties, std::vector<OpCase>* cases) {
  for (const float temperature : {0.0f, 1.3f}) {
    const SampleSpec plain{.name = "sample",
                           .shape = shape,
                           .temperature = temperature,
                           .top_p = 0.9f,
                           .top_k = 50,
                           .ties = ties};
    const std::pair<const char*, bool SampleSpec::*> features[] = {
        {" holes", &SampleSpec::holes},     {" penalties", &SampleSpec::penalties},
        {" edits", &SampleSpec::edits},     {" masks", &SampleSpec::masks},
        {" targets", &SampleSpec::targets}, {" logprobs", &SampleSpec::logprobs}};
    SampleSpec all = plain;
    all.name += " all";
    for (const auto& [name, feature] : features) {
      SampleSpec one = plain;
      one.name += name;
      one.*feature = true;
      all.*feature = true;
      cases->push_back(SampleCase(one));
    }
    cases->push_back(SampleCase(all));
  }
}

}  // namespace

std::vector<OpCase> SampleCases() {
  std::vector<OpCase> cases;
  for (const SampleShape& shape :
       {SampleShape{1, 32, 32}, {17, 1000, 937}, {5, 8192, 8000}, {33, 128, 127}}) {
    for (const bool ties : {false, true}) AddLimitCases(shape, ties, &cases);
  }
  return cases;
}

std::vector<OpCase> SampleFeatureCases() {
  std::vector<OpCase> cases;
  for (const SampleShape& shape :
       {SampleShape{2, 32, 30}, {17, 1000, 937}, {6, 8192, 8000}, {33, 128, 127}}) {
    for (const bool ties : {false, true}) AddFeatureCases(shape, ties, &cases);
  }
  return cases;
}

std::vector<OpCase> SampleSliceCases() {
  // Slices that begin at no multiple of 4; that end in the vocabulary's padding, or are all
  // padding; that a GPU samples with fewer registers than the whole.
  const std::pair<SampleShape, int32_t> shapes[] = {{{2, 32, 30}, 2},      {{17, 1000, 937}, 4},
                                                    {{17, 1000, 1000}, 8}, {{33, 128, 90}, 4},
                                                    {{9, 104, 50}, 8},     {{3, 65536, 65000}, 2}};
  std::vector<OpCase> cases;
  for (const auto& [shape, slices] : shapes) {
    for (const bool ties : {false, true}) {
      // The last makes infinities of all logits, so that only ids decide.
      for (const float temperature : {0.0f, 1.3f, 1e-38f}) {
        SampleSpec spec{.name = "sample",
                        .shape = shape,
                        .temperature = temperature,
                        .ties = ties,
                        .slices = slices};
        cases.push_back(SampleCase(spec));
        spec.name += " holes";
        spec.holes = true;
        cases.push_back(SampleCase(spec));
        spec.name += " penalties edits masks";
        spec.penalties = spec.edits = spec.masks = true;
        cases.push_back(SampleCase(spec));
        // Limits say nothing of greedy rows.
        if (temperature != 0) continue;
        spec.name += " limits";
        spec.top_p = 0.5f;
        spec.min_p = 0.2f;
        spec.top_k = 3;
        cases.push_back(SampleCase(spec));
      }
    }
  }
  return cases;
}

}  // namespace glm::test
