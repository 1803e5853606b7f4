// Cases of mla_rope_store and mla_attention.
#include <algorithm>
#include <cmath>

#include "tests/kernels/case_parts.h"

namespace glm::test {
namespace {

constexpr DType kActs[] = {DType::kF32, DType::kBF16};
constexpr int64_t kGroup = 128;
constexpr float kFloat8Scale = 0.0113f;

struct MlaShape {
  int64_t heads;
  int64_t plain;
  int64_t rope;
  int64_t value;
  int64_t latent;

  int64_t query() const { return plain + rope; }
  int64_t cell() const { return latent + rope; }
  std::string Text() const {
    return std::to_string(heads) + "x" + std::to_string(plain) + "+" + std::to_string(rope) + "/" +
           std::to_string(value) + " latent " + std::to_string(latent);
  }
};

// As GLM-4.7-Flash, with fewer heads; then odd sizes, and more heads than are computed at once.
constexpr MlaShape kFlash{4, 192, 64, 256, 512};
constexpr MlaShape kOdd{3, 9, 6, 22, 37};
constexpr MlaShape kSmall{6, 16, 8, 24, 32};

struct Step {
  const char* name;
  BatchSpec spec;
};

BatchSpec Spec(std::vector<BatchSpec::Part> sequences, int32_t block_size) {
  BatchSpec spec;
  spec.sequences = std::move(sequences);
  spec.padding_tokens = 3;
  spec.padding_sequences = 1;
  spec.block_size = block_size;
  return spec;
}

std::vector<Step> Steps() {
  return {
      {"first token", Spec({{0, 1}}, 16)},
      {"decode", Spec({{0, 1}, {15, 1}, {16, 1}, {64, 1}, {200, 1}}, 16)},
      {"prefill", Spec({{0, 17}, {0, 33}}, 16)},
      {"mixed", Spec({{63, 1}, {0, 40}, {127, 2}, {129, 1}, {5, 9}}, 32)},
      {"long", Spec({{1000, 1}, {700, 3}}, 64)},
  };
}

StepLimits MlaLimits(const BatchSpec& spec, const MlaShape& shape) {
  StepLimits limits;
  for (const BatchSpec::Part& part : spec.sequences) limits.tokens_max += part.tokens;
  limits.tokens_max += spec.padding_tokens;
  limits.sequences_max = static_cast<int64_t>(spec.sequences.size()) + spec.padding_sequences;
  limits.logit_rows_max = limits.sequences_max;
  limits.query_heads = shape.heads;
  limits.kv_heads = 1;
  limits.head_size = std::max(shape.query(), shape.value);
  limits.latent = shape.cell();
  return limits;
}

HostTensor MlaRopeTable(int64_t positions, int64_t rope_size) {
  HostTensor rope(DType::kF32, {positions, rope_size});
  const int64_t half = rope_size / 2;
  for (int64_t p = 0; p < positions; ++p) {
    for (int64_t i = 0; i < half; ++i) {
      const double exponent = -2.0 * static_cast<double>(i) / static_cast<double>(rope_size);
      const double angle = static_cast<double>(p) * std::pow(10000.0, exponent);
      rope.Set(p * rope_size + i, std::cos(angle));
      rope.Set(p * rope_size + half + i, std::sin(angle));
    }
  }
  return rope;
}

// ---- mla_rope_store ----

/// Rotates the pairs of neighbours of the last values of `row`.
void RotateOracle(std::vector<double>& row, const HostTensor& rope, int64_t position, DType act) {
  const int64_t size = rope.columns();
  const int64_t begin = static_cast<int64_t>(row.size()) - size;
  for (int64_t i = 0; i < size / 2; ++i) {
    const double cosine = rope.At(position * size + i);
    const double sine = rope.At(position * size + size / 2 + i);
    const double even = row[begin + 2 * i];
    const double odd = row[begin + 2 * i + 1];
    row[begin + 2 * i] = RoundTo(act, even * cosine - odd * sine);
    row[begin + 2 * i + 1] = RoundTo(act, odd * cosine + even * sine);
  }
}

/// What the cache gets of a row [latent, rope key].
std::vector<double> CellOracle(std::vector<double> row, const HostTensor& weight,
                               const HostTensor& rope, int64_t position, DType act) {
  const int64_t latent = weight.elements();
  double squares = 0;
  for (int64_t i = 0; i < latent; ++i) squares += row[i] * row[i];
  const double factor = 1 / std::sqrt(squares / static_cast<double>(latent) + 1e-5);
  for (int64_t i = 0; i < latent; ++i) {
    row[i] = RoundTo(act, RoundTo(act, row[i] * factor) * weight.At(i));
  }
  RotateOracle(row, rope, position, act);
  return row;
}

OpCase MlaRopeStoreCase(DType act, const Step& step, const MlaShape& shape, bool float8_cache) {
  const std::string name = std::string("mla_rope_store ") + Name(act) + " " + shape.Text() + " " +
                           step.name + (float8_cache ? " float8 cache" : "");
  const BatchSpec spec = step.spec;
  const auto run = [=](Device& device) {
    Random random(SeedOf(name));
    const CaseBatch batch(random, spec);
    const int64_t query_width = shape.heads * shape.query();
    constexpr int64_t kBefore = 16;  // columns of the projection before the latent
    const HostTensor queries(random, act, {batch.tokens_padded, query_width}, 2, batch.tokens);
    const HostTensor latent(random, act, {batch.tokens_padded, kBefore + shape.cell()}, 2,
                            batch.tokens);
    const HostTensor weight(random, act, {shape.latent}, 1.5);
    const int32_t positions =
        *std::max_element(batch.positions.begin(), batch.positions.begin() + batch.tokens) + 1;
    const HostTensor rope = MlaRopeTable(positions, shape.rope);
    const float scale = float8_cache ? kFloat8Scale : 1;
    HostTensor want_cache(float8_cache ? DType::kF8E4M3 : act,
                          {batch.blocks, 1, batch.block_size, shape.cell()});

    const BatchView view = batch.Upload(device);
    KvLayer cache;
    cache.keys = want_cache.Upload(device);
    cache.key_scale = scale;
    const MlaRopeStoreArgs args{.batch = view,
                                .queries = queries.Upload(device),
                                .latent = latent.Upload(device).Columns(kBefore, shape.cell()),
                                .latent_norm = weight.Upload(device),
                                .epsilon = 1e-5f,
                                .rope = rope.Upload(device),
                                .query_heads = shape.heads,
                                .cache = cache};
    device.ops().mla_rope_store(device, args);

    std::vector<double> want_queries;
    for (int32_t t = 0; t < batch.tokens; ++t) {
      const int32_t position = batch.positions[t];
      for (int64_t h = 0; h < shape.heads; ++h) {
        std::vector<double> row(shape.query());
        for (int64_t i = 0; i < shape.query(); ++i) {
          row[i] = queries.At(t * query_width + h * shape.query() + i);
        }
        RotateOracle(row, rope, position, act);
        want_queries.insert(want_queries.end(), row.begin(), row.end());
      }
      std::vector<double> row(shape.cell());
      for (int64_t i = 0; i < shape.cell(); ++i) {
        row[i] = latent.At(t * latent.columns() + kBefore + i);
      }
      row = CellOracle(row, weight, rope, position, act);
      const int64_t cell = batch.Cell(batch.token_sequences[t], position, 1, 0, shape.cell());
      for (int64_t i = 0; i < shape.cell(); ++i) want_cache.Set(cell + i, row[i] / scale);
    }
    Verdict verdict;
    verdict.Near(device, "queries", args.queries, batch.tokens, want_queries,
                 ToleranceOf(act, 4, 3));
    if (float8_cache) {
      verdict.NearCodes(device, "cache", args.cache.keys, want_cache, act);
    } else {
      std::vector<double> numbers(want_cache.elements());
      for (size_t i = 0; i < numbers.size(); ++i) {
        numbers[i] = want_cache.At(static_cast<int64_t>(i));
      }
      verdict.Near(device, "cache", args.cache.keys, batch.blocks, numbers, ToleranceOf(act, 4, 3));
    }
    return verdict.Finish();
  };
  return {name, act, MlaLimits(spec, shape), run};
}

// ---- mla_attention ----

/// What head `h` of token `t` gives, without any rounding on the way: either form is near it.
std::vector<double> MlaOracle(const CaseBatch& batch, const MlaShape& shape,
                              const HostTensor& queries, const HostTensor& kv_up,
                              const HostTensor& cache, double cell_scale, double scale, int32_t t,
                              int64_t h) {
  const int64_t query = (t * shape.heads + h) * shape.query();
  const int64_t up = h * (shape.plain + shape.value) * shape.latent;
  std::vector<double> absorbed(shape.cell(), 0.0);
  for (int64_t j = 0; j < shape.plain; ++j) {
    for (int64_t i = 0; i < shape.latent; ++i) {
      absorbed[i] += queries.At(query + j) * kv_up.At(up + j * shape.latent + i);
    }
  }
  for (int64_t i = 0; i < shape.rope; ++i) {
    absorbed[shape.latent + i] = queries.At(query + shape.plain + i);
  }
  std::vector<double> scores;
  const auto cell_of = [&](int64_t p) {
    return batch.Cell(batch.token_sequences[t], static_cast<int32_t>(p), 1, 0, shape.cell());
  };
  for (int32_t p = 0; p <= batch.positions[t]; ++p) {
    double score = 0;
    for (int64_t i = 0; i < shape.cell(); ++i) score += absorbed[i] * cache.At(cell_of(p) + i);
    scores.push_back(score * cell_scale * scale);
  }
  const double largest = *std::max_element(scores.begin(), scores.end());
  double total = 0;
  for (double& score : scores) total += score = std::exp(score - largest);
  std::vector<double> sum(shape.latent, 0.0);
  for (size_t p = 0; p < scores.size(); ++p) {
    const int64_t cell = cell_of(static_cast<int64_t>(p));
    for (int64_t i = 0; i < shape.latent; ++i) {
      sum[i] += scores[p] / total * cache.At(cell + i) * cell_scale;
    }
  }
  std::vector<double> out(shape.value, 0.0);
  for (int64_t j = 0; j < shape.value; ++j) {
    const int64_t row = up + (shape.plain + j) * shape.latent;
    for (int64_t i = 0; i < shape.latent; ++i) out[j] += kv_up.At(row + i) * sum[i];
  }
  return out;
}

OpCase MlaAttentionCase(DType act, const Step& step, const MlaShape& shape, bool quantized,
                        bool out_too, bool float8_cache) {
  const std::string name = std::string("mla_attention ") + Name(act) + " " + shape.Text() + " " +
                           step.name + (quantized ? out_too ? " both" : " quantized" : "") +
                           (float8_cache ? " float8 cache" : "");
  const BatchSpec spec = step.spec;
  const auto run = [=](Device& device) {
    Random random(SeedOf(name));
    const CaseBatch batch(random, spec);
    const int64_t columns = shape.heads * shape.value;
    const HostTensor queries(random, act, {batch.tokens_padded, shape.heads * shape.query()}, 2,
                             batch.tokens);
    // Outputs of a magnitude near 1.
    const HostTensor kv_up(random, act, {shape.heads, shape.plain + shape.value, shape.latent},
                           3 / std::sqrt(static_cast<double>(shape.latent)));
    const float cell_scale = float8_cache ? kFloat8Scale : 1;
    // Only the cells of cached positions hold numbers.
    HostTensor cells(float8_cache ? DType::kF8E4M3 : act,
                     {batch.blocks, 1, batch.block_size, shape.cell()});
    for (int32_t s = 0; s < batch.counts[1]; ++s) {
      for (int32_t p = 0; p < batch.kv_lengths[s]; ++p) {
        const int64_t cell = batch.Cell(s, p, 1, 0, shape.cell());
        for (int64_t i = 0; i < shape.cell(); ++i) {
          cells.Set(cell + i, random.Uniform(-2, 2) / cell_scale);
        }
      }
    }
    const float scale = 1 / std::sqrt(static_cast<float>(shape.query()));
    const BatchView view = batch.Upload(device);
    KvLayer cache;
    cache.keys = cells.Upload(device);
    cache.key_scale = cell_scale;
    MlaAttentionArgs args{.batch = view,
                          .queries = queries.Upload(device),
                          .cache = cache,
                          .kv_up = kv_up.Upload(device),
                          .scale = scale};
    args.out = HostTensor(act, {batch.tokens_padded, columns}).Upload(device);
    device.ops().mla_attention(device, args);
    std::vector<double> want;
    for (int32_t t = 0; t < batch.tokens; ++t) {
      for (int64_t h = 0; h < shape.heads; ++h) {
        for (const double x :
             MlaOracle(batch, shape, queries, kv_up, cells, cell_scale, scale, t, h)) {
          want.push_back(RoundTo(act, x));
        }
      }
    }
    Verdict verdict;
    Tolerance tolerance = ToleranceOf(act, 4);
    // Either form rounds twice on the way to act, and outputs are sums of both signs.
    if (act == DType::kBF16)
      tolerance = {.relative = 0x1p-6, .absolute = 0.04, .similarity = 0.9999};
    verdict.Near(device, "out", args.out, batch.tokens, want, tolerance);
    if (!quantized) return verdict.Finish();

    // What is quantised is what `out` has.
    const HostTensor rounded = HostTensor::Download(device, args.out.Rows(0, batch.tokens));
    for (size_t i = 0; i < want.size(); ++i) want[i] = rounded.At(static_cast<int64_t>(i));
    args.out = out_too ? HostTensor(act, {batch.tokens_padded, columns}).Upload(device) : Tensor();
    args.quantized.values =
        HostTensor(DType::kF8E4M3, {batch.tokens_padded, columns}).Upload(device);
    args.quantized.scales =
        out_too ? HostTensor(DType::kF32, {batch.tokens_padded, (columns + kGroup - 1) / kGroup})
                      .Upload(device)
                : HostTensor(DType::kF32, {batch.tokens_padded}).Upload(device);
    device.ops().mla_attention(device, args);
    if (out_too) verdict.Near(device, "out", args.out, batch.tokens, want, ToleranceOf(act, 4));
    verdict.NearQuantized(device, "quantized", args.quantized, batch.tokens, want,
                          out_too ? kGroup : columns, act);
    return verdict.Finish();
  };
  return {name, act, MlaLimits(spec, shape), run};
}

}  // namespace

std::vector<OpCase> MlaRopeStoreCases() {
  std::vector<OpCase> cases;
  const std::vector<Step> steps = Steps();
  for (const DType act : kActs) {
    for (const Step& step : steps) cases.push_back(MlaRopeStoreCase(act, step, kSmall, false));
    cases.push_back(MlaRopeStoreCase(act, steps[3], kOdd, false));
    cases.push_back(MlaRopeStoreCase(act, steps[1], kFlash, false));
    cases.push_back(MlaRopeStoreCase(act, steps[3], kFlash, false));
    cases.push_back(MlaRopeStoreCase(act, steps[3], kOdd, true));
    cases.push_back(MlaRopeStoreCase(act, steps[1], kFlash, true));
  }
  return cases;
}

std::vector<OpCase> MlaAttentionCases() {
  std::vector<OpCase> cases;
  const std::vector<Step> steps = Steps();
  for (const DType act : kActs) {
    for (const Step& step : steps) {
      cases.push_back(MlaAttentionCase(act, step, kSmall, false, false, false));
    }
    cases.push_back(MlaAttentionCase(act, steps[3], kOdd, false, false, false));
    cases.push_back(MlaAttentionCase(act, steps[3], kOdd, false, false, true));
    cases.push_back(MlaAttentionCase(act, steps[1], kFlash, false, false, false));
    cases.push_back(MlaAttentionCase(act, steps[2], kFlash, false, false, false));
    cases.push_back(MlaAttentionCase(act, steps[1], kFlash, false, false, true));
    cases.push_back(MlaAttentionCase(act, steps[1], kFlash, true, false, false));
    cases.push_back(MlaAttentionCase(act, steps[1], kFlash, true, true, false));
  }
  return cases;
}

std::vector<OpCase> MlaAttentionLargeCases() {
  constexpr MlaShape kHeads{10, 192, 64, 256, 512};
  const std::vector<Step> steps = {
      {"prompts", Spec({{0, 150}, {0, 65}, {0, 129}}, 16)},
      {"prompts and decode", Spec({{700, 1}, {0, 130}, {90, 70}, {33, 1}}, 64)},
      {"long decode", Spec({{1500, 1}, {1, 1}, {640, 3}, {31, 2}}, 32)},
      {"many", Spec(std::vector<BatchSpec::Part>(70, {100, 1}), 16)},
  };
  std::vector<OpCase> cases;
  for (const Step& step : steps) {
    cases.push_back(MlaAttentionCase(DType::kBF16, step, kHeads, false, false, false));
  }
  return cases;
}

std::vector<OpCase> MlaAttentionDecodeCases() {
  // As many padded sequences as padded tokens: a step of decode.
  const auto decode = [](std::vector<BatchSpec::Part> sequences, int32_t block_size) {
    BatchSpec spec = Spec(std::move(sequences), block_size);
    spec.padding_tokens = 1;
    for (const BatchSpec::Part& part : spec.sequences) spec.padding_sequences += part.tokens - 1;
    return spec;
  };
  std::vector<BatchSpec::Part> many;  // more than there are warpgroups to compute them
  for (int i = 0; i < 300; ++i) many.push_back({i * 7 % 130, 1});
  const std::vector<Step> steps = {
      {"decode of the first", decode({{0, 1}}, 64)},
      {"decode of one", decode({{1000, 1}}, 64)},
      {"decode of some", decode({{0, 1}, {15, 1}, {63, 1}, {64, 1}, {200, 1}, {1500, 1}}, 16)},
      {"decode, pages that steps straddle",
       decode({{300, 1}, {95, 1}, {96, 1}, {31, 1}, {7, 1}}, 96)},
      {"decode, long and short", decode({{5000, 1}, {100, 1}, {2100, 1}, {30, 1}, {5, 1}}, 64)},
      {"decode, small pages", decode({{130, 1}, {1, 1}}, 8)},
      {"decode, some of several tokens",
       decode({{900, 1}, {640, 3}, {31, 2}, {70, 9}, {0, 5}}, 32)},
  };
  std::vector<OpCase> cases;
  for (const int64_t heads : {5, 20, 24}) {
    const MlaShape shape{heads, 192, 64, 256, 512};
    for (const Step& step : steps) {
      // The oracle takes its time.
      if (heads > 5 && step.spec.sequences[0].cached > 1000) continue;
      cases.push_back(MlaAttentionCase(DType::kBF16, step, shape, false, false, false));
    }
  }
  cases.push_back(MlaAttentionCase(DType::kBF16, {"decode of many", decode(many, 64)},
                                   {5, 192, 64, 256, 512}, false, false, false));
  return cases;
}

}  // namespace glm::test
