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
                "prompt token id=-7"}),
    [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace glm::router
