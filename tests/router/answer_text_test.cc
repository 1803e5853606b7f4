#include "router/text/answer_text.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "tests/router/golden_text.h"

namespace glm::router {
namespace {

struct Answer {
  std::string reasoning;
  std::string content;
  bool stopped = false;
  bool operator==(const Answer&) const = default;
};

void PrintTo(const Answer& answer, std::ostream* out) {
  *out << "reasoning \"" << answer.reasoning << "\", content \"" << answer.content << "\""
       << (answer.stopped ? ", stopped" : "");
}

class AnswerTextTest : public testing::Test {
 protected:
  static std::vector<int32_t> Ids(const TextModel& model, std::string_view text) {
    return *model.EncodePrompt(text);
  }

  // Feeds the ids in groups of random size, up to `group_max`.
  static Answer Run(const TextModel& model, AnswerTextOptions options,
                    const std::vector<int32_t>& ids, size_t group_max, uint32_t seed) {
    std::mt19937 rng(seed);
    AnswerText text(&model, std::move(options));
    Answer answer;
    const auto take = [&answer](const AnswerText::Delta& delta) {
      answer.reasoning += delta.reasoning;
      answer.content += delta.content;
      answer.stopped = delta.stopped;
    };
    for (size_t i = 0; i < ids.size();) {
      const size_t count = std::min(ids.size() - i, 1 + rng() % group_max);
      take(text.Feed(absl::MakeConstSpan(ids).subspan(i, count)));
      i += count;
    }
    take(text.Finish());
    EXPECT_EQ(answer.stopped, text.stopped());
    return answer;
  }

  static Answer Run(const TextModel& model, AnswerTextOptions options, std::string_view text) {
    const std::vector<int32_t> ids = Ids(model, text);
    const Answer one_by_one = Run(model, options, ids, 1, 0);
    EXPECT_EQ(Run(model, options, ids, 1000, 0), one_by_one) << text;
    return one_by_one;
  }

  const std::unique_ptr<const TextModel> model_45_ = GoldenModel(ChatDialect::kGlm45);
  const std::unique_ptr<const TextModel> model_47_ = GoldenModel(ChatDialect::kGlm47);
};

TEST_F(AnswerTextTest, ReasoningThenContent) {
  EXPECT_EQ(Run(*model_45_, {.start = AnswerStart::kUndecided},
                "\n<think>Grüße 😀\n</think>\nHello!<|user|>"),
            (Answer{"Grüße 😀", "Hello!"}));
  EXPECT_EQ(Run(*model_47_, {.start = AnswerStart::kReasoning}, "Grüße</think>Hello!<|user|>"),
            (Answer{"Grüße", "Hello!"}));
  EXPECT_EQ(Run(*model_47_, {.start = AnswerStart::kContent}, "Hello!<|observation|>"),
            (Answer{"", "Hello!"}));
}

TEST_F(AnswerTextTest, ToolCallsStayInTheContent) {
  const std::string call = "<tool_call>f<arg_key>k</arg_key><arg_value>v</arg_value></tool_call>";
  EXPECT_EQ(Run(*model_47_, {.start = AnswerStart::kReasoning}, "R</think>C" + call),
            (Answer{"R", "C" + call}));
  EXPECT_EQ(Run(*model_47_, {.start = AnswerStart::kReasoning}, "R" + call), (Answer{"R", call}));
}

TEST_F(AnswerTextTest, PlainTextKeepsTags) {
  EXPECT_EQ(Run(*model_45_, {}, "\n<think>a</think>\nb"), (Answer{"", "\n<think>a</think>\nb"}));
}

TEST_F(AnswerTextTest, StopStrings) {
  const AnswerStart kReasoning = AnswerStart::kReasoning;
  EXPECT_EQ(Run(*model_47_, {kReasoning, {"END"}}, "R</think>some text END more"),
            (Answer{"R", "some text ", true}));
  EXPECT_EQ(Run(*model_47_, {kReasoning, {"END"}}, "reason END</think>C"),
            (Answer{"reason ", "", true}));
  // What is held back for a stop string that begins before a tag keeps its side of it.
  EXPECT_EQ(Run(*model_47_, {kReasoning, {"END"}}, "R EN</think>END"), (Answer{"R EN", "", true}));
  EXPECT_EQ(Run(*model_47_, {kReasoning, {"N</think>C!"}}, "R EN</think>C?"),
            (Answer{"R EN", "C?"}));
  EXPECT_EQ(Run(*model_47_, {kReasoning, {"</think>"}}, "R</think>C"), (Answer{"R", "", true}));
  EXPECT_EQ(Run(*model_47_, {kReasoning, {"think"}}, "R</think>C"), (Answer{"R</", "", true}));
}

TEST_F(AnswerTextTest, NothingComesAfterAStopString) {
  AnswerText text(model_47_.get(), {AnswerStart::kContent, {"STOP"}});
  AnswerText::Delta delta = text.Feed(Ids(*model_47_, "a STOP b"));
  EXPECT_TRUE(delta.stopped);
  EXPECT_EQ(delta.content, "a ");
  EXPECT_EQ(text.stop(), "STOP");
  delta = text.Feed(Ids(*model_47_, "c"));
  EXPECT_TRUE(delta.stopped);
  EXPECT_EQ(delta.content, "");
  EXPECT_EQ(text.Finish().content, "");
}

TEST_F(AnswerTextTest, HalfACharacterBeforeATagIsItsSides) {
  const Tokenizer& tokenizer = model_47_->tokenizer();
  std::vector<int32_t> ids = Ids(*model_47_, "R\xf0\x9f");
  ids.push_back(*tokenizer.FindToken("</think>"));
  for (const int32_t id : Ids(*model_47_, "C\xe2")) ids.push_back(id);
  const Answer expected = {"R\uFFFD", "C\uFFFD"};
  EXPECT_EQ(Run(*model_47_, {.start = AnswerStart::kReasoning}, ids, 1, 0), expected);
  EXPECT_EQ(Run(*model_47_, {.start = AnswerStart::kReasoning}, ids, 100, 0), expected);
}

TEST_F(AnswerTextTest, AnyIdsInAnyGroupsGiveTheSame) {
  std::mt19937 rng(21);
  const TagIds& tags = model_45_->tags();
  const std::vector<int32_t> likely = {tags.think, tags.think_end, tags.tool_call,
                                       (*model_45_->EncodePrompt("\n"))[0],
                                       (*model_45_->EncodePrompt("a"))[0]};
  for (int round = 0; round < 300; ++round) {
    const TextModel& model = rng() % 2 == 0 ? *model_45_ : *model_47_;
    std::vector<int32_t> ids(rng() % 40);
    for (int32_t& id : ids) {
      id = rng() % 2 == 0 ? likely[rng() % likely.size()] : static_cast<int32_t>(rng() % 3050);
    }
    AnswerTextOptions options;
    options.start = static_cast<AnswerStart>(rng() % 4);
    options.skip_special_tokens = rng() % 2 == 0;
    if (rng() % 2 == 0) options.stop = {"a\n", "\n\n<think>", "</think>a"};
    const Answer expected = Run(model, options, ids, 1, 0);
    EXPECT_EQ(Run(model, options, ids, 4, round), expected);
    EXPECT_EQ(Run(model, options, ids, 1000, round), expected);
  }
}

TEST_F(AnswerTextTest, PlainEqualsTheWholeDecoding) {
  std::mt19937 rng(22);
  for (int round = 0; round < 100; ++round) {
    std::vector<int32_t> ids(rng() % 40);
    for (int32_t& id : ids) id = static_cast<int32_t>(rng() % 3050);
    EXPECT_EQ(Run(*model_45_, {}, ids, 5, round), (Answer{"", model_45_->Decode(ids)}));
  }
}

}  // namespace
}  // namespace glm::router
