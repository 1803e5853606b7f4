#include "router/front/openai_logprobs.h"

#include <algorithm>
#include <string>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/types/span.h"
#include "router/text/utf8.h"

namespace glm::router {
namespace {

float Finite(float logprob) { return std::max(logprob, -9999.0f); }

bool IsUtf8(std::string_view bytes) {
  while (!bytes.empty()) {
    const Utf8Step step = ReadUtf8(bytes);
    if (step.kind != Utf8Step::Kind::kCharacter) return false;
    bytes.remove_prefix(step.bytes);
  }
  return true;
}

/// Characters that begin in `bytes`, so that those of a character's parts add up to 1.
int64_t CountCharacters(std::string_view bytes) {
  return std::count_if(bytes.begin(), bytes.end(),
                       [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; });
}

Json ChatEntry(std::string_view bytes, float logprob) {
  Json numbers = Json::array();
  for (const char c : bytes) numbers.push_back(static_cast<unsigned char>(c));
  return Json{{"token", ReplaceInvalidUtf8(bytes)},
              {"logprob", Finite(logprob)},
              {"bytes", std::move(numbers)}};
}

/// The token's text where only a text can stand, and two tokens must not look alike.
std::string CompletionToken(std::string_view bytes) {
  if (IsUtf8(bytes)) return std::string(bytes);
  std::string text = "bytes:";
  for (const char c : bytes) absl::StrAppendFormat(&text, "\\x%02x", static_cast<unsigned char>(c));
  return text;
}

absl::Span<const TokenScore::Alternative> Top(const TokenScore& score, int32_t top) {
  return absl::MakeConstSpan(score.top).subspan(0, static_cast<size_t>(top));
}

Json PromptEntry(std::string_view bytes, float logprob, int32_t rank) {
  return Json{
      {"logprob", Finite(logprob)}, {"rank", rank}, {"decoded_token", ReplaceInvalidUtf8(bytes)}};
}

}  // namespace

Json ChatLogprobsJson(const std::vector<TokenScore>& scores) {
  Json content = Json::array();
  for (const TokenScore& score : scores) {
    Json entry = ChatEntry(score.bytes, score.logprob);
    Json& top = entry["top_logprobs"] = Json::array();
    for (const TokenScore::Alternative& other : score.top) {
      top.push_back(ChatEntry(other.bytes, other.logprob));
    }
    content.push_back(std::move(entry));
  }
  return Json{{"content", std::move(content)}, {"refusal", nullptr}};
}

Json CompletionLogprobsJson(const std::vector<TokenScore>& scores, int32_t top,
                            int64_t* characters) {
  Json offsets = Json::array();
  Json logprobs = Json::array();
  Json tokens = Json::array();
  Json tops = Json::array();
  for (const TokenScore& score : scores) {
    offsets.push_back(*characters);
    if (score.is_text) *characters += CountCharacters(score.bytes);
    const std::string token = CompletionToken(score.bytes);
    tokens.push_back(token);
    if (score.rank == 0) {
      logprobs.push_back(nullptr);
      tops.push_back(nullptr);
      continue;
    }
    logprobs.push_back(Finite(score.logprob));
    Json likeliest = Json::object();
    for (const TokenScore::Alternative& other : Top(score, top)) {
      likeliest[CompletionToken(other.bytes)] = Finite(other.logprob);
    }
    likeliest[token] = Finite(score.logprob);
    tops.push_back(std::move(likeliest));
  }
  return Json{{"text_offset", std::move(offsets)},
              {"token_logprobs", std::move(logprobs)},
              {"tokens", std::move(tokens)},
              {"top_logprobs", std::move(tops)}};
}

Json PromptLogprobsJson(const std::vector<TokenScore>& scores, int32_t top) {
  Json list = Json::array();
  for (const TokenScore& score : scores) {
    if (score.rank == 0) {
      list.push_back(nullptr);
      continue;
    }
    Json entry = Json::object();
    entry[absl::StrCat(score.id)] = PromptEntry(score.bytes, score.logprob, score.rank);
    int32_t rank = 0;
    for (const TokenScore::Alternative& other : Top(score, top)) {
      ++rank;
      if (other.id == score.id) continue;
      entry[absl::StrCat(other.id)] = PromptEntry(other.bytes, other.logprob, rank);
    }
    list.push_back(std::move(entry));
  }
  return list;
}

}  // namespace glm::router
