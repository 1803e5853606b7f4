#include "router/submit.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "tests/router/golden_text.h"

namespace glm::router {
namespace {

using ::testing::ElementsAre;
using ::testing::ElementsAreArray;
using ::testing::HasSubstr;

class SubmitTest : public ::testing::Test {
 protected:
  const std::unique_ptr<const TextModel> text_ = GoldenModel(ChatDialect::kGlm45);
};

TEST_F(SubmitTest, ABadWordIsBannedWithAndWithoutASpace) {
  const std::vector<int32_t> bare = *text_->EncodePrompt("quick");
  const std::vector<int32_t> spaced = *text_->EncodePrompt(" quick");
  ASSERT_NE(bare, spaced);
  EXPECT_THAT(*EncodeBadWords({"quick"}, *text_), ElementsAre(bare, spaced));
  EXPECT_THAT(*EncodeBadWords({"  quick", "quick"}, *text_), ElementsAre(bare, spaced));
  EXPECT_TRUE(EncodeBadWords({}, *text_)->empty());
}

TEST_F(SubmitTest, ABadWordOfTooManyTokensIsNamed) {
  const absl::Status status = EncodeBadWords({"fox", std::string(100, '\x01')}, *text_).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("bad_words[1] of "));
  EXPECT_THAT(std::string(status.message()), HasSubstr("must have from 1 to 32"));
}

TEST_F(SubmitTest, TokenIdsMustBeOfTheVocabulary) {
  ExchangeRequest request;
  request.stop_token_ids = {9};
  request.allowed_token_ids = {9};
  request.logit_bias = {{9, 1}};
  EXPECT_TRUE(CheckTokenIds(request, {9}, 10).ok());
  EXPECT_THAT(std::string(CheckTokenIds(request, {10}, 10).message()),
              HasSubstr("prompt token id=10 must be below 10"));
  EXPECT_THAT(std::string(CheckTokenIds(request, {}, 9).message()), HasSubstr("stop_token_ids=9"));
  request.stop_token_ids.clear();
  EXPECT_THAT(std::string(CheckTokenIds(request, {}, 9).message()),
              HasSubstr("allowed_token_ids=9"));
  request.allowed_token_ids.clear();
  EXPECT_THAT(std::string(CheckTokenIds(request, {}, 9).message()),
              HasSubstr("logit_bias token id=9"));
}

TEST_F(SubmitTest, WhatWasGeneratedBeforeCountsForMaxTokensAlone) {
  ExchangeRequest request;
  request.top_k = -1;
  request.min_tokens = 6;
  request.prompt_logprobs = 3;
  request.stop_token_ids = {4};
  const std::vector<int32_t> prompt = {1, 2};
  const std::vector<int32_t> answer = {7, 8, 9};
  const std::vector<int32_t> eos = {5};
  SubmitParts parts{.prompt_ids = prompt, .answer_ids = {}, .bad_words = {}, .eos_ids = eos};
  parts.answer_ids = answer;
  parts.max_tokens = 10;
  const auto submit = MakeSubmit(request, parts);
  EXPECT_THAT(submit.prompt_ids(), ElementsAreArray({1, 2, 7, 8, 9}));
  EXPECT_EQ(submit.generated_before(), 3u);
  EXPECT_EQ(submit.stop().max_tokens(), 7u);
  EXPECT_EQ(submit.stop().min_tokens(), 6u);
  EXPECT_THAT(submit.stop().stop_ids(), ElementsAre(5, 4));
  EXPECT_EQ(submit.sampling().top_k(), 0);
  EXPECT_FALSE(submit.sampling().has_prompt_logprobs()) << "they are there already";
  request.ignore_eos = true;
  EXPECT_THAT(MakeSubmit(request, parts).stop().stop_ids(), ElementsAre(4));
}

}  // namespace
}  // namespace glm::router
