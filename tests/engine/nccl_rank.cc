// One rank of a model that is shared over NCCL, as a process of its own: NCCL takes two ranks on
// one GPU only where they say that they are different hosts.
//
//   NCCL_HOSTID=... nccl_rank FOLDER RANK SIZE ID OUT
//
// ID: a file with the NcclId. Writes four random prompts, each with the greedy answer to it, to
// OUT, one a line. With SIZE 1 there is no NCCL, and ID is not read.
//
// Who calls: nccl_test.
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <random>
#include <string>

#include "tests/engine/stepper.h"

namespace glm::test {
namespace {

constexpr int32_t kAnswer = 24;

int Main(const std::string& folder, int32_t rank, int32_t size, const std::string& id_path,
         const std::string& out_path) {
  // The longer prompts are summed beside their products, the others and single tokens after them.
  StepperOptions options{.cuda = true, .overlap_tokens_min = 32};
  if (size > 1) {
    options.join = [&](Device& device) {
      NcclId id;
      std::ifstream file(id_path, std::ios::binary);
      file.read(id.bytes, sizeof(id.bytes));
      CHECK(file.good()) << id_path;
      std::string error;
      const auto config = ModelConfig::Read(folder);
      CHECK(config.ok()) << config.status().message();
      const int64_t elements =
          kTokensMax * std::max<int64_t>(config->hidden_size, config->vocabulary / size);
      auto communicator = CreateNcclCommunicator(device, id, rank, size, elements, &error);
      CHECK(communicator != nullptr) << error;
      return communicator;
    };
  }
  std::ofstream out(out_path);
  std::mt19937_64 random(11);
  Stepper stepper(folder, DType::kBF16, options);
  for (int32_t sequence = 0; sequence < kSequencesMax; ++sequence) {
    Ids ids;
    const auto length = 1 + static_cast<int32_t>(random() % 70);
    for (int32_t i = 0; i < length; ++i) {
      ids.push_back(static_cast<int32_t>(random() % stepper.config().vocabulary_used));
    }
    for (const int32_t id : ids) out << id << ' ';
    for (int32_t i = 0; i < kAnswer; ++i) {
      const int32_t next = Stepper::ArgMax(stepper.Step({{sequence, ids}}).back());
      out << next << (i + 1 < kAnswer ? ' ' : '\n');
      ids = {next};
    }
  }
  out.close();
  return out.good() ? 0 : 1;
}

}  // namespace
}  // namespace glm::test

int main(int argc, char** argv) {
  if (argc != 6) {
    std::fprintf(stderr, "usage: nccl_rank FOLDER RANK SIZE ID OUT\n");
    return 2;
  }
  return glm::test::Main(argv[1], std::atoi(argv[2]), std::atoi(argv[3]), argv[4], argv[5]);
}
