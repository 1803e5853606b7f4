#include "router/text/tokenizer_json.h"

#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"

namespace glm::router {
namespace {

// Not the ordered kind: that one searches all earlier keys for each key it adds.
using Tree = nlohmann::json;

absl::Status Wrong(absl::string_view field, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("tokenizer.json: ", field, ": ", what));
}

std::string Shown(const Tree& value) {
  constexpr size_t kShownBytesMax = 100;
  const std::string text = value.dump(-1, ' ', true, Tree::error_handler_t::replace);
  return text.size() <= kShownBytesMax ? text : absl::StrCat(text.substr(0, kShownBytesMax), "…");
}

// The member, or null when it is absent.
const Tree& Member(const Tree& object, const char* key) {
  static const Tree kNull;
  if (!object.is_object()) return kNull;
  const auto found = object.find(key);
  return found == object.end() ? kNull : *found;
}

// Refuses any value but those of `allowed`; an absent member counts as null.
absl::Status Expect(const Tree& object, const std::string& where, const char* key,
                    const std::vector<Tree>& allowed) {
  const Tree& value = Member(object, key);
  for (const Tree& one : allowed) {
    if (value == one) return absl::OkStatus();
  }
  return Wrong(absl::StrCat(where, key),
               absl::StrCat(Shown(value), " is not supported, only ", Shown(allowed.front())));
}

absl::Status ReadSplit(const Tree& split, TokenizerJson* out) {
  const std::string where = "pre_tokenizer.pretokenizers[0].";
  if (absl::Status s = Expect(split, where, "type", {"Split"}); !s.ok()) return s;
  const Tree& pattern = Member(Member(split, "pattern"), "Regex");
  if (!pattern.is_string()) {
    return Wrong(where + "pattern", "must be {\"Regex\": string}");
  }
  out->split_pattern = pattern.get<std::string>();
  const Tree& behavior = Member(split, "behavior");
  const Tree& invert = Member(split, "invert");
  if (behavior == "Isolated" && (invert == false || invert.is_null())) {
    out->split_gaps = Split::Gaps::kKeep;
  } else if (behavior == "Removed" && invert == true) {
    out->split_gaps = Split::Gaps::kDrop;
  } else {
    return Wrong(where + "behavior",
                 absl::StrCat(Shown(behavior), " with invert ", Shown(invert),
                              " is not supported, only \"Isolated\" with false, or \"Removed\" "
                              "with true"));
  }
  return absl::OkStatus();
}

absl::Status ReadPreTokenizer(const Tree& root, TokenizerJson* out) {
  const Tree& sequence = Member(root, "pre_tokenizer");
  const Tree& parts = Member(sequence, "pretokenizers");
  if (Member(sequence, "type") != "Sequence" || !parts.is_array() || parts.size() != 2) {
    return Wrong("pre_tokenizer", "only a Sequence of Split and ByteLevel is supported");
  }
  if (absl::Status s = ReadSplit(parts[0], out); !s.ok()) return s;
  const std::string where = "pre_tokenizer.pretokenizers[1].";
  if (absl::Status s = Expect(parts[1], where, "type", {"ByteLevel"}); !s.ok()) return s;
  if (absl::Status s = Expect(parts[1], where, "add_prefix_space", {false}); !s.ok()) return s;
  return Expect(parts[1], where, "use_regex", {false});
}

// The parts around the model that must not do anything to the ids or the text.
absl::Status CheckSurroundings(const Tree& root) {
  if (absl::Status s = Expect(root, "", "normalizer", {nullptr}); !s.ok()) return s;
  const Tree& post = Member(root, "post_processor");
  if (!post.is_null()) {
    if (absl::Status s = Expect(post, "post_processor.", "type", {"ByteLevel"}); !s.ok()) return s;
  }
  return Expect(Member(root, "decoder"), "decoder.", "type", {"ByteLevel"});
}

absl::Status ReadMerges(const Tree& merges, TokenizerJson* out) {
  if (!merges.is_array()) return Wrong("model.merges", "must be a list");
  out->merges.reserve(merges.size());
  for (const Tree& merge : merges) {
    if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
      out->merges.push_back({merge[0].get<std::string>(), merge[1].get<std::string>()});
      continue;
    }
    const std::string text = merge.is_string() ? merge.get<std::string>() : "";
    const size_t blank = text.find(' ');
    if (blank == std::string::npos || text.find(' ', blank + 1) != std::string::npos) {
      return Wrong(absl::StrCat("model.merges[", out->merges.size(), "]"),
                   absl::StrCat(Shown(merge), " is neither \"a b\" nor [\"a\", \"b\"]"));
    }
    out->merges.push_back({text.substr(0, blank), text.substr(blank + 1)});
  }
  return absl::OkStatus();
}

absl::StatusOr<int32_t> ReadId(const Tree& value, const std::string& field) {
  if (!value.is_number_integer() || value < 0 || value > TokenizerJson::kIdMax) {
    return Wrong(field,
                 absl::StrCat(Shown(value), " is not an id from 0 to ", TokenizerJson::kIdMax));
  }
  return value.get<int32_t>();
}

absl::Status ReadModel(const Tree& model, TokenizerJson* out) {
  if (!model.is_object()) return Wrong("model", "must be an object");
  for (const auto& [key, allowed] : std::vector<std::pair<const char*, std::vector<Tree>>>{
           {"type", {"BPE", nullptr}},
           {"dropout", {nullptr, 0.0}},
           {"continuing_subword_prefix", {nullptr, ""}},
           {"end_of_word_suffix", {nullptr, ""}},
           {"byte_fallback", {false, nullptr}},
           {"ignore_merges", {false, true, nullptr}},
       }) {
    if (absl::Status s = Expect(model, "model.", key, allowed); !s.ok()) return s;
  }
  out->ignore_merges = Member(model, "ignore_merges") == true;
  const Tree& vocabulary = Member(model, "vocab");
  if (!vocabulary.is_object()) return Wrong("model.vocab", "must be an object");
  absl::flat_hash_set<int32_t> ids;
  for (const auto& [content, id] : vocabulary.items()) {
    const std::string field = absl::StrCat("model.vocab[", Shown(content), "]");
    const absl::StatusOr<int32_t> value = ReadId(id, field);
    if (!value.ok()) return value.status();
    if (!ids.insert(*value).second) {
      return Wrong(field, absl::StrCat("another token has the id ", *value, " too"));
    }
    out->vocabulary.push_back({content, *value});
  }
  return ReadMerges(Member(model, "merges"), out);
}

absl::Status ReadAddedTokens(const Tree& tokens, TokenizerJson* out) {
  if (tokens.is_null()) return absl::OkStatus();
  if (!tokens.is_array()) return Wrong("added_tokens", "must be a list");
  for (const Tree& token : tokens) {
    const std::string where = absl::StrCat("added_tokens[", out->added.size(), "].");
    for (const char* key : {"single_word", "lstrip", "rstrip"}) {
      if (absl::Status s = Expect(token, where, key, {false, nullptr}); !s.ok()) return s;
    }
    for (const char* key : {"special", "normalized"}) {
      if (absl::Status s = Expect(token, where, key, {false, true}); !s.ok()) return s;
    }
    const Tree& content = Member(token, "content");
    if (!content.is_string() || content == "") {
      return Wrong(where + "content", absl::StrCat(Shown(content), " is not a text"));
    }
    const absl::StatusOr<int32_t> id = ReadId(Member(token, "id"), where + "id");
    if (!id.ok()) return id.status();
    out->added.push_back({content.get<std::string>(), *id, Member(token, "special") == true,
                          Member(token, "normalized") == true});
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<TokenizerJson> ParseTokenizerJson(std::string_view json) {
  if (static_cast<int64_t>(json.size()) > TokenizerJson::kBytesMax) {
    return absl::InvalidArgumentError(absl::StrCat("tokenizer.json: ", json.size(),
                                                   " bytes, at most ", TokenizerJson::kBytesMax));
  }
  Tree root;
  try {
    root = Tree::parse(json);
  } catch (const Tree::exception& error) {
    return absl::InvalidArgumentError(absl::StrCat("tokenizer.json: ", error.what()));
  }
  TokenizerJson out;
  if (absl::Status s = CheckSurroundings(root); !s.ok()) return s;
  if (absl::Status s = ReadPreTokenizer(root, &out); !s.ok()) return s;
  if (absl::Status s = ReadModel(Member(root, "model"), &out); !s.ok()) return s;
  if (absl::Status s = ReadAddedTokens(Member(root, "added_tokens"), &out); !s.ok()) return s;
  return out;
}

}  // namespace glm::router
