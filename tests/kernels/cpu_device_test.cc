// The CPU as a Device: memory, its limits, and what it refuses.
#include <gtest/gtest.h>

#include <cstring>

#include "kernels/device.h"
#include "kernels/ops.h"

namespace glm {
namespace {

TEST(CpuDeviceTest, DescribesItself) {
  EXPECT_EQ(CreateCpuDevice(1)->Describe(), "CPU, 1 thread");
  EXPECT_EQ(CreateCpuDevice(3)->Describe(), "CPU, 3 threads");
}

TEST(CpuDeviceTest, AllocationsAreAlignedCountedAndApart) {
  const std::unique_ptr<Device> device = CreateCpuDevice(1);
  const int64_t before = device->BytesFree();
  EXPECT_GT(before, 0);
  void* last = nullptr;
  for (const int64_t bytes : {0, 1, 255, 256, 257, 100000}) {
    void* memory = device->Allocate(bytes);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(memory) % 256, 0u) << bytes;
    EXPECT_NE(memory, last);
    device->Fill(memory, 0xAB, bytes);
    last = memory;
  }
  const int64_t used = before - device->BytesFree();
  EXPECT_GE(used, 1 + 255 + 256 + 257 + 100000);
  EXPECT_LE(used, 1 + 255 + 256 + 257 + 100000 + 6 * 256);
}

TEST(CpuDeviceTest, CopiesBothWays) {
  const std::unique_ptr<Device> device = CreateCpuDevice(1);
  const char source[] = "twelve bytes";
  char target[sizeof(source)] = {};
  void* memory = device->Allocate(sizeof(source));
  device->CopyToDevice(memory, source, sizeof(source));
  device->CopyToHost(target, memory, sizeof(source));
  device->CopyToHost(nullptr, nullptr, 0);
  device->Synchronize();
  EXPECT_STREQ(target, source);
  const std::unique_ptr<DeviceEvent> event = device->NewEvent();
  event->Record();
  event->Wait();
}

TEST(CpuDeviceTest, PlansTheScratchThatItAnnounces) {
  StepLimits limits;
  limits.tokens_max = 64;
  limits.sequences_max = 8;
  limits.logit_rows_max = 8;
  limits.hidden = 256;
  limits.query_heads = 4;
  limits.kv_heads = 2;
  limits.head_size = 64;
  limits.experts = 9;
  limits.experts_per_token = 3;
  limits.expert_width = 128;
  limits.dense_width = 512;
  limits.vocabulary = 1000;
  const std::unique_ptr<Device> device = CreateCpuDevice(1);
  const int64_t bytes = device->ScratchBytes(limits);
  // At least the pairs' gate, up and output rows.
  EXPECT_GT(bytes, 64 * 3 * (2 * 128 + 256) * 4);
  const int64_t before = device->BytesFree();
  device->PlanScratch(limits);
  EXPECT_GE(before - device->BytesFree(), bytes);
  EXPECT_LE(before - device->BytesFree(), bytes + 256);
}

TEST(CpuDeviceDeathTest, RefusesWhatTheContractForbids) {
  const std::unique_ptr<Device> device = CreateCpuDevice(1);
  EXPECT_FALSE(device->CanCapture());
  EXPECT_DEATH(device->BeginCapture(), "captures no graphs");
  device->Seal();
  EXPECT_DEATH(device->Allocate(8), "after Seal");
  EXPECT_DEATH(device->AllocateHost(8), "after Seal");
}

TEST(CpuDeviceDeathTest, StepLargerThanPlannedDies) {
  const std::unique_ptr<Device> device = CreateCpuDevice(1);
  StepLimits limits;
  limits.tokens_max = 2;
  limits.hidden = 8;
  device->PlanScratch(limits);
  BatchView batch;
  batch.counts = device->NewTensor(DType::kI32, {3});
  const int32_t counts[3] = {5, 1, 0};
  device->CopyToDevice(batch.counts.data, counts, sizeof(counts));
  const Tensor residual = device->NewTensor(DType::kBF16, {5, 8});
  const AddRmsNormArgs args{.batch = batch,
                            .residual = residual,
                            .weight = device->NewTensor(DType::kBF16, {8}),
                            .epsilon = 1e-5f,
                            .out = device->NewTensor(DType::kBF16, {5, 8})};
  EXPECT_DEATH(device->ops().add_rms_norm(*device, args), "larger than PlanScratch was told");
  AddRmsNormArgs wrong = args;
  wrong.weight = device->NewTensor(DType::kBF16, {7});
  EXPECT_DEATH(device->ops().add_rms_norm(*device, wrong),
               "add_rms_norm.weight is BF16\\[7\\], expected BF16\\[8\\]");
}

}  // namespace
}  // namespace glm
