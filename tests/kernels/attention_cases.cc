// Cases of norm_rope_store and attention.
#include <algorithm>
#include <cmath>

#include "tests/kernels/case_parts.h"

namespace glm::test {
namespace {

constexpr DType kActs[] = {DType::kF32, DType::kBF16};
constexpr int64_t kGroup = 128;
// Of the values in an FP8 cache.
constexpr float kKeyScale = 0.0117f;
constexpr float kValueScale = 0.0071f;

struct HeadShape {
  int64_t query_heads;
  int64_t kv_heads;
  int64_t head_size;

  int64_t qkv_width() const { return (query_heads + 2 * kv_heads) * head_size; }
  std::string Text() const {
    return std::to_string(query_heads) + "/" + std::to_string(kv_heads) + "x" +
           std::to_string(head_size);
  }
};

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
      {"decode", Spec({{0, 1}, {15, 1}, {16, 1}, {31, 1}, {64, 1}, {200, 1}}, 16)},
      {"prefill", Spec({{0, 17}, {0, 33}}, 16)},
      {"chunk", Spec({{40, 31}, {128, 65}}, 64)},
      {"mixed", Spec({{63, 1}, {0, 64}, {127, 2}, {129, 1}, {5, 9}}, 32)},
      {"long", Spec({{1000, 1}, {700, 3}}, 128)},
  };
}

StepLimits HeadLimits(const BatchSpec& spec, const HeadShape& shape) {
  StepLimits limits;
  for (const BatchSpec::Part& part : spec.sequences) limits.tokens_max += part.tokens;
  limits.tokens_max += spec.padding_tokens;
  limits.sequences_max = static_cast<int64_t>(spec.sequences.size()) + spec.padding_sequences;
  limits.logit_rows_max = limits.sequences_max;
  limits.query_heads = shape.query_heads;
  limits.kv_heads = shape.kv_heads;
  limits.head_size = shape.head_size;
  return limits;
}

// ---- norm_rope_store ----

/// One head after norm and rotation.
std::vector<double> NormRopeOracle(std::vector<double> head, const HostTensor* weight,
                                   double epsilon, const HostTensor& rope, int64_t position,
                                   DType act) {
  if (weight != nullptr) {
    double squares = 0;
    for (const double x : head) squares += x * x;
    const double factor = 1 / std::sqrt(squares / static_cast<double>(head.size()) + epsilon);
    for (size_t i = 0; i < head.size(); ++i) {
      head[i] = RoundTo(act, RoundTo(act, head[i] * factor) * weight->At(static_cast<int64_t>(i)));
    }
  }
  const int64_t half = rope.columns() / 2;
  for (int64_t i = 0; i < half; ++i) {
    const double cosine = rope.At(position * 2 * half + i);
    const double sine = rope.At(position * 2 * half + half + i);
    const double low = head[i];
    const double high = head[half + i];
    head[i] = RoundTo(act, low * cosine - high * sine);
    head[half + i] = RoundTo(act, high * cosine + low * sine);
  }
  return head;
}

HostTensor RopeTable(int64_t positions, int64_t rope_size) {
  HostTensor rope(DType::kF32, {positions, rope_size});
  const int64_t half = rope_size / 2;
  for (int64_t p = 0; p < positions; ++p) {
    for (int64_t i = 0; i < half; ++i) {
      const double angle =
          static_cast<double>(p) *
          std::pow(10000.0, -2.0 * static_cast<double>(i) / static_cast<double>(rope_size));
      rope.Set(p * rope_size + i, std::cos(angle));
      rope.Set(p * rope_size + half + i, std::sin(angle));
    }
  }
  return rope;
}

OpCase NormRopeStoreCase(DType act, const Step& step, const HeadShape& shape, int64_t rope_size,
                         bool norm, bool float8_cache = false) {
  const std::string name = std::string("norm_rope_store ") + Name(act) + " " + shape.Text() +
                           " rope " + std::to_string(rope_size) + (norm ? " norm " : " ") +
                           step.name + (float8_cache ? " float8 cache" : "");
  const BatchSpec spec = step.spec;
  const auto run = [=](Device& device) {
    Random random(SeedOf(name));
    const CaseBatch batch(random, spec);
    const int64_t d = shape.head_size;
    const HostTensor qkv(random, act, {batch.tokens_padded, shape.qkv_width()}, 2, batch.tokens);
    const HostTensor q_norm(random, act, {d}, 1.5);
    const HostTensor k_norm(random, act, {d}, 1.5);
    const int32_t positions =
        *std::max_element(batch.positions.begin(), batch.positions.begin() + batch.tokens) + 1;
    const HostTensor rope = RopeTable(positions, rope_size);
    HostTensor want_keys(float8_cache ? DType::kF8E4M3 : act,
                         {batch.blocks, shape.kv_heads, batch.block_size, d});
    HostTensor want_values = want_keys;
    const float key_scale = float8_cache ? kKeyScale : 1;
    const float value_scale = float8_cache ? kValueScale : 1;

    const BatchView view = batch.Upload(device);
    NormRopeStoreArgs args{
        .batch = view,
        .qkv = qkv.Upload(device),
        .rope = rope.Upload(device),
        .cache = {want_keys.Upload(device), want_values.Upload(device), key_scale, value_scale}};
    if (norm) args.q_norm = q_norm.Upload(device);
    if (norm) args.k_norm = k_norm.Upload(device);
    args.epsilon = 1e-5f;
    args.query_heads = shape.query_heads;
    args.kv_heads = shape.kv_heads;
    device.ops().norm_rope_store(device, args);

    std::vector<double> want_q;
    for (int32_t t = 0; t < batch.tokens; ++t) {
      const auto head_at = [&](int64_t h) {
        std::vector<double> head(d);
        for (int64_t i = 0; i < d; ++i) head[i] = qkv.At(t * shape.qkv_width() + h * d + i);
        return head;
      };
      const int32_t position = batch.positions[t];
      for (int64_t h = 0; h < shape.query_heads; ++h) {
        const std::vector<double> q =
            NormRopeOracle(head_at(h), norm ? &q_norm : nullptr, 1e-5, rope, position, act);
        want_q.insert(want_q.end(), q.begin(), q.end());
      }
      for (int64_t h = 0; h < shape.kv_heads; ++h) {
        const std::vector<double> k = NormRopeOracle(
            head_at(shape.query_heads + h), norm ? &k_norm : nullptr, 1e-5, rope, position, act);
        const std::vector<double> v = head_at(shape.query_heads + shape.kv_heads + h);
        const int64_t cell = batch.Cell(batch.token_sequences[t], position, shape.kv_heads, h, d);
        for (int64_t i = 0; i < d; ++i) {
          want_keys.Set(cell + i, k[i] / key_scale);
          want_values.Set(cell + i, v[i] / value_scale);
        }
      }
    }
    // q stands in the first columns of each row.
    const HostTensor after = HostTensor::Download(device, args.qkv);
    HostTensor got_q(act, {batch.tokens, shape.query_heads * d});
    for (int64_t i = 0; i < got_q.elements(); ++i) {
      got_q.Set(i, after.At(i / got_q.columns() * shape.qkv_width() + i % got_q.columns()));
    }
    Verdict verdict;
    const Tolerance tolerance = ToleranceOf(act, 4, 3);
    Tolerance with_cancellation = tolerance;
    // A rotation may cancel what the norm's two roundings have moved.
    if (act == DType::kBF16 && norm) with_cancellation.absolute = 0.05;
    verdict.Near(device, "q", got_q.Upload(device), batch.tokens, want_q, with_cancellation);
    if (float8_cache) {
      verdict.NearCodes(device, "keys", args.cache.keys, want_keys, act);
      verdict.NearCodes(device, "values", args.cache.values, want_values, act);
      return verdict.Finish();
    }
    // Cells that the step does not store to must keep their NaN: Compare counts NaN against NaN as
    // equal, and its similarity is not asked for.
    const auto near_cache = [&](const char* part, const Tensor& got, const HostTensor& want) {
      std::vector<double> numbers(want.elements());
      for (size_t i = 0; i < numbers.size(); ++i) numbers[i] = want.At(static_cast<int64_t>(i));
      verdict.Near(device, part, got, batch.blocks, numbers, with_cancellation);
    };
    near_cache("keys", args.cache.keys, want_keys);
    near_cache("values", args.cache.values, want_values);
    return verdict.Finish();
  };
  return {name, act, HeadLimits(spec, shape), run};
}

// ---- attention ----

/// What the query heads of token `t` see.
std::vector<double> AttentionOracle(const CaseBatch& batch, const HeadShape& shape,
                                    const HostTensor& qkv, const HostTensor& keys,
                                    const HostTensor& values, double scale, double value_scale,
                                    int32_t t, DType act) {
  const int64_t d = shape.head_size;
  std::vector<double> out;
  for (int64_t h = 0; h < shape.query_heads; ++h) {
    const int64_t kv_head = h / (shape.query_heads / shape.kv_heads);
    std::vector<double> scores;
    for (int32_t p = 0; p <= batch.positions[t]; ++p) {
      const int64_t cell = batch.Cell(batch.token_sequences[t], p, shape.kv_heads, kv_head, d);
      double score = 0;
      for (int64_t i = 0; i < d; ++i) {
        score += qkv.At(t * shape.qkv_width() + h * d + i) * keys.At(cell + i);
      }
      scores.push_back(score * scale);
    }
    const double largest = *std::max_element(scores.begin(), scores.end());
    double total = 0;
    for (double& score : scores) total += score = std::exp(score - largest);
    std::vector<double> sum(d, 0.0);
    for (size_t p = 0; p < scores.size(); ++p) {
      const int64_t cell =
          batch.Cell(batch.token_sequences[t], static_cast<int32_t>(p), shape.kv_heads, kv_head, d);
      for (int64_t i = 0; i < d; ++i) sum[i] += scores[p] / total * values.At(cell + i);
    }
    for (const double x : sum) out.push_back(RoundTo(act, x * value_scale));
  }
  return out;
}

OpCase AttentionCase(DType act, const Step& step, const HeadShape& shape, bool quantized,
                     bool out_too, bool float8_cache = false) {
  const std::string name = std::string("attention ") + Name(act) + " " + shape.Text() + " " +
                           step.name + (quantized ? out_too ? " both" : " quantized" : "") +
                           (float8_cache ? " float8 cache" : "");
  const BatchSpec spec = step.spec;
  const auto run = [=](Device& device) {
    Random random(SeedOf(name));
    const CaseBatch batch(random, spec);
    const int64_t d = shape.head_size;
    const int64_t columns = shape.query_heads * d;
    const HostTensor qkv(random, act, {batch.tokens_padded, shape.qkv_width()}, 2, batch.tokens);
    // Only the cells of cached positions hold numbers.
    HostTensor keys(float8_cache ? DType::kF8E4M3 : act,
                    {batch.blocks, shape.kv_heads, batch.block_size, d});
    HostTensor values = keys;
    const float key_scale = float8_cache ? kKeyScale : 1;
    const float value_scale = float8_cache ? kValueScale : 1;
    for (int32_t s = 0; s < batch.counts[1]; ++s) {
      for (int32_t p = 0; p < batch.kv_lengths[s]; ++p) {
        for (int64_t h = 0; h < shape.kv_heads; ++h) {
          const int64_t cell = batch.Cell(s, p, shape.kv_heads, h, d);
          for (int64_t i = 0; i < d; ++i) {
            keys.Set(cell + i, random.Uniform(-2, 2) / key_scale);
            values.Set(cell + i, random.Uniform(-1, 1) / value_scale);
          }
        }
      }
    }
    const float scale = 1 / std::sqrt(static_cast<float>(d));
    const BatchView view = batch.Upload(device);
    AttentionArgs args{
        .batch = view,
        .queries = qkv.Upload(device).Columns(0, columns),
        .cache = {keys.Upload(device), values.Upload(device), key_scale, value_scale},
        .scale = scale};
    if (!quantized || out_too) {
      args.out = HostTensor(act, {batch.tokens_padded, columns}).Upload(device);
    }
    if (quantized) {
      args.quantized.values =
          HostTensor(DType::kF8E4M3, {batch.tokens_padded, columns}).Upload(device);
      args.quantized.scales =
          out_too ? HostTensor(DType::kF32, {batch.tokens_padded, (columns + kGroup - 1) / kGroup})
                        .Upload(device)
                  : HostTensor(DType::kF32, {batch.tokens_padded}).Upload(device);
    }
    device.ops().attention(device, args);
    std::vector<double> want;
    for (int32_t t = 0; t < batch.tokens; ++t) {
      const std::vector<double> row = AttentionOracle(
          batch, shape, qkv, keys, values, double{scale} * key_scale, value_scale, t, act);
      want.insert(want.end(), row.begin(), row.end());
    }
    Verdict verdict;
    Tolerance tolerance = ToleranceOf(act, 1);
    // Room for probabilities rounded to act, as tensor cores take them.
    if (act == DType::kBF16) tolerance.absolute = 2e-3;
    if (!args.out.empty()) {
      verdict.Near(device, "out", args.out, batch.tokens, want, tolerance);
    }
    if (quantized) {
      verdict.NearQuantized(device, "quantized", args.quantized, batch.tokens, want,
                            out_too ? kGroup : columns, act, tolerance.absolute);
    }
    return verdict.Finish();
  };
  return {name, act, HeadLimits(spec, shape), run};
}

}  // namespace

std::vector<OpCase> NormRopeStoreCases() {
  std::vector<OpCase> cases;
  const std::vector<Step> steps = Steps();
  for (const DType act : kActs) {
    for (const bool norm : {false, true}) {
      for (size_t i = 0; i < steps.size() - 1; ++i) {
        cases.push_back(NormRopeStoreCase(act, steps[i], {4, 2, 16}, 8, norm));
      }
      cases.push_back(NormRopeStoreCase(act, steps[1], {3, 1, 64}, 64, norm));
      cases.push_back(NormRopeStoreCase(act, steps[1], {12, 1, 128}, 64, norm));
    }
  }
  return cases;
}

std::vector<OpCase> AttentionLargeCases() {
  std::vector<OpCase> cases;
  for (const HeadShape& shape :
       {HeadShape{12, 1, 128}, HeadShape{4, 2, 128}, HeadShape{8, 8, 64}}) {
    const auto add = [&](const char* name, std::vector<BatchSpec::Part> sequences,
                         int32_t block_size) {
      const Step step{name, Spec(std::move(sequences), block_size)};
      cases.push_back(AttentionCase(DType::kBF16, step, shape, false, false));
    };
    add("one prompt", {{0, 300}}, 64);
    add("chunks", {{500, 130}, {64, 64}, {0, 129}, {63, 1}}, 64);
    add("small blocks", {{100, 90}, {1000, 1}, {17, 200}}, 16);
    add("large blocks", {{129, 70}, {300, 5}}, 128);
    add("many", std::vector<BatchSpec::Part>(300, {70, 1}), 32);
  }
  return cases;
}

std::vector<OpCase> AttentionCases() {
  std::vector<OpCase> cases;
  const std::vector<Step> steps = Steps();
  for (const DType act : kActs) {
    for (const Step& step : steps) {
      cases.push_back(AttentionCase(act, step, {4, 2, 16}, false, false));
      cases.push_back(AttentionCase(act, step, {1, 1, 32}, false, false));
    }
    for (const size_t i : {1, 4}) {
      cases.push_back(AttentionCase(act, steps[i], {12, 1, 128}, false, false));
      cases.push_back(AttentionCase(act, steps[i], {6, 2, 64}, true, false));
      cases.push_back(AttentionCase(act, steps[i], {10, 2, 64}, true, true));
    }
  }
  return cases;
}

std::vector<OpCase> NormRopeStoreFloat8Cases() {
  std::vector<OpCase> cases;
  const std::vector<Step> steps = Steps();
  for (const DType act : kActs) {
    cases.push_back(NormRopeStoreCase(act, steps[4], {4, 2, 16}, 8, true, true));
    cases.push_back(NormRopeStoreCase(act, steps[1], {12, 1, 128}, 64, false, true));
  }
  return cases;
}

std::vector<OpCase> AttentionFloat8Cases() {
  std::vector<OpCase> cases;
  const std::vector<Step> steps = Steps();
  for (const DType act : kActs) {
    for (const size_t i : {1, 3, 4}) {
      cases.push_back(AttentionCase(act, steps[i], {4, 2, 16}, false, false, true));
      cases.push_back(AttentionCase(act, steps[i], {12, 1, 128}, false, false, true));
    }
    cases.push_back(AttentionCase(act, steps[4], {10, 2, 64}, true, true, true));
  }
  return cases;
}

}  // namespace glm::test
