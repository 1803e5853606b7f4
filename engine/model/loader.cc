#include "engine/model/loader.h"

#include <algorithm>
#include <chrono>
#include <deque>
#include <functional>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/model/fill.h"
#include "proto/base/log.h"
#include "proto/base/mutex.h"

namespace glm::engine {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::seconds kProgressEvery{2};
// Host memory of a piece, and pieces for every thread: one being filled, one being copied.
constexpr int64_t kPieceBytes = 4 << 20;
constexpr int64_t kBuffersPerThread = 2;

bool CanConvert(SlotKind kind, DType source, DType target) {
  const bool wide = source == DType::kF32 || source == DType::kBF16;
  if (kind == SlotKind::kQuantized) return wide;
  if (kind == SlotKind::kDequantized) return source == DType::kF8E4M3;
  if (source == target) return true;
  return wide && (target == DType::kF32 || target == DType::kBF16);
}

bool IsAside(const WeightPlan& plan, const std::string& name) {
  const auto& prefixes = plan.prefixes_aside();
  return std::any_of(prefixes.begin(), prefixes.end(),
                     [&](const std::string& prefix) { return absl::StartsWith(name, prefix); });
}

// The plan's own promise: with rows filled in order, which Fill checks, every row is filled once.
void CheckComplete(const WeightPlan& plan) {
  for (const WeightPlan::Entry& entry : plan.entries()) {
    CHECK_EQ(entry.rows_filled, entry.rows()) << "rows of a weight of the plan";
  }
}

std::string Gigabytes(int64_t bytes) {
  return absl::StrFormat("%.3f GB", static_cast<double>(bytes) * 1e-9);
}

absl::Status CheckShape(const std::string& name, const std::vector<int64_t>& shape,
                        const Checkpoint& checkpoint) {
  const auto found = checkpoint.tensors().find(name);
  if (found == checkpoint.tensors().end()) {
    return absl::NotFoundError(absl::StrCat(checkpoint.folder(), ": tensor ", name, " is missing"));
  }
  if (found->second.shape == shape) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(checkpoint.folder(), ": tensor ", name,
                                                 " has shape ", ShapeText(found->second.shape),
                                                 "; expected: ", ShapeText(shape)));
}

absl::Status CheckSlot(const Slot& slot, DType target, const Checkpoint& checkpoint) {
  absl::Status status = CheckShape(slot.name, slot.shape, checkpoint);
  if (!status.ok()) return status;
  if (slot.kind == SlotKind::kDequantized) {
    status = CheckShape(slot.scales.name, slot.scales.shape, checkpoint);
    if (!status.ok()) return status;
    const DType type = checkpoint.tensors().at(slot.scales.name).dtype;
    if (!CanConvert(SlotKind::kScales, type, DType::kF32)) {
      return absl::InvalidArgumentError(absl::StrCat(checkpoint.folder(), ": tensor ",
                                                     slot.scales.name, " is ", Name(type),
                                                     "; accepted: F32, BF16"));
    }
  }
  const StoredTensor& stored = checkpoint.tensors().at(slot.name);
  if (CanConvert(slot.kind, stored.dtype, target)) return absl::OkStatus();
  const char* accepted = "F32, BF16";
  if (slot.kind == SlotKind::kDequantized ||
      (target == DType::kF8E4M3 && slot.kind == SlotKind::kValues)) {
    accepted = "F8_E4M3, since its scales are there";
  } else if (stored.dtype == DType::kF8E4M3 && slot.fan_in > 0) {
    accepted = "F32, BF16, or F8_E4M3 with a weight_scale and a quantization_config";
  }
  return absl::InvalidArgumentError(absl::StrCat(checkpoint.folder(), ": tensor ", slot.name,
                                                 " is ", Name(stored.dtype),
                                                 "; accepted: ", accepted));
}

using FillFunction = std::function<absl::Status(const Piece&, DType, FilledPiece*)>;

// Pieces in order, filled by threads into a fixed number of buffers, handed to one taker.
class FillLine {
 public:
  struct Done {
    size_t piece = 0;
    FilledPiece filled;
    absl::Status status;
  };

  FillLine(const WeightPlan& plan, const std::vector<Piece>& pieces, const FillFunction& fill,
           int32_t threads)
      : plan_(plan), pieces_(pieces), fill_(fill) {
    const int64_t useful = std::clamp<int64_t>(static_cast<int64_t>(pieces.size()), 1, threads);
    free_.resize(useful * kBuffersPerThread);
    for (int64_t i = 0; i < useful; ++i) threads_.emplace_back([this] { Run(); });
  }
  FillLine(const FillLine&) = delete;
  FillLine& operator=(const FillLine&) = delete;
  ~FillLine() {
    {
      MutexLock lock(&mutex_);
      ending_ = true;
      changed_.SignalAll();
    }
    for (std::thread& thread : threads_) thread.join();
  }

  // The next filled piece; blocks. REQUIRES that fewer were taken than there are pieces.
  Done Take() {
    MutexLock lock(&mutex_);
    while (done_.empty()) changed_.Wait(&mutex_);
    Done done = std::move(done_.front());
    done_.pop_front();
    return done;
  }
  // Gives the buffer back.
  void Return(FilledPiece filled) {
    MutexLock lock(&mutex_);
    free_.push_back(std::move(filled));
    changed_.SignalAll();
  }

 private:
  void Run() {
    for (;;) {
      Done done;
      {
        MutexLock lock(&mutex_);
        while (!ending_ && free_.empty()) changed_.Wait(&mutex_);
        if (ending_ || next_ == pieces_.size()) return;
        done.piece = next_++;
        done.filled = std::move(free_.back());
        free_.pop_back();
      }
      const Piece& piece = pieces_[done.piece];
      const DType type = plan_.entries()[piece.slot->weight].layout.dtype;
      done.status = fill_(piece, type, &done.filled);
      MutexLock lock(&mutex_);
      done_.push_back(std::move(done));
      changed_.SignalAll();
    }
  }

  const WeightPlan& plan_;
  const std::vector<Piece>& pieces_;
  const FillFunction& fill_;
  Mutex mutex_;  // "Fill line"
  Condition changed_;
  std::vector<FilledPiece> free_ ABSL_GUARDED_BY(mutex_);
  std::deque<Done> done_ ABSL_GUARDED_BY(mutex_);  // no longer than the buffers
  size_t next_ ABSL_GUARDED_BY(mutex_) = 0;
  bool ending_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<std::thread> threads_;
};

std::vector<Piece> CutPieces(const WeightPlan& plan) {
  std::vector<Piece> pieces;
  for (const Slot& slot : plan.slots()) {
    const int64_t row_bytes =
        slot.columns.count * ByteSize(plan.entries()[slot.weight].layout.dtype);
    const int64_t rows_max = std::max<int64_t>(1, kPieceBytes / std::max<int64_t>(row_bytes, 1));
    for (int64_t row = 0; row < slot.rows.count; row += rows_max) {
      pieces.push_back({&slot, row, std::min(rows_max, slot.rows.count - row)});
    }
  }
  return pieces;
}

// Copies a filled piece to its place; returns its bytes.
int64_t CopyPiece(Device& device, const WeightPlan& plan, const Piece& piece,
                  const FilledPiece& filled) {
  const Slot& slot = *piece.slot;
  const Tensor& weight = *plan.entries()[slot.weight].target;
  const int64_t row = slot.weight_row + piece.row;
  const int64_t row_bytes = slot.columns.count * ByteSize(weight.dtype);
  auto bytes = static_cast<int64_t>(filled.values.size());
  device.CopyToDevice(weight.Data<std::byte>() + row * row_bytes, filled.values.data(), bytes);
  if (slot.kind == SlotKind::kQuantized) {
    const Tensor& scales = *plan.entries()[slot.scale_weight].target;
    const auto scale_bytes = static_cast<int64_t>(filled.scales.size() * sizeof(float));
    device.CopyToDevice(scales.Data<float>() + row, filled.scales.data(), scale_bytes);
    bytes += scale_bytes;
  }
  device.Synchronize();  // the buffer is used again
  return bytes;
}

// Lines of the log while weights are loaded.
class Progress {
 public:
  explicit Progress(int64_t bytes_all) : bytes_all_(bytes_all), start_(Clock::now()) {}

  void Add(int64_t bytes) {
    bytes_done_ += bytes;
    const Clock::time_point now = Clock::now();
    if (now - last_line_ < kProgressEvery) return;
    last_line_ = now;
    const double rate = static_cast<double>(bytes_done_) / seconds();
    LOG(INFO) << "loading weights: " << Gigabytes(bytes_done_) << " of " << Gigabytes(bytes_all_)
              << ", " << Gigabytes(static_cast<int64_t>(rate)) << "/s, "
              << absl::StrFormat("%.0f s to go",
                                 static_cast<double>(bytes_all_ - bytes_done_) / rate);
  }
  double seconds() const { return std::chrono::duration<double>(Clock::now() - start_).count(); }
  int64_t bytes_done() const { return bytes_done_; }

 private:
  const int64_t bytes_all_;
  const Clock::time_point start_;
  Clock::time_point last_line_ = start_;
  int64_t bytes_done_ = 0;
};

// Allocates the plan's weights and fills them.
absl::Status FillPlan(Device& device, const WeightPlan& plan, const FillFunction& fill,
                      int32_t threads, const std::string& source) {
  if (plan.bytes() > device.BytesFree()) {
    return absl::ResourceExhaustedError(absl::StrCat("the weights take ", Gigabytes(plan.bytes()),
                                                     ", ", device.Describe(), " has ",
                                                     Gigabytes(device.BytesFree()), " free"));
  }
  for (const WeightPlan::Entry& entry : plan.entries()) {
    *entry.target = entry.layout;
    entry.target->data = device.Allocate(entry.layout.bytes());
  }
  const std::vector<Piece> pieces = CutPieces(plan);
  Progress progress(plan.bytes());
  FillLine line(plan, pieces, fill, threads);
  for (size_t i = 0; i < pieces.size(); ++i) {
    FillLine::Done done = line.Take();
    if (!done.status.ok()) {
      return absl::Status(done.status.code(), absl::StrCat(source, ": ", done.status.message()));
    }
    progress.Add(CopyPiece(device, plan, pieces[done.piece], done.filled));
    line.Return(std::move(done.filled));
  }
  CHECK_EQ(progress.bytes_done(), plan.bytes()) << "bytes of the plan";
  const double rate = static_cast<double>(plan.bytes()) / std::max(progress.seconds(), 1e-6);
  LOG(INFO) << "loaded " << plan.slots().size() << " tensors of " << source << ", "
            << Gigabytes(plan.bytes()) << " of weights in "
            << absl::StrFormat("%.2f s, ", progress.seconds())
            << Gigabytes(static_cast<int64_t>(rate)) << "/s";
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckPlan(const WeightPlan& plan, const Checkpoint& checkpoint) {
  if (!plan.status().ok()) {
    return absl::Status(plan.status().code(),
                        absl::StrCat(checkpoint.folder(), ": ", plan.status().message()));
  }
  CheckComplete(plan);
  std::set<std::string> used(plan.names_taken().begin(), plan.names_taken().end());
  for (const Slot& slot : plan.slots()) {
    used.insert(slot.name);
    if (slot.kind == SlotKind::kDequantized) used.insert(slot.scales.name);
    const absl::Status status =
        CheckSlot(slot, plan.entries()[slot.weight].layout.dtype, checkpoint);
    if (!status.ok()) return status;
  }
  for (const auto& [name, stored] : checkpoint.tensors()) {
    if (used.count(name) != 0 || IsAside(plan, name)) continue;
    return absl::InvalidArgumentError(absl::StrCat(checkpoint.folder(), ": tensor ", name, " ",
                                                   ShapeText(stored.shape),
                                                   " has no place in this model"));
  }
  return absl::OkStatus();
}

absl::Status LoadWeights(Device& device, const Checkpoint& checkpoint, const WeightPlan& plan,
                         int32_t threads) {
  const absl::Status checked = CheckPlan(plan, checkpoint);
  if (!checked.ok()) return checked;
  const auto aside = std::count_if(checkpoint.tensors().begin(), checkpoint.tensors().end(),
                                   [&](const auto& entry) { return IsAside(plan, entry.first); });
  if (aside > 0) LOG(INFO) << aside << " tensors of the MTP layer are not loaded";
  const FillFunction fill = [&](const Piece& piece, DType type, FilledPiece* filled) {
    const StoredTensors& tensors = checkpoint.tensors();
    const Slot& slot = *piece.slot;
    const StoredTensor* scales =
        slot.kind == SlotKind::kDequantized ? &tensors.at(slot.scales.name) : nullptr;
    return FillFromFile(piece, tensors.at(slot.name), scales, type, filled);
  };
  return FillPlan(device, plan, fill, threads, checkpoint.folder());
}

absl::Status LoadRandomWeights(Device& device, uint64_t seed, const WeightPlan& plan,
                               int32_t threads) {
  if (!plan.status().ok()) return plan.status();
  CheckComplete(plan);
  const FillFunction fill = [&](const Piece& piece, DType type, FilledPiece* filled) {
    return FillAtRandom(piece, seed, type, filled);
  };
  return FillPlan(device, plan, fill, threads, absl::StrCat("random weights, seed ", seed));
}

}  // namespace glm::engine
