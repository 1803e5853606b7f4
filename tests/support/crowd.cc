#include "tests/support/crowd.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "tests/support/cluster.h"

namespace glm::tests {
namespace {

void TakeLogprobs(const nlohmann::json& logprobs, CrowdChoice* choice) {
  if (!logprobs.is_object()) return;
  if (logprobs.contains("content")) {  // a chat's
    for (const nlohmann::json& token : logprobs["content"]) {
      choice->tokens.push_back(token["token"].get<std::string>());
      choice->logprobs.push_back(token["logprob"].get<double>());
    }
    return;
  }
  for (const nlohmann::json& token : logprobs["tokens"]) {
    choice->tokens.push_back(token.get<std::string>());
  }
  for (const nlohmann::json& logprob : logprobs["token_logprobs"]) {
    choice->logprobs.push_back(logprob.get<double>());
  }
}

std::string TextAt(const nlohmann::json& object, const char* field) {
  return object.contains(field) && object[field].is_string() ? object[field].get<std::string>()
                                                             : "";
}

void TakeEvent(const std::string& event, CrowdAnswer* answer) {
  const nlohmann::json chunk = nlohmann::json::parse(event, nullptr, /*allow_exceptions=*/false);
  if (!chunk.is_object() || !chunk.contains("choices")) {
    answer->error = event;
    return;
  }
  for (const nlohmann::json& part : chunk["choices"]) {
    const size_t index = part["index"].get<size_t>();
    if (answer->choices.size() <= index) answer->choices.resize(index + 1);
    CrowdChoice& choice = answer->choices[index];
    choice.text += TextAt(part, "text");
    if (part.contains("delta")) {
      choice.text += TextAt(part["delta"], "content");
      choice.reasoning += TextAt(part["delta"], "reasoning_content");
    }
    choice.finish += TextAt(part, "finish_reason");
    if (part.contains("logprobs")) TakeLogprobs(part["logprobs"], &choice);
  }
}

}  // namespace

Crowd::Crowd(int port, const std::string& target, std::vector<std::string> bodies)
    : answers_(bodies.size()) {
  for (size_t i = 0; i < bodies.size(); ++i) {
    threads_.emplace_back([this, port, target, body = std::move(bodies[i]), answer = &answers_[i]] {
      Ask(port, target, body, answer);
    });
  }
}

Crowd::~Crowd() { Await(); }

void Crowd::Ask(int port, const std::string& target, const std::string& body, CrowdAnswer* answer) {
  double last = MonotonicSeconds();
  EventStream stream(port, target, body);
  while (true) {
    const std::string event = stream.Next();
    if (event.empty()) return;
    const double now = MonotonicSeconds();
    answer->gap_max_s = std::max(answer->gap_max_s, now - last);
    last = now;
    if (event == "[DONE]") {
      answer->is_whole = true;
      return;
    }
    TakeEvent(event, answer);
    ++answer->events;
    ++events_;
  }
}

bool Crowd::AwaitEvents(int64_t count, double seconds) const {
  return Eventually(seconds, [&] { return events_ >= count; });
}

std::vector<CrowdAnswer> Crowd::Await() {
  for (std::thread& thread : threads_) {
    if (thread.joinable()) thread.join();
  }
  return answers_;
}

void ExpectSameAnswers(const std::vector<CrowdAnswer>& right,
                       const std::vector<CrowdAnswer>& answers) {
  ASSERT_EQ(answers.size(), right.size());
  int failed = 0;
  for (size_t i = 0; i < answers.size(); ++i) {
    if (!answers[i].is_whole || !answers[i].error.empty()) {
      ++failed;
      ADD_FAILURE() << "answer " << i << " broke off after " << answers[i].events
                    << " events: " << answers[i].error;
      continue;
    }
    ASSERT_EQ(answers[i].choices.size(), right[i].choices.size()) << i;
    for (size_t c = 0; c < right[i].choices.size(); ++c) {
      const CrowdChoice& got = answers[i].choices[c];
      const CrowdChoice& want = right[i].choices[c];
      EXPECT_EQ(got.text, want.text) << "answer " << i << ", choice " << c;
      EXPECT_EQ(got.reasoning, want.reasoning) << "answer " << i << ", choice " << c;
      EXPECT_EQ(got.finish, want.finish) << "answer " << i << ", choice " << c;
      EXPECT_EQ(got.tokens, want.tokens) << "answer " << i << ", choice " << c;
      ASSERT_EQ(got.logprobs.size(), want.logprobs.size()) << "answer " << i << ", choice " << c;
      for (size_t t = 0; t < want.logprobs.size(); ++t) {
        ASSERT_NEAR(got.logprobs[t], want.logprobs[t], 1e-3) << i << ", " << c << ", " << t;
      }
    }
  }
  EXPECT_EQ(failed, 0) << "of " << answers.size() << " answers";
}

double GapMax(const std::vector<CrowdAnswer>& answers) {
  double gap = 0;
  for (const CrowdAnswer& answer : answers) gap = std::max(gap, answer.gap_max_s);
  return gap;
}

}  // namespace glm::tests
