#include "bench/allreduce_bench.h"

#include <algorithm>
#include <cstdio>
#include <functional>

#include "absl/strings/str_cat.h"
#include "bench/harness.h"
#include "kernels/ops.h"

namespace glm::bench {
namespace {

constexpr int64_t kGatherRowsMax = 256;  // logit rows of a step

/// One rank's tensors, and its exchanges by turns.
class Exchanges {
 public:
  Exchanges(const AllReduceBenchOptions& options, RankSeat& seat)
      : options_(options), seat_(seat), device_(*seat.device) {
    const int64_t rows = *std::max_element(options.rows.begin(), options.rows.end());
    const DType act = options.device == "cuda" ? DType::kBF16 : DType::kF32;
    const int64_t hidden = options.hidden;
    const int64_t part = options.vocabulary / seat.communicator->size();
    delta_ = Zeros(act, {rows, hidden});
    residual_ = Zeros(act, {rows, hidden});
    weight_ = Zeros(act, {hidden});
    quantized_ = {Zeros(DType::kF8E4M3, {rows, hidden}), Zeros(DType::kF32, {rows})};
    counts_ = Zeros(DType::kI32, {3});
    const int64_t gathered = std::min(rows, kGatherRowsMax);
    logits_part_ = Zeros(DType::kF32, {gathered, part});
    logits_ = Zeros(DType::kF32, {gathered, options.vocabulary});
    device_.PlanScratch({.tokens_max = rows, .hidden = hidden});
    device_.Seal();
  }

  void Run(int32_t rows) {
    const int32_t counts[3] = {rows, 1, rows};
    device_.CopyToDevice(counts_.data, counts, sizeof(counts));
    device_.Synchronize();
    BatchView batch;
    batch.counts = counts_;
    const Tensor delta = delta_.Rows(0, rows);
    const auto row_bytes = static_cast<double>(delta.bytes());
    const double share = 1 - 1.0 / seat_.communicator->size();
    Communicator& communicator = *seat_.communicator;
    Report("all_reduce_sum", rows, 2 * share * row_bytes,
           [&] { communicator.AllReduceSum(device_, delta); });
    const AddRmsNormArgs norm = {
        .batch = batch,
        .delta = delta,
        .residual = residual_.Rows(0, rows),
        .weight = weight_,
        .epsilon = 1e-5f,
        .quantized = {quantized_.values.Rows(0, rows), quantized_.scales.Rows(0, rows)}};
    Report("all_reduce_add_rms_norm_quantize", rows, 2 * share * row_bytes,
           [&] { communicator.AllReduceAddRmsNorm(device_, norm); });
    if (rows > kGatherRowsMax) return;
    const Tensor logits = logits_.Rows(0, rows);
    Report("all_gather_logits", rows, share * static_cast<double>(logits.bytes()),
           [&] { communicator.AllGatherColumns(device_, logits_part_.Rows(0, rows), logits); });
  }

 private:
  Tensor Zeros(DType dtype, std::initializer_list<int64_t> shape) {
    const Tensor tensor = device_.NewTensor(dtype, shape);
    device_.Fill(tensor.data, 0, tensor.bytes());
    return tensor;
  }

  /// `bytes`: what a rank gets over its links at least.
  void Report(const char* name, int32_t rows, double bytes, const std::function<void()>& issue) {
    const int count = rows <= 256 ? 64 : 8;
    seat_.gate->Pass(true);
    const double us = MedianMicroseconds(device_, count, options_.rounds, [&](int) { issue(); });
    seat_.gate->Pass(true);
    if (seat_.rank != 0) return;
    std::printf(
        "{\"bench\": \"allreduce\", \"name\": \"%s\", \"ranks\": %d, \"gpu_exchange\": \"%s\", "
        "\"rows\": %d, \"hidden\": %d, \"us\": %.2f, \"link_gbps\": %.1f}\n",
        name, seat_.communicator->size(), options_.ranks.gpu_exchange.c_str(), rows,
        options_.hidden, us, bytes / us * 1e-3);
    std::fflush(stdout);
  }

  const AllReduceBenchOptions& options_;
  RankSeat& seat_;
  Device& device_;
  Tensor delta_, residual_, weight_, counts_, logits_part_, logits_;
  Activation quantized_;
};

}  // namespace

absl::Status AllReduceBenchOptions::Validate() const {
  const auto refuse = [](const std::string& field, const auto& value, const char* accepted) {
    return absl::InvalidArgumentError(absl::StrCat(field, " is ", value, ", accepted: ", accepted));
  };
  if (device != "cpu" && device != "cuda") return refuse("device", device, "cpu, cuda");
  const absl::Status ranks_valid = ranks.Validate(device);
  if (!ranks_valid.ok()) return ranks_valid;
  if (ranks.gpu_exchange == "none") {
    return refuse("gpu_exchange", ranks.gpu_exchange, "auto, peer, nccl");
  }
  if (rows.empty()) return refuse("rows", "empty", "one or more numbers");
  for (const int32_t count : rows) {
    if (count < 1 || count > 65536) return refuse("rows", count, "1 to 65536");
  }
  if (hidden < 8 || hidden > 6144 || hidden % 8 != 0) {
    return refuse("hidden", hidden, "multiples of 8 up to 6144");
  }
  if (vocabulary < 8 || vocabulary > 1 << 20 || vocabulary % 8 != 0) {
    return refuse("vocabulary", vocabulary, "multiples of 8 up to 1048576");
  }
  if (rounds < 1 || rounds > 10'000) return refuse("rounds", rounds, "1 to 10000");
  return absl::OkStatus();
}

absl::Status RunAllReduceBench(const AllReduceBenchOptions& options) {
  if (options.device == "cuda") std::fprintf(stderr, "%s", GpuTopology().c_str());
  const int64_t rows = *std::max_element(options.rows.begin(), options.rows.end());
  const StepLimits step = {.tokens_max = rows,
                           .logit_rows_max = std::min(rows, kGatherRowsMax),
                           .hidden = options.hidden,
                           .vocabulary = options.vocabulary};
  return OnEveryRank(options.ranks, options.device, /*cpu_threads=*/1, step, [&](RankSeat& seat) {
    if (seat.rank == 0) std::fprintf(stderr, "%s\n", seat.device->Describe().c_str());
    Exchanges exchanges(options, seat);
    for (const int32_t count : options.rows) exchanges.Run(count);
    return absl::OkStatus();
  });
}

}  // namespace glm::bench
