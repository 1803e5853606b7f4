#include "router/text/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "nlohmann/json.hpp"
#include "router/text/utf8.h"
#include "tests/router/golden_text.h"

namespace glm::router {
namespace {

using nlohmann::json;
using testing::HasSubstr;
using testing::IsEmpty;

std::unique_ptr<const Tokenizer> FromTree(const json& tree) {
  absl::StatusOr<std::unique_ptr<const Tokenizer>> tokenizer = Tokenizer::FromJson(tree.dump());
  CHECK(tokenizer.ok()) << tokenizer.status().ToString();
  return *std::move(tokenizer);
}

std::vector<int32_t> Encode(const Tokenizer& tokenizer, std::string_view text,
                            Tokenizer::AddedInText added = Tokenizer::AddedInText::kParse) {
  absl::StatusOr<std::vector<int32_t>> ids = tokenizer.Encode(text, added);
  EXPECT_TRUE(ids.ok()) << ids.status();
  return ids.ok() ? *std::move(ids) : std::vector<int32_t>();
}

// The ids that Hugging Face's tokenizers gives, for the tokenizer and for each variant of it.
TEST(TokenizerTest, EncodesAsTheGoldenFile) {
  const json golden = json::parse(ReadGolden("tokenizer_cases.json"));
  const json file = json::parse(ReadGolden("tokenizer/tokenizer.json"));
  std::map<std::string, int> differing;
  for (const auto& [name, patch] : golden["variants"].items()) {
    const std::unique_ptr<const Tokenizer> tokenizer = FromTree(file.patch(patch));
    for (const json& one : golden["encodings"]) {
      const std::string text = one["text"].get<std::string>();
      const bool differs = one["variants"].contains(name);
      differing[name] += differs;
      const json& ids = differs ? one["variants"][name] : one["ids"];
      EXPECT_EQ(Encode(*tokenizer, text), ids.get<std::vector<int32_t>>()) << name << ": " << text;
    }
  }
  EXPECT_GE(golden["encodings"].size(), 250u);
  // Each variant is there because it matters.
  for (const char* name : {"merged", "plain", "two_passes", "removed"}) {
    EXPECT_GE(differing[name], 5) << name;
  }
}

TEST(TokenizerTest, DecodesAsTheGoldenFile) {
  const std::unique_ptr<const Tokenizer> tokenizer = GoldenTokenizer();
  const json golden = json::parse(ReadGolden("tokenizer_cases.json"));
  EXPECT_GE(golden["decodings"].size(), 100u);
  for (const json& one : golden["decodings"]) {
    const std::vector<int32_t> ids = one["ids"].get<std::vector<int32_t>>();
    EXPECT_EQ(tokenizer->Decode(ids, false), one["text"].get<std::string>()) << one["ids"];
    EXPECT_EQ(tokenizer->Decode(ids, true), one["text_skip"].get<std::string>()) << one["ids"];
  }
}

TEST(TokenizerTest, TextWithAddedTokensIgnoredIsOrdinaryText) {
  const std::unique_ptr<const Tokenizer> tokenizer = GoldenTokenizer();
  const json golden = json::parse(ReadGolden("tokenizer_cases.json"));
  for (const json& one : golden["encodings"]) {
    const json& ids = one["variants"].contains("plain") ? one["variants"]["plain"] : one["ids"];
    EXPECT_EQ(Encode(*tokenizer, one["text"].get<std::string>(), Tokenizer::AddedInText::kIgnore),
              ids.get<std::vector<int32_t>>())
        << one["text"];
  }
}

TEST(TokenizerTest, ReadsMergesInBothForms) {
  json tree = json::parse(ReadGolden("tokenizer/tokenizer.json"));
  const std::unique_ptr<const Tokenizer> pairs = FromTree(tree);
  for (json& merge : tree["model"]["merges"]) {
    merge = merge[0].get<std::string>() + " " + merge[1].get<std::string>();
  }
  const std::unique_ptr<const Tokenizer> texts = FromTree(tree);
  const std::string text = "The quick brown fox isn't 12345 лет 狐狸";
  EXPECT_EQ(Encode(*texts, text), Encode(*pairs, text));
}

TEST(TokenizerTest, TokensById) {
  const std::unique_ptr<const Tokenizer> tokenizer = GoldenTokenizer();
  EXPECT_EQ(tokenizer->vocabulary(), 3036);
  const std::optional<int32_t> user = tokenizer->FindToken("<|user|>");
  ASSERT_EQ(user, 3007);
  EXPECT_EQ(tokenizer->TokenBytes(*user), "<|user|>");
  EXPECT_TRUE(tokenizer->IsSpecial(*user));
  const std::optional<int32_t> think = tokenizer->FindToken("<think>");
  ASSERT_EQ(think, 3021);
  EXPECT_FALSE(tokenizer->IsSpecial(*think));
  EXPECT_EQ(tokenizer->FindToken("no such token"), std::nullopt);
  for (const int32_t id : {-1, 3036, 1 << 30}) {
    EXPECT_EQ(tokenizer->TokenBytes(id), "");
    EXPECT_FALSE(tokenizer->IsSpecial(id));
  }
}

TEST(TokenizerTest, AnyBytesComeBack) {
  const std::unique_ptr<const Tokenizer> tokenizer = GoldenTokenizer();
  std::mt19937 rng(3);
  for (int round = 0; round < 300; ++round) {
    std::string bytes;
    for (int i = static_cast<int>(rng() % 80); i > 0; --i) {
      bytes += rng() % 2 == 0 ? static_cast<char>(rng()) : "e\n <th"[rng() % 6];
    }
    std::string joined;
    for (const int32_t id : Encode(*tokenizer, bytes)) joined += tokenizer->TokenBytes(id);
    EXPECT_EQ(joined, bytes);
  }
}

TEST(TokenizerTest, MegabyteWords) {
  const std::unique_ptr<const Tokenizer> tokenizer = GoldenTokenizer();
  std::mt19937 rng(4);
  std::string word(1 << 20, 'a');
  for (const bool mixed : {false, true}) {
    if (mixed) {
      for (char& c : word) c = static_cast<char>('a' + rng() % 26);
    }
    const std::vector<int32_t> ids = Encode(*tokenizer, word);
    EXPECT_LE(ids.size(), word.size());
    EXPECT_EQ(tokenizer->Decode(ids, false), word);
  }
}

TEST(TokenizerTest, EncodesFromManyThreads) {
  const std::unique_ptr<const Tokenizer> tokenizer = GoldenTokenizer();
  std::string text;
  for (int i = 0; i < 200; ++i)
    text += "It's <|user|> number " + std::to_string(i * i) + ", Köln\n";
  const std::vector<int32_t> expected = Encode(*tokenizer, text);
  std::vector<std::vector<int32_t>> results(4);
  std::vector<std::thread> threads;
  for (std::vector<int32_t>& result : results) {
    threads.emplace_back([&] { result = *tokenizer->Encode(text); });
  }
  for (std::thread& thread : threads) thread.join();
  for (const std::vector<int32_t>& result : results) EXPECT_EQ(result, expected);
}

TEST(TokenizerTest, RefusesWhatDoesNotFitTogether) {
  struct Case {
    json patch;
    const char* words;
  };
  const json file = json::parse(ReadGolden("tokenizer/tokenizer.json"));
  const std::vector<Case> cases = {
      {R"([{"op": "remove", "path": "/model/vocab/a"}])"_json, "no token for the byte 97"},
      {R"([{"op": "replace", "path": "/model/merges/3", "value": ["a", "no"]}])"_json,
       "model.merges[3]: \"a\", \"no\""},
      {R"([{"op": "replace", "path": "/added_tokens/2/id", "value": 5}])"_json,
       "\"[gMASK]\" has the id 5"},
      {R"([{"op": "replace", "path": "/added_tokens/2/content", "value": "a"}])"_json,
       "\"a\" has the id 3002"},
      {R"([{"op": "replace", "path": "/pre_tokenizer/pretokenizers/0/pattern",
            "value": {"Regex": "(a"}}])"_json,
       "pre_tokenizer: pattern"},
  };
  for (const Case& c : cases) {
    const absl::Status status = Tokenizer::FromJson(file.patch(c.patch).dump()).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << c.patch;
    EXPECT_THAT(std::string(status.message()), HasSubstr(c.words));
  }
}

TEST(TokenizerTest, AddedTokenThatTheVocabularyHas) {
  // As in files whose special tokens are entries of the vocabulary too.
  json tree = json::parse(ReadGolden("tokenizer/tokenizer.json"));
  tree["model"]["vocab"]["<|user|>"] = 3007;
  const std::unique_ptr<const Tokenizer> tokenizer = FromTree(tree);
  EXPECT_EQ(Encode(*tokenizer, "<|user|>"), std::vector<int32_t>{3007});
  EXPECT_TRUE(tokenizer->IsSpecial(3007));
  EXPECT_THAT(Encode(*tokenizer, ""), IsEmpty());
}

}  // namespace
}  // namespace glm::router
