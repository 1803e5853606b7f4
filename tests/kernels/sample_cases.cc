// Cases of sample.
#include <algorithm>
#include <cmath>

#include "kernels/philox.h"
#include "tests/kernels/case_parts.h"

namespace glm::test {
namespace {

struct SampleShape {
  int32_t rows;
  int64_t vocabulary;  // columns
  int64_t used;
};

/// Ids in falling order of logit / temperature, ties by lower id.
std::vector<int32_t> FallingIds(const std::vector<double>& scaled) {
  std::vector<int32_t> ids(scaled.size());
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(i);
  std::stable_sort(ids.begin(), ids.end(),
                   [&](int32_t a, int32_t b) { return scaled[a] > scaled[b]; });
  return ids;
}

/// Empty if `id` is what the contract draws, where float sums leave room at the seams.
std::string JudgeDraw(const SampleRow& row, const std::vector<double>& logits, int32_t id) {
  std::vector<double> scaled;
  for (const double logit : logits) {
    // The quotient is a float.
    scaled.push_back(static_cast<float>(logit) / row.temperature);
  }
  std::vector<int32_t> ids = FallingIds(scaled);
  if (row.top_k > 0 && row.top_k < static_cast<int32_t>(ids.size())) ids.resize(row.top_k);
  std::vector<double> shares;
  double total = 0;
  for (const int32_t i : ids) {
    shares.push_back(std::exp(scaled[i] - scaled[ids[0]]));
    total += shares.back();
  }
  const double uniform = PhiloxUniform(row.seed, PhiloxStream::kSample, row.position);
  constexpr double kSeam = 2e-5;
  for (const double seam : {-kSeam, 0.0, kSeam}) {
    size_t kept = ids.size();
    if (row.top_p < 1) {
      double mass = 0;
      kept = 0;
      while (kept < ids.size() && mass < row.top_p + seam) mass += shares[kept++] / total;
    }
    double mass = 0;
    for (size_t i = 0; i < kept; ++i) mass += shares[i];
    double below = 0;
    for (size_t i = 0; i < kept; ++i) {
      const double above = below + shares[i];
      if (ids[i] == id && uniform > below / mass - kSeam && uniform < above / mass + kSeam) {
        return "";
      }
      below = above;
    }
  }
  return "id " + std::to_string(id) + " is not the draw of " + std::to_string(uniform);
}

SampleRow MakeRow(Random& random, int32_t r, float temperature, float top_p, int32_t top_k) {
  SampleRow row{};
  row.temperature = temperature;
  row.top_p = top_p;
  row.top_k = top_k;
  row.position = static_cast<uint32_t>(random.Below(100000));
  row.seed = static_cast<uint64_t>(random.Below(int64_t{1} << 62));
  row.slot = r % 3 == 2 ? -1 : r;
  return row;
}

OpCase SampleCase(const SampleShape& shape, float temperature, float top_p, int32_t top_k,
                  bool ties) {
  const std::string name =
      "sample " + std::to_string(shape.rows) + "x" + std::to_string(shape.used) + " of " +
      std::to_string(shape.vocabulary) + " temperature " + std::to_string(temperature) + " top_p " +
      std::to_string(top_p) + " top_k " + std::to_string(top_k) + (ties ? " ties" : "");
  constexpr int32_t kPadding = 2;
  const auto run = [=](Device& device) {
    Random random(SeedOf(name));
    BatchSpec spec = BatchSpec::OneSequence(1, 0);
    spec.logit_rows = shape.rows;
    spec.padding_logit_rows = kPadding;
    const CaseBatch batch(random, spec);
    const int32_t rows_padded = shape.rows + kPadding;
    HostTensor logits(random, DType::kF32, {rows_padded, shape.vocabulary}, 6, shape.rows);
    for (int64_t r = 0; r < shape.rows; ++r) {
      for (int64_t i = 0; i < shape.vocabulary; ++i) {
        const int64_t at = r * shape.vocabulary + i;
        if (ties) logits.Set(at, std::round(logits.At(at)));
        // Larger than all: must not be sampled.
        if (i >= shape.used) logits.Set(at, 100);
      }
    }
    std::vector<SampleRow> rows;
    for (int32_t r = 0; r < rows_padded; ++r) {
      rows.push_back(MakeRow(random, r, temperature, top_p, top_k));
    }
    const BatchView view = batch.Upload(device);

    const int64_t rows_bytes = static_cast<int64_t>(rows.size() * sizeof(SampleRow));
    void* device_rows = device.Allocate(rows_bytes);
    device.CopyToDevice(device_rows, rows.data(), rows_bytes);
    const SampleArgs args{.batch = view,
                          .logits = logits.Upload(device),
                          .vocabulary_used = shape.used,
                          .rows = static_cast<const SampleRow*>(device_rows),
                          .out_ids = HostTensor(DType::kI32, {rows_padded}).Upload(device)};
    device.ops().sample(device, args);

    Verdict verdict;
    const std::vector<int32_t> ids = DownloadInts(device, args.out_ids, shape.rows);
    std::vector<int32_t> want_last = batch.last_ids;
    for (int64_t r = 0; r < shape.rows; ++r) {
      std::vector<double> row_logits;
      for (int64_t i = 0; i < shape.used; ++i) {
        row_logits.push_back(logits.At(r * shape.vocabulary + i));
      }
      if (temperature == 0) {
        const auto best = std::max_element(row_logits.begin(), row_logits.end());
        if (ids[r] != best - row_logits.begin()) {
          verdict.Fail("row " + std::to_string(r) + ": greedy id " + std::to_string(ids[r]));
        }
      } else {
        const std::string message = JudgeDraw(rows[r], row_logits, ids[r]);
        if (!message.empty()) verdict.Fail("row " + std::to_string(r) + ": " + message);
      }
      if (rows[r].slot >= 0) want_last[rows[r].slot] = ids[r];
    }
    verdict.Equal("last_ids",
                  DownloadInts(device, view.last_ids, static_cast<int64_t>(want_last.size())),
                  want_last);
    verdict.Equal("out_ids", ids, ids);
    return verdict.Finish();
  };
  StepLimits limits;
  limits.tokens_max = 1;
  limits.sequences_max = 1;
  limits.logit_rows_max = shape.rows + kPadding;
  limits.vocabulary = shape.vocabulary;
  return {name, DType::kBF16, limits, run};
}

}  // namespace

std::vector<OpCase> SampleCases() {
  std::vector<OpCase> cases;
  for (const SampleShape& shape :
       {SampleShape{1, 32, 32}, {17, 1000, 937}, {5, 8192, 8000}, {33, 128, 127}}) {
    for (const bool ties : {false, true}) {
      cases.push_back(SampleCase(shape, 0, 1, 0, ties));
      cases.push_back(SampleCase(shape, 1, 1, 0, ties));
      cases.push_back(SampleCase(shape, 0.7f, 0.9f, 0, ties));
      cases.push_back(SampleCase(shape, 2.5f, 1, 10, ties));
      cases.push_back(SampleCase(shape, 1, 0.5f, 20, ties));
      cases.push_back(SampleCase(shape, 1, 0.95f, 1, ties));
      cases.push_back(SampleCase(shape, 0.01f, 0.99f, 1000000, ties));
    }
  }
  return cases;
}

std::vector<OpCase> AllOpCases() {
  std::vector<OpCase> all;
  for (const auto make :
       {EmbedCases, AddRmsNormCases, LinearCases, NormRopeStoreCases, AttentionCases, SiluMulCases,
        MoeRouteCases, MoeExpertsCases, GatherLogitRowsCases, SampleCases, MlaRopeStoreCases,
        MlaAttentionCases, EmbedSliceCases, RmsNormCases, NormRopeStoreFloat8Cases,
        AttentionFloat8Cases}) {
    std::vector<OpCase> cases = make();
    std::move(cases.begin(), cases.end(), std::back_inserter(all));
  }
  return all;
}

StepLimits LimitsOf(const std::vector<OpCase>& cases) {
  StepLimits limits;
  for (const OpCase& one : cases) {
    for (int64_t StepLimits::*field :
         {&StepLimits::tokens_max, &StepLimits::sequences_max, &StepLimits::logit_rows_max,
          &StepLimits::hidden, &StepLimits::query_heads, &StepLimits::kv_heads,
          &StepLimits::head_size, &StepLimits::query_latent, &StepLimits::latent,
          &StepLimits::experts, &StepLimits::experts_per_token, &StepLimits::expert_width,
          &StepLimits::dense_width, &StepLimits::vocabulary}) {
      limits.*field = std::max(limits.*field, one.limits.*field);
    }
  }
  return limits;
}

}  // namespace glm::test
