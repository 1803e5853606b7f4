// Cases of the ops that work row by row: embed, add_rms_norm, linear, silu_mul, gather_logit_rows.
#include <cmath>

#include "tests/kernels/case_parts.h"

namespace glm::test {
namespace {

constexpr DType kActs[] = {DType::kF32, DType::kBF16};
constexpr int64_t kGroup = 128;

int64_t GroupsOf(int64_t columns) { return (columns + kGroup - 1) / kGroup; }

StepLimits RowLimits(int64_t rows, int64_t width) {
  StepLimits limits;
  limits.tokens_max = rows;
  limits.logit_rows_max = rows;
  limits.sequences_max = 1;
  limits.dense_width = width;
  return limits;
}

std::string SizeName(std::initializer_list<int64_t> sizes) {
  std::string name;
  for (const int64_t size : sizes) name += (name.empty() ? "" : "x") + std::to_string(size);
  return name;
}

/// An FP8 output for `rows` x `columns`, with one scale a row or one a group.
Activation NewQuantized(Device& device, int64_t rows, int64_t columns, bool grouped) {
  Activation quantized;
  quantized.values = HostTensor(DType::kF8E4M3, {rows, columns}).Upload(device);
  quantized.scales = grouped ? HostTensor(DType::kF32, {rows, GroupsOf(columns)}).Upload(device)
                             : HostTensor(DType::kF32, {rows}).Upload(device);
  return quantized;
}

// ---- embed, gather_logit_rows ----

OpCase EmbedCase(DType act, int32_t tokens, int64_t hidden) {
  const std::string name = std::string("embed ") + Name(act) + " " + SizeName({tokens, hidden});
  const auto run = [=](Device& device) {
    Random random(SeedOf(name));
    constexpr int32_t kVocabulary = 97;
    CaseBatch batch(random, BatchSpec::OneSequence(tokens, 3), kVocabulary);
    // Every third token is one that the device sampled.
    for (int32_t t = 0; t < tokens; t += 3) {
      batch.token_ids[t] = ~static_cast<int32_t>(random.Below(batch.last_ids.size()));
    }
    const HostTensor table(random, act, {kVocabulary, hidden}, 1);
    const BatchView view = batch.Upload(device);
    const Tensor out = HostTensor(act, {tokens + 3, hidden}).Upload(device);
    device.ops().embed(device, {.batch = view, .table = table.Upload(device), .out = out});
    std::vector<double> want;
    for (int32_t t = 0; t < tokens; ++t) {
      const int32_t id = batch.token_ids[t];
      const int32_t row = id >= 0 ? id : batch.last_ids[~id];
      for (int64_t i = 0; i < hidden; ++i) want.push_back(table.At(row * hidden + i));
    }
    Verdict verdict;
    verdict.Near(device, "out", out, tokens, want, {.similarity = 0});
    return verdict.Finish();
  };
  return {name, act, RowLimits(tokens + 3, hidden), run};
}

// A rank's rows of the table: ids outside them give zeros.
OpCase EmbedSliceCase(DType act, int64_t begin, int64_t rows) {
  const std::string name = std::string("embed ") + Name(act) + " slice " + SizeName({begin, rows});
  constexpr int32_t kTokens = 70;
  constexpr int64_t kHidden = 72;
  const auto run = [=](Device& device) {
    Random random(SeedOf(name));
    CaseBatch batch(random, BatchSpec::OneSequence(kTokens, 3), /*vocabulary=*/97);
    for (int32_t t = 0; t < kTokens; t += 3) {
      batch.token_ids[t] = ~static_cast<int32_t>(random.Below(batch.last_ids.size()));
    }
    const HostTensor table(random, act, {rows, kHidden}, 1);
    const BatchView view = batch.Upload(device);
    const Tensor out = HostTensor(act, {kTokens + 3, kHidden}).Upload(device);
    device.ops().embed(
        device,
        {.batch = view, .table = table.Upload(device), .out = out, .vocabulary_begin = begin});
    std::vector<double> want;
    for (int32_t t = 0; t < kTokens; ++t) {
      const int32_t id = batch.token_ids[t];
      const int64_t row = (id >= 0 ? id : batch.last_ids[~id]) - begin;
      const bool here = row >= 0 && row < rows;
      for (int64_t i = 0; i < kHidden; ++i) want.push_back(here ? table.At(row * kHidden + i) : 0);
    }
    Verdict verdict;
    verdict.Near(device, "out", out, kTokens, want, {.similarity = 0});
    return verdict.Finish();
  };
  return {name, act, RowLimits(kTokens + 3, kHidden), run};
}

OpCase GatherLogitRowsCase(DType act, int32_t tokens, int32_t rows, int64_t hidden) {
  const std::string name =
      std::string("gather_logit_rows ") + Name(act) + " " + SizeName({tokens, rows, hidden});
  const auto run = [=](Device& device) {
    Random random(SeedOf(name));
    BatchSpec spec = BatchSpec::OneSequence(tokens, 2);
    spec.logit_rows = rows;
    spec.padding_logit_rows = 3;
    const CaseBatch batch(random, spec);
    const HostTensor in(random, act, {tokens + 2, hidden}, 1, tokens);
    const BatchView view = batch.Upload(device);
    const Tensor out = HostTensor(act, {rows + 3, hidden}).Upload(device);
    device.ops().gather_logit_rows(device, {.batch = view, .in = in.Upload(device), .out = out});
    std::vector<double> want;
    for (int32_t r = 0; r < rows; ++r) {
      for (int64_t i = 0; i < hidden; ++i) {
        want.push_back(in.At(batch.logit_tokens[r] * hidden + i));
      }
    }
    Verdict verdict;
    verdict.Near(device, "out", out, rows, want, {.similarity = 0});
    return verdict.Finish();
  };
  return {name, act, RowLimits(tokens + rows + 3, hidden), run};
}

// ---- add_rms_norm ----

struct NormVariant {
  const char* name;
  bool delta;
  bool out;
  bool out_is_delta;
  bool quantized;
  bool grouped;
};

constexpr NormVariant kNormVariants[] = {
    {"plain", false, true, false, false, false},  {"added", true, true, false, false, false},
    {"in place", true, true, true, false, false}, {"quantized", true, false, false, true, false},
    {"both", true, true, false, true, false},     {"grouped", false, true, false, true, true},
};

OpCase AddRmsNormCase(DType act, int32_t tokens, int64_t hidden, const NormVariant& variant) {
  const std::string name = std::string("add_rms_norm ") + Name(act) + " " +
                           SizeName({tokens, hidden}) + " " + variant.name;
  const auto run = [=](Device& device) {
    Random random(SeedOf(name));
    const int32_t rows = tokens + 2;
    const CaseBatch batch(random, BatchSpec::OneSequence(tokens, 2));
    const HostTensor residual(random, act, {rows, hidden}, 3, tokens);
    const HostTensor delta(random, act, {rows, hidden}, 2, tokens);
    const HostTensor weight(random, act, {hidden}, 1.5);
    constexpr float kEpsilon = 1e-5f;

    const BatchView view = batch.Upload(device);
    AddRmsNormArgs args{.batch = view,
                        .residual = residual.Upload(device),
                        .weight = weight.Upload(device),
                        .epsilon = kEpsilon};
    if (variant.delta) args.delta = delta.Upload(device);
    if (variant.out) args.out = HostTensor(act, {rows, hidden}).Upload(device);
    if (variant.out_is_delta) args.out = args.delta;
    if (variant.quantized) args.quantized = NewQuantized(device, rows, hidden, variant.grouped);
    device.ops().add_rms_norm(device, args);

    std::vector<double> want_residual;
    std::vector<double> want;
    for (int64_t row = 0; row < tokens; ++row) {
      double squares = 0;
      for (int64_t i = row * hidden; i < (row + 1) * hidden; ++i) {
        const double sum = residual.At(i) + (variant.delta ? delta.At(i) : 0);
        want_residual.push_back(RoundTo(act, sum));
        squares += want_residual.back() * want_residual.back();
      }
      const double factor = 1 / std::sqrt(squares / static_cast<double>(hidden) + kEpsilon);
      for (int64_t i = 0; i < hidden; ++i) {
        const double n = RoundTo(act, want_residual[row * hidden + i] * factor);
        want.push_back(RoundTo(act, n * weight.At(i)));
      }
    }
    Verdict verdict;
    verdict.Near(device, "residual", args.residual, tokens, want_residual, ToleranceOf(act, 0));
    if (variant.out) verdict.Near(device, "out", args.out, tokens, want, ToleranceOf(act, 1, 2));
    if (variant.quantized) {
      verdict.NearQuantized(device, "quantized", args.quantized, tokens, want,
                            variant.grouped ? kGroup : hidden, act);
    }
    return verdict.Finish();
  };
  return {name, act, RowLimits(tokens + 2, hidden), run};
}

// Without a residual: from columns of one tensor to columns of another.
OpCase RmsNormCase(DType act, int32_t tokens, int64_t hidden, bool in_place, bool quantized) {
  const std::string name = std::string("add_rms_norm ") + Name(act) + " " +
                           SizeName({tokens, hidden}) + " alone" + (in_place ? " in place" : "") +
                           (quantized ? " quantized" : "");
  const auto run = [=](Device& device) {
    Random random(SeedOf(name));
    const int32_t rows = tokens + 2;
    const CaseBatch batch(random, BatchSpec::OneSequence(tokens, 2));
    constexpr int64_t kBefore = 16;  // columns before the view
    const int64_t width = kBefore + hidden + 8;
    const HostTensor in(random, act, {rows, width}, 3, tokens);
    const HostTensor weight(random, act, {hidden}, 1.5);
    const BatchView view = batch.Upload(device);
    const Tensor whole_in = in.Upload(device);
    const Tensor whole_out =
        in_place ? whole_in : HostTensor(random, act, {rows, width}, 1).Upload(device);
    const HostTensor before = HostTensor::Download(device, whole_out);
    AddRmsNormArgs args{.batch = view,
                        .delta = whole_in.Columns(kBefore, hidden),
                        .weight = weight.Upload(device),
                        .epsilon = 1e-5f,
                        .out = whole_out.Columns(kBefore, hidden)};
    if (quantized) args.quantized = NewQuantized(device, rows, hidden, false);
    device.ops().add_rms_norm(device, args);

    std::vector<double> want;
    std::vector<double> want_whole;  // what is beside the view stays
    for (int64_t row = 0; row < tokens; ++row) {
      double squares = 0;
      for (int64_t i = 0; i < hidden; ++i) {
        squares += in.At(row * width + kBefore + i) * in.At(row * width + kBefore + i);
      }
      const double factor = 1 / std::sqrt(squares / static_cast<double>(hidden) + 1e-5);
      for (int64_t i = 0; i < width; ++i) {
        want_whole.push_back(before.At(row * width + i));
        if (i < kBefore || i >= kBefore + hidden) continue;
        const double n = RoundTo(act, in.At(row * width + i) * factor);
        want_whole.back() = RoundTo(act, n * weight.At(i - kBefore));
        want.push_back(want_whole.back());
      }
    }
    Verdict verdict;
    verdict.Near(device, "out", whole_out, tokens, want_whole, ToleranceOf(act, 1, 2));
    if (quantized) {
      verdict.NearQuantized(device, "quantized", args.quantized, tokens, want, hidden, act);
    }
    return verdict.Finish();
  };
  return {name, act, RowLimits(tokens + 2, hidden), run};
}

// ---- silu_mul ----

OpCase SiluMulCase(DType act, int32_t tokens, int64_t width, bool quantized, bool grouped) {
  const std::string name = std::string("silu_mul ") + Name(act) + " " + SizeName({tokens, width}) +
                           (quantized ? grouped ? " grouped" : " quantized" : "");
  const auto run = [=](Device& device) {
    Random random(SeedOf(name));
    const int32_t rows = tokens + 1;
    const CaseBatch batch(random, BatchSpec::OneSequence(tokens, 1));
    const HostTensor gate_up(random, act, {rows, 2 * width}, 6, tokens);
    const BatchView view = batch.Upload(device);
    SiluMulArgs args{.batch = view, .gate_up = gate_up.Upload(device)};
    if (!quantized || grouped) args.out = HostTensor(act, {rows, width}).Upload(device);
    if (quantized) args.quantized = NewQuantized(device, rows, width, grouped);
    device.ops().silu_mul(device, args);
    std::vector<double> want;
    for (int64_t row = 0; row < tokens; ++row) {
      for (int64_t i = 0; i < width; ++i) {
        const double gate = gate_up.At(row * 2 * width + i);
        const double up = gate_up.At(row * 2 * width + width + i);
        want.push_back(RoundTo(act, gate / (1 + std::exp(-gate)) * up));
      }
    }
    Verdict verdict;
    if (!args.out.empty()) verdict.Near(device, "out", args.out, tokens, want, ToleranceOf(act, 1));
    if (quantized) {
      verdict.NearQuantized(device, "quantized", args.quantized, tokens, want,
                            grouped ? kGroup : width, act);
    }
    return verdict.Finish();
  };
  return {name, act, RowLimits(tokens + 1, width), run};
}

// ---- linear ----

enum class Scales : uint8_t { kNone, kChannel, kBlock };

struct LinearShape {
  int32_t rows;
  int64_t outputs;
  int64_t k;
};

struct LinearVariant {
  DType act;
  DType weight;
  DType out;
  Scales scales = Scales::kNone;
  bool bias = false;
  bool per_logit_row = false;
  bool strided = false;  // in and out are columns of wider tensors
};

std::string LinearName(const LinearShape& shape, const LinearVariant& variant) {
  std::string name = std::string("linear ") + Name(variant.act) + " times " + Name(variant.weight) +
                     " to " + Name(variant.out) + " " +
                     SizeName({shape.rows, shape.outputs, shape.k});
  if (variant.scales == Scales::kChannel) name += " channel scales";
  if (variant.scales == Scales::kBlock) name += " block scales";
  if (variant.bias) name += " bias";
  if (variant.per_logit_row) name += " logit rows";
  if (variant.strided) name += " strided";
  return name;
}

/// The host's side of a linear.
struct LinearInputs {
  HostTensor in;
  HostTensor in_scales;
  HostTensor weight;
  HostTensor weight_scales;
  HostTensor bias;
};

LinearInputs MakeLinearInputs(Random& random, const LinearShape& shape,
                              const LinearVariant& variant, int64_t rows_padded) {
  const bool float8 = variant.scales != Scales::kNone;
  const double magnitude = float8 ? 400 : 1;
  LinearInputs inputs{HostTensor(random, float8 ? DType::kF8E4M3 : variant.act,
                                 {rows_padded, shape.k}, magnitude, shape.rows),
                      HostTensor(DType::kF32, {rows_padded}),
                      HostTensor(random, variant.weight, {shape.outputs, shape.k}, magnitude),
                      HostTensor(DType::kF32, {shape.outputs}),
                      HostTensor(random, variant.act, {shape.outputs}, 2)};
  if (variant.scales == Scales::kBlock) {
    inputs.in_scales = HostTensor(DType::kF32, {rows_padded, GroupsOf(shape.k)});
    inputs.weight_scales = HostTensor(DType::kF32, {GroupsOf(shape.outputs), GroupsOf(shape.k)});
  }
  const int64_t scales_valid = inputs.in_scales.elements() / rows_padded * shape.rows;
  for (int64_t i = 0; i < scales_valid; ++i) {
    inputs.in_scales.Set(i, random.Uniform(0.5, 2) / 400);
  }
  for (int64_t i = 0; i < inputs.weight_scales.elements(); ++i) {
    inputs.weight_scales.Set(i, random.Uniform(0.5, 2) / 400);
  }
  return inputs;
}

double LinearOracle(const LinearInputs& inputs, const LinearVariant& variant, int64_t k,
                    int64_t row, int64_t output) {
  double sum = 0;
  for (int64_t i = 0; i < k; ++i) {
    double product = inputs.in.At(row * k + i) * inputs.weight.At(output * k + i);
    if (variant.scales == Scales::kBlock) {
      product *= inputs.in_scales.At(row * GroupsOf(k) + i / kGroup) *
                 inputs.weight_scales.At(output / kGroup * GroupsOf(k) + i / kGroup);
    }
    sum += product;
  }
  if (variant.scales == Scales::kChannel) {
    sum *= inputs.in_scales.At(row) * inputs.weight_scales.At(output);
  }
  if (variant.bias) sum += inputs.bias.At(output);
  return RoundTo(variant.out, sum);
}

/// `host` in device memory as the columns from 8 on of a wider tensor of NaN.
Tensor UploadWide(Device& device, const HostTensor& host, DType dtype) {
  const int64_t rows = host.shape()[0];
  const int64_t columns = host.columns();
  HostTensor wide(dtype, {rows, columns + 24});
  for (int64_t i = 0; i < rows * columns; ++i) {
    wide.Set(i / columns * (columns + 24) + 8 + i % columns, host.At(i));
  }
  return wide.Upload(device).Columns(8, columns);
}

/// A contiguous device copy of a view's rows.
Tensor Packed(Device& device, const Tensor& view) {
  const Tensor packed = device.NewTensor(view.dtype, {view.shape[0], view.shape[1]});
  const int64_t bytes = view.shape[1] * ByteSize(view.dtype);
  std::vector<char> row(bytes);
  for (int64_t r = 0; r < view.shape[0]; ++r) {
    device.CopyToHost(row.data(), view.Rows(r, 1).data, bytes);
    device.Synchronize();
    device.CopyToDevice(packed.Rows(r, 1).data, row.data(), bytes);
    device.Synchronize();
  }
  return packed;
}

OpCase LinearCase(const LinearShape& shape, const LinearVariant& variant) {
  const std::string name = LinearName(shape, variant);
  const auto run = [=](Device& device) {
    Random random(SeedOf(name));
    constexpr int32_t kPadding = 2;
    const int64_t rows_padded = shape.rows + kPadding;
    BatchSpec spec = BatchSpec::OneSequence(variant.per_logit_row ? 1 : shape.rows, kPadding);
    if (variant.per_logit_row) spec.logit_rows = shape.rows;
    spec.padding_logit_rows = kPadding;
    const CaseBatch batch(random, spec);
    const LinearInputs inputs = MakeLinearInputs(random, shape, variant, rows_padded);
    const BatchView view = batch.Upload(device);
    const HostTensor empty(variant.out, {rows_padded, shape.outputs});
    LinearArgs args{
        .batch = view,
        .in = {variant.strided ? UploadWide(device, inputs.in, variant.act)
                               : inputs.in.Upload(device)},
        .weight = {inputs.weight.Upload(device)},
        .out = variant.strided ? UploadWide(device, empty, variant.out) : empty.Upload(device),
        .per_logit_row = variant.per_logit_row};
    if (variant.scales != Scales::kNone) {
      args.in.scales = inputs.in_scales.Upload(device);
      args.weight.scales = inputs.weight_scales.Upload(device);
    }
    if (variant.bias) args.bias = inputs.bias.Upload(device);
    device.ops().linear(device, args);

    std::vector<double> want;
    for (int64_t row = 0; row < shape.rows; ++row) {
      for (int64_t n = 0; n < shape.outputs; ++n) {
        want.push_back(LinearOracle(inputs, variant, shape.k, row, n));
      }
    }
    const Tensor out = variant.strided ? Packed(device, args.out) : args.out;
    Verdict verdict;
    Tolerance tolerance = ToleranceOf(variant.out, std::sqrt(static_cast<double>(shape.k)));
    // FP8 tensor cores add up to 128 products with 13 bits below the largest.
    // (A rounding to BF16 hides the largest of these errors.)
    if (variant.scales != Scales::kNone) {
      const bool bare = variant.act == DType::kBF16 && variant.out == DType::kF32;
      tolerance.absolute *= bare ? 250 : 150;
      if (bare) tolerance.similarity = 1 - 1e-7;
    }
    verdict.Near(device, "out", out, shape.rows, want, tolerance);
    return verdict.Finish();
  };
  return {name, variant.act, RowLimits(shape.rows + 2, shape.k), run};
}

}  // namespace

std::vector<OpCase> LinearLargeCases() {
  constexpr DType kBF16 = DType::kBF16;
  std::vector<OpCase> cases;
  for (const int32_t rows : {1, 30, 200, 1000}) {
    const LinearShape shape{rows, 208, 1168};
    cases.push_back(LinearCase(shape, {.act = kBF16, .weight = kBF16, .out = kBF16, .bias = true}));
    cases.push_back(
        LinearCase(shape, {.act = kBF16, .weight = kBF16, .out = DType::kF32, .bias = true}));
    cases.push_back(LinearCase(shape, {.act = kBF16,
                                       .weight = DType::kF8E4M3,
                                       .out = kBF16,
                                       .scales = Scales::kChannel,
                                       .bias = true}));
  }
  // Blocks that share the depth; outputs that end inside a tile of 128. (Two rows of padding more.)
  const auto float8 = [&](const LinearShape& shape, DType out, bool bias, bool per_logit_row) {
    cases.push_back(LinearCase(shape, {.act = kBF16,
                                       .weight = DType::kF8E4M3,
                                       .out = out,
                                       .scales = Scales::kChannel,
                                       .bias = bias,
                                       .per_logit_row = per_logit_row}));
  };
  for (const int32_t rows : {17, 31, 32, 33, 62, 63, 64, 65, 126, 127, 129, 200, 254, 255}) {
    float8({rows, 208, 2064}, DType::kF32, true, true);
    float8({rows, 333, 640}, rows % 2 == 0 ? DType::kF32 : kBF16, false, false);
  }
  for (const int32_t rows : {33, 64, 200}) float8({rows, 1344, 1024}, kBF16, true, false);
  return cases;
}

std::vector<OpCase> EmbedSliceCases() {
  std::vector<OpCase> cases;
  for (const DType act : kActs) {
    cases.push_back(EmbedSliceCase(act, 0, 40));
    cases.push_back(EmbedSliceCase(act, 40, 57));
    cases.push_back(EmbedSliceCase(act, 30, 1));
  }
  return cases;
}

std::vector<OpCase> RmsNormCases() {
  std::vector<OpCase> cases;
  for (const DType act : kActs) {
    cases.push_back(RmsNormCase(act, 5, 96, false, false));
    cases.push_back(RmsNormCase(act, 33, 768, true, false));
    cases.push_back(RmsNormCase(act, 3, 512, false, true));
  }
  return cases;
}

std::vector<OpCase> EmbedCases() {
  std::vector<OpCase> cases;
  for (const DType act : kActs) {
    for (const int32_t tokens : {1, 7, 33}) {
      for (const int64_t hidden : {8, 64, 200}) cases.push_back(EmbedCase(act, tokens, hidden));
    }
  }
  return cases;
}

std::vector<OpCase> GatherLogitRowsCases() {
  std::vector<OpCase> cases;
  for (const DType act : kActs) {
    cases.push_back(GatherLogitRowsCase(act, 1, 1, 8));
    cases.push_back(GatherLogitRowsCase(act, 17, 5, 64));
    cases.push_back(GatherLogitRowsCase(act, 9, 33, 136));
  }
  return cases;
}

std::vector<OpCase> AddRmsNormCases() {
  std::vector<OpCase> cases;
  for (const DType act : kActs) {
    for (const NormVariant& variant : kNormVariants) {
      for (const int64_t hidden : {8, 64, 136, 512}) {
        for (const int32_t tokens : {1, 5, 33}) {
          cases.push_back(AddRmsNormCase(act, tokens, hidden, variant));
        }
      }
    }
  }
  return cases;
}

std::vector<OpCase> SiluMulCases() {
  std::vector<OpCase> cases;
  for (const DType act : kActs) {
    for (const int64_t width : {8, 96, 264}) {
      for (const int32_t tokens : {1, 3, 32}) {
        cases.push_back(SiluMulCase(act, tokens, width, false, false));
        cases.push_back(SiluMulCase(act, tokens, width, true, false));
        cases.push_back(SiluMulCase(act, tokens, width, true, true));
      }
    }
  }
  return cases;
}

std::vector<OpCase> LinearCases() {
  constexpr DType kF32 = DType::kF32;
  constexpr DType kBF16 = DType::kBF16;
  constexpr DType kF8 = DType::kF8E4M3;
  std::vector<OpCase> cases;
  std::vector<int32_t> rows_of_interest;
  for (int32_t rows = 1; rows <= 17; ++rows) rows_of_interest.push_back(rows);
  for (const int32_t rows : {31, 32, 33, 63, 64, 65, 127, 128, 129}) {
    rows_of_interest.push_back(rows);
  }
  for (const int32_t rows : rows_of_interest) {
    cases.push_back(LinearCase({rows, 40, 72}, {.act = kF32, .weight = kF32, .out = kF32}));
    cases.push_back(LinearCase({rows, 48, 64}, {.act = kBF16, .weight = kBF16, .out = kBF16}));
    cases.push_back(LinearCase(
        {rows, 144, 256}, {.act = kBF16, .weight = kF8, .out = kBF16, .scales = Scales::kChannel}));
    cases.push_back(LinearCase(
        {rows, 144, 272}, {.act = kBF16, .weight = kF8, .out = kBF16, .scales = Scales::kBlock}));
  }
  for (const int64_t outputs : {8, 16, 24, 136, 264}) {
    for (const int64_t k : {16, 64, 128, 144, 512}) {
      const LinearShape shape{5, outputs, k};
      cases.push_back(LinearCase(shape, {.act = kF32, .weight = kF32, .out = kF32, .bias = true}));
      cases.push_back(LinearCase(shape, {.act = kF32, .weight = kBF16, .out = kF32}));
      cases.push_back(
          LinearCase(shape, {.act = kBF16, .weight = kBF16, .out = kBF16, .bias = true}));
      cases.push_back(
          LinearCase(shape, {.act = kBF16, .weight = kBF16, .out = kF32, .per_logit_row = true}));
      cases.push_back(
          LinearCase(shape, {.act = kBF16, .weight = kBF16, .out = kBF16, .strided = true}));
      for (const DType act : kActs) {
        cases.push_back(LinearCase(
            shape,
            {.act = act, .weight = kF8, .out = act, .scales = Scales::kChannel, .bias = true}));
        cases.push_back(LinearCase(
            shape,
            {.act = act, .weight = kF8, .out = act, .scales = Scales::kBlock, .bias = true}));
      }
    }
  }
  // Odd sizes, which only the reference must take.
  for (const int64_t odd : {1, 2, 3, 7, 9, 15, 17, 31, 33}) {
    cases.push_back(LinearCase({3, odd, odd}, {.act = kF32, .weight = kF32, .out = kF32}));
  }
  return cases;
}

}  // namespace glm::test
