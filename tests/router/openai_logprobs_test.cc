#include "router/front/openai_logprobs.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <vector>

namespace glm::router {
namespace {

// Halves of one character, a special token, and a word.
const std::vector<TokenScore> kScores = {
    {5, -0.5f, 1, "\xC3", true, {{5, -0.5f, "\xC3"}, {6, -1.5f, "b"}}},
    {7, -4.0f, 9, "\xA9", true, {{6, -0.25f, "b"}, {8, -1.0f, "c"}}},
    {9, -1.0f, 2, "<|user|>", false, {{8, -0.5f, "c"}, {9, -1.0f, "<|user|>"}}},
    {4, -2.0f, 1, "du", true, {{4, -2.0f, "du"}, {3, -3.0f, "d"}}},
};

TEST(OpenAiLogprobsTest, WritesAChats) {
  const Json json = ChatLogprobsJson({kScores[0], kScores[3]});
  EXPECT_EQ(json.dump(),
            "{\"content\":["
            "{\"token\":\"\xEF\xBF\xBD\",\"logprob\":-0.5,\"bytes\":[195],\"top_logprobs\":["
            "{\"token\":\"\xEF\xBF\xBD\",\"logprob\":-0.5,\"bytes\":[195]},"
            "{\"token\":\"b\",\"logprob\":-1.5,\"bytes\":[98]}]},"
            "{\"token\":\"du\",\"logprob\":-2.0,\"bytes\":[100,117],\"top_logprobs\":["
            "{\"token\":\"du\",\"logprob\":-2.0,\"bytes\":[100,117]},"
            "{\"token\":\"d\",\"logprob\":-3.0,\"bytes\":[100]}]}],"
            "\"refusal\":null}");
  EXPECT_EQ(ChatLogprobsJson({}).dump(), R"({"content":[],"refusal":null})");
}

TEST(OpenAiLogprobsTest, WritesACompletionsTwins) {
  int64_t characters = 10;
  const Json json = CompletionLogprobsJson(kScores, 1, &characters);
  EXPECT_EQ(json["tokens"].dump(), R"(["bytes:\\xc3","bytes:\\xa9","<|user|>","du"])");
  EXPECT_EQ(json["token_logprobs"].dump(), "[-0.5,-4.0,-1.0,-2.0]");
  // The character's second half begins none, and a special token is not in the text.
  EXPECT_EQ(json["text_offset"].dump(), "[10,11,11,11]");
  EXPECT_EQ(characters, 13);
  EXPECT_EQ(json["top_logprobs"].dump(), R"([{"bytes:\\xc3":-0.5},{"b":-0.25,"bytes:\\xa9":-4.0},)"
                                         R"({"c":-0.5,"<|user|>":-1.0},{"du":-2.0}])");
}

TEST(OpenAiLogprobsTest, OffsetsGoOnFromPieceToPiece) {
  int64_t whole = 0;
  const Json at_once = CompletionLogprobsJson(kScores, 2, &whole);
  int64_t characters = 0;
  Json offsets = Json::array();
  for (const TokenScore& score : kScores) {
    const Json piece = CompletionLogprobsJson({score}, 2, &characters);
    offsets.push_back(piece["text_offset"][0]);
  }
  EXPECT_EQ(offsets, at_once["text_offset"]);
  EXPECT_EQ(characters, whole);
}

TEST(OpenAiLogprobsTest, WithoutAlternativesATokenStandsAlone) {
  int64_t characters = 0;
  const Json json = CompletionLogprobsJson({kScores[3]}, 0, &characters);
  EXPECT_EQ(json["top_logprobs"].dump(), R"([{"du":-2.0}])");
}

TEST(OpenAiLogprobsTest, APromptsFirstTokenHasNone) {
  const std::vector<TokenScore> prompt = {{2, 0, 0, "a", true, {}}, kScores[1]};
  int64_t characters = 0;
  const Json echo = CompletionLogprobsJson(prompt, 2, &characters);
  EXPECT_EQ(echo["token_logprobs"].dump(), "[null,-4.0]");
  EXPECT_TRUE(echo["top_logprobs"][0].is_null());
  EXPECT_EQ(echo["text_offset"].dump(), "[0,1]");
  const Json json = PromptLogprobsJson(prompt, 1);
  EXPECT_EQ(json.dump(),
            "[null,{\"7\":{\"logprob\":-4.0,\"rank\":9,\"decoded_token\":\"\xEF\xBF\xBD\"},"
            "\"6\":{\"logprob\":-0.25,\"rank\":1,\"decoded_token\":\"b\"}}]");
  // The token itself is not told twice.
  EXPECT_EQ(PromptLogprobsJson({kScores[0]}, 2)[0].size(), 2u);
}

TEST(OpenAiLogprobsTest, MinusInfinityIsANumber) {
  constexpr float kNever = -std::numeric_limits<float>::infinity();
  const std::vector<TokenScore> scores = {{4, kNever, 50, "x", true, {{3, kNever, "y"}}}};
  int64_t characters = 0;
  EXPECT_EQ(CompletionLogprobsJson(scores, 1, &characters)["token_logprobs"].dump(), "[-9999.0]");
  EXPECT_EQ(ChatLogprobsJson(scores)["content"][0]["top_logprobs"][0]["logprob"], -9999.0);
  EXPECT_EQ(PromptLogprobsJson(scores, 1)[0]["3"]["logprob"], -9999.0);
}

}  // namespace
}  // namespace glm::router
