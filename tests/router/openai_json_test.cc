#include "router/front/openai_json.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <string>
#include <variant>
#include <vector>

#include "absl/strings/str_cat.h"
#include "router/front/json_fields.h"
#include "router/front/openai_answer.h"
#include "router/front/openai_chat.h"

namespace glm::router {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

std::string ChatBody(const std::string& more) {
  return absl::StrCat(R"({"messages":[{"role":"user","content":"hi"}])", more.empty() ? "" : ",",
                      more, "}");
}

std::string CompletionBody(const std::string& more) {
  return absl::StrCat(R"({"prompt":"hi")", more.empty() ? "" : ",", more, "}");
}

Chat ChatOf(const std::string& body) {
  absl::StatusOr<OpenAiCall> call = ReadChatBody(body);
  EXPECT_TRUE(call.ok()) << body << call.status();
  return call.ok() ? std::get<Chat>(call->requests[0].prompt) : Chat{};
}

TEST(OpenAiJsonTest, ReadsEveryFieldOfAChat) {
  const absl::StatusOr<OpenAiCall> call = ReadChatBody(ChatBody(
      R"("model":"glm","max_tokens":7,"temperature":0.5,"top_p":0.25,"top_k":4,"seed":9,
         "stop":["a","b"],"stop_token_ids":[1,2],"ignore_eos":true,"min_tokens":3,
         "stream":true,"stream_options":{"include_usage":true})"));
  ASSERT_TRUE(call.ok()) << call.status();
  EXPECT_TRUE(call->stream);
  EXPECT_TRUE(call->include_usage);
  ASSERT_EQ(call->requests.size(), 1u);
  const ExchangeRequest& request = call->requests[0];
  EXPECT_EQ(request.endpoint, Endpoint::kChatCompletions);
  EXPECT_EQ(request.model, "glm");
  EXPECT_EQ(request.max_tokens, 7);
  EXPECT_EQ(request.temperature, 0.5f);
  EXPECT_EQ(request.top_p, 0.25f);
  EXPECT_EQ(request.top_k, 4);
  EXPECT_EQ(request.seed, 9u);
  EXPECT_THAT(request.stop, ElementsAre("a", "b"));
  EXPECT_THAT(request.stop_token_ids, ElementsAre(1, 2));
  EXPECT_TRUE(request.ignore_eos);
  EXPECT_EQ(request.min_tokens, 3);
  const Chat& chat = std::get<Chat>(request.prompt);
  ASSERT_EQ(chat.messages.size(), 1u);
  EXPECT_EQ(chat.messages[0].role, ChatMessage::Role::kUser);
  EXPECT_EQ(chat.messages[0].content, "hi");
  EXPECT_TRUE(chat.enable_thinking);
  EXPECT_FALSE(chat.clear_thinking.has_value());
}

TEST(OpenAiJsonTest, HasOpenAisDefaults) {
  const absl::StatusOr<OpenAiCall> chat = ReadChatBody(ChatBody(""));
  ASSERT_TRUE(chat.ok());
  EXPECT_FALSE(chat->stream);
  EXPECT_FALSE(chat->requests[0].max_tokens.has_value());
  EXPECT_FALSE(chat->requests[0].seed.has_value());
  EXPECT_EQ(chat->requests[0].temperature, 1.0f);
  EXPECT_EQ(chat->requests[0].model, "");
  const absl::StatusOr<OpenAiCall> completion = ReadCompletionBody(CompletionBody(""));
  ASSERT_TRUE(completion.ok());
  EXPECT_EQ(completion->requests[0].endpoint, Endpoint::kCompletions);
  EXPECT_EQ(completion->requests[0].max_tokens, 16);
  EXPECT_FALSE(completion->requests[0].echo);
}

TEST(OpenAiJsonTest, ReadsSeedsOf64Bits) {
  const auto seed_of = [](const std::string& seed) {
    return ReadChatBody(ChatBody("\"seed\":" + seed))->requests[0].seed;
  };
  EXPECT_EQ(seed_of("18446744073709551615"), std::numeric_limits<uint64_t>::max());
  EXPECT_EQ(seed_of("-1"), std::numeric_limits<uint64_t>::max());
  EXPECT_EQ(seed_of("0"), 0u);
}

TEST(OpenAiJsonTest, AcceptsWhatChangesNothing) {
  for (const std::string field : {R"("n":1)",
                                  R"("user":"u")",
                                  R"("metadata":{"a":"b"})",
                                  R"("store":false)",
                                  R"("service_tier":"auto")",
                                  R"("logprobs":false)",
                                  R"("top_logprobs":0)",
                                  R"("presence_penalty":0)",
                                  R"("frequency_penalty":0.0)",
                                  R"("repetition_penalty":1.0)",
                                  R"("logit_bias":{})",
                                  R"("response_format":{"type":"text"})",
                                  R"("tools":[])",
                                  R"("tool_choice":"auto")",
                                  R"("parallel_tool_calls":false)",
                                  R"("functions":[])",
                                  R"("reasoning_effort":null)",
                                  R"("modalities":["text"])",
                                  R"("temperature":null)",
                                  R"("max_tokens":5,"max_completion_tokens":5)",
                                  R"("stop":null)",
                                  R"("stream":false)",
                                  R"("stream":true,"stream_options":{"include_usage":false})"}) {
    EXPECT_TRUE(ReadChatBody(ChatBody(field)).ok())
        << field << ReadChatBody(ChatBody(field)).status();
  }
  for (const std::string field : {R"("best_of":1)", R"("suffix":"")", R"("logprobs":null)"}) {
    EXPECT_TRUE(ReadCompletionBody(CompletionBody(field)).ok()) << field;
  }
}

TEST(OpenAiJsonTest, ReadsEverySamplingField) {
  const std::string fields =
      R"("min_p":0.25,"top_k":5,"repetition_penalty":1.5,"frequency_penalty":-0.5,
         "presence_penalty":2,"logit_bias":{"5":-100,"17":2.5},"bad_words":["a b","c"],
         "allowed_token_ids":[1,2],"priority":-3,"cache_salt":"s","n":1)";
  for (const bool is_chat : {true, false}) {
    const absl::StatusOr<OpenAiCall> call =
        is_chat ? ReadChatBody(ChatBody(fields)) : ReadCompletionBody(CompletionBody(fields));
    ASSERT_TRUE(call.ok()) << call.status();
    const ExchangeRequest& request = call->requests[0];
    EXPECT_EQ(request.min_p, 0.25f);
    EXPECT_EQ(request.top_k, 5);
    EXPECT_EQ(request.repetition_penalty, 1.5f);
    EXPECT_EQ(request.frequency_penalty, -0.5f);
    EXPECT_EQ(request.presence_penalty, 2.0f);
    ASSERT_EQ(request.logit_bias.size(), 2u);
    EXPECT_EQ(request.logit_bias[0].id, 5);
    EXPECT_EQ(request.logit_bias[0].add, -100.0f);
    EXPECT_EQ(request.logit_bias[1].id, 17);
    EXPECT_EQ(request.logit_bias[1].add, 2.5f);
    EXPECT_EQ(request.bad_words, (std::vector<std::string>{"a b", "c"}));
    EXPECT_EQ(request.allowed_token_ids, (std::vector<int32_t>{1, 2}));
    EXPECT_EQ(request.priority, -3);
    EXPECT_EQ(request.cache_salt, "s");
    EXPECT_EQ(request.logprobs, -1);
    EXPECT_EQ(request.prompt_logprobs, -1);
  }
}

TEST(OpenAiJsonTest, ReadsLogprobs) {
  absl::StatusOr<OpenAiCall> call =
      ReadChatBody(ChatBody(R"("logprobs":true,"top_logprobs":3,"prompt_logprobs":2,"n":2)"));
  ASSERT_TRUE(call.ok()) << call.status();
  EXPECT_EQ(call->logprobs, 3);
  EXPECT_EQ(call->prompt_logprobs, 2);
  EXPECT_EQ(call->requests[0].logprobs, 3);
  EXPECT_EQ(call->requests[0].prompt_logprobs, 2);
  EXPECT_EQ(call->requests[1].prompt_logprobs, -1) << "one prompt, told once";
  EXPECT_EQ(ReadChatBody(ChatBody(R"("logprobs":true)"))->requests[0].logprobs, 0);
  EXPECT_EQ(ReadChatBody(ChatBody(R"("logprobs":false)"))->requests[0].logprobs, -1);

  call = ReadCompletionBody(CompletionBody(R"("logprobs":5)"));
  ASSERT_TRUE(call.ok()) << call.status();
  EXPECT_EQ(call->requests[0].logprobs, 5);
  EXPECT_EQ(call->requests[0].prompt_logprobs, -1);
  call = ReadCompletionBody(CompletionBody(R"("logprobs":5,"echo":true,"n":2)"));
  ASSERT_TRUE(call.ok()) << call.status();
  EXPECT_EQ(call->prompt_logprobs, -1);
  EXPECT_EQ(call->requests[0].prompt_logprobs, 5) << "the echo's";
  EXPECT_EQ(call->requests[1].prompt_logprobs, 5);
  call = ReadCompletionBody(CompletionBody(R"("logprobs":1,"prompt_logprobs":4,"echo":true)"));
  ASSERT_TRUE(call.ok()) << call.status();
  EXPECT_EQ(call->requests[0].prompt_logprobs, 4);
}

TEST(OpenAiJsonTest, NAnswersOfEachPromptComeInOrder) {
  const absl::StatusOr<OpenAiCall> call =
      ReadCompletionBody(R"({"prompt":["a","b"],"n":3,"best_of":3,"seed":9})");
  ASSERT_TRUE(call.ok()) << call.status();
  EXPECT_EQ(call->answers_per_prompt, 3);
  ASSERT_EQ(call->requests.size(), 6u);
  for (int32_t i = 0; i < 6; ++i) {
    // The first of its answers has the prompt, and makes it for all.
    EXPECT_EQ(std::get<std::string>(call->requests[i].prompt), i == 0 ? "a" : i == 3 ? "b" : "");
    EXPECT_EQ(call->requests[i].choice, i % 3);
    EXPECT_EQ(call->requests[i].seed, 9u);
  }
  EXPECT_EQ(call->requests[0].encoded, call->requests[2].encoded);
  EXPECT_NE(call->requests[0].encoded, call->requests[3].encoded);
  EXPECT_EQ(ReadChatBody(ChatBody(""))->requests[0].encoded, nullptr);
}

struct BadBody {
  std::string body;
  std::string field;
  std::string message;
  absl::StatusCode code = absl::StatusCode::kInvalidArgument;
};

constexpr absl::StatusCode kUnsupported = absl::StatusCode::kUnimplemented;

TEST(OpenAiJsonTest, RefusesBadChatsByName) {
  const auto message = [](const std::string& json) {
    return absl::StrCat(R"({"messages":[{"role":"user","content":"hi"},)", json, "]}");
  };
  const BadBody kCases[] = {
      {"", "", "not valid JSON"},
      {"{", "", "byte"},
      {"{} x", "", "byte"},
      {"[]", "the body", "must be an object, not []"},
      {"\"text\"", "the body", "must be an object"},
      {"{\"messages\":[{\"role\":\"user\",\"content\":\"\xff\"}]}", "", "UTF-8"},
      {R"({"messages":[{"role":"user","content":"\ud800"}]})", "", "not valid JSON"},
      {ChatBody(R"("temperature":1e999)"), "", "out of range"},
      {ChatBody(R"("temperature":NaN)"), "", "not valid JSON"},
      {std::string(100, '['), "", "deeper than the limit of 64"},
      {"{}", "messages", "is required"},
      {R"({"messages":[]})", "messages", "at least 1"},
      {R"({"messages":"hi"})", "messages", "must be a list"},
      {message("1"), "messages[1]", "must be an object, not 1"},
      {message("{}"), "messages[1].role", "is required"},
      {message(R"({"role":"robot","content":""})"), "messages[1].role", "\"robot\""},
      {message(R"({"role":"user"})"), "messages[1].content", "is required"},
      {message(R"({"role":"user","content":null})"), "messages[1].content", "is required"},
      {message(R"({"role":"user","content":5})"), "messages[1].content", "string or a list"},
      {message(R"({"role":"user","content":[{"type":"image_url","image_url":{}}]})"),
       "messages[1].content[0].type", "\"image_url\"", kUnsupported},
      {message(R"({"role":"user","content":[{"type":"text"}]})"), "messages[1].content[0].text",
       "is required"},
      {message(R"({"role":"user","content":"","mood":1})"), "messages[1].mood", "not a known"},
      {message(R"({"role":"assistant"})"), "messages[1].content", "tool_calls"},
      {message(R"({"role":"assistant","tool_calls":[{"function":{"name":"f","arguments":"{"}}]})"),
       "messages[1].tool_calls[0].function.arguments", "not valid JSON"},
      {message(R"({"role":"assistant","tool_calls":[{"function":{"name":"f","arguments":"1"}}]})"),
       "messages[1].tool_calls[0].function.arguments", "must hold a JSON object"},
      {message(R"({"role":"assistant","tool_calls":[{"id":"x"}]})"),
       "messages[1].tool_calls[0].function", "is required"},
      {ChatBody(R"("temperature":"hot")"), "temperature", "must be a number, not \"hot\""},
      {ChatBody(R"("temperature":1e300)"), "temperature", "must be a number"},
      {ChatBody(R"("max_tokens":1.5)"), "max_tokens", "must be an integer"},
      {ChatBody(R"("max_tokens":3000000000)"), "max_tokens", "not 3000000000"},
      {ChatBody(R"("max_tokens":18446744073709551615)"), "max_tokens", "must be an integer"},
      {ChatBody(R"("max_tokens":true)"), "max_tokens", "must be an integer"},
      {ChatBody(R"("max_tokens":5,"max_completion_tokens":6)"), "max_completion_tokens", "5"},
      {ChatBody(R"("seed":1.5)"), "seed", "integer"},
      {ChatBody(R"("stop":5)"), "stop", "string or a list"},
      {ChatBody(R"("stop":["a",5])"), "stop", "string or a list"},
      {ChatBody(R"("stop_token_ids":[1,"a"])"), "stop_token_ids[1]", "integer"},
      {ChatBody(R"("stream":"yes")"), "stream", "true or false"},
      {ChatBody(R"("stream_options":{})"), "stream_options", "needs \"stream\""},
      {ChatBody(R"("stream":true,"stream_options":{"x":1})"), "stream_options.x", "not a known"},
      {ChatBody(R"("model":5)"), "model", "must be a string"},
      {ChatBody(R"("user":5)"), "user", "must be a string"},
      {ChatBody(R"("frobnicate":1)"), "frobnicate", "not a known field"},
      {ChatBody(R"("prompt":"hi")"), "prompt", "not a known field"},
      {ChatBody(R"("n":17)"), "n", "of 17 must be from 1 to 16"},
      {ChatBody(R"("n":0)"), "n", "of 0 must be from 1 to 16"},
      {ChatBody(R"("n":true)"), "n", "must be an integer"},
      {ChatBody(R"("n":2,"best_of":3)"), "best_of", "only as 2, not 3", kUnsupported},
      {ChatBody(R"("logprobs":1)"), "logprobs", "true or false"},
      {ChatBody(R"("top_logprobs":1)"), "top_logprobs", "needs \"logprobs\": true"},
      {ChatBody(R"("logprobs":true,"top_logprobs":21)"), "top_logprobs",
       "of 21 must be from 0 to 20"},
      {ChatBody(R"("prompt_logprobs":-1)"), "prompt_logprobs", "of -1 must be from 0 to 20"},
      {ChatBody(R"("stream":true,"prompt_logprobs":1)"), "prompt_logprobs",
       "needs \"stream\": false"},
      {ChatBody(R"("presence_penalty":"a")"), "presence_penalty", "must be a number"},
      {ChatBody(R"("logit_bias":[1])"), "logit_bias", "must be an object"},
      {ChatBody(R"("logit_bias":{"five":1})"), "logit_bias", "has the key \"five\""},
      {ChatBody(R"("logit_bias":{"-5":1})"), "logit_bias", "has the key \"-5\""},
      {ChatBody(R"("logit_bias":{"":1})"), "logit_bias", "has the key \"\""},
      {ChatBody(R"("logit_bias":{"3000000000":1})"), "logit_bias", "keys must be token ids"},
      {ChatBody(R"("logit_bias":{"5":"1"})"), "logit_bias.5", "must be a number, not \"1\""},
      {ChatBody(R"("logit_bias":{"5":null})"), "logit_bias.5", "must be a number, not null"},
      {ChatBody(R"("bad_words":[1])"), "bad_words", "list of strings"},
      {ChatBody(R"("allowed_token_ids":["a"])"), "allowed_token_ids[0]", "integer"},
      {ChatBody(R"("priority":1.5)"), "priority", "integer"},
      {ChatBody(R"("cache_salt":1)"), "cache_salt", "must be a string"},
      {ChatBody(R"("response_format":{"type":"json_object"})"), "response_format", "json_object",
       kUnsupported},
      {ChatBody(R"("reasoning_effort":"high")"), "reasoning_effort", "high", kUnsupported},
      {ChatBody(R"("store":true)"), "store", "only as false", kUnsupported},
      {ChatBody(R"("audio":{})"), "audio", "not supported", kUnsupported},
      {ChatBody(R"("tool_choice":"required")"), "tool_choice", "required", kUnsupported},
      {ChatBody(R"("tools":{})"), "tools", "must be a list"},
      {ChatBody(R"("tools":[{"type":"web"}])"), "tools[0].type", "\"web\"", kUnsupported},
      {ChatBody(R"("tools":[{"type":"function"}])"), "tools[0].function", "is required"},
      {ChatBody(R"("tools":[{"type":"function","function":{"parameters":{}}}])"),
       "tools[0].function.name", "is required"},
      {ChatBody(R"("tools":[{"type":"function","function":{"name":"f"}}],
                   "parallel_tool_calls":false)"),
       "parallel_tool_calls", "only as true", kUnsupported},
      {ChatBody(R"("thinking":{"type":"maybe"})"), "thinking.type", "\"maybe\""},
      {ChatBody(R"("chat_template_kwargs":{"mood":1})"), "chat_template_kwargs.mood", "known"},
      {ChatBody(R"("thinking":{"type":"enabled"},
                   "chat_template_kwargs":{"enable_thinking":false})"),
       "thinking.type", "contradicts"},
  };
  for (const BadBody& c : kCases) {
    const absl::Status status = ReadChatBody(c.body).status();
    EXPECT_EQ(status.code(), c.code) << c.body << status;
    EXPECT_EQ(FieldOf(status), c.field) << c.body << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(c.message)) << c.body;
  }
}

TEST(OpenAiJsonTest, RefusesBadCompletionsByName) {
  const BadBody kCases[] = {
      {"{}", "prompt", "is required"},
      {R"({"prompt":5})", "prompt", "must be a string"},
      {R"({"prompt":[]})", "prompt", "empty list"},
      {R"({"prompt":["a",5]})", "prompt", "only strings"},
      {R"({"prompt":[5,"a"]})", "prompt[1]", "integer"},
      {R"({"prompt":[5,1.5]})", "prompt[1]", "integer"},
      {R"({"prompt":[[5],[]]})", "prompt", "at least 1"},
      {R"({"prompt":[[5],["a"]]})", "prompt[0]", "integer"},
      {R"({"prompt":[[5],"a"]})", "prompt", "only strings"},
      {R"({"prompt":[null]})", "prompt", "only strings"},
      {CompletionBody(R"("logprobs":21)"), "logprobs", "of 21 must be from 0 to 20"},
      {CompletionBody(R"("logprobs":true)"), "logprobs", "integer"},
      {CompletionBody(R"("top_logprobs":1)"), "top_logprobs", "not a known field"},
      {R"({"prompt":["a","b","c","d","e","f","g","h","i"],"n":15})", "n",
       "of 15 for 9 prompts makes 135 choices; the limit is 128"},
      {CompletionBody(R"("suffix":"x")"), "suffix", "only as \"\"", kUnsupported},
      {CompletionBody(R"("best_of":2)"), "best_of", "only as 1", kUnsupported},
      {CompletionBody(R"("messages":[])"), "messages", "not a known field"},
      {CompletionBody(R"("tools":[])"), "tools", "not a known field"},
  };
  for (const BadBody& c : kCases) {
    const absl::Status status = ReadCompletionBody(c.body).status();
    EXPECT_EQ(status.code(), c.code) << c.body << status;
    EXPECT_EQ(FieldOf(status), c.field) << c.body << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(c.message)) << c.body;
  }
  std::string many = R"({"prompt":["a")";
  for (int i = 0; i < 128; ++i) many += R"(,"a")";
  EXPECT_THAT(std::string(ReadCompletionBody(many + "]}").status().message()),
              HasSubstr("has 129 prompts; the limit is 128"));
}

TEST(OpenAiJsonTest, ReadsEveryKindOfPrompt) {
  const auto prompts_of = [](const std::string& prompt) {
    std::vector<Prompt> prompts;
    absl::StatusOr<OpenAiCall> call =
        ReadCompletionBody(absl::StrCat(R"({"echo":true,"prompt":)", prompt, "}"));
    EXPECT_TRUE(call.ok()) << call.status();
    for (ExchangeRequest& request : call->requests) {
      EXPECT_TRUE(request.echo);
      prompts.push_back(std::move(request.prompt));
    }
    return prompts;
  };
  using Ids = std::vector<int32_t>;
  using testing::VariantWith;
  EXPECT_THAT(prompts_of(R"("a")"), ElementsAre(VariantWith<std::string>("a")));
  EXPECT_THAT(prompts_of(R"(["a","b"])"),
              ElementsAre(VariantWith<std::string>("a"), VariantWith<std::string>("b")));
  EXPECT_THAT(prompts_of("[1,2]"), ElementsAre(VariantWith<Ids>(ElementsAre(1, 2))));
  EXPECT_THAT(prompts_of("[[1,2],[3]]"),
              ElementsAre(VariantWith<Ids>(ElementsAre(1, 2)), VariantWith<Ids>(ElementsAre(3))));
}

TEST(OpenAiJsonTest, ReadsMessagesOfEveryRole) {
  const Chat chat = ChatOf(R"({"messages":[
      {"role":"developer","content":"be brief"},
      {"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}],"name":"u"},
      {"role":"assistant","content":null,"reasoning_content":"hm","refusal":null,"tool_calls":[
        {"id":"c1","type":"function","function":{"name":"f","arguments":"{\"z\":1,\"a\":[]}"}},
        {"id":"c2","type":"function","function":{"name":"g","arguments":""}}]},
      {"role":"tool","tool_call_id":"c1","content":"42"}]})");
  ASSERT_EQ(chat.messages.size(), 4u);
  EXPECT_EQ(chat.messages[0].role, ChatMessage::Role::kSystem);
  EXPECT_EQ(chat.messages[1].content, "ab");
  EXPECT_EQ(chat.messages[2].reasoning, "hm");
  ASSERT_EQ(chat.messages[2].tool_calls.size(), 2u);
  EXPECT_EQ(chat.messages[2].tool_calls[0].name, "f");
  EXPECT_EQ(chat.messages[2].tool_calls[0].arguments.dump(), R"({"z":1,"a":[]})");
  EXPECT_EQ(chat.messages[2].tool_calls[1].arguments.dump(), "{}");
  EXPECT_EQ(chat.messages[3].role, ChatMessage::Role::kTool);
  EXPECT_EQ(chat.messages[3].content, "42");
}

TEST(OpenAiJsonTest, KeepsToolsWholeUnlessNoneMayBeCalled) {
  const std::string tool =
      R"({"type":"function","function":{"name":"f","parameters":{"z":1,"a":2},"x-extra":0}})";
  const Chat chat = ChatOf(ChatBody(absl::StrCat(R"("tools":[)", tool, "]")));
  ASSERT_EQ(chat.tools.size(), 1u);
  EXPECT_EQ(chat.tools[0].dump(), tool);
  EXPECT_TRUE(
      ChatOf(ChatBody(absl::StrCat(R"("tool_choice":"none","tools":[)", tool, "]"))).tools.empty());
}

TEST(OpenAiJsonTest, ReadsBothWaysToSayThinking) {
  EXPECT_FALSE(ChatOf(ChatBody(R"("thinking":{"type":"disabled"})")).enable_thinking);
  EXPECT_FALSE(
      ChatOf(ChatBody(R"("chat_template_kwargs":{"enable_thinking":false})")).enable_thinking);
  EXPECT_EQ(
      ChatOf(ChatBody(R"("thinking":{"type":"enabled","clear_thinking":false})")).clear_thinking,
      false);
  EXPECT_EQ(ChatOf(ChatBody(R"("chat_template_kwargs":{"clear_thinking":true})")).clear_thinking,
            true);
}

TEST(JsonFieldsTest, BoundsDepthAndWidth) {
  const auto nested = [](int depth) {
    return absl::StrCat(std::string(depth, '['), std::string(depth, ']'));
  };
  EXPECT_TRUE(ParseJson(nested(kJsonDepthMax)).ok());
  EXPECT_FALSE(ParseJson(nested(kJsonDepthMax + 1)).ok());
  EXPECT_FALSE(ParseJson(std::string(8 << 20, '[')).ok());
  // What looks like nesting inside a string is none.
  EXPECT_TRUE(ParseJson(absl::StrCat("\"\\\"", std::string(1000, '{'), "\"")).ok());
  const auto wide = [](int fields) {
    std::string json = "{\"f\":0";
    for (int i = 1; i < fields; ++i) absl::StrAppend(&json, ",\"f", i, "\":0");
    return json + "}";
  };
  EXPECT_TRUE(ParseJson(wide(kJsonFieldsMax)).ok());
  EXPECT_FALSE(ParseJson(wide(kJsonFieldsMax + 1)).ok());
}

TEST(JsonFieldsTest, CutsLongValuesInErrors) {
  const absl::Status status =
      ReadChatBody(ChatBody(absl::StrCat("\"stream\":\"", std::string(5000, 'x'), "\""))).status();
  EXPECT_LT(status.message().size(), 200u);
}

TEST(OpenAiAnswerTest, WritesJsonStringsThatParseBack) {
  std::string text = "plain \"quoted\" back\\slash\n\r\t\x01\x1f\x7f ";
  text += '\0';
  text += "zażółć 你好 🙂";
  std::string json;
  AppendJsonString(text, &json);
  EXPECT_EQ(Json::parse(json).get<std::string>(), text);
  EXPECT_EQ(json.find('\n'), std::string::npos);
}

TEST(OpenAiAnswerTest, WritesErrorObjects) {
  const Json json = Json::parse(
      ErrorJson(FieldError(absl::StatusCode::kInvalidArgument, "temperature", "must be \"cold\"")));
  EXPECT_EQ(json.dump(),
            R"({"error":{"message":"temperature must be \"cold\"","type":"invalid_request_error",)"
            R"("param":"temperature","code":null}})");
  EXPECT_EQ(Json::parse(ErrorJson(absl::NotFoundError("no \xff")))["error"]["code"],
            "model_not_found");
  EXPECT_EQ(Json::parse(HttpErrorJson(503, "full"))["error"]["type"], "server_error");
}

TEST(OpenAiAnswerTest, HasAnHttpStatusForEveryCode) {
  const struct {
    absl::StatusCode code;
    int http_status;
  } kCases[] = {
      {absl::StatusCode::kInvalidArgument, 400},   {absl::StatusCode::kOutOfRange, 400},
      {absl::StatusCode::kUnimplemented, 400},     {absl::StatusCode::kNotFound, 404},
      {absl::StatusCode::kResourceExhausted, 429}, {absl::StatusCode::kCancelled, 499},
      {absl::StatusCode::kInternal, 500},          {absl::StatusCode::kUnknown, 500},
      {absl::StatusCode::kUnavailable, 503},       {absl::StatusCode::kDeadlineExceeded, 504},
  };
  for (const auto& c : kCases) {
    EXPECT_EQ(HttpStatusOf(absl::Status(c.code, "x")), c.http_status);
  }
  for (int code = 1; code <= 16; ++code) {
    EXPECT_GE(HttpStatusOf(absl::Status(static_cast<absl::StatusCode>(code), "x")), 400);
  }
}

AnswerHead Head(bool is_chat) { return {is_chat, "id-1", 5, "g\"lm"}; }

std::vector<Json> EventsOf(const std::string& text) {
  std::vector<Json> events;
  size_t start = 0;
  while (start < text.size()) {
    EXPECT_EQ(text.compare(start, 6, "data: "), 0);
    const size_t end = text.find("\n\n", start);
    events.push_back(Json::parse(text.substr(start + 6, end - start - 6)));
    start = end + 2;
  }
  return events;
}

TEST(OpenAiAnswerTest, WritesChunksOfAChat) {
  const AnswerEvents events(Head(true));
  AnswerDelta thought;
  thought.reasoning = "h\nm";
  AnswerDelta word;
  word.content = "hi";
  std::string text;
  events.AppendDelta(0, true, thought, nullptr, &text);
  events.AppendDelta(0, false, word, nullptr, &text);
  events.AppendEnd(0, false, AnswerEnd::kLength, &text);
  events.AppendUsage({10, 5, 4}, &text);
  const std::vector<Json> chunks = EventsOf(text);
  ASSERT_EQ(chunks.size(), 4u);
  EXPECT_EQ(chunks[0].dump(),
            R"({"id":"id-1","object":"chat.completion.chunk","created":5,"model":"g\"lm",)"
            R"("choices":[{"index":0,"delta":{"role":"assistant","reasoning_content":"h\nm"},)"
            R"("logprobs":null,"finish_reason":null}]})");
  EXPECT_EQ(chunks[1]["choices"][0]["delta"].dump(), R"({"content":"hi"})");
  EXPECT_EQ(chunks[2]["choices"][0]["delta"].dump(), "{}");
  EXPECT_EQ(chunks[2]["choices"][0]["finish_reason"], "length");
  EXPECT_EQ(chunks[3]["choices"].dump(), "[]");
  EXPECT_EQ(chunks[3]["usage"].dump(),
            R"({"prompt_tokens":10,"completion_tokens":5,"total_tokens":15,)"
            R"("prompt_tokens_details":{"cached_tokens":4}})");
}

TEST(OpenAiAnswerTest, WritesChunksOfACompletion) {
  const AnswerEvents events(Head(false));
  AnswerDelta word;
  word.content = "hi";
  std::string text;
  events.AppendDelta(3, true, word, Json{{"tokens", {"hi"}}}, &text);
  events.AppendEnd(3, false, AnswerEnd::kStop, &text);
  const std::vector<Json> chunks = EventsOf(text);
  ASSERT_EQ(chunks.size(), 2u);
  EXPECT_EQ(chunks[0]["object"], "text_completion");
  EXPECT_EQ(chunks[0]["choices"].dump(),
            R"([{"index":3,"text":"hi","logprobs":{"tokens":["hi"]},"finish_reason":null}])");
  EXPECT_EQ(chunks[1]["choices"].dump(),
            R"([{"index":3,"text":"","logprobs":null,"finish_reason":"stop"}])");
}

TEST(OpenAiAnswerTest, WritesWholeAnswers) {
  const Json chat =
      Json::parse(WholeAnswerJson(Head(true), {{"hi", "hm", AnswerEnd::kStop}}, {1, 2, 0}));
  EXPECT_EQ(chat["object"], "chat.completion");
  EXPECT_EQ(chat["choices"].dump(),
            R"([{"index":0,"message":{"role":"assistant","content":"hi","reasoning_content":"hm"},)"
            R"("logprobs":null,"finish_reason":"stop"}])");
  EXPECT_EQ(chat["usage"]["total_tokens"], 3);
  const Json completion = Json::parse(WholeAnswerJson(
      Head(false), {{"a", "", AnswerEnd::kStop}, {"b", "", AnswerEnd::kLength}}, {1, 2, 0}));
  EXPECT_EQ(completion["choices"][1].dump(),
            R"({"index":1,"text":"b","logprobs":null,"finish_reason":"length"})");
}

}  // namespace
}  // namespace glm::router
