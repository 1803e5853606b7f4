// Drafting on the ranks: that it changes no token, that a draft is what the draft layer says, and
// how often drafts are right.
#include "engine/rank/draft.h"

#include <gtest/gtest.h>

#include <cstdio>
#include <fstream>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "router/text/tokenizer.h"
#include "tests/engine/rank_driver.h"
#include "tests/engine/stepper.h"
#include "tests/support/temp_folder.h"
#include "tests/support/tiny_model.h"

namespace glm::engine {
namespace {

using test::DriverOptions;
using test::Ids;
using test::kGolden;
using test::RankDriver;
using test::Stepper;
using test::TempFolder;

const std::string kDemoModel = std::string(GLM_SOURCE_DIR) + "/deploy/demo-model";

struct Ask {
  Ids prompt;
  int32_t count;
  SampleRow row;
};

/// Prompts of mixed lengths; greedy, drawn, drawn with penalties.
std::vector<Ask> MixedAsks(int32_t vocabulary) {
  std::mt19937_64 random(3);
  std::vector<Ask> asks;
  for (int32_t i = 0; i < 6; ++i) {
    Ask ask{.prompt = {}, .count = 20 + i, .row = {}};
    const int32_t length = 1 + static_cast<int32_t>(random() % 60);
    for (int32_t t = 0; t < length; ++t) {
      ask.prompt.push_back(static_cast<int32_t>(random() % vocabulary));
    }
    ask.row.temperature = i % 3 == 0 ? 0.0f : 0.2f * static_cast<float>(i);
    ask.row.top_p = i == 4 ? 0.9f : 1.0f;
    ask.row.seed = random();
    ask.row.choice = static_cast<uint32_t>(i);
    if (i >= 3) {
      ask.row.repetition_penalty = 1.2f;
      ask.row.frequency_penalty = 0.3f;
      ask.row.presence_penalty = 0.1f;
    }
    asks.push_back(ask);
  }
  return asks;
}

std::vector<Ids> Answer(const std::string& folder, const DriverOptions& options,
                        const std::vector<Ask>& asks) {
  RankDriver driver(folder, options);
  for (const Ask& ask : asks) driver.Add(ask.prompt, ask.count, ask.row);
  std::vector<Ids> answers = driver.Run();
  for (size_t i = 0; i < asks.size(); ++i) {
    EXPECT_EQ(static_cast<int32_t>(answers[i].size()), asks[i].count);
  }
  return answers;
}

std::vector<Ids> OneByOne(const std::string& folder, const std::vector<Ask>& asks) {
  std::vector<Ids> answers;
  for (const Ask& ask : asks) answers.push_back(Answer(folder, {}, {ask})[0]);
  return answers;
}

/// The drafts that the layer gives after `ids`, whose last was just drawn, by a run of its own.
Ids DraftsByStepper(const std::string& folder, const Ids& ids, int32_t count) {
  Stepper stepper(folder, DType::kF32, {.mtp = true});
  const Ids computed(ids.begin(), ids.end() - 1);
  stepper.Step({{1, computed}});
  const Ids next(ids.begin() + 1, ids.end());
  Ids drafts{Stepper::ArgMax(stepper.Draft(next).back())};
  int64_t row = static_cast<int64_t>(computed.size()) - 1;
  while (static_cast<int32_t>(drafts.size()) < count) {
    const auto draft = static_cast<int32_t>(drafts.size());
    drafts.push_back(Stepper::ArgMax(stepper.DraftOn(1, drafts.back(), row, draft)));
    row = 0;
  }
  return drafts;
}

TEST(DraftTest, DraftsAreTheLayersAfterEveryStep) {
  for (const std::string& model : {kGolden + "glm4_moe/mtp_own", kDemoModel}) {
    Ids ids = {40, 90, 7, 101, 55, 31, 12, 3, 3, 77, 60, 61, 62, 63, 64, 65, 66, 67};
    RankDriver driver(model, {.drafts = 3, .chunk = 5});
    driver.Add(ids, 14, {});
    driver.Add({9, 8, 7}, 25, {});
    RankDriver alone(model, {});
    alone.Add(ids, 14, {});
    const Ids answer = alone.Run()[0];
    size_t known = ids.size();
    while (driver.Step()) {
      const Ids& generated = driver.ids(0);
      if (generated.size() == known || driver.done(0)) continue;
      known = generated.size();
      EXPECT_EQ(driver.drafts(0), DraftsByStepper(model, generated, 3))
          << model << " after " << generated.size() << " tokens";
    }
    ids.insert(ids.end(), answer.begin(), answer.end());
    EXPECT_EQ(driver.ids(0), ids);
  }
}

// ---- The demo model
// ------------------------------------------------------------------------------

class DemoText {
 public:
  DemoText() {
    std::ifstream file(kDemoModel + "/tokenizer.json");
    std::stringstream json;
    json << file.rdbuf();
    auto tokenizer = router::Tokenizer::FromJson(json.str());
    EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
    tokenizer_ = *std::move(tokenizer);
  }
  Ids Encode(const std::string& text) const { return *tokenizer_->Encode(text); }
  Ids Question(const std::string& text) const {
    return Encode("[gMASK]<sop><|user|>" + text + "<|assistant|></think>");
  }

 private:
  std::unique_ptr<const router::Tokenizer> tokenizer_;
};

/// Questions whose answers are at least so long.
std::vector<Ask> DemoAsks(float temperature) {
  const std::pair<const char*, int32_t> questions[] = {{"Who are you?", 25},
                                                       {"Tell me a story.", 40},
                                                       {"What is the capital of France?", 7},
                                                       {"Count from 1 to 10.", 12},
                                                       {"Write a list of three fruits.", 8},
                                                       {"Write a poem about the sea.", 30},
                                                       {"What is glmserve?", 20},
                                                       {"Tell me a joke.", 15}};
  const DemoText text;
  std::vector<Ask> asks;
  for (const auto& [question, count] : questions) {
    Ask ask{.prompt = text.Question(question), .count = count, .row = {}};
    ask.row.temperature = temperature;
    ask.row.seed = asks.size();
    asks.push_back(ask);
  }
  return asks;
}

// Random models refuse nearly all drafts, the demo model few.
TEST(DraftTest, DraftingChangesNoToken) {
  TempFolder folder;
  test::WriteTinyModel(folder.path(), {.mtp_layers = 1});
  const std::pair<std::string, std::vector<Ask>> models[] = {
      {folder.path(), MixedAsks(100)},
      {kGolden + "glm4_moe_lite/flash", MixedAsks(100)},
      {kDemoModel, DemoAsks(1)}};
  for (const auto& [model, asks] : models) {
    const std::vector<Ids> want = OneByOne(model, asks);
    for (const int32_t drafts : {1, 3, 5}) {
      for (const int32_t chunk : {7, 1000}) {
        EXPECT_EQ(Answer(model, {.drafts = drafts, .chunk = chunk}, asks), want)
            << model << ", " << drafts << " drafts, chunks of " << chunk;
      }
    }
  }
}

TEST(DraftTest, TwoRanksDraftAlike) {
  TempFolder folder;
  test::WriteTinyModel(folder.path(), {.mtp_layers = 1});
  for (const auto& [model, asks] :
       {std::pair{folder.path(), MixedAsks(100)}, {kDemoModel, DemoAsks(1)}}) {
    DriverOptions options{.drafts = 3, .chunk = 16};
    const std::vector<Ids> one = Answer(model, options, asks);
    options.ranks = 2;
    EXPECT_EQ(Answer(model, options, asks), one) << model;
  }
}

/// The share of the k-th drafts that were right, of those judged.
std::vector<double> DemoAcceptance(float temperature, int32_t drafts) {
  RankDriver driver(kDemoModel, {.drafts = drafts, .dtype = DType::kBF16});
  int64_t tokens = 0;
  for (const Ask& ask : DemoAsks(temperature)) {
    driver.Add(ask.prompt, ask.count, ask.row);
    tokens += ask.count;
  }
  driver.Run();
  std::vector<double> shares;
  for (int32_t i = 0; i < drafts; ++i) {
    shares.push_back(static_cast<double>(driver.accepted()[i]) /
                     static_cast<double>(std::max<int64_t>(driver.judged()[i], 1)));
    std::printf("temperature %.1f, draft %d of %d: %ld of %ld right, %.1f %%\n", temperature, i + 1,
                drafts, static_cast<long>(driver.accepted()[i]),
                static_cast<long>(driver.judged()[i]), 100 * shares.back());
  }
  return shares;
}

TEST(DraftTest, DemoModelAcceptsMostFirstDrafts) {
  EXPECT_GE(DemoAcceptance(0, 1)[0], 0.6);
  EXPECT_GE(DemoAcceptance(0, 3)[0], 0.6);
  EXPECT_GE(DemoAcceptance(1, 1)[0], 0.6);
  EXPECT_GE(DemoAcceptance(1, 3)[0], 0.6);
}

TEST(DraftTest, AModelWithoutADraftLayerIsRefused) {
  TempFolder folder;
  test::WriteTinyModel(folder.path(), {.mtp_layers = 1});
  test::TinyTensors tensors = test::MakeTinyTensors({.mtp_layers = 1});
  std::erase_if(tensors, [](const auto& one) { return one.first.starts_with("model.layers.3."); });
  test::WriteFile(folder.path() + "/model.safetensors", test::SafetensorsBytes(tensors));
  const auto config = ModelConfig::Read(folder.path());
  ASSERT_TRUE(config.ok()) << config.status();
  RankOptions options;
  options.folder = folder.path();
  options.device = "cpu";
  options.kv_blocks = 4;
  options.block_size = 16;
  options.batch.step =
      Glm::CompleteLimits(*config, {.tokens_max = 8, .sequences_max = 1, .logit_rows_max = 4});
  options.batch.blocks_max = 4;
  options.batch.slots = 1;
  options.batch.vocabulary_used = config->vocabulary_used;
  options.batch.drafts_max = 2;
  const auto group = RankGroup::Start(options, *config, 1);
  EXPECT_EQ(group.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(group.status().message().find("has no draft layer (MTP); must be 0"), std::string::npos)
      << group.status();
}

}  // namespace
}  // namespace glm::engine
