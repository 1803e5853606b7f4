#include "router/text/tokenizer_json.h"

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

TEST(TokenizerJsonTest, ReadsTheFile) {
  const absl::StatusOr<TokenizerJson> parts =
      ParseTokenizerJson(ReadGolden("tokenizer/tokenizer.json"));
  ASSERT_TRUE(parts.ok()) << parts.status();
  EXPECT_TRUE(parts->ignore_merges);
  EXPECT_EQ(parts->split_gaps, Split::Gaps::kKeep);
  EXPECT_EQ(parts->vocabulary.size(), 3000u);
  EXPECT_GT(parts->merges.size(), 2000u);
  ASSERT_EQ(parts->added.size(), 36u);
  EXPECT_EQ(parts->added[7].content, "<|user|>");
  EXPECT_EQ(parts->added[7].id, 3007);
  EXPECT_TRUE(parts->added[7].special);
  EXPECT_FALSE(parts->added[21].special);
}

TEST(TokenizerJsonTest, RefusesByName) {
  struct Case {
    const char* path;
    json value;
    const char* words;
  };
  const std::vector<Case> cases = {
      {"/normalizer", {{"type", "NFC"}}, "normalizer: {\"type\":\"NFC\"}"},
      {"/pre_tokenizer", nullptr, "pre_tokenizer: only"},
      {"/pre_tokenizer/type", "Whitespace", "pre_tokenizer: only"},
      {"/pre_tokenizer/pretokenizers/0/type", "Digits", "pretokenizers[0].type: \"Digits\""},
      {"/pre_tokenizer/pretokenizers/0/pattern", {{"String", " "}}, "[0].pattern"},
      {"/pre_tokenizer/pretokenizers/0/behavior", "MergedWithNext", "behavior: \"MergedWithNext\""},
      {"/pre_tokenizer/pretokenizers/0/invert", true, "with invert true"},
      {"/pre_tokenizer/pretokenizers/1/add_prefix_space", true, "[1].add_prefix_space: true"},
      {"/pre_tokenizer/pretokenizers/1/use_regex", true, "[1].use_regex: true"},
      {"/post_processor", {{"type", "TemplateProcessing"}}, "post_processor.type"},
      {"/decoder", nullptr, "decoder.type: null"},
      {"/decoder/type", "WordPiece", "decoder.type: \"WordPiece\""},
      {"/model", 7, "model: must be an object"},
      {"/model/type", "Unigram", "model.type: \"Unigram\""},
      {"/model/dropout", 0.1, "model.dropout: 0.1"},
      {"/model/byte_fallback", true, "model.byte_fallback: true"},
      {"/model/continuing_subword_prefix", "##", "model.continuing_subword_prefix"},
      {"/model/end_of_word_suffix", "</w>", "model.end_of_word_suffix"},
      {"/model/ignore_merges", "yes", "model.ignore_merges: \"yes\""},
      {"/model/vocab", json::array(), "model.vocab: must be an object"},
      {"/model/vocab/a", -1, "model.vocab[\"a\"]: -1"},
      {"/model/vocab/a", 1.5, "model.vocab[\"a\"]: 1.5"},
      {"/model/vocab/a", 1 << 22, "4194304 is not an id from 0 to 4194303"},
      {"/model/vocab/a", 0, "has the id 0 too"},
      {"/model/merges", nullptr, "model.merges: must be a list"},
      {"/model/merges/0", "abc", "model.merges[0]: \"abc\""},
      {"/model/merges/0", "a b c", "model.merges[0]: \"a b c\""},
      {"/model/merges/0", {"a", 1}, "model.merges[0]"},
      {"/added_tokens", 3, "added_tokens: must be a list"},
      {"/added_tokens/1/lstrip", true, "added_tokens[1].lstrip: true"},
      {"/added_tokens/1/rstrip", true, "added_tokens[1].rstrip: true"},
      {"/added_tokens/1/single_word", true, "added_tokens[1].single_word: true"},
      {"/added_tokens/1/special", 1, "added_tokens[1].special: 1"},
      {"/added_tokens/1/content", "", "added_tokens[1].content: \"\""},
      {"/added_tokens/1/id", "x", "added_tokens[1].id: \"x\""},
  };
  json good = json::parse(ReadGolden("tokenizer/tokenizer.json"));
  good["model"]["vocab"] = {{"!", 0}, {"a", 1}};  // small, to be quick
  good["model"]["merges"] = json::array({json::array({"a", "!"})});
  ASSERT_TRUE(ParseTokenizerJson(good.dump()).ok());
  for (const Case& c : cases) {
    json tree = good;
    tree[json::json_pointer(c.path)] = c.value;
    const absl::StatusOr<TokenizerJson> parts = ParseTokenizerJson(tree.dump());
    EXPECT_EQ(parts.status().code(), absl::StatusCode::kInvalidArgument) << c.path;
    EXPECT_THAT(std::string(parts.status().message()), HasSubstr(c.words)) << c.path;
  }
}

TEST(TokenizerJsonTest, RefusesWhatIsNoJson) {
  for (const char* text : {"", "{", "[1,2", "nonsense", "{\"model\": \"\xff\"}"}) {
    EXPECT_EQ(ParseTokenizerJson(text).status().code(), absl::StatusCode::kInvalidArgument) << text;
  }
  EXPECT_FALSE(ParseTokenizerJson("[]").ok());
  EXPECT_FALSE(ParseTokenizerJson("null").ok());
}

}  // namespace
}  // namespace glm::router
