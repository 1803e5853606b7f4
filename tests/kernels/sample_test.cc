// Sampling on the CPU: draw by draw against the oracle, the distribution that many draws have, and
// logits that are no numbers.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "tests/kernels/case_parts.h"
#include "tests/kernels/run_cases.h"

namespace glm::test {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// What a row may look at besides its logits.
struct Surroundings {
  std::vector<int32_t> history{};  // ids at positions 0, 1, ..
  std::vector<LogitEdit> edits{};
  std::vector<int32_t> contexts{};
  std::vector<uint32_t> mask{};
};

/// Samples from `slices` parts of the logits, one behind the other, and takes the best of each row.
void SampleSlices(Device& device, const SampleArgs& whole, int64_t slices) {
  const int64_t rows = whole.logits.shape[0];
  const int64_t columns = whole.logits.shape[1] / slices;
  const Tensor all = HostTensor(DType::kF32, {slices, rows, 2}).Upload(device);
  for (int64_t s = 0; s < slices; ++s) {
    SampleArgs slice = whole;
    slice.logits = whole.logits.Columns(s * columns, columns);
    slice.candidates = all.Slice(s);
    slice.vocabulary_begin = s * columns;
    device.ops().sample(device, slice);
  }
  device.ops().choose_candidates(
      device,
      {.batch = whole.batch, .candidates = all, .rows = whole.rows, .out_ids = whole.out_ids});
}

/// Ids of `rows`, all from the same logits.
std::vector<int32_t> DrawRows(const std::vector<float>& logits, std::vector<SampleRow> rows,
                              const Surroundings& around = {}, int64_t slices = 1) {
  const std::unique_ptr<Device> device = CreateCpuDevice(2);
  const auto vocabulary = static_cast<int32_t>(logits.size());
  const auto count = static_cast<int32_t>(rows.size());
  StepLimits limits;
  limits.logit_rows_max = count;
  limits.vocabulary = vocabulary;
  device->PlanScratch(limits);
  BatchView batch;
  batch.counts = HostTensor::OfInts({1, 1, count}, {3}).Upload(*device);
  batch.last_ids = HostTensor::OfInts({-1}, {1}).Upload(*device);
  batch.block_tables = HostTensor::OfInts({0}, {1, 1}).Upload(*device);
  HostTensor all(DType::kF32, {count, vocabulary});
  for (int32_t r = 0; r < count; ++r) {
    for (int32_t i = 0; i < vocabulary; ++i) all.Set(int64_t{r} * vocabulary + i, logits[i]);
  }
  SampleArgs args{.batch = batch,
                  .logits = all.Upload(*device),
                  .vocabulary_used = vocabulary,
                  .rows = rows.data(),
                  .out_ids = HostTensor(DType::kI32, {count}).Upload(*device)};
  if (!around.history.empty()) {
    const auto size = static_cast<int64_t>(around.history.size());
    args.tokens.ids = HostTensor::OfInts(around.history, {1, size}).Upload(*device);
  }
  args.edits = around.edits.data();
  args.edit_contexts = around.contexts.data();
  if (!around.mask.empty()) {
    const std::vector<int32_t> words(around.mask.begin(), around.mask.end());
    args.masks = HostTensor::OfInts(words, {1, static_cast<int64_t>(words.size())}).Upload(*device);
  }
  if (slices == 1) {
    device->ops().sample(*device, args);
  } else {
    SampleSlices(*device, args, slices);
  }
  return DownloadInts(*device, args.out_ids, count);
}

/// `draws` ids from the same logits, at positions 0, 1, ....
std::vector<int32_t> Draw(const std::vector<float>& logits, SampleRow row, int32_t draws) {
  std::vector<SampleRow> rows(draws, row);
  for (int32_t r = 0; r < draws; ++r) rows[r].position = static_cast<uint32_t>(r);
  return DrawRows(logits, rows);
}

/// `draws` ids at the row's position, under different seeds.
std::vector<int32_t> DrawSeeds(const std::vector<float>& logits, SampleRow row, int32_t draws,
                               const Surroundings& around) {
  std::vector<SampleRow> rows(draws, row);
  for (int32_t r = 0; r < draws; ++r) rows[r].seed = static_cast<uint64_t>(r) << 20;
  return DrawRows(logits, rows, around);
}

/// The softmax of `logits`.
std::vector<double> Softmax(const std::vector<double>& logits) {
  const double largest = *std::max_element(logits.begin(), logits.end());
  std::vector<double> shares;
  double total = 0;
  for (const double logit : logits) {
    shares.push_back(std::exp(logit - largest));
    total += shares.back();
  }
  for (double& share : shares) share /= total;
  return shares;
}

SampleRow Row(float temperature, float top_p, int32_t top_k) {
  SampleRow row{};
  row.temperature = temperature;
  row.top_p = top_p;
  row.top_k = top_k;
  row.seed = 7;
  return row;
}

/// Pearson's statistic of `ids` against `shares`; an id without a share fails.
double ChiSquare(const std::vector<int32_t>& ids, const std::vector<double>& shares) {
  std::vector<int> counts(shares.size(), 0);
  for (const int32_t id : ids) ++counts.at(id);
  double statistic = 0;
  for (size_t i = 0; i < shares.size(); ++i) {
    if (shares[i] == 0) {
      EXPECT_EQ(counts[i], 0) << "id " << i << " is outside the allowed set";
      continue;
    }
    const double expected = shares[i] * static_cast<double>(ids.size());
    statistic += (counts[i] - expected) * (counts[i] - expected) / expected;
  }
  return statistic;
}

TEST(SampleTest, DrawsAreTheOracles) { RunOnCpu(SampleCases()); }

TEST(SampleTest, FeaturesAreTheOracles) { RunOnCpu(SampleFeatureCases()); }

TEST(SampleTest, SlicesGiveWhatTheWholeGives) { RunOnCpu(SampleSliceCases()); }

// What a slice alone cannot know: that another has a number, or an id that the mask allows.
TEST(SampleTest, SlicesWithoutNumbersGiveWay) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  struct Case {
    std::vector<float> logits;
    std::vector<uint32_t> mask;  // empty: none
    int32_t greedy;
  };
  const std::vector<float> none(8, -kInfinity);
  const Case cases[] = {{{nan, nan, nan, nan, nan, nan, nan, -7}, {}, 7},
                        {{nan, nan, nan, nan, nan, nan, nan, -7}, {0b01110000}, 4},
                        {none, {}, 0},
                        {none, {0b11000000}, 6},
                        {none, {0}, 0},
                        {{3, 3, 3, 3, 3, 3, 3, 3}, {0}, 0},
                        {{1, 2, 3, 2, 1, 3, 0, 3}, {}, 2},
                        {{1, 2, 3, 2, 1, 3, 0, 3}, {0b11111000}, 5},
                        {{0.0f, -0.0f, -1, -0.0f, 0.0f, -2, -3, 0.0f}, {}, 0},
                        {{-1, kInfinity, -1, -1, kInfinity, 5, kInfinity, -1}, {}, 1},
                        // Under a temperature like this all are minus infinity, and yet numbers.
                        {{-5, -4, -9, -4, -5, -4, -4, -9}, {}, 1},
                        {{-kInfinity, -kInfinity, -9, -4, -5, -4, -4, -9}, {0b10111111}, 3}};
  for (size_t i = 0; i < std::size(cases); ++i) {
    const Case& one = cases[i];
    for (const float temperature : {0.0f, 1.0f, 1e-39f}) {
      SampleRow row = Row(temperature, 1, 0);
      row.mask = one.mask.empty() ? -1 : 0;
      std::vector<SampleRow> rows(20, row);
      for (size_t r = 0; r < rows.size(); ++r) rows[r].position = static_cast<uint32_t>(r);
      const std::vector<int32_t> whole = DrawRows(one.logits, rows, {.mask = one.mask});
      if (temperature == 0) {
        EXPECT_EQ(whole, std::vector<int32_t>(20, one.greedy)) << "case " << i;
      }
      for (const int64_t slices : {2, 4, 8}) {
        EXPECT_EQ(DrawRows(one.logits, rows, {.mask = one.mask}, slices), whole)
            << "case " << i << ", temperature " << temperature << ", " << slices << " slices";
      }
    }
  }
}

TEST(SampleTest, DrawsFollowTheDistribution) {
  const std::vector<double> shares = {0.05, 0.4, 0.1, 0.25, 0.2};
  std::vector<float> logits;
  for (const double share : shares) logits.push_back(static_cast<float>(std::log(share)));
  // 4 degrees of freedom, p = 0.001.
  EXPECT_LT(ChiSquare(Draw(logits, Row(1, 1, 0), 20000), shares), 18.5);
  // Half the temperature squares the shares.
  std::vector<double> squared;
  double total = 0;
  for (const double share : shares) total += share * share;
  for (const double share : shares) squared.push_back(share * share / total);
  EXPECT_LT(ChiSquare(Draw(logits, Row(0.5f, 1, 0), 20000), squared), 18.5);
}

TEST(SampleTest, DrawsStayInTheAllowedSet) {
  const std::vector<double> shares = {0.05, 0.4, 0.1, 0.25, 0.2};
  std::vector<float> logits;
  for (const double share : shares) logits.push_back(static_cast<float>(std::log(share)));
  const auto kept = [&](std::vector<int> ids) {
    std::vector<double> rest(shares.size(), 0.0);
    double total = 0;
    for (const int id : ids) total += shares[id];
    for (const int id : ids) rest[id] = shares[id] / total;
    return rest;
  };
  EXPECT_LT(ChiSquare(Draw(logits, Row(1, 1, 2), 20000), kept({1, 3})), 10.9);
  EXPECT_LT(ChiSquare(Draw(logits, Row(1, 0.8f, 0), 20000), kept({1, 3, 4})), 13.9);
  // top_p counts within the top_k: 0.4 of 0.65 is less than 0.7, so two remain.
  EXPECT_LT(ChiSquare(Draw(logits, Row(1, 0.7f, 2), 20000), kept({1, 3})), 10.9);
  EXPECT_EQ(ChiSquare(Draw(logits, Row(1, 0.3f, 0), 2000), kept({1})), 0);
  EXPECT_EQ(ChiSquare(Draw(logits, Row(3, 1, 1), 2000), kept({1})), 0);
}

TEST(SampleTest, MinPKeepsWhatIsLikelyEnough) {
  const std::vector<double> shares = {0.05, 0.4, 0.1, 0.25, 0.2};
  std::vector<float> logits;
  for (const double share : shares) logits.push_back(static_cast<float>(std::log(share)));
  SampleRow row = Row(1, 1, 0);
  row.min_p = 0.3f;  // of 0.4: 0.12
  EXPECT_LT(ChiSquare(Draw(logits, row, 20000), {0, 8.0 / 17, 0, 5.0 / 17, 4.0 / 17}), 13.9);
  row.min_p = 1;
  EXPECT_EQ(ChiSquare(Draw(logits, row, 2000), {0, 1, 0, 0, 0}), 0);
}

TEST(SampleTest, PenaltiesShiftTheDistribution) {
  const std::vector<float> logits = {1, -0.5f, 2, 0.5f, 0};
  const Surroundings around{.history = {2, 2, 0, 1, 1, 1, 2, 4, 9}};
  SampleRow row = Row(0.8f, 1, 0);
  row.position = 7;  // the ids 4 and 9 come later
  row.prompt_tokens = 3;
  row.repetition_penalty = 1.3f;
  row.frequency_penalty = 0.4f;
  row.presence_penalty = -0.7f;
  std::vector<double> shaped = {1 / 1.3, -0.5 * 1.3 - 3 * 0.4 + 0.7, 2 / 1.3 - 0.4 + 0.7, 0.5, 0};
  for (double& logit : shaped) logit /= 0.8;
  EXPECT_LT(ChiSquare(DrawSeeds(logits, row, 30000, around), Softmax(shaped)), 18.5);
}

TEST(SampleTest, EditsAndMaskShiftTheDistribution) {
  const std::vector<float> logits = {1, -0.5f, 2, 0.5f, 0, 1.5f};
  const Surroundings around{
      .history = {3, 1, 4},
      .edits = {{.id = 0, .add = -1},
                {.id = 4, .add = 2, .until_position = 3},  // no longer
                {.id = 1, .add = 2, .until_position = 4},
                {.id = 2, .add = -kInfinity, .context_begin = 0, .context_count = 2},
                {.id = 3, .add = -kInfinity, .context_begin = 2, .context_count = 2}},
      .contexts = {1, 4, 3, 4},  // what comes before; what does not
      .mask = {0b011111}};
  SampleRow row = Row(1, 1, 0);
  row.position = 3;
  row.edits_count = 5;
  row.mask = 0;
  const std::vector<double> shaped = {0, 1.5, -kInfinity, 0.5, 0, -kInfinity};
  EXPECT_LT(ChiSquare(DrawSeeds(logits, row, 30000, around), Softmax(shaped)), 16.3);
  // All that the mask leaves is banned: the lowest that it allows.
  Surroundings none = around;
  none.edits = {{.id = 1, .add = -kInfinity}, {.id = 2, .add = -kInfinity}};
  none.mask = {0b000110};
  row.edits_count = 2;
  EXPECT_EQ(DrawSeeds(logits, row, 1, none)[0], 1);
  row.temperature = 0;
  EXPECT_EQ(DrawSeeds(logits, row, 1, none)[0], 1);
}

TEST(SampleTest, ManyIdsFollowTheDistribution) {
  // As wide as a vocabulary, in cells of ids: no stretch of ids is favoured.
  constexpr int32_t kVocabulary = 1024;
  constexpr int32_t kCells = 32;
  std::vector<float> logits(kVocabulary);
  std::vector<double> exact(kVocabulary);
  for (int32_t i = 0; i < kVocabulary; ++i) {
    logits[i] = static_cast<float>((i * 2654435761u >> 20) % 1000) * 0.004f;
    exact[i] = logits[i] / 0.7;
  }
  const std::vector<double> shares = Softmax(exact);
  std::vector<double> cells(kCells, 0.0);
  for (int32_t i = 0; i < kVocabulary; ++i) cells[i % kCells] += shares[i];
  std::vector<int32_t> ids = Draw(logits, Row(0.7f, 1, 0), 5000);
  for (int32_t& id : ids) id %= kCells;
  EXPECT_LT(ChiSquare(ids, cells), 61.1);  // 31 degrees of freedom, p = 0.001
}

/// Drafting rests on this: rows of one position that nearly agree mostly draw the same.
TEST(SampleTest, AlikeLogitsDrawAlike) {
  constexpr int32_t kVocabulary = 50;
  constexpr int32_t kDraws = 20000;
  for (const float noise : {0.05f, 0.5f, 2.0f}) {
    Random random(5);
    std::vector<float> target, draft;
    for (int32_t i = 0; i < kVocabulary; ++i) {
      target.push_back(static_cast<float>(random.Uniform(-3, 3)));
      draft.push_back(target.back() + static_cast<float>(random.Uniform(-noise, noise)));
    }
    const std::vector<double> p = Softmax({target.begin(), target.end()});
    const std::vector<double> q = Softmax({draft.begin(), draft.end()});
    double variation = 0;
    for (int32_t i = 0; i < kVocabulary; ++i) variation += std::abs(p[i] - q[i]) / 2;
    const std::vector<int32_t> a = Draw(target, Row(1, 1, 0), kDraws);
    const std::vector<int32_t> b = Draw(draft, Row(1, 1, 0), kDraws);
    int32_t same = 0;
    for (int32_t i = 0; i < kDraws; ++i) same += a[i] == b[i] ? 1 : 0;
    const double bound = (1 - variation) / (1 + variation);
    const double sigma = std::sqrt(bound * (1 - bound) / kDraws);
    EXPECT_GE(same / double{kDraws}, bound - 3 * sigma) << "variation " << variation;
    // No coupling agrees more often than this.
    EXPECT_LE(same / double{kDraws}, 1 - variation + 3 * sigma) << "variation " << variation;
  }
}

TEST(SampleTest, ImpossibleIdsAreNeverDrawn) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const std::vector<float> logits = {-kInfinity, 1, nan, 1, -kInfinity};
  EXPECT_LT(ChiSquare(Draw(logits, Row(1, 1, 0), 20000), {0, 0.5, 0, 0.5, 0}), 10.9);
  EXPECT_LT(ChiSquare(Draw(logits, Row(1, 0.99f, 4), 20000), {0, 0.5, 0, 0.5, 0}), 10.9);
  EXPECT_EQ(Draw(logits, Row(0, 1, 0), 1)[0], 1);
  EXPECT_EQ(Draw({nan, nan, -3}, Row(0, 1, 0), 1)[0], 2);
  // Without any number left, a valid id all the same.
  EXPECT_EQ(Draw({nan, nan}, Row(0, 1, 0), 1)[0], 0);
  for (const int32_t id : Draw({nan, -kInfinity}, Row(1, 0.5f, 0), 100)) {
    EXPECT_TRUE(id == 0 || id == 1);
  }
  EXPECT_EQ(Draw({1, kInfinity, 2}, Row(1, 1, 0), 1)[0], 1);
  EXPECT_EQ(Draw({1, 3, 2}, Row(1e-38f, 1, 0), 1)[0], 1);
}

TEST(SampleTest, SeedChoiceAndPositionDecideAlone) {
  const std::vector<float> logits(1000, 0.0f);
  const std::vector<int32_t> many = Draw(logits, Row(1, 1, 0), 50);
  const std::vector<int32_t> few = Draw(logits, Row(1, 1, 0), 3);
  EXPECT_TRUE(std::equal(few.begin(), few.end(), many.begin()));
  SampleRow other = Row(1, 1, 0);
  other.seed = 8;
  EXPECT_NE(Draw(logits, other, 50), many);
  other = Row(1, 1, 0);
  other.choice = 1;
  EXPECT_NE(Draw(logits, other, 50), many);
}

}  // namespace
}  // namespace glm::test
