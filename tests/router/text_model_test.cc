#include "router/text/text_model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "nlohmann/json.hpp"
#include "tests/router/golden_text.h"

namespace glm::router {
namespace {

using nlohmann::json;
using testing::HasSubstr;

TEST(TextModelTest, EncodesChatsAndPrompts) {
  const std::unique_ptr<const TextModel> model = GoldenModel(ChatDialect::kGlm47);
  EXPECT_EQ(model->dialect(), ChatDialect::kGlm47);
  EXPECT_EQ(model->tags().think, 3021);
  EXPECT_EQ(model->tags().think_end, 3022);
  EXPECT_EQ(model->tags().tool_call, 3023);
  Chat chat;
  chat.messages = {{.content = "The quick brown fox"}};
  const absl::StatusOr<ChatPrompt> prompt = model->EncodeChat(chat);
  ASSERT_TRUE(prompt.ok()) << prompt.status();
  EXPECT_EQ(prompt->start, AnswerStart::kReasoning);
  EXPECT_EQ(prompt->ids.front(), *model->tokenizer().FindToken("[gMASK]"));
  EXPECT_EQ(prompt->ids.back(), model->tags().think);
  EXPECT_EQ(model->Decode(prompt->ids), "The quick brown fox<think>");
  const absl::StatusOr<std::vector<int32_t>> ids = model->EncodePrompt("The quick");
  ASSERT_TRUE(ids.ok()) << ids.status();
  EXPECT_EQ(model->Decode(*ids), "The quick");
}

TEST(TextModelTest, TemplateInTokenizerConfig) {
  const std::string text = GoldenTemplate(ChatDialect::kGlm45);
  for (const json& chat_template :
       {json(text), json::array({{{"name", "other"}, {"template", "x"}},
                                 {{"name", "default"}, {"template", text}}})}) {
    const GoldenFolder folder;
    folder.Write("tokenizer.json", ReadGolden("tokenizer/tokenizer.json"));
    folder.Write("tokenizer_config.json", json{{"chat_template", chat_template}}.dump());
    const auto model = TextModel::Load(folder.path());
    ASSERT_TRUE(model.ok()) << model.status();
    EXPECT_EQ((*model)->dialect(), ChatDialect::kGlm45);
  }
}

void ExpectRefused(const GoldenFolder& folder, absl::StatusCode code, const std::string& words) {
  const absl::Status status = TextModel::Load(folder.path()).status();
  EXPECT_EQ(status.code(), code) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(words));
}

TEST(TextModelTest, SaysWhatIsMissing) {
  const GoldenFolder folder;
  ExpectRefused(folder, absl::StatusCode::kNotFound, "tokenizer.json");
  folder.Write("tokenizer.json", "{}");
  ExpectRefused(folder, absl::StatusCode::kInvalidArgument, "decoder");
  json tree = json::parse(ReadGolden("tokenizer/tokenizer.json"));
  folder.Write("tokenizer.json", tree.dump());
  ExpectRefused(folder, absl::StatusCode::kNotFound, "no chat template");
  for (const char* config : {"not json", "[]", "{}", R"({"chat_template": 3})"}) {
    folder.Write("tokenizer_config.json", config);
    ExpectRefused(folder, absl::StatusCode::kNotFound, "has no chat_template");
  }
  folder.Write("chat_template.jinja", "{{ messages }}");
  ExpectRefused(folder, absl::StatusCode::kNotFound, "[gMASK]<sop>");
  folder.Write("chat_template.jinja", GoldenTemplate(ChatDialect::kGlm45));
  tree["added_tokens"][22]["content"] = "</other>";
  folder.Write("tokenizer.json", tree.dump());
  ExpectRefused(folder, absl::StatusCode::kInvalidArgument, "added_tokens: no </think>");
}

TEST(TextModelTest, BoundsTheFiles) {
  const GoldenFolder folder;
  folder.Write("tokenizer.json", std::string(TokenizerJson::kBytesMax + 1, ' '));
  ExpectRefused(folder, absl::StatusCode::kInvalidArgument, "at most 67108864");
}

}  // namespace
}  // namespace glm::router
