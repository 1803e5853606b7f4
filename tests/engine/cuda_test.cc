// Whole models on a GPU against the CPU: logits, greedy answers through a rank with its graphs, and
// drafts. Skips without a GPU.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "tests/engine/rank_driver.h"
#include "tests/engine/stepper.h"
#include "tests/support/temp_folder.h"
#include "tests/support/tiny_model.h"

namespace glm::test {
namespace {

const std::string kDemoModel = std::string(GLM_SOURCE_DIR) + "/deploy/demo-model";

// Before the first call of CUDA.
const bool kPrepared = [] {
  PrepareSharedGpu();
  return true;
}();

class CudaTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string error;
    if (CreateCudaDevice(0, &error) == nullptr) GTEST_SKIP() << error;
  }
};

Ids RandomIds(std::mt19937_64& random, int32_t count, int32_t vocabulary) {
  Ids ids;
  for (int32_t i = 0; i < count; ++i) ids.push_back(static_cast<int32_t>(random() % vocabulary));
  return ids;
}

double Cosine(const std::vector<float>& a, const std::vector<float>& b) {
  double ab = 0;
  double aa = 0;
  double bb = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    ab += double{a[i]} * b[i];
    aa += double{a[i]} * a[i];
    bb += double{b[i]} * b[i];
  }
  return ab / std::sqrt(aa * bb);
}

/// Prompts, then a mixed step, then decode steps; the rows of all of them.
Rows RunSteps(Stepper& stepper) {
  std::mt19937_64 random(5);
  const int32_t vocabulary = stepper.config().vocabulary_used;
  Rows rows;
  const auto step = [&](const std::vector<Chunk>& chunks) {
    for (std::vector<float>& row : stepper.Step(chunks)) rows.push_back(std::move(row));
  };
  step({{0, RandomIds(random, 70, vocabulary)}, {1, RandomIds(random, 33, vocabulary)}});
  step({{0, RandomIds(random, 1, vocabulary)}, {2, RandomIds(random, 40, vocabulary)}});
  for (int i = 0; i < 4; ++i) {
    step({{0, RandomIds(random, 1, vocabulary)},
          {1, RandomIds(random, 1, vocabulary)},
          {2, RandomIds(random, 1, vocabulary)}});
  }
  return rows;
}

TEST_F(CudaTest, LogitsAreThoseOfTheCpu) {
  for (const std::string& folder :
       {kDemoModel, kGolden + "glm4_moe/bfloat16", kGolden + "glm4_moe_lite/bfloat16"}) {
    Stepper cpu(folder, DType::kBF16);
    Stepper gpu(folder, DType::kBF16, {.cuda = true});
    const Rows want = RunSteps(cpu);
    const Rows got = RunSteps(gpu);
    ASSERT_EQ(got.size(), want.size());
    // Where two experts are nearly as good, rounding decides which is taken: of such rows, which
    // the tiny models of random weights have, few.
    int far = 0;
    double sum = 0;
    for (size_t r = 0; r < want.size(); ++r) {
      const double cosine = Cosine(got[r], want[r]);
      EXPECT_GT(cosine, 0.9) << folder << " row " << r;
      if (!(cosine > 0.999)) ++far;
      sum += cosine;
    }
    std::printf("%s: mean cosine %.6f, %d of %zu rows below 0.999\n", folder.c_str(),
                sum / static_cast<double>(want.size()), far, want.size());
    EXPECT_LE(far, static_cast<int>(want.size()) / 10) << folder;
  }
}

std::vector<Ids> Prompts(int32_t count, int32_t vocabulary) {
  std::mt19937_64 random(11);
  std::vector<Ids> prompts;
  for (int32_t i = 0; i < count; ++i) {
    prompts.push_back(RandomIds(random, 1 + static_cast<int32_t>(random() % 70), vocabulary));
  }
  return prompts;
}

constexpr int32_t kAnswer = 24;

/// Greedy answers, 25 sequences at a time.
std::vector<Ids> Answers(const std::string& folder, DriverOptions options,
                         const std::vector<Ids>& prompts) {
  constexpr size_t kTogether = 25;
  options.sequences_max = kTogether;
  options.dtype = DType::kBF16;
  std::vector<Ids> answers;
  for (size_t first = 0; first < prompts.size(); first += kTogether) {
    RankDriver driver(folder, options);
    for (size_t i = first; i < std::min(prompts.size(), first + kTogether); ++i) {
      driver.Add(prompts[i], kAnswer, SampleRow{});
    }
    for (Ids& answer : driver.Run()) answers.push_back(std::move(answer));
  }
  return answers;
}

/// Copies a checkpoint of one BF16 file and moves a quarter of its weights to a neighbouring value:
/// as little as rounding does.
void WriteNudgedModel(const std::string& from, const std::string& to, uint64_t seed) {
  std::filesystem::copy(
      from, to,
      std::filesystem::copy_options::recursive | std::filesystem::copy_options::overwrite_existing);
  const std::string path = to + "/model.safetensors";
  auto file = SafetensorsFile::Open(path);
  ASSERT_TRUE(file.ok()) << file.status();
  std::ifstream stream(path, std::ios::binary);
  std::string bytes((std::istreambuf_iterator<char>(stream)), std::istreambuf_iterator<char>());
  const auto& tensors = (*file)->tensors();
  const std::byte* map = nullptr;  // where the file's data begins in memory
  for (const auto& [name, tensor] : tensors) {
    if (map == nullptr || tensor.data < map) map = tensor.data;
  }
  int64_t data_bytes = 0;
  for (const auto& [name, tensor] : tensors) data_bytes += tensor.bytes;
  const int64_t begin = static_cast<int64_t>(bytes.size()) - data_bytes;
  std::mt19937_64 random(seed);
  for (const auto& [name, tensor] : tensors) {
    if (tensor.dtype != DType::kBF16) continue;
    for (int64_t at = begin + (tensor.data - map); at < begin + (tensor.data - map) + tensor.bytes;
         at += 2) {
      const uint64_t draw = random();
      uint16_t bits = 0;
      std::memcpy(&bits, bytes.data() + at, 2);
      if (draw % 4 != 0 || (bits & 0x7fff) < 2) continue;  // zeros stay
      bits = static_cast<uint16_t>(bits + ((draw & 4) != 0 ? 1 : -1));
      std::memcpy(bytes.data() + at, &bits, 2);
    }
  }
  WriteFile(path, bytes);
}

/// Whether rounding may decide between two tokens after `ids`: on the CPU, of a number of models
/// nudged by as much, at least one prefers the other. A choice of experts that are nearly as good
/// makes jumps of logits which no bound on the logits themselves tells from a bug.
bool RoundingDecides(const std::string& folder, const Ids& ids, int32_t one, int32_t other) {
  TempFolder nudged;
  for (uint64_t seed = 1; seed <= 40; ++seed) {
    WriteNudgedModel(folder, nudged.path(), seed);
    Stepper stepper(nudged.path(), DType::kBF16);
    const std::vector<float> logits = stepper.Step({{0, ids}}).back();
    if (logits[other] >= logits[one]) return true;
  }
  return false;
}

/// Where two greedy answers part, the CPU's logits of the two tokens must be within rounding.
/// Returns how many part.
int Compare(const std::string& folder, const std::vector<Ids>& prompts, const std::vector<Ids>& a,
            const std::vector<Ids>& b) {
  EXPECT_EQ(a.size(), b.size());
  int parted = 0;
  double widest = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const auto [at, other] = std::mismatch(a[i].begin(), a[i].end(), b[i].begin());
    if (at == a[i].end()) continue;
    ++parted;
    Ids ids = prompts[i];
    ids.insert(ids.end(), a[i].begin(), at);
    Stepper stepper(folder, DType::kBF16);
    const std::vector<float> logits = stepper.Step({{0, ids}}).back();
    const double gap = std::abs(logits[*at] - logits[*other]);
    const double largest = *std::max_element(logits.begin(), logits.end());
    // Some roundings of 2^-9 each on the way through the layers; or, where rounding decides which
    // expert is taken, as far as activations in F32 move the same logits.
    Stepper exact(folder, DType::kF32);
    const std::vector<float> exact_logits = exact.Step({{0, ids}}).back();
    const double moved = std::max(std::abs(logits[*at] - exact_logits[*at]),
                                  std::abs(logits[*other] - exact_logits[*other]));
    const bool near = gap <= std::max(0x1p-5 * std::max(1.0, std::abs(largest)), 2 * moved);
    EXPECT_TRUE(near || RoundingDecides(folder, ids, *at, *other))
        << "gap " << gap << ", moved " << moved << "; prompt " << i << " token "
        << at - a[i].begin() << ": " << *at << " or " << *other;
    if (!near) std::printf("prompt %zu: a choice of experts decides, gap %.3f\n", i, gap);
    widest = std::max(widest, gap);
  }
  std::printf("%s: %d of %zu answers part, at gaps of at most %.4f\n", folder.c_str(), parted,
              a.size(), widest);
  return parted;
}

TEST_F(CudaTest, GreedyAnswersOf100PromptsAreThoseOfTheCpu) {
  const std::vector<Ids> prompts = Prompts(100, 4000);
  const std::vector<Ids> want = Answers(kDemoModel, {}, prompts);
  const std::vector<Ids> got = Answers(kDemoModel, {.device = "cuda"}, prompts);
  EXPECT_LE(Compare(kDemoModel, prompts, want, got), 15);
}

TEST_F(CudaTest, ChunksAndDraftsChangeTokensOnlyWithinRounding) {
  const std::vector<Ids> prompts = Prompts(50, 4000);
  const std::vector<Ids> want = Answers(kDemoModel, {.device = "cuda"}, prompts);
  EXPECT_LE(Compare(kDemoModel, prompts, want,
                    Answers(kDemoModel, {.drafts = 3, .device = "cuda"}, prompts)),
            10);
  EXPECT_LE(Compare(kDemoModel, prompts, want,
                    Answers(kDemoModel, {.chunk = 7, .device = "cuda"}, prompts)),
            10);
}

// Parts of a sum are rounded to BF16 before ranks add them.
TEST_F(CudaTest, RanksThatShareTheGpuAnswerAsOne) {
  ASSERT_TRUE(kPrepared);
  const std::vector<Ids> prompts = Prompts(50, 4000);
  const std::vector<Ids> want = Answers(kDemoModel, {.device = "cuda"}, prompts);
  for (const DriverOptions& options :
       {DriverOptions{.ranks = 2, .device = "cuda"}, DriverOptions{.ranks = 4, .device = "cuda"},
        DriverOptions{.ranks = 2, .drafts = 3, .device = "cuda"},
        DriverOptions{.ranks = 2, .chunk = 7, .device = "cuda"},
        // More than any captured step has, fewer than the prompts.
        DriverOptions{.ranks = 2, .device = "cuda", .overlap_tokens_min = 520},
        DriverOptions{.ranks = 4, .device = "cuda", .overlap_tokens_min = 520}}) {
    std::printf("%d ranks, %d drafts, chunks of %d, overlap from %ld tokens on\n", options.ranks,
                options.drafts, options.chunk, static_cast<long>(options.overlap_tokens_min));
    EXPECT_LE(Compare(kDemoModel, prompts, want, Answers(kDemoModel, options, prompts)), 15);
  }
}

}  // namespace
}  // namespace glm::test
