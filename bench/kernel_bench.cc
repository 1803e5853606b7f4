#include "bench/kernel_bench.h"

#include <algorithm>
#include <cstdio>
#include <memory>
#include <numeric>
#include <vector>

#include "bench/floor.h"
#include "bench/op_bench.h"
#include "kernels/ops.h"

namespace glm::bench {
namespace {

constexpr int64_t kRotateBytes = 300 << 20;  // more than any L2

/// A step of `sequences` of which each has `cached` tokens and computes `tokens` more.
struct StepShape {
  int64_t sequences = 1;
  int64_t tokens = 1;
  int64_t cached = 0;
  int64_t block_size = 64;

  int64_t tokens_all() const { return sequences * tokens; }
  int64_t blocks_each() const { return (cached + tokens + block_size - 1) / block_size; }
};

BatchView MakeBatch(Bench& bench, const StepShape& step, int64_t turn = 0) {
  std::vector<int32_t> positions;
  std::vector<int32_t> token_sequences;
  std::vector<int32_t> query_starts = {0};
  std::vector<int32_t> tables;
  for (int64_t s = 0; s < step.sequences; ++s) {
    for (int64_t t = 0; t < step.tokens; ++t) {
      positions.push_back(static_cast<int32_t>(step.cached + t));
      token_sequences.push_back(static_cast<int32_t>(s));
    }
    query_starts.push_back(static_cast<int32_t>((s + 1) * step.tokens));
    for (int64_t b = 0; b < step.blocks_each(); ++b) {
      tables.push_back(static_cast<int32_t>((turn * step.sequences + s) * step.blocks_each() + b));
    }
  }
  const auto tokens = static_cast<int32_t>(step.tokens_all());
  BatchView batch;
  batch.token_ids = bench.Filled(DType::kI32, std::vector<int32_t>(tokens, 7));
  batch.positions = bench.Filled(DType::kI32, positions);
  batch.token_sequences = bench.Filled(DType::kI32, token_sequences);
  batch.query_starts = bench.Filled(DType::kI32, query_starts);
  batch.kv_lengths = bench.Filled(
      DType::kI32,
      std::vector<int32_t>(step.sequences, static_cast<int32_t>(step.cached + step.tokens)));
  batch.block_tables = bench.Filled(DType::kI32, tables);
  batch.block_tables =
      Tensor(batch.block_tables.data, DType::kI32, {step.sequences, step.blocks_each()});
  std::vector<int32_t> rows(tokens);
  std::iota(rows.begin(), rows.end(), 0);
  batch.logit_tokens = bench.Filled(DType::kI32, rows);
  batch.counts = bench.Filled(
      DType::kI32, std::vector<int32_t>{tokens, static_cast<int32_t>(step.sequences), tokens});
  batch.last_ids = bench.Filled(DType::kI32, std::vector<int32_t>(tokens, 0));
  return batch;
}

void LinearBench(Bench& bench, const char* what, DType type, int64_t m, int64_t n, int64_t k) {
  const std::string name = std::string("linear ") + Name(type) + " " + what +
                           " M=" + std::to_string(m) + " N=" + std::to_string(n) +
                           " K=" + std::to_string(k);
  if (!bench.Wanted(name)) return;
  bench.Reset();
  const BatchView batch = MakeBatch(bench, {.sequences = m});
  const bool fp8 = type == DType::kF8E4M3;
  const Tensor in_scales = fp8 ? bench.Scales(m) : Tensor();
  const Tensor weight_scales = fp8 ? bench.Scales(n) : Tensor();
  const Tensor out = bench.Own(DType::kBF16, {m, n});
  const double bytes = static_cast<double>((n * k + m * k) * ByteSize(type) + m * n * 2);
  bench.Report(name, bytes, 2.0 * m * n * k, fp8, [&](int i) {
    bench.device().ops().linear(bench.device(),
                                {.batch = batch,
                                 .in = {bench.Random(type, {m, k}, i), in_scales},
                                 .weight = {bench.Random(type, {n, k}, i), weight_scales},
                                 .out = out});
  });
}

struct MoeShape {
  const char* model;
  int64_t experts;
  int64_t choices;
  int64_t hidden;
  int64_t width;
};

/// Random choices, uniform over experts, in the form that moe_route leaves.
Routing MakeRouting(Bench& bench, const MoeShape& shape, int64_t tokens, int64_t* touched) {
  std::vector<int32_t> ids;
  std::vector<int32_t> experts(shape.experts);
  std::iota(experts.begin(), experts.end(), 0);
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t j = 0; j < shape.choices; ++j) {
      std::swap(experts[j], experts[j + bench.Below(shape.experts - j)]);
      ids.push_back(experts[j]);
    }
  }
  std::vector<std::vector<int32_t>> lists(shape.experts);
  for (size_t pair = 0; pair < ids.size(); ++pair) {
    lists[ids[pair]].push_back(static_cast<int32_t>(pair));
  }
  std::vector<int32_t> order;
  std::vector<int32_t> starts = {0};
  *touched = 0;
  for (const std::vector<int32_t>& list : lists) {
    order.insert(order.end(), list.begin(), list.end());
    starts.push_back(static_cast<int32_t>(order.size()));
    *touched += list.empty() ? 0 : 1;
  }
  Routing routing;
  routing.expert_ids = bench.Filled(DType::kI32, ids);
  routing.expert_ids = Tensor(routing.expert_ids.data, DType::kI32, {tokens, shape.choices});
  routing.expert_weights =
      Tensor(bench.Filled(DType::kF32, std::vector<float>(ids.size(), 0.125f)).data, DType::kF32,
             {tokens, shape.choices});
  routing.pair_order = bench.Filled(DType::kI32, order);
  routing.expert_starts = bench.Filled(DType::kI32, starts);
  return routing;
}

void MoeBench(Bench& bench, const MoeShape& shape, DType type, int64_t tokens) {
  const std::string name =
      std::string("moe_experts ") + Name(type) + " " + shape.model + " T=" + std::to_string(tokens);
  if (!bench.Wanted(name)) return;
  bench.Reset();
  const bool fp8 = type == DType::kF8E4M3;
  const BatchView batch = MakeBatch(bench, {.sequences = tokens});
  const int64_t all = shape.experts + 1;
  constexpr int kTurns = 8;
  std::vector<Routing> routings;
  double experts_touched = 0;
  for (int turn = 0; turn < kTurns; ++turn) {
    int64_t touched = 0;
    routings.push_back(MakeRouting(bench, shape, tokens, &touched));
    experts_touched += static_cast<double>(touched + 1) / kTurns;
  }
  const Tensor out = bench.Own(DType::kBF16, {tokens, shape.hidden});
  const Tensor in_scales = fp8 ? bench.Scales(tokens) : Tensor();
  Tensor gate_up_scales;
  Tensor down_scales;
  if (fp8) {
    gate_up_scales =
        Tensor(bench.Scales(all * 2 * shape.width).data, DType::kF32, {all, 2 * shape.width});
    down_scales = Tensor(bench.Scales(all * shape.hidden).data, DType::kF32, {all, shape.hidden});
  }
  const double weight = static_cast<double>(3 * shape.width * shape.hidden * ByteSize(type));
  const double pairs = static_cast<double>(tokens * (shape.choices + 1));
  bench.Report(
      name, experts_touched * weight, 6.0 * pairs * shape.width * shape.hidden, fp8, [&](int i) {
        bench.device().ops().moe_experts(
            bench.device(),
            {.batch = batch,
             .in = {bench.Random(type, {tokens, shape.hidden}), in_scales},
             .routing = routings[i % kTurns],
             .gate_up = {bench.Random(type, {all, 2 * shape.width, shape.hidden}), gate_up_scales},
             .down = {bench.Random(type, {all, shape.hidden, shape.width}), down_scales},
             .shared_experts = 1,
             .out = out});
      });
}

void RouteBench(Bench& bench, const MoeShape& shape, int64_t tokens) {
  const std::string name = std::string("moe_route ") + shape.model + " T=" + std::to_string(tokens);
  if (!bench.Wanted(name)) return;
  bench.Reset();
  const BatchView batch = MakeBatch(bench, {.sequences = tokens});
  int64_t touched = 0;
  const Routing routing = MakeRouting(bench, shape, tokens, &touched);
  const Tensor bias = bench.Scales(shape.experts);
  bench.Report(name, static_cast<double>((shape.experts + tokens) * shape.hidden * 2),
               2.0 * tokens * shape.experts * shape.hidden, false, [&](int i) {
                 bench.device().ops().moe_route(
                     bench.device(),
                     {.batch = batch,
                      .in = bench.Random(DType::kBF16, {tokens, shape.hidden}, i),
                      .gate = bench.Random(DType::kBF16, {shape.experts, shape.hidden}, i),
                      .correction_bias = bias,
                      .out = routing});
               });
}

struct HeadShape {
  int64_t query_heads;
  int64_t kv_heads;
  int64_t head_size = 128;
};

void AttentionBench(Bench& bench, const char* what, const HeadShape& heads, const StepShape& step) {
  const std::string name =
      std::string("attention ") + what + " S=" + std::to_string(step.sequences) +
      " q=" + std::to_string(step.tokens) + " kv=" + std::to_string(step.cached + step.tokens);
  if (!bench.Wanted(name)) return;
  bench.Reset();
  const int64_t cache_bytes =
      step.sequences * step.blocks_each() * step.block_size * heads.kv_heads * heads.head_size * 4;
  const int turns = static_cast<int>(std::clamp<int64_t>(kRotateBytes / cache_bytes + 1, 1, 32));
  std::vector<BatchView> batches;
  for (int turn = 0; turn < turns; ++turn) batches.push_back(MakeBatch(bench, step, turn));
  const int64_t blocks = turns * step.sequences * step.blocks_each();
  const int64_t columns = heads.query_heads * heads.head_size;
  const Tensor out = bench.Own(DType::kBF16, {step.tokens_all(), columns});
  const KvLayer cache = {
      bench.Random(DType::kBF16, {blocks, heads.kv_heads, step.block_size, heads.head_size}, 0),
      bench.Random(DType::kBF16, {blocks, heads.kv_heads, step.block_size, heads.head_size}, 1)};
  const double kv = static_cast<double>(step.cached + step.tokens);
  // Pairs of a query and a position it sees.
  const double seen = static_cast<double>(step.sequences) * static_cast<double>(step.tokens) *
                      (static_cast<double>(step.cached) + (step.tokens + 1) / 2.0);
  bench.Report(
      name, static_cast<double>(step.sequences * heads.kv_heads * heads.head_size) * kv * 4,
      4.0 * seen * static_cast<double>(columns), false, [&](int i) {
        bench.device().ops().attention(
            bench.device(), {.batch = batches[i % turns],
                             .queries = bench.Random(DType::kBF16, {step.tokens_all(), columns}, i),
                             .cache = cache,
                             .scale = 0.088f,
                             .out = out});
      });
}

void NormBench(Bench& bench, int64_t tokens, int64_t hidden) {
  const std::string name =
      "add_rms_norm quantized T=" + std::to_string(tokens) + " H=" + std::to_string(hidden);
  if (!bench.Wanted(name)) return;
  bench.Reset();
  const BatchView batch = MakeBatch(bench, {.sequences = tokens});
  const Activation quantized = {bench.Own(DType::kF8E4M3, {tokens, hidden}),
                                bench.Own(DType::kF32, {tokens})};
  // Residuals rotate over memory of the benchmark's own, since they are written.
  const int64_t bytes = tokens * hidden * 2;
  const int turns = static_cast<int>(std::clamp<int64_t>(kRotateBytes / bytes + 1, 1, 32));
  std::vector<Tensor> residuals;
  for (int turn = 0; turn < turns; ++turn) {
    residuals.push_back(bench.Own(DType::kBF16, {tokens, hidden}));
    bench.device().Fill(residuals.back().data, 0, bytes);
  }
  bench.Report(name, static_cast<double>(tokens * hidden * 7), 0, false, [&](int i) {
    bench.device().ops().add_rms_norm(bench.device(),
                                      {.batch = batch,
                                       .delta = bench.Random(DType::kBF16, {tokens, hidden}, i),
                                       .residual = residuals[i % turns],
                                       .weight = bench.Random(DType::kBF16, {hidden}),
                                       .epsilon = 1e-5f,
                                       .quantized = quantized});
  });
}

void SiluBench(Bench& bench, int64_t tokens, int64_t width) {
  const std::string name =
      "silu_mul quantized T=" + std::to_string(tokens) + " I=" + std::to_string(width);
  if (!bench.Wanted(name)) return;
  bench.Reset();
  const BatchView batch = MakeBatch(bench, {.sequences = tokens});
  const Activation quantized = {bench.Own(DType::kF8E4M3, {tokens, width}),
                                bench.Own(DType::kF32, {tokens})};
  bench.Report(name, static_cast<double>(tokens * width * 5), 0, false, [&](int i) {
    bench.device().ops().silu_mul(bench.device(),
                                  {.batch = batch,
                                   .gate_up = bench.Random(DType::kBF16, {tokens, 2 * width}, i),
                                   .quantized = quantized});
  });
}

void RopeBench(Bench& bench, const HeadShape& heads, int64_t tokens) {
  const std::string name = "norm_rope_store " + std::to_string(heads.query_heads) + "/" +
                           std::to_string(heads.kv_heads) + " T=" + std::to_string(tokens);
  if (!bench.Wanted(name)) return;
  bench.Reset();
  const StepShape step = {.sequences = tokens, .tokens = 1, .cached = 63};
  const BatchView batch = MakeBatch(bench, step);
  const int64_t columns = (heads.query_heads + 2 * heads.kv_heads) * heads.head_size;
  const Tensor qkv = bench.Own(DType::kBF16, {tokens, columns});
  bench.device().Fill(qkv.data, 0, qkv.bytes());
  const Tensor norm = bench.Random(DType::kBF16, {heads.head_size});
  const Tensor rope = bench.Own(DType::kF32, {64, 64});
  bench.device().Fill(rope.data, 0, rope.bytes());
  const Tensor keys =
      bench.Own(DType::kBF16, {tokens, heads.kv_heads, step.block_size, heads.head_size});
  const Tensor values =
      bench.Own(DType::kBF16, {tokens, heads.kv_heads, step.block_size, heads.head_size});
  bench.Report(name, static_cast<double>(tokens * columns * 4), 0, false, [&](int) {
    bench.device().ops().norm_rope_store(bench.device(), {.batch = batch,
                                                          .qkv = qkv,
                                                          .q_norm = norm,
                                                          .k_norm = norm,
                                                          .epsilon = 1e-5f,
                                                          .rope = rope,
                                                          .query_heads = heads.query_heads,
                                                          .kv_heads = heads.kv_heads,
                                                          .cache = {keys, values}});
  });
}

void SampleBench(Bench& bench, int64_t rows, int64_t vocabulary, float temperature, float top_p) {
  const char* kind = temperature == 0 ? "greedy" : top_p < 1 ? "top-p" : "drawn";
  const std::string name = "sample " + std::string(kind) + " R=" + std::to_string(rows) +
                           " V=" + std::to_string(vocabulary);
  if (!bench.Wanted(name)) return;
  bench.Reset();
  const BatchView batch = MakeBatch(bench, {.sequences = rows});
  std::vector<SampleRow> sample_rows(rows);
  for (int64_t r = 0; r < rows; ++r) {
    sample_rows[r] = {.temperature = temperature,
                      .top_p = top_p,
                      .top_k = 0,
                      .position = static_cast<uint32_t>(r),
                      .seed = 7,
                      .slot = -1,
                      .reserved = 0};
  }
  const Tensor packed = bench.Own(DType::kU8, {rows * static_cast<int64_t>(sizeof(SampleRow))});
  bench.device().CopyToDevice(packed.data, sample_rows.data(), packed.bytes());
  std::vector<float> logits(rows * vocabulary);
  for (float& logit : logits) {  // near a normal distribution of deviation 3
    logit = 0;
    for (int i = 0; i < 4; ++i) logit += static_cast<float>(bench.Below(2001) - 1000) * 0.0026f;
  }
  const Tensor flat = bench.Filled(DType::kF32, logits);
  const Tensor out = bench.Own(DType::kI32, {rows});
  bench.Report(name, static_cast<double>(rows * vocabulary * 4), 0, false, [&](int) {
    bench.device().ops().sample(bench.device(),
                                {.batch = batch,
                                 .logits = Tensor(flat.data, DType::kF32, {rows, vocabulary}),
                                 .vocabulary_used = vocabulary,
                                 .rows = packed.Data<SampleRow>(),
                                 .out_ids = out});
  });
}

/// Latent attention as GLM-4.7-Flash has it.
void MlaBench(Bench& bench, const StepShape& step) {
  constexpr int64_t kHeads = 20;
  constexpr int64_t kPlain = 192;
  constexpr int64_t kRope = 64;
  constexpr int64_t kValue = 256;
  constexpr int64_t kLatent = 512;
  const std::string name = "mla_attention Flash S=" + std::to_string(step.sequences) +
                           " q=" + std::to_string(step.tokens) +
                           " kv=" + std::to_string(step.cached + step.tokens);
  if (!bench.Wanted(name)) return;
  bench.Reset();
  const BatchView batch = MakeBatch(bench, step);
  const int64_t blocks = step.sequences * step.blocks_each();
  KvLayer cache;
  cache.keys = bench.Random(DType::kBF16, {blocks, 1, step.block_size, kLatent + kRope});
  const Tensor out = bench.Own(DType::kBF16, {step.tokens_all(), kHeads * kValue});
  const double kv = static_cast<double>(step.cached + step.tokens);
  const double seen = static_cast<double>(step.sequences) * static_cast<double>(step.tokens) *
                      (static_cast<double>(step.cached) + (step.tokens + 1) / 2.0);
  constexpr double kUpElements = kHeads * (kPlain + kValue) * kLatent;
  // Of one query and position: what the cheaper form takes, which for prompts is the expanded one.
  const double pair =
      step.cached == 0 ? kPlain + kRope + kValue : static_cast<double>(2 * kLatent + kRope);
  bench.Report(name, 2 * (kUpElements + static_cast<double>(step.sequences) * kv * 576),
               2 * (seen * kHeads * pair + static_cast<double>(step.tokens_all()) * kUpElements),
               false, [&](int i) {
                 bench.device().ops().mla_attention(
                     bench.device(),
                     {.batch = batch,
                      .queries = bench.Random(DType::kBF16,
                                              {step.tokens_all(), kHeads * (kPlain + kRope)}, i),
                      .cache = cache,
                      .kv_up = bench.Random(DType::kBF16, {kHeads, kPlain + kValue, kLatent}, i),
                      .scale = 1.0f / 16,
                      .out = out});
               });
}

constexpr MoeShape kAir = {"Air", 128, 8, 4096, 1408};
constexpr MoeShape kFlash = {"Flash", 64, 4, 2048, 1536};
constexpr MoeShape kFullTp8 = {"355B-TP8", 160, 8, 5120, 192};

void RunReal(Bench& bench) {
  constexpr DType kFp8 = DType::kF8E4M3;
  constexpr DType kBf16 = DType::kBF16;
  for (const int64_t tokens : {1, 2, 8, 32, 64, 256}) MoeBench(bench, kAir, kFp8, tokens);
  for (const int64_t tokens : {1, 2, 4, 8, 64, 256}) MoeBench(bench, kFullTp8, kFp8, tokens);
  for (const int64_t tokens : {1, 2, 4, 16, 64, 256}) MoeBench(bench, kFlash, kFp8, tokens);
  for (const int64_t tokens : {1, 2, 16, 64}) MoeBench(bench, kFlash, kBf16, tokens);
  for (const int64_t m : {1, 8, 16, 32, 64, 128, 256, 1024, 8192}) {
    LinearBench(bench, "Air qkv", kFp8, m, 14336, 4096);
  }
  for (const int64_t m : {1, 8, 16, 32, 64, 128, 256}) {
    LinearBench(bench, "Air o", kFp8, m, 4096, 12288);
    LinearBench(bench, "355B-TP8 qkv", kFp8, m, 1792, 5120);
    LinearBench(bench, "355B-TP8 o", kFp8, m, 5120, 1536);
    LinearBench(bench, "Flash qkv", kFp8, m, 1344, 2048);
    LinearBench(bench, "Flash q_up", kFp8, m, 5120, 768);
    LinearBench(bench, "Flash o", kFp8, m, 2048, 5120);
  }
  for (const int64_t m : {1, 8, 64}) {
    LinearBench(bench, "Air lm_head", kBf16, m, 151552, 4096);
    LinearBench(bench, "Flash o", kBf16, m, 2048, 5120);
  }
  for (const int64_t tokens : {1, 64, 8192}) RouteBench(bench, kAir, tokens);
  for (const int64_t tokens : {1, 16, 64, 256}) RouteBench(bench, kFullTp8, tokens);
  AttentionBench(bench, "Air decode", {96, 8}, {.sequences = 1, .cached = 1000});
  AttentionBench(bench, "Air decode", {96, 8}, {.sequences = 64, .cached = 1000});
  AttentionBench(bench, "Air decode", {96, 8}, {.sequences = 32, .cached = 8191});
  AttentionBench(bench, "355B-TP8 decode", {12, 1}, {.sequences = 1, .cached = 8191});
  AttentionBench(bench, "355B-TP8 decode", {12, 1}, {.sequences = 1, .cached = 131071});
  AttentionBench(bench, "Air draft", {96, 8}, {.sequences = 16, .tokens = 4, .cached = 4000});
  AttentionBench(bench, "Air prefill", {96, 8}, {.sequences = 1, .tokens = 2048});
  AttentionBench(bench, "Air prefill", {96, 8}, {.sequences = 1, .tokens = 8192});
  for (const int64_t sequences : {1, 16, 64, 256}) {
    MlaBench(bench, {.sequences = sequences, .cached = 1000});
  }
  MlaBench(bench, {.sequences = 32, .cached = 8191});
  MlaBench(bench, {.sequences = 16, .tokens = 4, .cached = 1000});
  for (const int64_t tokens : {2048, 8192}) MlaBench(bench, {.sequences = 1, .tokens = tokens});
  for (const int64_t tokens : {1, 8, 64, 8192}) NormBench(bench, tokens, 4096);
  for (const int64_t tokens : {1, 64}) SiluBench(bench, tokens, 10944);
  for (const int64_t tokens : {1, 64, 2048}) RopeBench(bench, {96, 8}, tokens);
  for (const int64_t rows : {1, 16, 64}) {
    SampleBench(bench, rows, 151552, 0, 1);
    SampleBench(bench, rows, 151552, 1, 0.95f);
    SampleBench(bench, rows, 151552 / 8, 1, 1);  // a rank's slice takes as long
  }
  for (const int64_t tokens : {2048, 8192}) MoeBench(bench, kAir, kFp8, tokens);
  for (const DType type : {kFp8, kBf16}) MoeBench(bench, kFlash, type, 8192);
}

void RunSmall(Bench& bench) {
  constexpr MoeShape kSmall = {"small", 16, 2, 256, 128};
  for (const int64_t m : {1, 16}) LinearBench(bench, "small", DType::kBF16, m, 1024, 256);
  for (const int64_t tokens : {1, 16}) {
    MoeBench(bench, kSmall, DType::kBF16, tokens);
    RouteBench(bench, kSmall, tokens);
    NormBench(bench, tokens, 256);
    SiluBench(bench, tokens, 512);
    RopeBench(bench, {8, 2}, tokens);
  }
  AttentionBench(bench, "small decode", {8, 2}, {.sequences = 4, .cached = 255});
  AttentionBench(bench, "small prefill", {8, 2}, {.sequences = 1, .tokens = 128});
  SampleBench(bench, 4, 4096, 0, 1);
  SampleBench(bench, 4, 4096, 1, 0.95f);
}

}  // namespace

absl::Status KernelBenchOptions::Validate() const {
  if (device != "cpu" && device != "cuda") {
    return absl::InvalidArgumentError("device is \"" + device + "\", may be cpu or cuda");
  }
  if (rounds < 1 || rounds > 1000) {
    return absl::InvalidArgumentError("rounds is " + std::to_string(rounds) + ", may be 1 to 1000");
  }
  if (cpu_threads < 1 || cpu_threads > 1024) {
    return absl::InvalidArgumentError("cpu_threads is " + std::to_string(cpu_threads) +
                                      ", may be 1 to 1024");
  }
  return absl::OkStatus();
}

absl::Status RunKernelBench(const KernelBenchOptions& options) {
  std::string error;
  const bool cuda = options.device == "cuda";
  const std::unique_ptr<Device> device =
      cuda ? CreateCudaDevice(options.device_index, &error) : CreateCpuDevice(options.cpu_threads);
  if (device == nullptr) return absl::UnavailableError(error);
  std::fprintf(stderr, "%s\n", device->Describe().c_str());
  StepLimits limits;
  limits.tokens_max = cuda ? 8192 : 256;
  limits.sequences_max = limits.tokens_max;
  limits.logit_rows_max = 64;
  limits.hidden = cuda ? 5120 : 256;
  limits.query_heads = cuda ? 96 : 8;
  limits.kv_heads = cuda ? 8 : 2;
  limits.head_size = 128;
  limits.latent = 576;
  limits.experts = cuda ? 161 : 17;
  limits.experts_per_token = 9;
  limits.expert_width = cuda ? 1536 : 128;
  limits.dense_width = cuda ? 12288 : 512;
  limits.vocabulary = cuda ? 151552 : 4096;
  device->PlanScratch(limits);
  const int64_t gib = int64_t{1} << 30;
  Bench bench(*device, options, PeaksOf(device->Describe()), cuda ? 3 * gib : gib / 16,
              cuda ? 4 * gib : gib / 16);
  if (cuda) {
    RunReal(bench);
  } else {
    RunSmall(bench);
  }
  return absl::OkStatus();
}

}  // namespace glm::bench
