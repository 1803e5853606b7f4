#include "router/answer_scores.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "tests/router/golden_text.h"

namespace glm::router {
namespace {

namespace wire = ::glmserve::worker::v1;
using ::testing::HasSubstr;

const TextModel& Text() {
  static const std::unique_ptr<const TextModel> model = GoldenModel(ChatDialect::kGlm45);
  return *model;
}

void AddPromptLogprob(wire::Output* output, uint32_t id) {
  wire::TokenLogprobs* const token = output->add_prompt_logprobs();
  token->set_id(id);
  token->set_logprob(-0.5f);
  token->set_rank(3);
}

TEST(AnswerScoresTest, ScoreKeepsWhatWasSaidAndAddsBytes) {
  wire::TokenLogprobs token;
  token.set_id(300);
  token.set_logprob(-1.5f);
  token.set_rank(2);
  token.add_top_ids(301);
  token.add_top_ids(302);
  token.add_top_logprobs(-0.25f);  // a twin is missing: as many as both have
  const Tokenizer& tokenizer = Text().tokenizer();
  const TokenScore score = ScoreOf(token, tokenizer);
  EXPECT_EQ(score.id, 300);
  EXPECT_EQ(score.logprob, -1.5f);
  EXPECT_EQ(score.rank, 2);
  EXPECT_EQ(score.bytes, tokenizer.TokenBytes(300));
  EXPECT_TRUE(score.is_text);
  ASSERT_EQ(score.top.size(), 1u);
  EXPECT_EQ(score.top[0].id, 301);
  EXPECT_EQ(score.top[0].logprob, -0.25f);
  EXPECT_EQ(score.top[0].bytes, tokenizer.TokenBytes(301));
  token.set_id(static_cast<uint32_t>(*tokenizer.FindToken("<|user|>")));
  EXPECT_FALSE(ScoreOf(token, tokenizer).is_text);
}

TEST(AnswerScoresTest, OneForEachToken) {
  wire::Output output;
  EXPECT_TRUE(CheckScores(output).ok());
  output.add_token_ids(7);
  EXPECT_EQ(CheckScores(output).message(), "worker sent 0 logprobs with 1 tokens");
  output.add_logprobs()->set_id(7);
  EXPECT_TRUE(CheckScores(output).ok());
}

TEST(AnswerScoresTest, ThePromptsComeInPartsAndAllBeforeTheAnswer) {
  const std::vector<int32_t> prompt = {300, 301, 302, 303};
  std::vector<TokenScore> scores;
  wire::Output part;
  AddPromptLogprob(&part, 301);
  ASSERT_TRUE(TakePromptScores(part, prompt, Text().tokenizer(), &scores).ok());
  ASSERT_EQ(scores.size(), 2u);
  EXPECT_EQ(scores[0].id, 300);
  EXPECT_EQ(scores[0].rank, 0);
  EXPECT_EQ(scores[1].rank, 3);

  wire::Output early;
  AddPromptLogprob(&early, 302);
  early.add_token_ids(5);
  std::vector<TokenScore> copy = scores;
  EXPECT_THAT(std::string(TakePromptScores(early, prompt, Text().tokenizer(), &copy).message()),
              HasSubstr("worker sent 2 prompt logprobs; 3 are needed"));
  AddPromptLogprob(&early, 303);
  copy = scores;
  EXPECT_TRUE(TakePromptScores(early, prompt, Text().tokenizer(), &copy).ok());
  EXPECT_FALSE(TakePromptScores(part, prompt, Text().tokenizer(), &copy).ok());  // one too many
}

}  // namespace
}  // namespace glm::router
