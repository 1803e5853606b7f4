// Every op of the CUDA backend on the cases that the CPU backend passes, judged by the same oracle
// with the same tolerances; and that two runs, and a captured run, give the same bits. Skips
// without a GPU.
#include <gtest/gtest.h>

#include "tests/kernels/case_parts.h"
#include "tests/kernels/op_cases.h"

namespace glm::test {
namespace {

class ParityTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string error;
    device_ = CreateCudaDevice(0, &error, true);
    if (device_ == nullptr) GTEST_SKIP() << error;
  }

  void RunAll(std::vector<OpCase> cases) {
    std::erase_if(cases, [](const OpCase& one) { return one.act != DType::kBF16; });
    ASSERT_FALSE(cases.empty());
    device_->PlanScratch(LimitsOf(cases));
    for (const OpCase& one : cases) {
      const CaseResult first = one.run(*device_);
      EXPECT_EQ(first.failure, "") << one.name;
      EXPECT_TRUE(one.run(*device_).bits == first.bits) << one.name << " differs when run again";
    }
  }

  std::unique_ptr<Device> device_;
};

TEST_F(ParityTest, Embed) { RunAll(EmbedCases()); }
TEST_F(ParityTest, AddRmsNorm) { RunAll(AddRmsNormCases()); }
TEST_F(ParityTest, Linear) { RunAll(LinearCases()); }
TEST_F(ParityTest, NormRopeStore) { RunAll(NormRopeStoreCases()); }
TEST_F(ParityTest, Attention) { RunAll(AttentionCases()); }
TEST_F(ParityTest, NormRopeStoreFloat8) { RunAll(NormRopeStoreFloat8Cases()); }
TEST_F(ParityTest, AttentionFloat8) { RunAll(AttentionFloat8Cases()); }
TEST_F(ParityTest, MlaRopeStore) { RunAll(MlaRopeStoreCases()); }
TEST_F(ParityTest, MlaAttention) { RunAll(MlaAttentionCases()); }
TEST_F(ParityTest, SiluMul) { RunAll(SiluMulCases()); }
TEST_F(ParityTest, MoeRoute) { RunAll(MoeRouteCases()); }
TEST_F(ParityTest, MoeExperts) { RunAll(MoeExpertsCases()); }
TEST_F(ParityTest, GatherLogitRows) { RunAll(GatherLogitRowsCases()); }
TEST_F(ParityTest, Sample) { RunAll(SampleCases()); }
TEST_F(ParityTest, SampleFeatures) { RunAll(SampleFeatureCases()); }
TEST_F(ParityTest, SampleSlices) { RunAll(SampleSliceCases()); }
TEST_F(ParityTest, StoreTokens) { RunAll(StoreTokensCases()); }
TEST_F(ParityTest, Drafts) { RunAll(DraftCases()); }

TEST_F(ParityTest, EmbedSlice) { RunAll(EmbedSliceCases()); }
TEST_F(ParityTest, RmsNorm) { RunAll(RmsNormCases()); }

TEST_F(ParityTest, LargeLinear) { RunAll(LinearLargeCases()); }
TEST_F(ParityTest, LargeAttention) { RunAll(AttentionLargeCases()); }
TEST_F(ParityTest, LargeMlaAttention) { RunAll(MlaAttentionLargeCases()); }
TEST_F(ParityTest, MlaAttentionOfDecode) { RunAll(MlaAttentionDecodeCases()); }
TEST_F(ParityTest, LargeMoeExperts) { RunAll(MoeExpertsLargeCases()); }

TEST_F(ParityTest, ReplayReadsWhatDeviceMemoryThenHolds) {
  constexpr int32_t kTokens = 5;
  constexpr int64_t kHidden = 256;
  Random random(7);
  const CaseBatch batch(random, BatchSpec::OneSequence(kTokens, 2));
  StepLimits limits;
  limits.tokens_max = kTokens + 2;
  limits.hidden = kHidden;
  device_->PlanScratch(limits);
  const BatchView view = batch.Upload(*device_);
  const HostTensor weight(random, DType::kBF16, {kHidden}, 1.5);
  const HostTensor matrix(random, DType::kBF16, {kHidden, kHidden}, 0.2);
  const HostTensor inputs[2] = {
      HostTensor(random, DType::kBF16, {kTokens + 2, kHidden}, 2, kTokens),
      HostTensor(random, DType::kBF16, {kTokens + 2, kHidden}, 2, kTokens)};
  const Tensor residual = inputs[0].Upload(*device_);
  const Tensor normal = HostTensor(DType::kBF16, {kTokens + 2, kHidden}).Upload(*device_);
  const Tensor out = HostTensor(DType::kBF16, {kTokens + 2, kHidden}).Upload(*device_);
  const AddRmsNormArgs norm{.batch = view,
                            .residual = residual,
                            .weight = weight.Upload(*device_),
                            .epsilon = 1e-5f,
                            .out = normal};
  const LinearArgs linear{.batch = view,
                          .in = {.values = normal},
                          .weight = {.values = matrix.Upload(*device_)},
                          .out = out};
  const auto issue = [&] {
    device_->ops().add_rms_norm(*device_, norm);
    device_->ops().linear(*device_, linear);
  };
  const auto result = [&] { return HostTensor::Download(*device_, out.Rows(0, kTokens)).bytes(); };

  issue();
  const std::vector<uint8_t> want_first = result();
  device_->CopyToDevice(residual.data, inputs[1].bytes().data(), residual.bytes());
  issue();
  const std::vector<uint8_t> want_second = result();
  ASSERT_NE(want_first, want_second);

  device_->BeginCapture();
  issue();
  const std::unique_ptr<DeviceGraph> graph = device_->EndCapture();
  for (const int i : {0, 1, 0}) {
    device_->CopyToDevice(residual.data, inputs[i].bytes().data(), residual.bytes());
    graph->Launch();
    EXPECT_EQ(result(), i == 0 ? want_first : want_second) << "input " << i;
  }
}

}  // namespace
}  // namespace glm::test
