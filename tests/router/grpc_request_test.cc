#include "router/front/grpc_request.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"

namespace glm::router {
namespace {

namespace pb = ::glmserve::v1;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(GrpcRequestTest, UnsetParamsAreThePublicDefaults) {
  pb::GenerateRequest message;
  message.set_text("hello");
  const absl::StatusOr<ExchangeRequest> request = ReadGenerateRequest(message);
  ASSERT_TRUE(request.ok()) << request.status();
  const ExchangeRequest defaults;
  EXPECT_EQ(std::get<std::string>(request->prompt), "hello");
  EXPECT_EQ(request->endpoint, Endpoint::kGrpcGenerate);
  EXPECT_EQ(request->model, "");
  EXPECT_EQ(request->max_tokens, std::nullopt);
  EXPECT_EQ(request->seed, std::nullopt);
  EXPECT_EQ(request->temperature, defaults.temperature);
  EXPECT_EQ(request->top_p, defaults.top_p);
  EXPECT_EQ(request->top_k, defaults.top_k);
  EXPECT_EQ(request->min_tokens, 0);
  EXPECT_EQ(request->repetition_penalty, 1.0f);
  EXPECT_EQ(request->logprobs, -1);
  EXPECT_EQ(request->prompt_logprobs, -1);
  EXPECT_EQ(*ReadAnswers(message.params()), 1);
  EXPECT_FALSE(request->ignore_eos);
  EXPECT_TRUE(request->stop.empty());
}

TEST(GrpcRequestTest, RefusesNumbersThatDoNotFit) {
  pb::GenerationParams params;
  for (const uint32_t n : {0u, 17u}) {
    params.set_n(n);
    EXPECT_EQ(ReadAnswers(params).status(),
              absl::InvalidArgumentError(absl::StrCat("n=", n, " must be from 1 to 16")));
  }
  pb::GenerateRequest message;
  message.set_text("hello");
  message.mutable_params()->set_logprobs(0x8000'0000u);
  EXPECT_THAT(std::string(ReadGenerateRequest(message).status().message()),
              HasSubstr("logprobs=2147483648"));
  message.mutable_params()->clear_logprobs();
  (*message.mutable_params()->mutable_logit_bias())[0x8000'0000u] = 1;
  EXPECT_THAT(std::string(ReadGenerateRequest(message).status().message()),
              HasSubstr("logit_bias token id=2147483648"));
}

TEST(GrpcRequestTest, EveryParamIsRead) {
  pb::GenerateRequest message;
  message.set_model("glm");
  message.mutable_token_ids()->add_ids(4);
  message.mutable_token_ids()->add_ids(5);
  pb::GenerationParams* params = message.mutable_params();
  params->set_max_tokens(9);
  params->set_temperature(0);  // set to zero is not unset
  params->set_top_p(0.5f);
  params->set_top_k(40);
  params->set_seed(11);
  params->add_stop("END");
  params->add_stop_token_ids(8);
  params->set_ignore_eos(true);
  params->set_min_tokens(2);
  params->set_min_p(0.25f);
  params->set_repetition_penalty(1.5f);
  params->set_frequency_penalty(-0.5f);
  params->set_presence_penalty(0.75f);
  (*params->mutable_logit_bias())[6] = -3;
  params->add_bad_words("no");
  params->add_allowed_token_ids(3);
  params->set_logprobs(0);  // set to zero is not unset
  params->set_prompt_logprobs(4);
  params->set_n(16);
  params->set_priority(-2);
  params->set_cache_salt("salt");
  params->set_session("mine");
  params->set_queue_timeout_ms(0);
  message.set_echo(true);
  const absl::StatusOr<ExchangeRequest> request = ReadGenerateRequest(message);
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_EQ(*ReadAnswers(*params), 16);
  EXPECT_EQ(request->queue_timeout_ms, 0);
  EXPECT_EQ(request->min_p, 0.25f);
  EXPECT_EQ(request->repetition_penalty, 1.5f);
  EXPECT_EQ(request->frequency_penalty, -0.5f);
  EXPECT_EQ(request->presence_penalty, 0.75f);
  ASSERT_EQ(request->logit_bias.size(), 1u);
  EXPECT_EQ(request->logit_bias[0].id, 6);
  EXPECT_EQ(request->logit_bias[0].add, -3.0f);
  EXPECT_THAT(request->bad_words, ElementsAre("no"));
  EXPECT_THAT(request->allowed_token_ids, ElementsAre(3));
  EXPECT_EQ(request->logprobs, 0);
  EXPECT_EQ(request->prompt_logprobs, 4);
  EXPECT_EQ(request->priority, -2);
  EXPECT_EQ(request->cache_salt, "salt");
  EXPECT_EQ(request->session, "mine");
  EXPECT_TRUE(request->echo);
  EXPECT_EQ(request->model, "glm");
  EXPECT_THAT(std::get<std::vector<int32_t>>(request->prompt), ElementsAre(4, 5));
  EXPECT_EQ(request->max_tokens, 9);
  EXPECT_EQ(request->temperature, 0);
  EXPECT_EQ(request->top_p, 0.5f);
  EXPECT_EQ(request->top_k, 40);
  EXPECT_EQ(request->seed, 11u);
  EXPECT_THAT(request->stop, ElementsAre("END"));
  EXPECT_THAT(request->stop_token_ids, ElementsAre(8));
  EXPECT_TRUE(request->ignore_eos);
  EXPECT_EQ(request->min_tokens, 2);
}

TEST(GrpcRequestTest, AChatIsReadWhole) {
  pb::ChatRequest message;
  message.set_tools_json(R"([{"type":"function","function":{"name":"now","parameters":{}}}])");
  message.set_enable_thinking(false);
  pb::ChatMessage* one = message.add_messages();
  one->set_role("system");
  one->set_content("be kind");
  one = message.add_messages();
  one->set_role("assistant");
  one->set_reasoning_content("hm");
  one->set_tool_calls_json(R"([{"type":"function","id":"1",
                                "function":{"name":"now","arguments":"{\"zone\":\"UTC\"}"}}])");
  one = message.add_messages();
  one->set_role("tool");
  one->set_content("noon");
  one->set_tool_call_id("1");
  const absl::StatusOr<ExchangeRequest> request = ReadChatRequest(message);
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_EQ(request->endpoint, Endpoint::kGrpcChat);
  const Chat& chat = std::get<Chat>(request->prompt);
  EXPECT_FALSE(chat.enable_thinking);
  ASSERT_EQ(chat.tools.size(), 1u);
  EXPECT_EQ(chat.tools[0]["function"]["name"], "now");
  ASSERT_EQ(chat.messages.size(), 3u);
  EXPECT_EQ(chat.messages[0].role, ChatMessage::Role::kSystem);
  EXPECT_EQ(chat.messages[0].content, "be kind");
  EXPECT_EQ(chat.messages[0].reasoning, std::nullopt);
  EXPECT_EQ(chat.messages[1].reasoning, "hm");
  ASSERT_EQ(chat.messages[1].tool_calls.size(), 1u);
  EXPECT_EQ(chat.messages[1].tool_calls[0].name, "now");
  EXPECT_EQ(chat.messages[1].tool_calls[0].arguments["zone"], "UTC");
  EXPECT_EQ(chat.messages[2].role, ChatMessage::Role::kTool);
}

TEST(GrpcRequestTest, BadGenerateRequests) {
  const auto error_of = [](const pb::GenerateRequest& message) {
    return ReadGenerateRequest(message).status().ToString();
  };
  pb::GenerateRequest message;
  EXPECT_THAT(error_of(message), HasSubstr("INVALID_ARGUMENT: prompt is missing"));
  message.mutable_token_ids()->add_ids(0x8000'0000u);
  EXPECT_THAT(error_of(message), HasSubstr("token_ids=2147483648 must be at most 2147483647"));
  message.set_text("x");
  message.mutable_params()->set_max_tokens(0xFFFF'FFFFu);
  EXPECT_THAT(error_of(message), HasSubstr("max_tokens=4294967295 must be at most 2147483647"));
  message.mutable_params()->set_max_tokens(1);
  message.mutable_params()->set_min_tokens(0xFFFF'FFFFu);
  EXPECT_THAT(error_of(message), HasSubstr("min_tokens=4294967295"));
}

TEST(GrpcRequestTest, BadChatRequests) {
  const auto error_of = [](const pb::ChatRequest& message) {
    return ReadChatRequest(message).status().ToString();
  };
  pb::ChatRequest message;
  pb::ChatMessage* one = message.add_messages();
  one->set_role("robot");
  EXPECT_THAT(error_of(message), HasSubstr("messages[0].role='robot' must be 'system'"));
  one->set_role("user");
  one->set_tool_calls_json("[]");
  EXPECT_THAT(error_of(message), HasSubstr("messages[0].tool_calls_json is an assistant's"));
  one->set_role("assistant");
  one->set_tool_calls_json("{");
  EXPECT_THAT(error_of(message), HasSubstr("messages[0].tool_calls_json"));
  one->set_tool_calls_json("");
  one->set_role("user");
  one->set_reasoning_content("hm");
  EXPECT_THAT(error_of(message), HasSubstr("messages[0].reasoning_content is an assistant's"));
  one->set_reasoning_content("");
  message.set_tools_json("7");
  EXPECT_THAT(error_of(message), HasSubstr("tools_json"));
}

}  // namespace
}  // namespace glm::router
