// The golden files of the text layer, and models made of them.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <utility>

#include "nlohmann/json.hpp"
#include "proto/base/log.h"
#include "router/text/text_model.h"
#include "router/text/tokenizer.h"

namespace glm::router {

inline std::string ReadGolden(const std::string& name) {
  const std::string path = std::string(GLM_SOURCE_DIR) + "/tests/golden/" + name;
  std::ifstream file(path, std::ios::binary);
  CHECK(file.is_open()) << path;
  return {std::istreambuf_iterator<char>(file), {}};
}

inline std::unique_ptr<const Tokenizer> GoldenTokenizer() {
  absl::StatusOr<std::unique_ptr<const Tokenizer>> tokenizer =
      Tokenizer::FromJson(ReadGolden("tokenizer/tokenizer.json"));
  CHECK(tokenizer.ok()) << tokenizer.status().ToString();
  return *std::move(tokenizer);
}

/// A folder of its own, removed with it.
class GoldenFolder {
 public:
  GoldenFolder() {
    std::string path = (std::filesystem::temp_directory_path() / "glm_text_XXXXXX").string();
    CHECK(mkdtemp(path.data()) != nullptr) << path;
    path_ = path;
  }
  GoldenFolder(const GoldenFolder&) = delete;
  GoldenFolder& operator=(const GoldenFolder&) = delete;
  ~GoldenFolder() { std::filesystem::remove_all(path_); }

  void Write(const std::string& name, const std::string& text) const {
    std::ofstream(path_ + "/" + name, std::ios::binary) << text;
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

inline std::string GoldenTemplate(ChatDialect dialect) {
  return ReadGolden(dialect == ChatDialect::kGlm45 ? "chat_template/GLM-4.5.jinja"
                                                   : "chat_template/GLM-4.7-Flash.jinja");
}

/// The golden tokenizer (3,000 tokens and GLM's added ones) with the chat format of `dialect`.
inline std::unique_ptr<const TextModel> GoldenModel(ChatDialect dialect) {
  const GoldenFolder folder;
  folder.Write("tokenizer.json", ReadGolden("tokenizer/tokenizer.json"));
  folder.Write("chat_template.jinja", GoldenTemplate(dialect));
  absl::StatusOr<std::unique_ptr<const TextModel>> model = TextModel::Load(folder.path());
  CHECK(model.ok()) << model.status().ToString();
  return *std::move(model);
}

}  // namespace glm::router
