// Sampling on the CPU: draw by draw against the oracle, the distribution that many draws have, and
// logits that are no numbers.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "tests/kernels/case_parts.h"
#include "tests/kernels/run_cases.h"

namespace glm::test {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// `draws` ids from the same logits, at positions 0, 1, ....
std::vector<int32_t> Draw(const std::vector<float>& logits, SampleRow row, int32_t draws) {
  const std::unique_ptr<Device> device = CreateCpuDevice(2);
  const int32_t vocabulary = static_cast<int32_t>(logits.size());
  StepLimits limits;
  limits.logit_rows_max = draws;
  limits.vocabulary = vocabulary;
  device->PlanScratch(limits);
  BatchView batch;
  batch.counts = HostTensor::OfInts({1, 1, draws}, {3}).Upload(*device);
  batch.last_ids = HostTensor::OfInts({-1}, {1}).Upload(*device);
  std::vector<SampleRow> rows(draws, row);
  HostTensor all(DType::kF32, {draws, vocabulary});
  for (int32_t r = 0; r < draws; ++r) {
    rows[r].position = static_cast<uint32_t>(r);
    rows[r].slot = -1;
    for (int32_t i = 0; i < vocabulary; ++i) all.Set(r * vocabulary + i, logits[i]);
  }
  const SampleArgs args{.batch = batch,
                        .logits = all.Upload(*device),
                        .vocabulary_used = vocabulary,
                        .rows = rows.data(),
                        .out_ids = HostTensor(DType::kI32, {draws}).Upload(*device)};
  device->ops().sample(*device, args);
  return DownloadInts(*device, args.out_ids, draws);
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

TEST(SampleTest, SeedAndPositionDecideAlone) {
  const std::vector<float> logits(1000, 0.0f);
  const std::vector<int32_t> many = Draw(logits, Row(1, 1, 0), 50);
  const std::vector<int32_t> few = Draw(logits, Row(1, 1, 0), 3);
  EXPECT_TRUE(std::equal(few.begin(), few.end(), many.begin()));
  SampleRow other = Row(1, 1, 0);
  other.seed = 8;
  EXPECT_NE(Draw(logits, other, 50), many);
}

}  // namespace
}  // namespace glm::test
