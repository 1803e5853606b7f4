// Answers and errors of OpenAI's API as text: JSON bodies and server-sent events.
//
// Who calls: OpenAiFront, on its loop. Pure functions and values.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "router/exchange.h"
#include "router/text/chat_format.h"

namespace glm::router {

/// The one table from Status to HTTP. REQUIRES: not OK.
int HttpStatusOf(const absl::Status& status);
/// OpenAI's error object for `status`.
std::string ErrorJson(const absl::Status& status);
/// The same for an error that is only known by its HTTP status.
std::string HttpErrorJson(int http_status, absl::string_view message);

/// What stands in every piece of one answer.
struct AnswerHead {
  bool is_chat = true;
  std::string id;
  int64_t created_s = 0;  // since 1970
  std::string model;
};

struct AnswerChoice {
  std::string content;
  std::string reasoning;
  AnswerEnd end = AnswerEnd::kStop;
  Json logprobs = nullptr;         // of openai_logprobs.h
  Json prompt_logprobs = nullptr;  // left out if null
};

/// The body of an answer that is not streamed; a choice's index is its place. REQUIRES: a choice.
std::string WholeAnswerJson(const AnswerHead& head, const std::vector<AnswerChoice>& choices,
                            const Usage& usage);

/// The events of a streamed answer, each appended to `out`.
class AnswerEvents {
 public:
  explicit AnswerEvents(const AnswerHead& head);

  /// The texts of `delta`, and its logprobs if not null. The first of a chat's choice also tells
  /// the role.
  void AppendDelta(int32_t index, bool is_first, const AnswerDelta& delta, const Json& logprobs,
                   std::string* out) const;
  void AppendEnd(int32_t index, bool is_first, AnswerEnd end, std::string* out) const;
  void AppendUsage(const Usage& usage, std::string* out) const;
  static void AppendError(const absl::Status& status, std::string* out);
  static void AppendDone(std::string* out);

 private:
  const bool is_chat_;
  std::string prefix_;  // "data: {...,", up to the choices
};

/// `text` as a JSON string, quotes included. REQUIRES: UTF-8.
void AppendJsonString(absl::string_view text, std::string* out);

}  // namespace glm::router
