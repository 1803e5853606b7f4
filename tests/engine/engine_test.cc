// The whole engine on tiny checkpoints and the CPU: the same tokens however requests meet.
#include "engine/engine.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "engine/model/safetensors.h"
#include "tests/engine/answers.h"

namespace glm::engine {
namespace {

const std::string kGolden = std::string(GLM_SOURCE_DIR) + "/tests/golden/glm4_moe/";

using test::Answers;
using test::MustCreate;

EngineOptions OptionsFor(const std::string& checkpoint) {
  EngineOptions options;
  options.model = kGolden + checkpoint;
  options.cpu_threads = 1;
  options.block_size = 16;
  options.kv_blocks = 256;
  options.max_num_seqs = 16;
  options.max_num_batched_tokens = 128;
  return options;
}

/// 64 requests of mixed lengths; half of them greedy, half sampled with a seed.
std::vector<Request> MixedRequests(int32_t vocabulary) {
  std::mt19937_64 random(20);
  const auto draw = [&](int min, int max) {
    return std::uniform_int_distribution<int>(min, max)(random);
  };
  std::vector<Request> requests;
  for (int i = 1; i <= 64; ++i) {
    Request request;
    request.id = i;
    const int prompt = draw(0, 3) == 0 ? draw(40, 100) : draw(1, 20);
    for (int t = 0; t < prompt; ++t) request.prompt_ids.push_back(draw(0, vocabulary - 1));
    request.sampling.temperature = i % 2 == 0 ? 0.0f : 0.8f;
    request.sampling.top_p = i % 4 == 1 ? 0.9f : 1.0f;
    request.sampling.top_k = i % 8 == 3 ? 20 : 0;
    request.sampling.seed = random();
    request.stop.max_tokens = draw(1, 24);
    request.stop.min_tokens = draw(0, 2) == 0 ? 1 : 0;
    request.stop.stop_ids = {draw(0, vocabulary - 1), draw(0, vocabulary - 1)};
    request.stop.min_tokens = std::min(request.stop.min_tokens, request.stop.max_tokens);
    requests.push_back(request);
  }
  return requests;
}

/// The requests for a checkpoint, and the answer to each when it was submitted after the one before
/// had ended.
struct Reference {
  std::vector<Request> requests;
  std::map<RequestId, std::vector<int32_t>> tokens;
};

Reference OneByOne(const std::string& checkpoint) {
  Answers answers;
  EngineOptions options = OptionsFor(checkpoint);
  options.max_num_seqs = 1;
  const std::unique_ptr<Engine> engine = MustCreate(options, &answers);
  Reference reference;
  reference.requests = MixedRequests(engine->shape().vocabulary);
  for (const Request& request : reference.requests) {
    EXPECT_TRUE(engine->Submit(request).ok());
    answers.AwaitEnd(request.id);
    reference.tokens[request.id] = answers.tokens(request.id);
  }
  return reference;
}

struct BatchingCase {
  const char* name;
  const char* checkpoint;
  int64_t kv_blocks;
  int32_t max_num_seqs;
  int32_t max_num_batched_tokens;
  int32_t steps_in_flight;
  int32_t cpu_threads;
};

class BatchingTest : public testing::TestWithParam<BatchingCase> {
 protected:
  /// Several cases ask for the same checkpoint.
  static const Reference& ReferenceFor(const std::string& checkpoint) {
    static std::map<std::string, Reference> references;
    const auto found = references.find(checkpoint);
    if (found != references.end()) return found->second;
    return references[checkpoint] = OneByOne(checkpoint);
  }
};

TEST_P(BatchingTest, SameTokensAsOneByOne) {
  const BatchingCase& c = GetParam();
  const Reference& reference = ReferenceFor(c.checkpoint);
  const std::vector<Request>& requests = reference.requests;
  ASSERT_EQ(requests.size(), 64u);

  Answers answers;
  EngineOptions options = OptionsFor(c.checkpoint);
  options.kv_blocks = c.kv_blocks;
  options.max_num_seqs = c.max_num_seqs;
  options.max_num_batched_tokens = c.max_num_batched_tokens;
  options.steps_in_flight = c.steps_in_flight;
  options.cpu_threads = c.cpu_threads;
  const std::unique_ptr<Engine> engine = MustCreate(options, &answers);
  std::mt19937_64 random(c.kv_blocks);
  for (size_t i = 0; i < requests.size(); ++i) {
    ASSERT_TRUE(engine->Submit(requests[i]).ok());
    // The next one comes up to three steps later.
    answers.AwaitStepOrEnds(answers.step() + random() % 4, i + 1);
  }
  uint64_t prompt_tokens = 0;
  for (const Request& request : requests) {
    const RequestEvent end = answers.AwaitEnd(request.id);
    const std::vector<int32_t> tokens = answers.tokens(request.id);
    EXPECT_EQ(tokens, reference.tokens.at(request.id)) << "request " << request.id;
    EXPECT_EQ(end.finish, end.stop_id >= 0 ? FinishReason::kStop : FinishReason::kLength);
    if (end.finish == FinishReason::kStop) {
      EXPECT_EQ(tokens.back(), end.stop_id);
    }
    prompt_tokens += request.prompt_ids.size();
  }
  engine->Stop();
  const EngineStats stats = engine->Stats();
  EXPECT_EQ(stats.load.kv_blocks_used, 0);
  EXPECT_EQ(stats.requests_finished_stop + stats.requests_finished_length, 64u);
  if (c.kv_blocks < 20) {
    EXPECT_GT(stats.preemptions, 0u) << "enough blocks: the case tests nothing";
  } else {
    EXPECT_EQ(stats.preemptions, 0u);
    EXPECT_EQ(stats.prompt_tokens, prompt_tokens);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Cases, BatchingTest,
    testing::Values(BatchingCase{"Norms", "norm_bias", 256, 16, 128, 1, 2},
                    BatchingCase{"Air", "air", 256, 16, 128, 1, 1},
                    BatchingCase{"Latent", "../glm4_moe_lite/flash", 256, 16, 128, 2, 1},
                    BatchingCase{"BFloat16", "bfloat16", 256, 16, 128, 1, 1},
                    BatchingCase{"SmallChunks", "norm_bias", 256, 16, 16, 1, 1},
                    BatchingCase{"FewBlocks", "norm_bias", 9, 16, 128, 1, 1},
                    BatchingCase{"Overlap", "norm_bias", 256, 16, 128, 2, 1},
                    BatchingCase{"OverlapFewBlocksSmallChunks", "norm_bias", 9, 8, 16, 2, 1}),
    [](const testing::TestParamInfo<BatchingCase>& param) { return param.param.name; });

class GreedyTest : public testing::TestWithParam<std::string> {};

TEST_P(GreedyTest, AnswerIsThatOfTransformers) {
  const std::string checkpoint = GetParam();
  const auto file = SafetensorsFile::Open(kGolden + checkpoint + ".expected.safetensors");
  ASSERT_TRUE(file.ok()) << file.status();
  std::map<std::string, std::vector<int32_t>> expected;
  for (const auto& [key, tensor] : (*file)->tensors()) {
    if (tensor.dtype != DType::kI32) continue;
    expected[key].resize(tensor.bytes / 4);
    std::memcpy(expected[key].data(), tensor.data, tensor.bytes);
  }
  Answers answers;
  const std::unique_ptr<Engine> engine = MustCreate(OptionsFor(checkpoint), &answers);
  Request request;
  request.id = 1;
  request.prompt_ids = expected.at("prompt_ids");
  request.sampling.temperature = 0;
  request.stop.max_tokens = static_cast<int32_t>(expected.at("greedy_ids").size());
  ASSERT_TRUE(engine->Submit(request).ok());
  EXPECT_EQ(answers.AwaitEnd(1).prompt_tokens, static_cast<int32_t>(request.prompt_ids.size()));
  EXPECT_EQ(answers.tokens(1), expected.at("greedy_ids"));
}

INSTANTIATE_TEST_SUITE_P(Attentions, GreedyTest,
                         testing::Values("norm_bias", "../glm4_moe_lite/flash"));

Request RequestOf(RequestId id, std::vector<int32_t> prompt_ids, int32_t max_tokens) {
  Request request;
  request.id = id;
  request.prompt_ids = std::move(prompt_ids);
  request.sampling.temperature = 0;
  request.stop.max_tokens = max_tokens;
  return request;
}

// Weights and cache in FP8, weights from a checkpoint, quantised while loading, or random: the same
// answer for the same request, whatever it shares steps with.
TEST(EngineTest, Float8AnswersDoNotDependOnTheBatch) {
  struct Form {
    const char* checkpoint;
    const char* quantization;
    const char* load_format;
    const char* kv_cache_dtype;
  };
  const Form forms[] = {{"norm_bias", "fp8", "auto", "fp8"},
                        {"../glm4_moe_lite/flash", "fp8", "auto", "fp8"},
                        {"../glm4_moe_fp8/channel", "none", "auto", "auto"},
                        {"../glm4_moe_fp8/block", "none", "auto", "fp8"},
                        {"../glm4_moe_fp8/channel", "none", "dummy", "fp8"}};
  for (const Form& form : forms) {
    EngineOptions options = OptionsFor(form.checkpoint);
    options.quantization = form.quantization;
    options.load_format = form.load_format;
    options.kv_cache_dtype = form.kv_cache_dtype;
    options.max_model_len = 200;
    Answers answers;
    const std::unique_ptr<Engine> engine = MustCreate(options, &answers);
    ASSERT_TRUE(engine->Submit(RequestOf(1, {10, 11, 12, 13}, 20)).ok());
    answers.AwaitEnd(1);
    for (RequestId id = 2; id <= 6; ++id) {
      std::vector<int32_t> prompt_ids = {10, 11, 12, 13};
      if (id != 4) prompt_ids.assign(static_cast<size_t>(5 * id), static_cast<int32_t>(id));
      ASSERT_TRUE(engine->Submit(RequestOf(id, prompt_ids, 20)).ok());
    }
    for (RequestId id = 2; id <= 6; ++id) answers.AwaitEnd(id);
    EXPECT_EQ(answers.tokens(4), answers.tokens(1)) << form.checkpoint;
  }
}

TEST(EngineTest, AnFp8CacheHoldsMoreBlocks) {
  EngineOptions options = OptionsFor("bfloat16");
  options.kv_blocks = 0;
  options.kv_cache_bytes = 1 << 20;
  Answers answers;
  const int64_t blocks = MustCreate(options, &answers)->shape().kv_blocks_total;
  options.kv_cache_dtype = "fp8";
  // Ids of tokens are as large as before, which counts in so small a model.
  EXPECT_GE(MustCreate(options, &answers)->shape().kv_blocks_total, 1.9 * blocks);
}

TEST(EngineTest, ShapeSaysWhatARouterMustKnow) {
  Answers answers;
  EngineOptions options = OptionsFor("air");
  options.kv_blocks = 7;
  std::unique_ptr<Engine> engine = MustCreate(options, &answers);
  EXPECT_EQ(engine->shape().model_name, "air");
  EXPECT_EQ(engine->shape().vocabulary, 256);
  EXPECT_EQ(engine->shape().length_max, 7 * 16) << "what all blocks hold";
  EXPECT_EQ(engine->shape().block_size, 16);
  EXPECT_EQ(engine->shape().kv_blocks_total, 7);
  EXPECT_EQ(engine->shape().sequences_max, 16);
  EXPECT_EQ(engine->shape().eos_ids, (std::vector<int32_t>{2, 4}));

  options.kv_blocks = 0;
  options.kv_cache_bytes = 1 << 20;
  options.max_model_len = 50;
  options.served_model_name = "tiny";
  engine = MustCreate(options, &answers);
  EXPECT_EQ(engine->shape().model_name, "tiny");
  EXPECT_EQ(engine->shape().length_max, 50);
  EXPECT_GT(engine->shape().kv_blocks_total, 7);
}

TEST(EngineTest, CancelOnARealModelFreesBlocks) {
  Answers answers;
  const std::unique_ptr<Engine> engine = MustCreate(OptionsFor("air"), &answers);
  Request request;
  request.id = 1;
  request.prompt_ids = {10, 11, 12};
  request.stop.max_tokens = 2000;
  ASSERT_TRUE(engine->Submit(request).ok());
  answers.AwaitTokens(1, 3);
  EXPECT_GE(engine->Stats().load.kv_blocks_used, 1);
  engine->Cancel(1);
  EXPECT_EQ(answers.AwaitEnd(1).finish, FinishReason::kCancelled);
  EXPECT_EQ(engine->Stats().load.kv_blocks_used, 0);
  EXPECT_EQ(engine->Stats().load.requests_running, 0);
}

struct CreateRefusal {
  const char* message;  // a part of it
  absl::StatusCode code;
  void (*change)(EngineOptions* options);
};

TEST(EngineTest, CreateRefusesWhatCannotBe) {
  const CreateRefusal refusals[] = {
      {"model is empty", absl::StatusCode::kInvalidArgument,
       [](EngineOptions* o) { o->model = ""; }},
      {"config.json", absl::StatusCode::kNotFound, [](EngineOptions* o) { o->model = "/nowhere"; }},
      {"max_model_len is 5000, must be at most 4096", absl::StatusCode::kInvalidArgument,
       [](EngineOptions* o) { o->max_model_len = 5000; }},
      {"kv_cache_bytes is 10, must be at least ", absl::StatusCode::kInvalidArgument,
       [](EngineOptions* o) {
         o->kv_blocks = 0;
         o->kv_cache_bytes = 10;
       }},
      {"kv_blocks is 16777215: the KV cache needs ", absl::StatusCode::kResourceExhausted,
       [](EngineOptions* o) {
         o->kv_blocks = EngineOptions::kKvBlocksMax;
         o->block_size = 128;
       }},
      {" would fit, for max_model_len up to 4096", absl::StatusCode::kResourceExhausted,
       [](EngineOptions* o) { o->kv_blocks = EngineOptions::kKvBlocksMax; }},
      {"which needs device \"cpu\"", absl::StatusCode::kInvalidArgument,
       [](EngineOptions* o) { o->device = "cuda"; }},
      {"device is \"cuda\", device_index 63: ", absl::StatusCode::kFailedPrecondition,
       [](EngineOptions* o) {
         o->device = "cuda";
         o->device_index = 63;
         o->dtype = "bfloat16";
       }},
  };
  for (const CreateRefusal& refusal : refusals) {
    EngineOptions options = OptionsFor("air");
    refusal.change(&options);
    Answers answers;
    const auto engine = Engine::Create(options, answers.sink());
    ASSERT_FALSE(engine.ok()) << refusal.message;
    EXPECT_EQ(engine.status().code(), refusal.code) << engine.status();
    EXPECT_NE(engine.status().message().find(refusal.message), std::string::npos)
        << engine.status();
  }
}

TEST(EngineTest, StopEndsARunningAnswer) {
  Answers answers;
  EngineOptions options = OptionsFor("air");
  options.steps_in_flight = 2;
  const std::unique_ptr<Engine> engine = MustCreate(options, &answers);
  for (RequestId id = 1; id <= 20; ++id) {  // 16 run, 4 wait
    Request request;
    request.id = id;
    request.prompt_ids = {static_cast<int32_t>(id)};
    request.stop.max_tokens = 2000;
    ASSERT_TRUE(engine->Submit(request).ok());
  }
  answers.AwaitTokens(1, 2);
  engine->Stop();
  for (RequestId id = 1; id <= 20; ++id) {
    EXPECT_EQ(answers.AwaitEnd(id).finish, FinishReason::kCancelled);
  }
  EXPECT_EQ(engine->Stats().load.kv_blocks_used, 0);
}

TEST(EngineTest, AShareOfTheFreeMemoryDecidesTheCache) {
  EngineOptions options = OptionsFor("air");
  options.kv_blocks = 0;
  options.max_model_len = 256;
  const auto blocks_of = [&options](double share) {
    options.gpu_memory_utilization = share;
    Answers answers;
    return MustCreate(options, &answers)->shape().kv_blocks_total;
  };
  const int64_t few = blocks_of(0.02);
  EXPECT_GT(few, 0);
  EXPECT_GT(blocks_of(0.04), few);
  options.kv_blocks = 77;
  EXPECT_EQ(blocks_of(0.04), 77) << "said outright";

  options.kv_blocks = 0;
  options.gpu_memory_utilization = 1e-9;
  const absl::Status status = Engine::Create(options, [](StepEvents&&) {}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_NE(status.message().find("gpu_memory_utilization is 1e-09"), std::string::npos) << status;
}

}  // namespace
}  // namespace glm::engine
