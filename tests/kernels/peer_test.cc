// Ranks that exchange through GPU memory, as threads that share one GPU: sums, sums with the norm
// behind them, gathers, by turns and in graphs, to the bit. Skips without a GPU.
#include <gtest/gtest.h>

#include <barrier>
#include <cmath>
#include <cstdio>
#include <functional>
#include <memory>
#include <numeric>
#include <thread>
#include <vector>

#include "kernels/communicator.h"
#include "tests/kernels/case_parts.h"
#include "tests/kernels/sum_cases.h"

namespace glm::test {
namespace {

// Before the first call of CUDA: kernels that wait for each other must not wait for a load of code,
// nor stand behind each other in one queue.
const bool kPrepared = [] {
  PrepareSharedGpu();
  return true;
}();

constexpr int64_t kRowsMax = 400;
constexpr int64_t kGatherMax = 64 * 1024;

class PeerTest : public testing::TestWithParam<int32_t> {
 protected:
  void SetUp() override {
    ASSERT_TRUE(kPrepared);
    std::string error;
    if (CreateCudaDevice(0, &error) == nullptr) GTEST_SKIP() << error;
  }

  /// Whether there is a GPU for each rank.
  bool GpuEach() {
    std::string error;
    return CreateCudaDevice(GetParam() - 1, &error) != nullptr;
  }

  /// Runs `body` on a thread for each rank; they share a GPU unless `apart`.
  void OnEveryRank(const std::function<void(Communicator&, Device&)>& body, bool apart = false) {
    const int32_t size = GetParam();
    std::string error;
    std::vector<int32_t> devices(size, 0);
    if (apart) std::iota(devices.begin(), devices.end(), 0);
    const auto meeting = CreateGpuMeeting({.devices = devices,
                                           .exchange = GpuExchange::kPeer,
                                           .rows_max = kRowsMax,
                                           .hidden = 5120,
                                           .gather_elements_max = kGatherMax},
                                          &error);
    ASSERT_NE(meeting, nullptr) << error;
    together_ = std::make_unique<std::barrier<>>(size);
    std::vector<std::thread> threads;
    for (int32_t rank = 0; rank < size; ++rank) {
      threads.emplace_back([&, rank] {
        std::string reason;
        const auto device = CreateCudaDevice(devices[rank], &reason);
        ASSERT_NE(device, nullptr) << reason;
        const auto communicator = meeting->Join(*device, rank, &reason);
        ASSERT_NE(communicator, nullptr) << reason;
        body(*communicator, *device);
      });
    }
    for (std::thread& thread : threads) thread.join();
  }

  /// All ranks are here, and the device has done what they asked for: on a shared GPU an allocation
  /// may wait for kernels, which must then not wait for the rank that allocates.
  void Together(Device& device) {
    device.Synchronize();
    together_->arrive_and_wait();
  }

 private:
  std::unique_ptr<std::barrier<>> together_;
};

struct Shape {
  int32_t rows;     // valid
  int32_t padding;  // rows behind them
  int64_t columns;
};

// In one shot and in two, with fewer rows than ranks, and rows that the ranks do not divide.
const std::vector<Shape> kShapes = {{1, 0, 5120}, {3, 2, 2048}, {8, 0, 5120},   {16, 0, 4096},
                                    {1, 0, 256},  {7, 9, 64},   {131, 5, 5120}, {300, 100, 2048}};

HostTensor PartOf(int32_t rank, uint64_t call, const Shape& shape) {
  Random random(1 + static_cast<uint64_t>(rank) + 100 * call);
  return HostTensor(random, DType::kBF16, {shape.rows + shape.padding, shape.columns}, 3,
                    shape.rows);
}

/// The sum in rank order, rounded once; padding is that of rank `rank`.
HostTensor SumOf(int32_t size, int32_t rank, uint64_t call, const Shape& shape) {
  HostTensor sum = PartOf(rank, call, shape);
  std::vector<HostTensor> parts;
  for (int32_t other = 0; other < size; ++other) parts.push_back(PartOf(other, call, shape));
  for (int64_t i = 0; i < shape.rows * shape.columns; ++i) {
    float value = 0;
    for (const HostTensor& part : parts) value += static_cast<float>(part.At(i));
    sum.Set(i, ToFloat(ToBFloat16(value)));
  }
  return sum;
}

/// Bytes of the first `rows` rows.
std::vector<uint8_t> RowBytes(Device& device, const Tensor& tensor, int64_t rows) {
  const HostTensor host = HostTensor::Download(device, tensor);
  const int64_t bytes = tensor.bytes() / tensor.shape[0] * rows;
  return {host.bytes().begin(), host.bytes().begin() + bytes};
}

/// Tensors of one sum with its norm.
struct NormCase {
  NormCase(Device& device, uint64_t call, const Shape& shape, const HostTensor& delta_in,
           bool row_scales) {
    Random random(50'000 + call);  // the same on all ranks
    const CaseBatch host_batch(random, BatchSpec::OneSequence(shape.rows, shape.padding));
    batch = host_batch.Upload(device);
    const int64_t rows = shape.rows + shape.padding;
    delta = delta_in.Upload(device);
    residual =
        HostTensor(random, DType::kBF16, {rows, shape.columns}, 2, shape.rows).Upload(device);
    weight = HostTensor(random, DType::kBF16, {shape.columns}, 1.5).Upload(device);
    out = device.NewTensor(DType::kBF16, {rows, shape.columns});
    quantized.values = device.NewTensor(DType::kF8E4M3, {rows, shape.columns});
    quantized.scales = row_scales
                           ? device.NewTensor(DType::kF32, {rows})
                           : device.NewTensor(DType::kF32, {rows, (shape.columns + 127) / 128});
  }
  AddRmsNormArgs Args() const {
    return {.batch = batch,
            .delta = delta,
            .residual = residual,
            .weight = weight,
            .epsilon = 1e-5f,
            .out = out,
            .quantized = quantized};
  }

  BatchView batch;
  Tensor delta, residual, weight, out;
  Activation quantized;
};

TEST_P(PeerTest, SumsAreThoseInRankOrderToTheBit) {
  OnEveryRank([&](Communicator& communicator, Device& device) {
    for (uint64_t call = 0; call < 3 * kShapes.size(); ++call) {
      const Shape shape = kShapes[call % kShapes.size()];
      if (shape.padding > 0) continue;  // a plain sum knows no padding
      const Tensor values = PartOf(communicator.rank(), call, shape).Upload(device);
      Together(device);
      communicator.AllReduceSum(device, values);
      Together(device);
      EXPECT_EQ(HostTensor::Download(device, values).bytes(),
                SumOf(communicator.size(), communicator.rank(), call, shape).bytes())
          << "rank " << communicator.rank() << " call " << call;
    }
  });
}

TEST_P(PeerTest, FusedIsTheSumAndThenTheNormToTheBit) {
  OnEveryRank([&](Communicator& communicator, Device& device) {
    for (uint64_t call = 0; call < 3 * kShapes.size(); ++call) {
      const Shape shape = kShapes[call % kShapes.size()];
      const bool row_scales = call % 2 == 0;
      const NormCase fused(device, call, shape, PartOf(communicator.rank(), call, shape),
                           row_scales);
      const HostTensor sum = SumOf(communicator.size(), communicator.rank(), call, shape);
      const NormCase plain(device, call, shape, sum, row_scales);
      Together(device);
      communicator.AllReduceAddRmsNorm(device, fused.Args());
      Together(device);
      device.ops().add_rms_norm(device, plain.Args());
      const auto equal = [&](const char* name, const Tensor& got, const Tensor& want) {
        EXPECT_EQ(RowBytes(device, got, shape.rows), RowBytes(device, want, shape.rows))
            << name << " of rank " << communicator.rank() << ", call " << call;
      };
      equal("delta", fused.delta, plain.delta);
      equal("residual", fused.residual, plain.residual);
      equal("out", fused.out, plain.out);
      equal("values", fused.quantized.values, plain.quantized.values);
      equal("scales", fused.quantized.scales, plain.quantized.scales);
    }
  });
}

TEST_P(PeerTest, ColumnsAreGathered) {
  OnEveryRank([&](Communicator& communicator, Device& device) {
    const int32_t size = communicator.size();
    for (uint64_t call = 0; call < 12; ++call) {
      const int64_t rows = 1 + static_cast<int64_t>(call) * 5;
      const int64_t columns = call % 3 == 0 ? 2 : call % 3 == 1 ? 77 : 1000;
      const auto part_of = [&](int32_t rank) {
        Random random(7 + static_cast<uint64_t>(rank) + 100 * call);
        return HostTensor(random, DType::kF32, {rows, columns}, 3);
      };
      const Tensor in = part_of(communicator.rank()).Upload(device);
      const Tensor out = device.NewTensor(DType::kF32, {rows, size * columns});
      Together(device);
      communicator.AllGatherColumns(device, in, out);
      // Nobody reads it any more.
      device.Fill(in.data, 0, in.bytes());
      Together(device);
      const HostTensor got = HostTensor::Download(device, out);
      for (int32_t rank = 0; rank < size; ++rank) {
        const HostTensor part = part_of(rank);
        for (int64_t i = 0; i < rows * columns; ++i) {
          ASSERT_EQ(got.At(i / columns * size * columns + rank * columns + i % columns), part.At(i))
              << "rank " << rank << " of call " << call;
        }
      }
    }
  });
}

// Sums beside products: what ranks compute and then sum, to the bit, and the same on all. First in
// order, then twice, so that an exchange also follows the one before.
// On a GPU each: where ranks share one, an exchange beside a product may wait for what the driver
// has put behind it (seen on an H100 with parts of 32 columns).
TEST_P(PeerTest, SumsBesideProductsAreThoseBehindThem) {
  if (!GpuEach()) GTEST_SKIP() << "needs " << GetParam() << " GPUs";
  std::vector<SumCase> cases;
  std::vector<OpCase> sizes;
  for (const std::vector<SumCase>& some : {SumCases(), SumLargeCases()}) {
    for (const SumCase& one : some) {
      if (one.act != DType::kBF16) continue;
      cases.push_back(one);
      sizes.push_back({one.name, one.act, one.limits, {}});
    }
  }
  std::vector<std::vector<std::vector<uint8_t>>> sums(GetParam());  // of each rank and case
  OnEveryRank(
      [&](Communicator& communicator, Device& device) {
        device.PlanScratch(LimitsOf(sizes));
        for (const SumCase& one : cases) {
          const RankProduct product = one.prepare(device, communicator.rank());
          Together(device);
          device.WaitAfterOps(true);
          product.issue(device, nullptr, product.apart);
          communicator.AllReduceSum(device, product.apart);
          product.issue(device, &communicator, product.beside);
          EXPECT_TRUE(ValidBytes(device, one, product.beside) ==
                      ValidBytes(device, one, product.apart))
              << one.name << " in order, rank " << communicator.rank();
          device.Fill(product.beside.data, 0, product.beside.bytes());
          device.WaitAfterOps(false);
          Together(device);
          for (int i = 0; i < 2; ++i) product.issue(device, &communicator, product.beside);
          Together(device);
          const std::vector<uint8_t> sum = ValidBytes(device, one, product.apart);
          EXPECT_TRUE(ValidBytes(device, one, product.beside) == sum)
              << one.name << " rank " << communicator.rank();
          sums[communicator.rank()].push_back(sum);
        }
      },
      /*apart=*/true);
  for (size_t i = 0; i < cases.size(); ++i) {
    for (const auto& rank : sums) EXPECT_TRUE(rank[i] == sums[0][i]) << cases[i].name;
  }
}

// As in a captured step: the graph has both streams.
TEST_P(PeerTest, SumsBesideProductsReplay) {
  if (!GpuEach()) GTEST_SKIP() << "needs " << GetParam() << " GPUs";
  const SumCase one = SumLargeCases()[1];
  OnEveryRank(
      [&](Communicator& communicator, Device& device) {
        device.PlanScratch(one.limits);
        const RankProduct product = one.prepare(device, communicator.rank());
        Together(device);
        device.WaitAfterOps(true);
        product.issue(device, nullptr, product.apart);
        communicator.AllReduceSum(device, product.apart);
        product.issue(device, &communicator, product.beside);
        device.WaitAfterOps(false);
        Together(device);
        device.BeginCapture();
        product.issue(device, &communicator, product.beside);
        const auto graph = device.EndCapture();
        device.Fill(product.beside.data, 0, product.beside.bytes());
        Together(device);
        for (int i = 0; i < 3; ++i) graph->Launch();
        Together(device);
        EXPECT_TRUE(ValidBytes(device, one, product.beside) ==
                    ValidBytes(device, one, product.apart))
            << one.name << " rank " << communicator.rank();
      },
      /*apart=*/true);
}

// Many calls behind each other, of both kinds and in a graph that is replayed: every replay adds up
// what the one before left. Powers of two stay exact.
TEST_P(PeerTest, GraphsOfManyCallsReplay) {
  constexpr int kReplays = 5;  // 8^70 is 2^210
  constexpr int kCalls = 14;   // each multiplies by the number of ranks, 8 at most
  OnEveryRank([&](Communicator& communicator, Device& device) {
    const Shape small{2, 0, 2048};
    const Shape large{384, 0, 5120};
    HostTensor little(DType::kBF16, {small.rows, small.columns});
    for (int64_t i = 0; i < little.elements(); ++i) little.Set(i, 0x1p-120);
    HostTensor many(DType::kBF16, {large.rows, large.columns});
    for (int64_t i = 0; i < many.elements(); ++i) many.Set(i, 0x1p-120);
    const Tensor few = little.Upload(device);
    const Tensor all = many.Upload(device);
    HostTensor part(DType::kF32, {1, 2});
    part.Set(0, 1 + communicator.rank());
    part.Set(1, 7);
    const Tensor floats = part.Upload(device);
    const Tensor out = device.NewTensor(DType::kF32, {1, 2 * communicator.size()});
    // Their code is there before the capture.
    const Tensor warm = device.NewTensor(DType::kBF16, {large.rows, large.columns});
    device.Fill(warm.data, 0, warm.bytes());
    Together(device);
    communicator.AllReduceSum(device, warm.Rows(0, 100));
    communicator.AllReduceSum(device, warm);
    Together(device);
    device.BeginCapture();
    for (int call = 0; call < kCalls; ++call) {
      communicator.AllReduceSum(device, few);
      communicator.AllReduceSum(device, all);
      communicator.AllGatherColumns(device, floats, out);
    }
    const auto graph = device.EndCapture();
    Together(device);
    for (int i = 0; i < kReplays; ++i) graph->Launch();
    Together(device);
    const double want = std::ldexp(1.0, -120) *
                        std::pow(static_cast<double>(communicator.size()), kReplays * kCalls);
    for (const Tensor& tensor : {few, all}) {
      const HostTensor got = HostTensor::Download(device, tensor);
      for (int64_t i = 0; i < got.elements(); ++i) ASSERT_EQ(got.At(i), want) << i;
    }
    const HostTensor gathered = HostTensor::Download(device, out);
    for (int32_t rank = 0; rank < communicator.size(); ++rank) {
      ASSERT_EQ(gathered.At(2 * rank), static_cast<double>(1 + rank));
    }
  });
}

INSTANTIATE_TEST_SUITE_P(Ranks, PeerTest, testing::Values(2, 4, 8),
                         testing::PrintToStringParamName());

TEST(GpuMeetingTest, RefusesWhatIsNotThere) {
  std::string error;
  if (CreateCudaDevice(0, &error) == nullptr) GTEST_SKIP() << error;
  const auto refusal = [](std::vector<int32_t> devices, GpuExchange exchange) {
    std::string reason;
    const auto meeting = CreateGpuMeeting({.devices = std::move(devices),
                                           .exchange = exchange,
                                           .rows_max = 1,
                                           .hidden = 64,
                                           .gather_elements_max = 1},
                                          &reason);
    EXPECT_EQ(meeting, nullptr);
    return reason;
  };
  EXPECT_NE(refusal({0, 63}, GpuExchange::kAuto).find("GPU 63 does not exist"), std::string::npos);
  EXPECT_NE(refusal({0, 0}, GpuExchange::kNccl).find("two ranks on one GPU"), std::string::npos);
  std::printf("%s", GpuTopology().c_str());
  EXPECT_NE(GpuTopology().find("GPU 0 "), std::string::npos);
}

}  // namespace
}  // namespace glm::test
