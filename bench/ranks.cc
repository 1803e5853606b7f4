#include "bench/ranks.h"

#include <thread>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "engine/rank/rank_meeting.h"

namespace glm::bench {
namespace {

/// Of a rank that runs alone: leaves every part of a sum as it is.
class LoneCommunicator final : public Communicator {
 public:
  explicit LoneCommunicator(int32_t size) : size_(size) {}
  int32_t rank() const override { return 0; }
  int32_t size() const override { return size_; }
  void AllReduceSum(Device& /*device*/, const Tensor& /*values*/) override {}
  void AllGatherColumns(Device& /*device*/, const Tensor& /*in*/, const Tensor& /*out*/) override {}

 private:
  const int32_t size_;
};

/// A rank from its device to the end of `body`, on its thread.
absl::Status RunRank(const engine::RankOptions& rank_options, Meeting* meeting, RankSeat* seat,
                     const std::function<absl::Status(RankSeat&)>& body) {
  absl::StatusOr<std::unique_ptr<Device>> device =
      engine::CreateRankDevice(rank_options, seat->rank);
  if (!seat->gate->Pass(device.ok())) {
    return device.ok() ? absl::AbortedError("another rank failed to start") : device.status();
  }
  seat->device = *std::move(device);
  std::string error;
  if (meeting != nullptr) {
    seat->communicator = meeting->Join(*seat->device, seat->rank, &error);
    if (seat->communicator == nullptr) return absl::UnavailableError(error);
  }
  const absl::Status status = body(*seat);
  seat->gate->Pass(status.ok());  // nobody's memory goes while another may read it
  seat->communicator.reset();
  seat->device.reset();
  return status;
}

}  // namespace

absl::Status RanksOptions::Validate(const std::string& device) const {
  const int32_t size = tensor_parallel_size;
  if (size != 1 && size != 2 && size != 4 && size != 8) {
    return absl::InvalidArgumentError(
        absl::StrCat("tensor_parallel_size is ", size, ", accepted: 1, 2, 4, 8"));
  }
  if (ranks_per_device < 1 || size % ranks_per_device != 0 ||
      (ranks_per_device > 1 && device == "cpu")) {
    return absl::InvalidArgumentError(absl::StrCat("ranks_per_device is ", ranks_per_device,
                                                   ", accepted: divisors of ", size,
                                                   ", with device \"cpu\" 1"));
  }
  if (gpu_exchange != "auto" && gpu_exchange != "peer" && gpu_exchange != "nccl" &&
      gpu_exchange != "none") {
    return absl::InvalidArgumentError(
        absl::StrCat("gpu_exchange is ", gpu_exchange, ", accepted: auto, peer, nccl, none"));
  }
  return absl::OkStatus();
}

absl::Status OnEveryRank(const RanksOptions& options, const std::string& device,
                         int32_t cpu_threads, const StepLimits& step,
                         const std::function<absl::Status(RankSeat&)>& body) {
  engine::RankOptions rank_options;
  rank_options.device = device;
  rank_options.device_index = options.device_index;
  rank_options.ranks_per_device = options.ranks_per_device;
  rank_options.cpu_threads = cpu_threads;
  rank_options.batch.step = step;
  rank_options.exchange = engine::GpuExchangeOf(options.gpu_exchange);
  if (options.ranks_per_device > 1) PrepareSharedGpu();
  const bool lone = options.gpu_exchange == "none";
  const int32_t ranks = lone ? 1 : options.tensor_parallel_size;
  std::unique_ptr<Meeting> meeting;
  if (!lone) {
    absl::StatusOr<std::unique_ptr<Meeting>> created =
        engine::CreateRankMeeting(rank_options, ranks);
    if (!created.ok()) return created.status();
    meeting = *std::move(created);
  }
  engine::StartGate gate(ranks);
  std::vector<RankSeat> seats(ranks);
  std::vector<absl::Status> statuses(ranks);
  std::vector<std::thread> threads;
  for (int32_t rank = 0; rank < ranks; ++rank) {
    seats[rank].rank = rank;
    seats[rank].gate = &gate;
    if (lone) {
      seats[rank].communicator = std::make_unique<LoneCommunicator>(options.tensor_parallel_size);
    }
    threads.emplace_back(
        [&, rank] { statuses[rank] = RunRank(rank_options, meeting.get(), &seats[rank], body); });
  }
  for (std::thread& thread : threads) thread.join();
  return engine::FirstReason(statuses);
}

}  // namespace glm::bench
