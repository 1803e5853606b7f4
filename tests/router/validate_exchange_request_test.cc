#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "router/exchange.h"

namespace glm::router {
namespace {

using ::testing::HasSubstr;

ExchangeRequest Good() {
  ExchangeRequest request;
  request.prompt = std::string("hello");
  return request;
}

TEST(ValidateExchangeRequestTest, DefaultsAndBoundsAreGood) {
  EXPECT_TRUE(ValidateExchangeRequest(Good(), "glm").ok());
  ExchangeRequest request = Good();
  request.model = "glm";
  request.temperature = 2;
  request.top_p = 0.0001f;
  request.top_k = -1;
  request.max_tokens = 1;
  request.min_tokens = 1;
  request.stop = std::vector<std::string>(16, std::string(256, 'x'));
  request.stop_token_ids = std::vector<int32_t>(64, 0);
  request.echo = true;
  request.min_p = 1;
  request.repetition_penalty = 10;
  request.frequency_penalty = -2;
  request.presence_penalty = 2;
  request.choice = 15;
  for (int32_t id = 0; id < 1024; ++id) request.logit_bias.push_back({id, id % 2 ? 100.f : -100.f});
  request.bad_words = std::vector<std::string>(128, std::string(256, 'x'));
  request.allowed_token_ids = {0};
  request.logprobs = 20;
  request.prompt_logprobs = 0;
  request.priority = -1000;
  request.queue_timeout_ms = 3'600'000;
  request.cache_salt = std::string(256, 'x');
  request.session = std::string(256, 'x');
  EXPECT_TRUE(ValidateExchangeRequest(request, "glm").ok());
}

TEST(ValidateExchangeRequestTest, AnotherModelIsNotFound) {
  ExchangeRequest request = Good();
  request.model = "gpt";
  const absl::Status status = ValidateExchangeRequest(request, "glm");
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr("model='gpt' does not exist; 'glm'"));
}

struct BadCase {
  std::string name;
  std::function<void(ExchangeRequest*)> spoil;
  std::string says;
};

class BadExchangeRequestTest : public ::testing::TestWithParam<BadCase> {};

TEST_P(BadExchangeRequestTest, NamesFieldValueAndLimit) {
  ExchangeRequest request = Good();
  GetParam().spoil(&request);
  const absl::Status status = ValidateExchangeRequest(request, "glm");
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr(GetParam().says));
}

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

INSTANTIATE_TEST_SUITE_P(
    Fields, BadExchangeRequestTest,
    ::testing::Values(
        BadCase{"Cold", [](ExchangeRequest* r) { r->temperature = -0.5f; },
                "temperature=-0.5 must be from 0 to 2"},
        BadCase{"Hot", [](ExchangeRequest* r) { r->temperature = 2.5f; }, "temperature=2.5"},
        BadCase{"NanTemperature", [](ExchangeRequest* r) { r->temperature = kNan; },
                "temperature=nan"},
        BadCase{"TopPZero", [](ExchangeRequest* r) { r->top_p = 0; },
                "top_p=0 must be above 0 and at most 1"},
        BadCase{"TopPBig", [](ExchangeRequest* r) { r->top_p = 1.5f; }, "top_p=1.5"},
        BadCase{"NanTopP", [](ExchangeRequest* r) { r->top_p = kNan; }, "top_p=nan"},
        BadCase{"TopK", [](ExchangeRequest* r) { r->top_k = -2; }, "top_k=-2"},
        BadCase{"NoTokens", [](ExchangeRequest* r) { r->max_tokens = 0; },
                "max_tokens=0 must be at least 1"},
        BadCase{"NegativeTokens", [](ExchangeRequest* r) { r->max_tokens = -5; }, "max_tokens=-5"},
        BadCase{"NegativeMin", [](ExchangeRequest* r) { r->min_tokens = -1; }, "min_tokens=-1"},
        BadCase{"MinAboveMax",
                [](ExchangeRequest* r) {
                  r->max_tokens = 3;
                  r->min_tokens = 4;
                },
                "min_tokens=4 must be at most max_tokens=3"},
        BadCase{"ManyStops", [](ExchangeRequest* r) { r->stop.assign(17, "x"); },
                "stop (how many)=17 must be at most 16"},
        BadCase{"EmptyStop",
                [](ExchangeRequest* r) {
                  r->stop = {"x", ""};
                },
                "stop[1] of 0 bytes"},
        BadCase{"LongStop", [](ExchangeRequest* r) { r->stop = {std::string(257, 'x')}; },
                "stop[0] of 257 bytes must have from 1 to 256"},
        BadCase{"ManyStopIds", [](ExchangeRequest* r) { r->stop_token_ids.assign(65, 1); },
                "stop_token_ids (how many)=65 must be at most 64"},
        BadCase{"NegativeStopId", [](ExchangeRequest* r) { r->stop_token_ids = {-1}; },
                "stop_token_ids=-1"},
        BadCase{"NoMessages", [](ExchangeRequest* r) { r->prompt = Chat(); },
                "messages (how many)=0"},
        BadCase{"ChatEcho",
                [](ExchangeRequest* r) {
                  Chat chat;
                  chat.messages.emplace_back();
                  r->prompt = chat;
                  r->echo = true;
                },
                "echo=true"},
        BadCase{"NegativePromptId",
                [](ExchangeRequest* r) {
                  r->prompt = std::vector<int32_t>{1, -7};
                },
                "prompt token id=-7"},
        BadCase{"MinP", [](ExchangeRequest* r) { r->min_p = 1.5f; }, "min_p=1.5 must be from 0"},
        BadCase{"NanMinP", [](ExchangeRequest* r) { r->min_p = kNan; }, "min_p=nan"},
        BadCase{"NoRepetition", [](ExchangeRequest* r) { r->repetition_penalty = 0; },
                "repetition_penalty=0 must be above 0 and at most 10"},
        BadCase{"MuchRepetition", [](ExchangeRequest* r) { r->repetition_penalty = 11; },
                "repetition_penalty=11"},
        BadCase{"Frequency", [](ExchangeRequest* r) { r->frequency_penalty = 2.5f; },
                "frequency_penalty=2.5 must be from -2 to 2"},
        BadCase{"NanFrequency", [](ExchangeRequest* r) { r->frequency_penalty = kNan; },
                "frequency_penalty=nan"},
        BadCase{"Presence", [](ExchangeRequest* r) { r->presence_penalty = -2.5f; },
                "presence_penalty=-2.5"},
        BadCase{"Bias",
                [](ExchangeRequest* r) {
                  r->logit_bias = {{7, 100.5f}};
                },
                "logit_bias[7]=100.5 must be from -100 to 100"},
        BadCase{"NanBias",
                [](ExchangeRequest* r) {
                  r->logit_bias = {{7, kNan}};
                },
                "logit_bias[7]=nan"},
        BadCase{"NegativeBiasId",
                [](ExchangeRequest* r) {
                  r->logit_bias = {{-7, 1}};
                },
                "logit_bias token id=-7"},
        BadCase{"BiasTwice",
                [](ExchangeRequest* r) {
                  r->logit_bias = {{7, 1}, {7, 2}};
                },
                "logit_bias token id=7 must be there once"},
        BadCase{"ManyBiases", [](ExchangeRequest* r) { r->logit_bias.resize(1025); },
                "logit_bias (how many)=1025 must be at most 1024"},
        BadCase{"ManyBadWords", [](ExchangeRequest* r) { r->bad_words.assign(129, "x"); },
                "bad_words (how many)=129 must be at most 128"},
        BadCase{"BlankBadWord",
                [](ExchangeRequest* r) {
                  r->bad_words = {"x", "  "};
                },
                "bad_words[1] of 2 bytes must have from 1 to 256, and more than spaces"},
        BadCase{"LongBadWord", [](ExchangeRequest* r) { r->bad_words = {std::string(257, 'x')}; },
                "bad_words[0] of 257 bytes"},
        BadCase{"NegativeAllowedId", [](ExchangeRequest* r) { r->allowed_token_ids = {-1}; },
                "allowed_token_ids=-1"},
        BadCase{"Logprobs", [](ExchangeRequest* r) { r->logprobs = 21; },
                "logprobs=21 must be from 0 to 20"},
        BadCase{"PromptLogprobs", [](ExchangeRequest* r) { r->prompt_logprobs = 21; },
                "prompt_logprobs=21 must be from 0 to 20"},
        BadCase{"Choice", [](ExchangeRequest* r) { r->choice = 16; }, "choice=16"},
        BadCase{"Priority", [](ExchangeRequest* r) { r->priority = 1001; },
                "priority=1001 must be from -1000 to 1000"},
        BadCase{"QueueTimeout", [](ExchangeRequest* r) { r->queue_timeout_ms = 3'600'001; },
                "queue_timeout_ms=3600001 must be from 0 to 3600000"},
        BadCase{"LongSession", [](ExchangeRequest* r) { r->session = std::string(257, 'x'); },
                "session (bytes)=257 must be at most 256"},
        BadCase{"LongSalt", [](ExchangeRequest* r) { r->cache_salt = std::string(257, 'x'); },
                "cache_salt (bytes)=257 must be at most 256"}),
    [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace glm::router
