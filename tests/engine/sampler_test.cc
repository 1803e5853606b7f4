// Ranks that sample from their own columns of the logits: the ids of whole logits, to the bit, and
// two words a row exchanged.
#include "engine/rank/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "tests/engine/counting_communicator.h"

namespace glm::engine {
namespace {

using test::CountingMeeting;
using test::Gathered;

constexpr int64_t kRows = 40;
constexpr int64_t kRowsMax = 48;
constexpr int64_t kVocabulary = 984;  // of 8 ranks, 123 each
constexpr int64_t kUsed = 970;

StepLimits LimitsOf(int64_t ranks) {
  StepLimits limits;
  limits.logit_rows_max = kRowsMax;
  limits.vocabulary = kVocabulary;
  limits.vocabulary_slices = ranks;
  return limits;
}

/// A rank with a device of its own, and the arrays that sampling reads and writes there.
class OneRank {
 public:
  OneRank(Meeting& meeting, int32_t rank, const std::vector<float>& logits,
          const std::vector<SampleRow>& rows)
      : rows_(rows), device_(CreateCpuDevice(1)) {
    std::string error;
    communicator_ = meeting.Join(*device_, rank, &error);
    const StepLimits limits = LimitsOf(meeting.size());
    device_->PlanScratch(limits);
    const int64_t free = device_->BytesFree();
    sampler_.emplace(*device_, *communicator_, limits);
    // Memory is taken in pieces of 256 bytes.
    const int64_t taken = free - device_->BytesFree();
    EXPECT_GE(taken, Sampler::DeviceBytes(limits));
    EXPECT_LT(taken, Sampler::DeviceBytes(limits) + 512);
    whole_ = device_->NewTensor(DType::kF32, {kRowsMax, kVocabulary});
    const int64_t columns = kVocabulary / meeting.size();
    part_ = device_->NewTensor(DType::kF32, {kRowsMax, columns});
    for (int64_t r = 0; r < kRows; ++r) {
      const float* from = logits.data() + r * kVocabulary;
      std::copy_n(from, kVocabulary, whole_.Row<float>(r));
      std::copy_n(from + rank * columns, columns, part_.Row<float>(r));
    }
    batch_.counts = device_->NewTensor(DType::kI32, {3});
    batch_.counts.Data<int32_t>()[2] = kRows;
    batch_.last_ids = device_->NewTensor(DType::kI32, {kRowsMax});
    out_ids_ = device_->NewTensor(DType::kI32, {kRowsMax});
    device_->Seal();
  }

  std::vector<int32_t> Sample(bool whole) {
    device_->Fill(batch_.last_ids.data, 0xFF, batch_.last_ids.bytes());
    sampler_->Run({.batch = batch_,
                   .logits = whole ? whole_ : part_,
                   .vocabulary_used = kUsed,
                   .rows = rows_.data(),
                   .out_ids = out_ids_});
    std::vector<int32_t> ids(out_ids_.Data<int32_t>(), out_ids_.Data<int32_t>() + kRows);
    for (int64_t r = 0; r < kRows; ++r) {
      const int32_t last = batch_.last_ids.Data<int32_t>()[r];
      EXPECT_EQ(last, rows_[r].slot < 0 ? -1 : ids[r]) << "row " << r;
    }
    return ids;
  }

 private:
  const std::vector<SampleRow> rows_;
  const std::unique_ptr<Device> device_;
  std::unique_ptr<Communicator> communicator_;
  std::optional<Sampler> sampler_;
  Tensor whole_;
  Tensor part_;
  BatchView batch_;
  Tensor out_ids_;
};

TEST(SamplerTest, SlicesGiveTheIdsOfTheWholeForTwoWordsARow) {
  std::mt19937_64 random(11);
  std::vector<float> logits;
  for (int64_t i = 0; i < kRows * kVocabulary; ++i) {
    // In steps, so that there are ties.
    logits.push_back(static_cast<float>(random() % 64) * 0.125f);
  }
  std::vector<SampleRow> rows(kRows);
  for (int64_t r = 0; r < kRows; ++r) {
    rows[r].temperature = r % 3 == 0 ? 0.0f : 0.3f * static_cast<float>(r % 7 + 1);
    rows[r].seed = random();
    rows[r].position = static_cast<uint32_t>(r);
    rows[r].slot = r % 5 == 0 ? -1 : static_cast<int32_t>(r);
  }
  const auto alone = CreateSingleMeeting();
  const std::vector<int32_t> want = OneRank(*alone, 0, logits, rows).Sample(true);
  for (const int32_t ranks : {2, 4, 8}) {
    CountingMeeting meeting(ranks, kRowsMax * kVocabulary);
    std::vector<std::unique_ptr<OneRank>> all;
    for (int32_t i = 0; i < ranks; ++i) {
      all.push_back(std::make_unique<OneRank>(meeting, i, logits, rows));
    }
    const auto expect = [&](bool whole) {
      std::vector<std::vector<int32_t>> ids(ranks);
      std::vector<std::thread> threads;
      for (int32_t i = 0; i < ranks; ++i) {
        threads.emplace_back([&, i] { ids[i] = all[i]->Sample(whole); });
      }
      for (std::thread& thread : threads) thread.join();
      for (int32_t i = 0; i < ranks; ++i)
        EXPECT_EQ(ids[i], want) << "rank " << i << " of " << ranks;
    };
    expect(true);
    EXPECT_EQ(meeting.Take(), Gathered{});
    expect(false);
    EXPECT_EQ(meeting.Take(), Gathered{2 * kRowsMax});
  }
}

}  // namespace
}  // namespace glm::engine
