#include "router/text/text_model.h"

#include <filesystem>
#include <fstream>
#include <optional>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"

namespace glm::router {
namespace {

constexpr int64_t kTemplateBytesMax = 1 << 20;
constexpr int64_t kConfigBytesMax = 16 << 20;

absl::StatusOr<std::string> ReadFile(const std::string& path, int64_t bytes_max) {
  std::error_code error;
  const auto bytes = std::filesystem::file_size(path, error);
  if (error) return absl::NotFoundError(absl::StrCat(path, ": ", error.message()));
  if (bytes > static_cast<uint64_t>(bytes_max)) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": ", bytes, " bytes, at most ", bytes_max));
  }
  std::string text(bytes, '\0');
  std::ifstream file(path, std::ios::binary);
  if (!file.read(text.data(), static_cast<std::streamsize>(text.size()))) {
    return absl::UnavailableError(absl::StrCat(path, ": cannot be read"));
  }
  return text;
}

// chat_template.jinja, or the chat_template in tokenizer_config.json: a text, or a list of
// {"name", "template"} of which "default" is meant.
absl::StatusOr<std::string> ReadChatTemplate(const std::string& folder) {
  const std::string path = folder + "/chat_template.jinja";
  std::error_code error;
  if (std::filesystem::exists(path, error)) return ReadFile(path, kTemplateBytesMax);
  const std::string config_path = folder + "/tokenizer_config.json";
  const absl::StatusOr<std::string> text = ReadFile(config_path, kConfigBytesMax);
  if (!text.ok()) {
    return absl::NotFoundError(
        absl::StrCat("no chat template: neither ", path, " nor ", text.status().message()));
  }
  const nlohmann::json config = nlohmann::json::parse(*text, nullptr, /*allow_exceptions=*/false);
  const nlohmann::json chat_template =
      config.is_object() && config.contains("chat_template") ? config["chat_template"] : nullptr;
  if (chat_template.is_string()) return chat_template.get<std::string>();
  for (const nlohmann::json& one : chat_template) {
    if (one.is_object() && one.value("name", nlohmann::json()) == "default" &&
        one.contains("template") && one["template"].is_string()) {
      return one["template"].get<std::string>();
    }
  }
  return absl::NotFoundError(absl::StrCat("no chat template: no file ", path, ", and ", config_path,
                                          " has no chat_template"));
}

absl::Status WithPath(const absl::Status& status, const std::string& path) {
  return absl::Status(status.code(), absl::StrCat(path, ": ", status.message()));
}

}  // namespace

absl::StatusOr<std::unique_ptr<const TextModel>> TextModel::Load(const std::string& folder) {
  absl::StatusOr<std::string> json = ReadFile(folder + "/tokenizer.json", TokenizerJson::kBytesMax);
  if (!json.ok()) return json.status();
  absl::StatusOr<std::unique_ptr<const Tokenizer>> tokenizer = Tokenizer::FromJson(*json);
  if (!tokenizer.ok()) return WithPath(tokenizer.status(), folder);
  const absl::StatusOr<std::string> chat_template = ReadChatTemplate(folder);
  if (!chat_template.ok()) return chat_template.status();
  const absl::StatusOr<ChatDialect> dialect = DetectChatDialect(*chat_template);
  if (!dialect.ok()) return WithPath(dialect.status(), folder);

  std::unique_ptr<TextModel> model(new TextModel());
  model->tokenizer_ = *std::move(tokenizer);
  model->dialect_ = *dialect;
  const std::pair<const char*, int32_t*> tags[] = {{"<think>", &model->tags_.think},
                                                   {"</think>", &model->tags_.think_end},
                                                   {"<tool_call>", &model->tags_.tool_call}};
  for (const auto& [content, id] : tags) {
    const std::optional<int32_t> found = model->tokenizer_->FindToken(content);
    if (!found) {
      return absl::InvalidArgumentError(
          absl::StrCat(folder, ": tokenizer.json: added_tokens: no ", content));
    }
    *id = *found;
  }
  return model;
}

absl::StatusOr<std::vector<int32_t>> TextModel::EncodePrompt(std::string_view text) const {
  return tokenizer_->Encode(text);
}

absl::StatusOr<ChatPrompt> TextModel::EncodeChat(const Chat& chat) const {
  absl::StatusOr<std::vector<int32_t>> ids = tokenizer_->Encode(RenderChat(chat, dialect_));
  if (!ids.ok()) return ids.status();
  return ChatPrompt{*std::move(ids), StartOfAnswer(chat, dialect_)};
}

std::string TextModel::Decode(absl::Span<const int32_t> ids) const {
  return tokenizer_->Decode(ids, /*skip_special_tokens=*/true);
}

}  // namespace glm::router
