#include "router/text/chat_format.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "tests/router/golden_text.h"

namespace glm::router {
namespace {

using Role = ChatMessage::Role;
using testing::HasSubstr;

std::string ContentText(const Json& content) {
  if (content.is_string()) return content.get<std::string>();
  std::string text;
  for (const Json& part : content) text += part.at("text").get<std::string>();
  return text;
}

ChatMessage ReadMessage(const Json& given) {
  ChatMessage message;
  const std::string role = given.at("role").get<std::string>();
  message.role = role == "system"      ? Role::kSystem
                 : role == "user"      ? Role::kUser
                 : role == "assistant" ? Role::kAssistant
                                       : Role::kTool;
  message.content = ContentText(given.at("content"));
  if (given.contains("reasoning_content")) {
    message.reasoning = given["reasoning_content"].get<std::string>();
  }
  for (const Json& call : given.value("tool_calls", Json::array())) {
    const Json& function = call.at("function");
    message.tool_calls.push_back({function.at("name").get<std::string>(), function["arguments"]});
  }
  return message;
}

Chat ReadChat(const Json& given) {
  Chat chat;
  for (const Json& message : given.at("messages")) chat.messages.push_back(ReadMessage(message));
  for (const Json& tool : given.value("tools", Json::array())) chat.tools.push_back(tool);
  chat.enable_thinking = given.value("enable_thinking", true);
  if (given.contains("clear_thinking")) chat.clear_thinking = given["clear_thinking"].get<bool>();
  chat.add_generation_prompt = given.at("add_generation_prompt").get<bool>();
  return chat;
}

void ExpectGolden(const std::string& file, size_t cases_min) {
  const Json cases = Json::parse(ReadGolden(file));
  EXPECT_GE(cases.size(), cases_min);
  for (const Json& one : cases) {
    // A tool's answer in a list is joined before it comes here, so the template's printing of the
    // list itself does not arise.
    if (one["name"] == "tool_list_content") continue;
    const Chat chat = ReadChat(one.at("input"));
    EXPECT_EQ(RenderChat(chat, ChatDialect::kGlm45), one["expected"]["glm45"].get<std::string>())
        << one["name"];
    EXPECT_EQ(RenderChat(chat, ChatDialect::kGlm47), one["expected"]["glm47"].get<std::string>())
        << one["name"];
  }
}

TEST(ChatFormatTest, EqualsTheTemplatesOnChosenChats) { ExpectGolden("chat_golden.json", 21); }

TEST(ChatFormatTest, EqualsTheTemplatesOnRandomChats) { ExpectGolden("chat_cases.json", 200); }

TEST(ChatFormatTest, TellsTheDialectFromTheTemplate) {
  for (const ChatDialect dialect : {ChatDialect::kGlm45, ChatDialect::kGlm47}) {
    const absl::StatusOr<ChatDialect> found = DetectChatDialect(GoldenTemplate(dialect));
    ASSERT_TRUE(found.ok()) << found.status();
    EXPECT_EQ(*found, dialect);
  }
  const std::string both =
      GoldenTemplate(ChatDialect::kGlm45) + GoldenTemplate(ChatDialect::kGlm47);
  for (const auto& [text, words] : std::vector<std::pair<std::string, std::string>>{
           {"", "[gMASK]<sop>"},
           {"[gMASK]<sop>{{ messages }}<|assistant|>", "<arg_key>"},
           {"[gMASK]<sop><|assistant|><arg_key></think>", "neither of"},
           {both, "both"}}) {
    const absl::Status status = DetectChatDialect(text).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
    EXPECT_THAT(std::string(status.message()), HasSubstr(words));
  }
}

TEST(ChatFormatTest, AnswerBeginsWhereThePromptEnds) {
  Chat chat;
  chat.messages = {{.content = "U"}};
  EXPECT_EQ(StartOfAnswer(chat, ChatDialect::kGlm45), AnswerStart::kUndecided);
  EXPECT_EQ(StartOfAnswer(chat, ChatDialect::kGlm47), AnswerStart::kReasoning);
  EXPECT_TRUE(RenderChat(chat, ChatDialect::kGlm47).ends_with("<think>"));
  chat.enable_thinking = false;
  for (const ChatDialect dialect : {ChatDialect::kGlm45, ChatDialect::kGlm47}) {
    EXPECT_EQ(StartOfAnswer(chat, dialect), AnswerStart::kContent);
    EXPECT_TRUE(RenderChat(chat, dialect).ends_with("</think>"));
  }
  chat.add_generation_prompt = false;
  EXPECT_EQ(StartOfAnswer(chat, ChatDialect::kGlm47), AnswerStart::kPlain);
}

}  // namespace
}  // namespace glm::router
