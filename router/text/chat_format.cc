#include "router/text/chat_format.h"

#include <array>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "router/text/python_json.h"

namespace glm::router {
namespace {

constexpr std::string_view kThink = "<think>";
constexpr std::string_view kThinkEnd = "</think>";
constexpr std::string_view kNoThink = "/nothink";

// What Python's str.strip() takes away.
constexpr std::array<std::string_view, 29> kBlanks = {
    "\t",     "\n",     "\v",     "\f",     "\r",     "\x1c",   "\x1d",   "\x1e",
    "\x1f",   " ",      "\u0085", "\u00a0", "\u1680", "\u2000", "\u2001", "\u2002",
    "\u2003", "\u2004", "\u2005", "\u2006", "\u2007", "\u2008", "\u2009", "\u200a",
    "\u2028", "\u2029", "\u202f", "\u205f", "\u3000"};

std::string_view Strip(std::string_view text) {
  for (bool found = true; found;) {
    found = false;
    for (const std::string_view blank : kBlanks) {
      if (text.starts_with(blank)) {
        text.remove_prefix(blank.size());
        found = true;
      } else if (text.ends_with(blank)) {
        text.remove_suffix(blank.size());
        found = true;
      }
    }
  }
  return text;
}

std::string_view StripLineEndsBefore(std::string_view text) {
  while (text.starts_with('\n')) text.remove_prefix(1);
  return text;
}

std::string_view StripLineEndsBehind(std::string_view text) {
  while (text.ends_with('\n')) text.remove_suffix(1);
  return text;
}

struct AssistantText {
  std::string_view reasoning;
  std::string_view content;
};

// Reasoning that a client sent back inside the content is taken out of it.
AssistantText SplitAssistant(const ChatMessage& message) {
  const std::string_view content = message.content;
  if (message.reasoning) return {*message.reasoning, content};
  const size_t first_end = content.find(kThinkEnd);
  if (first_end == std::string_view::npos) return {"", content};
  std::string_view reasoning = StripLineEndsBehind(content.substr(0, first_end));
  const size_t last_begin = reasoning.rfind(kThink);
  if (last_begin != std::string_view::npos) reasoning.remove_prefix(last_begin + kThink.size());
  const size_t last_end = content.rfind(kThinkEnd) + kThinkEnd.size();
  return {StripLineEndsBefore(reasoning), StripLineEndsBefore(content.substr(last_end))};
}

class Renderer {
 public:
  Renderer(const Chat& chat, ChatDialect dialect)
      : chat_(chat), line_end_(dialect == ChatDialect::kGlm45 ? "\n" : "") {
    for (size_t i = 0; i < chat.messages.size(); ++i) {
      if (chat.messages[i].role == ChatMessage::Role::kUser) after_last_user_ = i + 1;
    }
  }

  std::string Render() {
    Append("[gMASK]<sop>");
    if (!chat_.tools.empty()) AppendTools();
    for (size_t i = 0; i < chat_.messages.size(); ++i) AppendMessage(i);
    if (chat_.add_generation_prompt) AppendOpening();
    return std::move(out_);
  }

 private:
  bool is_45() const { return !line_end_.empty(); }

  template <typename... Texts>
  void Append(const Texts&... texts) {
    (out_.append(texts), ...);
  }

  void AppendTools() {
    Append("<|system|>\n# Tools\n\n",
           "You may call one or more functions to assist with the user query.\n\n",
           "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n");
    for (const Json& tool : chat_.tools) {
      AppendPythonJson(tool, &out_);
      Append("\n");
    }
    Append("</tools>\n\nFor each function call, output the function name and arguments within the ",
           "following XML format:\n<tool_call>{function-name}", line_end_);
    for (const std::string_view number : {"1", "2"}) {
      Append("<arg_key>{arg-key-", number, "}</arg_key>", line_end_);
      Append("<arg_value>{arg-value-", number, "}</arg_value>", line_end_);
    }
    Append("...", line_end_, "</tool_call>");
  }

  void AppendMessage(size_t index) {
    const ChatMessage& message = chat_.messages[index];
    switch (message.role) {
      case ChatMessage::Role::kSystem:
        return Append("<|system|>", line_end_, message.content);
      case ChatMessage::Role::kUser:
        Append("<|user|>", line_end_, message.content);
        if (is_45() && !chat_.enable_thinking && !message.content.ends_with(kNoThink)) {
          Append(kNoThink);
        }
        return;
      case ChatMessage::Role::kAssistant:
        return AppendAssistant(message, index >= after_last_user_);
      case ChatMessage::Role::kTool:
        if (index == 0 || chat_.messages[index - 1].role != ChatMessage::Role::kTool) {
          Append("<|observation|>");
        }
        return Append(line_end_, "<tool_response>", line_end_, message.content, line_end_,
                      "</tool_response>");
    }
  }

  void AppendAssistant(const ChatMessage& message, bool is_latest) {
    const AssistantText text = SplitAssistant(message);
    const bool keeps_all = !is_45() && chat_.clear_thinking.has_value() && !*chat_.clear_thinking;
    Append("<|assistant|>", line_end_);
    if ((is_latest || keeps_all) && !text.reasoning.empty()) {
      Append(kThink, Strip(text.reasoning), kThinkEnd);
    } else {
      Append(is_45() ? kThink : "", kThinkEnd);
    }
    const std::string_view content = Strip(text.content);
    if (!content.empty()) Append(line_end_, content);
    for (const ToolCall& call : message.tool_calls) AppendCall(call);
  }

  void AppendCall(const ToolCall& call) {
    Append(line_end_, "<tool_call>", call.name, line_end_);
    for (const auto& [key, value] : call.arguments.items()) {
      Append("<arg_key>", key, "</arg_key>", line_end_, "<arg_value>");
      if (value.is_string()) {
        Append(value.get_ref<const std::string&>());
      } else {
        AppendPythonJson(value, &out_);
      }
      Append("</arg_value>", line_end_);
    }
    Append("</tool_call>");
  }

  void AppendOpening() {
    Append("<|assistant|>");
    if (is_45()) {
      if (!chat_.enable_thinking) Append("\n", kThink, kThinkEnd);
    } else {
      Append(chat_.enable_thinking ? kThink : kThinkEnd);
    }
  }

  const Chat& chat_;
  const std::string_view line_end_;  // around everything in the 4.5 dialect, nothing in the 4.7
  size_t after_last_user_ = 0;       // assistants from here on keep their reasoning
  std::string out_;
};

}  // namespace

absl::StatusOr<ChatDialect> DetectChatDialect(const std::string& chat_template) {
  for (const char* part : {"[gMASK]<sop>", "<|assistant|>", "<arg_key>", "</think>"}) {
    if (chat_template.find(part) == std::string::npos) {
      return absl::NotFoundError(absl::StrCat("chat_template: \"", part,
                                              "\" is not in it; only the templates of GLM-4.5, "
                                              "4.6 and 4.7 are supported"));
    }
  }
  // Each of the two has a switch that the other does not know.
  const bool is_45 = chat_template.find(kNoThink) != std::string::npos;
  const bool is_47 = chat_template.find("clear_thinking") != std::string::npos;
  if (is_45 == is_47) {
    return absl::NotFoundError(
        absl::StrCat("chat_template: ", is_45 ? "both" : "neither of",
                     " \"/nothink\" (GLM-4.5, 4.6) and \"clear_thinking\" (GLM-4.7) in it"));
  }
  return is_45 ? ChatDialect::kGlm45 : ChatDialect::kGlm47;
}

std::string RenderChat(const Chat& chat, ChatDialect dialect) {
  return Renderer(chat, dialect).Render();
}

AnswerStart StartOfAnswer(const Chat& chat, ChatDialect dialect) {
  if (!chat.add_generation_prompt) return AnswerStart::kPlain;
  if (!chat.enable_thinking) return AnswerStart::kContent;
  return dialect == ChatDialect::kGlm45 ? AnswerStart::kUndecided : AnswerStart::kReasoning;
}

}  // namespace glm::router
