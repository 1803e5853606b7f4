// Holds the engine on a GPU to what transformers said of the models of tests/golden/make_width.py:
//
//   width_compare FOLDER           the checkpoint; FOLDER.expected.safetensors beside it
//
// One prompt of 128 tokens, then decode steps. Prints the cosine of the logits of every position to
// transformers' in F32, of the weights as they are and quantised to FP8, with a BF16 and an FP8
// cache; fails where the plain ones' mean is not above 0.9999, or that of FP8 linears not above
// 0.985: those change some choices of experts even where the tokens were drawn so that BF16 changes
// none.
#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

#include "tests/engine/stepper.h"

namespace glm::test {
namespace {

constexpr int32_t kPrompt = 128;

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

Rows RunModel(const std::string& folder, const Ids& ids, const StepperOptions& options) {
  Stepper stepper(folder, DType::kBF16, options);
  Rows rows = stepper.Step({{0, Ids(ids.begin(), ids.begin() + kPrompt)}});
  for (size_t i = kPrompt; i < ids.size(); ++i) {
    rows.push_back(stepper.Step({{0, {ids[i]}}})[0]);
  }
  return rows;
}

/// The mean cosine.
double Report(const char* what, const Rows& got, const Rows& want) {
  double least = 1;
  double sum = 0;
  size_t agree = 0;
  for (size_t r = 0; r < want.size(); ++r) {
    const double cosine = Cosine(got[r], want[r]);
    least = cosine < least ? cosine : least;
    sum += cosine;
    agree += Stepper::ArgMax(got[r]) == Stepper::ArgMax(want[r]) ? 1 : 0;
  }
  const double mean = sum / static_cast<double>(want.size());
  std::printf("%-28s cosine mean %.6f least %.6f, the same first token at %zu of %zu positions\n",
              what, mean, least, agree, want.size());
  return mean;
}

int Main(const std::string& folder) {
  auto file = SafetensorsFile::Open(folder + ".expected.safetensors");
  CHECK(file.ok()) << file.status().message();
  const auto rows_of = [&](const char* name) {
    const auto& tensor = (*file)->tensors().at(name);
    Rows rows(tensor.shape[0], std::vector<float>(tensor.shape[1]));
    for (int64_t r = 0; r < tensor.shape[0]; ++r) {
      std::memcpy(rows[r].data(), tensor.data + r * tensor.shape[1] * 4, tensor.shape[1] * 4);
    }
    return rows;
  };
  const auto& stored_ids = (*file)->tensors().at("ids");
  Ids ids(stored_ids.bytes / 4);
  std::memcpy(ids.data(), stored_ids.data, stored_ids.bytes);
  const Rows want = rows_of("logits_f32");
  Report("transformers BF16", rows_of("logits"), want);
  const double mean = Report("BF16", RunModel(folder, ids, {.cuda = true}), want);
  Report("BF16, FP8 cache", RunModel(folder, ids, {.float8_cache = true, .cuda = true}), want);
  const double float8 =
      Report("FP8", RunModel(folder, ids, {.cuda = true, .quantize = true}), want);
  return mean > 0.9999 && float8 > 0.985 ? 0 : 1;
}

}  // namespace
}  // namespace glm::test

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: width_compare FOLDER\n");
    return 2;
  }
  return glm::test::Main(argv[1]);
}
