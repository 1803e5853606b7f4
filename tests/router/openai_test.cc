// The whole gateway: HTTP in front, a scripted worker behind.
#include "router/front/openai.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <future>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "router/admit/admission.h"
#include "router/fleet/fleet.h"
#include "router/fleet/grpc_stream.h"
#include "router/front/http.h"
#include "router/front/openai_answer.h"
#include "router/route/placement.h"
#include "tests/router/golden_text.h"
#include "tests/router/http_client.h"
#include "tests/support/fake_worker.h"

namespace glm::router {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

constexpr char kUserTurn[] = R"("messages":[{"role":"user","content":"hello"}])";
constexpr int32_t kEndOfTurn = 3000;

class OpenAiTest : public testing::Test {
 protected:
  OpenAiTest() : model_(GoldenModel(ChatDialect::kGlm47)) {
    thought_ids_ = *model_->EncodePrompt("I think");
    answer_ids_ = *model_->EncodePrompt("The quick brown fox");
    worker_options_.vocabulary = 4000;
    worker_options_.length_max = 256;
    worker_options_.eos_ids = {kEndOfTurn};
    worker_options_.cached_tokens = 2;
    worker_options_.next_token = Script();
    exchange_options_.worker_wait_ms = 0;
    exchange_options_.attempts_max = 1;
  }

  ~OpenAiTest() override {
    server_.reset();
    front_.reset();
    fleet_.reset();
    admission_.reset();
  }

  /// After "<think>" the thought, "</think>" and the answer; after anything else the answer.
  std::function<int32_t(const std::vector<int32_t>&)> Script() const {
    std::map<int32_t, int32_t> next;
    int32_t last = model_->tags().think;
    const auto chain = [&](const std::vector<int32_t>& ids) {
      for (const int32_t id : ids) {
        CHECK(next.emplace(last, id).second) << "the script comes to " << last << " twice";
        last = id;
      }
    };
    chain(thought_ids_);
    chain({model_->tags().think_end});
    chain(answer_ids_);
    chain({kEndOfTurn});
    return [next, first = answer_ids_[0]](const std::vector<int32_t>& ids) {
      const auto found = next.find(ids.back());
      return found == next.end() ? first : found->second;
    };
  }

  void StartAll() {
    worker_ = FakeWorker::Start(worker_options_);
    StartFront();
    StartFleet();
  }

  void StartFront() {
    const int32_t port = worker_ == nullptr ? 1 : worker_->port();
    FleetOptions options = fleet_options_;
    options.hang_timeout_ms = 600'000;  // workers that are stepped by hand
    options.workers = {absl::StrCat("127.0.0.1:", port)};
    admission_ = std::make_unique<Admission>(
        admit_options_, *ParseHashKey(""),
        AdmissionRooms{.loop = &loops_.at(0), .metrics = &metrics_, .room = [this] {
                         return fleet_->Room();
                       }});
    fleet_ = std::make_unique<Fleet>(options, WorkerDemand{"tiny", 3000},
                                     FleetRooms{.loops = loops_.all(),
                                                .index = &placement_.index(),
                                                .metrics = &metrics_,
                                                .dial = DialOverGrpc(options),
                                                .on_room = [this] { admission_->RoomChanged(); }},
                                     [this](const FleetSnapshot& snapshot) {
                                       if (snapshot.ready > 0 && !was_ready_) {
                                         was_ready_ = true;
                                         ready_.set_value();
                                       }
                                     });
    ExchangeRooms rooms;
    rooms.fleet = fleet_.get();
    rooms.admission = admission_.get();
    rooms.placement = &placement_;
    rooms.text = model_.get();
    rooms.metrics = &metrics_;
    rooms.model_name = "tiny";
    rooms.options = exchange_options_;
    front_ = std::make_unique<OpenAiFront>(rooms, &loops_);
    HttpRoutes routes;
    front_->AddRoutes(&routes);
    HttpOptions http;
    http.host = "127.0.0.1";
    http.port = 0;
    server_ =
        std::make_unique<HttpServer>(http, std::move(routes), HttpErrorJson, &loops_, &metrics_);
    ASSERT_TRUE(server_->Start().ok());
  }

  void StartFleet() {
    fleet_->Start();
    ASSERT_EQ(ready_.get_future().wait_for(std::chrono::seconds(30)), std::future_status::ready);
  }

  HttpAnswered Post(const std::string& path, const std::string& body) {
    HttpClient client(server_->port());
    return client.Post(path, body);
  }
  HttpAnswered Chat(const std::string& fields) {
    return Post("/v1/chat/completions", absl::StrCat("{", fields, "}"));
  }
  HttpAnswered Complete(const std::string& fields) {
    return Post("/v1/completions", absl::StrCat("{", fields, "}"));
  }
  HttpAnswered Get(const std::string& path) {
    HttpClient client(server_->port());
    return client.Get(path);
  }

  LoopPool loops_{2};
  RouterMetrics metrics_;
  const std::unique_ptr<const TextModel> model_;
  std::vector<int32_t> thought_ids_;
  std::vector<int32_t> answer_ids_;
  FakeWorkerOptions worker_options_;
  ExchangeOptions exchange_options_;
  AdmitOptions admit_options_;
  FleetOptions fleet_options_;
  std::promise<void> ready_;
  bool was_ready_ = false;  // loop 0's
  std::unique_ptr<FakeWorker> worker_;
  Placement placement_{Policy::kPrefix, *ParseHashKey(""), 1000, 1000};
  std::unique_ptr<Admission> admission_;
  std::unique_ptr<Fleet> fleet_;
  std::unique_ptr<OpenAiFront> front_;
  std::unique_ptr<HttpServer> server_;
};

Json Parsed(const HttpAnswered& answered) {
  EXPECT_TRUE(answered.whole);
  Json json = Json::parse(answered.body, nullptr, /*allow_exceptions=*/false);
  EXPECT_FALSE(json.is_discarded()) << answered.body;
  return json;
}

/// The events of a stream. It must end in [DONE], which is left out.
std::vector<Json> Events(const std::string& body) {
  std::vector<Json> events;
  size_t start = 0;
  bool done = false;
  while (start < body.size()) {
    EXPECT_FALSE(done) << body;
    EXPECT_EQ(body.compare(start, 6, "data: "), 0) << body;
    const size_t end = body.find("\n\n", start);
    const std::string event = body.substr(start + 6, end - start - 6);
    done = event == "[DONE]";
    if (!done) events.push_back(Json::parse(event));
    start = end + 2;
  }
  EXPECT_TRUE(done) << body;
  return events;
}

/// The texts under `field` of all events, of the choice `index`, joined.
std::string Joined(const std::vector<Json>& events, const std::string& field, int index = 0) {
  std::string joined;
  for (const Json& event : events) {
    for (const Json& choice : event["choices"]) {
      if (choice["index"] != index) continue;
      const Json& piece = choice.contains("delta") ? choice["delta"] : choice;
      joined += piece.value(field, "");
    }
  }
  return joined;
}

void ExpectError(const HttpAnswered& answered, int status, const std::string& type,
                 const Json& param, const Json& code) {
  EXPECT_EQ(answered.status, status) << answered.body;
  EXPECT_EQ(answered.headers.at("content-type"), "application/json");
  const Json error = Parsed(answered)["error"];
  EXPECT_EQ(error["type"], type) << answered.body;
  EXPECT_EQ(error["param"], param) << answered.body;
  EXPECT_EQ(error["code"], code) << answered.body;
  EXPECT_FALSE(error["message"].get<std::string>().empty());
}

TEST_F(OpenAiTest, AnswersAChat) {
  StartAll();
  const HttpAnswered answered = Chat(kUserTurn);
  ASSERT_EQ(answered.status, 200) << answered.body;
  EXPECT_EQ(answered.headers.at("content-type"), "application/json");
  EXPECT_THAT(answered.headers.at("x-request-id"), StartsWith("req-"));
  const Json json = Parsed(answered);
  EXPECT_THAT(json["id"].get<std::string>(), StartsWith("chatcmpl-"));
  EXPECT_EQ(json["object"], "chat.completion");
  EXPECT_EQ(json["model"], "tiny");
  EXPECT_GT(json["created"], 1'600'000'000);
  ASSERT_EQ(json["choices"].size(), 1u);
  const Json& choice = json["choices"][0];
  EXPECT_EQ(choice["message"]["role"], "assistant");
  EXPECT_EQ(choice["message"]["reasoning_content"], "I think");
  EXPECT_EQ(choice["message"]["content"], "The quick brown fox");
  EXPECT_EQ(choice["finish_reason"], "stop");
  const Json& usage = json["usage"];
  EXPECT_EQ(usage["prompt_tokens"].get<int>(), worker_->submits()[0].prompt_ids_size());
  EXPECT_EQ(usage["completion_tokens"], thought_ids_.size() + 1 + answer_ids_.size() + 1);
  EXPECT_EQ(usage["total_tokens"],
            usage["prompt_tokens"].get<int>() + usage["completion_tokens"].get<int>());
  EXPECT_EQ(usage["prompt_tokens_details"]["cached_tokens"], 2);
}

TEST_F(OpenAiTest, TellsTheLogprobsOfAChat) {
  StartAll();
  const std::string asked =
      absl::StrCat(kUserTurn, R"(,"logprobs":true,"top_logprobs":2,"prompt_logprobs":1)");
  const HttpAnswered answered = Chat(asked);
  ASSERT_EQ(answered.status, 200) << answered.body;
  const Json json = Parsed(answered);
  // Reasoning and its end are tokens too; the end of the turn is not.
  std::vector<int32_t> ids = thought_ids_;
  ids.push_back(model_->tags().think_end);
  ids.insert(ids.end(), answer_ids_.begin(), answer_ids_.end());
  const Json& content = json["choices"][0]["logprobs"]["content"];
  ASSERT_EQ(content.size(), ids.size());
  for (size_t i = 0; i < ids.size(); ++i) {
    EXPECT_EQ(content[i]["token"], std::string(model_->tokenizer().TokenBytes(ids[i])));
    EXPECT_EQ(content[i]["logprob"], FakeLogprobs(ids[i], 2).logprob());
    EXPECT_EQ(content[i]["top_logprobs"].size(), 2u);
  }
  const Json& prompt = json["prompt_logprobs"];
  ASSERT_EQ(static_cast<int>(prompt.size()), worker_->submits()[0].prompt_ids_size());
  EXPECT_TRUE(prompt[0].is_null());
  EXPECT_TRUE(prompt[1].contains(absl::StrCat(worker_->submits()[0].prompt_ids(1))));

  const HttpAnswered streamed =
      Chat(absl::StrCat(kUserTurn, R"(,"logprobs":true,"top_logprobs":2,"stream":true)"));
  ASSERT_EQ(streamed.status, 200) << streamed.body;
  Json joined = Json::array();
  for (const Json& event : Events(streamed.body)) {
    const Json& logprobs = event["choices"][0]["logprobs"];
    if (logprobs.is_null()) continue;
    for (const Json& entry : logprobs["content"]) joined.push_back(entry);
  }
  EXPECT_EQ(joined, content);
}

TEST_F(OpenAiTest, EchoesThePromptWithItsLogprobs) {
  StartAll();
  for (const bool stream : {false, true}) {
    const HttpAnswered answered = Complete(absl::StrCat(
        R"("prompt":"Hello world","echo":true,"logprobs":1,"stream":)", stream ? "true" : "false"));
    ASSERT_EQ(answered.status, 200) << answered.body;
    std::string text;
    Json joined;
    const std::vector<Json> pieces =
        stream ? Events(answered.body) : std::vector<Json>{Parsed(answered)};
    for (const Json& piece : pieces) {
      text += piece["choices"][0]["text"].get<std::string>();
      for (const auto& [name, list] : piece["choices"][0]["logprobs"].items()) {
        for (const Json& entry : list) joined[name].push_back(entry);
      }
    }
    EXPECT_EQ(text, "Hello worldThe quick brown fox");
    const std::vector<int32_t> prompt = *model_->EncodePrompt("Hello world");
    ASSERT_EQ(joined["tokens"].size(), prompt.size() + answer_ids_.size());
    EXPECT_TRUE(joined["token_logprobs"][0].is_null());
    EXPECT_EQ(joined["token_logprobs"][1], FakeLogprobs(prompt[1], 1).logprob());
    EXPECT_FALSE(joined["top_logprobs"][1].empty());
    // The tokens lie one after the other in the text.
    for (size_t i = 0; i < joined["tokens"].size(); ++i) {
      const std::string token = joined["tokens"][i].get<std::string>();
      EXPECT_EQ(text.substr(joined["text_offset"][i].get<size_t>(), token.size()), token);
    }
  }
}

TEST_F(OpenAiTest, GivesSeveralAnswersToOnePrompt) {
  StartAll();
  const std::string asked = R"("prompt":["one","two"],"n":3,"max_tokens":2,"seed":4)";
  const HttpAnswered answered = Complete(asked);
  ASSERT_EQ(answered.status, 200) << answered.body;
  const Json json = Parsed(answered);
  ASSERT_EQ(json["choices"].size(), 6u);
  int prompt_tokens = 0;
  std::map<std::string, std::set<uint32_t>> choices;
  for (const auto& submit : worker_->submits()) {
    const std::string ids = testing::PrintToString(
        std::vector<uint32_t>(submit.prompt_ids().begin(), submit.prompt_ids().end()));
    if (choices[ids].empty()) prompt_tokens += submit.prompt_ids_size();
    choices[ids].insert(submit.sampling().choice());
    EXPECT_EQ(submit.sampling().seed(), 4u);
  }
  ASSERT_EQ(choices.size(), 2u);
  for (const auto& [ids, seen] : choices) EXPECT_EQ(seen, (std::set<uint32_t>{0, 1, 2})) << ids;
  for (size_t i = 0; i < 6; ++i) {
    EXPECT_EQ(json["choices"][i]["index"], i);
    EXPECT_EQ(json["choices"][i]["finish_reason"], "length");
  }
  EXPECT_EQ(json["usage"]["prompt_tokens"], prompt_tokens) << "each prompt once";
  EXPECT_EQ(json["usage"]["completion_tokens"], 12);

  const std::vector<Json> events =
      Events(Chat(absl::StrCat(kUserTurn, R"(,"n":2,"stream":true)")).body);
  for (const int index : {0, 1}) {
    EXPECT_EQ(Joined(events, "role", index), "assistant");
    EXPECT_EQ(Joined(events, "content", index), "The quick brown fox");
  }
}

TEST_F(OpenAiTest, AClientThatLeavesCancelsAllItsAnswers) {
  worker_options_.automatic = false;
  StartAll();
  {
    HttpClient client(server_->port());
    client.SendPost("/v1/completions", R"({"prompt":"one","n":3})");
    ASSERT_TRUE(worker_->AwaitLive(3));
  }
  EXPECT_TRUE(worker_->AwaitLive(0));
  EXPECT_EQ(worker_->seen().cancels, 3);
}

TEST_F(OpenAiTest, StreamsAChat) {
  StartAll();
  const HttpAnswered answered =
      Chat(absl::StrCat(kUserTurn, R"(,"stream":true,"stream_options":{"include_usage":true})"));
  ASSERT_EQ(answered.status, 200) << answered.body;
  EXPECT_EQ(answered.headers.at("content-type"), "text/event-stream");
  EXPECT_EQ(answered.headers.at("cache-control"), "no-cache");
  EXPECT_TRUE(answered.whole);
  const std::vector<Json> events = Events(answered.body);
  ASSERT_GE(events.size(), 4u);
  EXPECT_EQ(events[0]["choices"][0]["delta"]["role"], "assistant");
  EXPECT_EQ(Joined(events, "role"), "assistant");
  EXPECT_EQ(Joined(events, "reasoning_content"), "I think");
  EXPECT_EQ(Joined(events, "content"), "The quick brown fox");
  const Json& end = events[events.size() - 2];
  EXPECT_EQ(end["choices"][0]["finish_reason"], "stop");
  const Json& usage = events.back();
  EXPECT_TRUE(usage["choices"].empty());
  EXPECT_EQ(usage["usage"]["completion_tokens"], thought_ids_.size() + 1 + answer_ids_.size() + 1);
  for (const Json& event : events) {
    EXPECT_EQ(event["object"], "chat.completion.chunk");
    EXPECT_EQ(event["id"], events[0]["id"]);
  }
}

TEST_F(OpenAiTest, ToldUsageOnlyWhenAsked) {
  StartAll();
  const std::vector<Json> events = Events(Chat(absl::StrCat(kUserTurn, R"(,"stream":true)")).body);
  for (const Json& event : events) {
    EXPECT_FALSE(event.contains("usage"));
    EXPECT_FALSE(event["choices"].empty());
  }
}

TEST_F(OpenAiTest, PassesSamplingOnToTheWorker) {
  StartAll();
  ASSERT_EQ(Chat(absl::StrCat(kUserTurn, R"(,"temperature":0.5,"top_p":0.25,"top_k":7,"seed":11,)"
                                         R"("max_tokens":20,"min_tokens":2,"stop_token_ids":[9],)"
                                         R"("ignore_eos":true)"))
                .status,
            200);
  const auto submit = worker_->submits()[0];
  EXPECT_EQ(submit.sampling().temperature(), 0.5f);
  EXPECT_EQ(submit.sampling().top_p(), 0.25f);
  EXPECT_EQ(submit.sampling().top_k(), 7u);
  EXPECT_EQ(submit.sampling().seed(), 11u);
  EXPECT_EQ(submit.stop().max_tokens(), 20u);
  EXPECT_EQ(submit.stop().min_tokens(), 2u);
  EXPECT_THAT(submit.stop().stop_ids(), testing::ElementsAre(9));
}

TEST_F(OpenAiTest, EndsAtALengthAndAtAStopString) {
  StartAll();
  const Json at_length = Parsed(Complete(R"("prompt":"hello","max_tokens":2)"));
  EXPECT_EQ(at_length["choices"][0]["finish_reason"], "length");
  EXPECT_EQ(at_length["usage"]["completion_tokens"], 2);
  const Json at_stop = Parsed(Complete(R"("prompt":"hello","stop":[" brown"])"));
  EXPECT_EQ(at_stop["choices"][0]["finish_reason"], "stop");
  EXPECT_EQ(at_stop["choices"][0]["text"], "The quick");
}

TEST_F(OpenAiTest, CompletesEveryKindOfPrompt) {
  StartAll();
  const struct {
    std::string prompt;
    size_t choices;
  } kCases[] = {
      {R"("hello")", 1}, {R"(["hello","world"])", 2}, {"[5,6,7]", 1}, {"[[5,6],[7],[8]]", 3}};
  for (const auto& c : kCases) {
    const HttpAnswered answered = Complete(absl::StrCat(R"("prompt":)", c.prompt));
    ASSERT_EQ(answered.status, 200) << answered.body;
    const Json json = Parsed(answered);
    EXPECT_EQ(json["object"], "text_completion");
    ASSERT_EQ(json["choices"].size(), c.choices) << c.prompt;
    for (size_t i = 0; i < c.choices; ++i) {
      EXPECT_EQ(json["choices"][i]["index"], i);
      EXPECT_EQ(json["choices"][i]["text"], "The quick brown fox");
      EXPECT_EQ(json["choices"][i]["finish_reason"], "stop");
    }
    EXPECT_EQ(json["usage"]["completion_tokens"], c.choices * (answer_ids_.size() + 1));
  }
  EXPECT_THAT(worker_->submits()[3].prompt_ids(), testing::ElementsAre(5, 6, 7));
}

TEST_F(OpenAiTest, StreamsSeveralPromptsAtOnce) {
  StartAll();
  const std::vector<Json> events =
      Events(Complete(R"("prompt":[[5],[6]],"echo":true,"stream":true,)"
                      R"("stream_options":{"include_usage":true})")
                 .body);
  EXPECT_EQ(Joined(events, "text", 0), model_->Decode({5}) + "The quick brown fox");
  EXPECT_EQ(Joined(events, "text", 1), model_->Decode({6}) + "The quick brown fox");
  int ends = 0;
  for (const Json& event : events) {
    for (const Json& choice : event["choices"]) ends += choice["finish_reason"] == "stop";
  }
  EXPECT_EQ(ends, 2);
  EXPECT_EQ(events.back()["usage"]["prompt_tokens"], 2);
}

TEST_F(OpenAiTest, CancelsAtTheWorkerWhenTheClientLeaves) {
  worker_options_.automatic = false;
  StartAll();
  const std::string more[] = {R"(,"stream":true)", ""};
  for (int i = 0; i < 2; ++i) {
    HttpClient client(server_->port());
    client.SendPost("/v1/chat/completions", absl::StrCat("{", kUserTurn, more[i], "}"));
    ASSERT_TRUE(worker_->AwaitLive(1));
    worker_->Step();
    if (i == 0) {
      EXPECT_EQ(client.ReadHead().status, 200);
      std::string chunk;
      ASSERT_TRUE(client.ReadChunk(&chunk));
      EXPECT_THAT(chunk, HasSubstr("reasoning_content"));
    }
    client.Close();
    ASSERT_TRUE(worker_->AwaitLive(0));
    EXPECT_EQ(worker_->seen().cancels, i + 1);
  }
}

TEST_F(OpenAiTest, CancelsEveryPromptOfARequestWhenOneFails) {
  worker_options_.automatic = false;
  StartAll();
  // The second prompt does not fit: the first is cancelled, the third never sent.
  std::string long_prompt = "[5";
  for (int i = 0; i < 300; ++i) long_prompt += ",5";
  const HttpAnswered answered = Complete(absl::StrCat(R"("prompt":[[5],)", long_prompt, "],[6]]"));
  ExpectError(answered, 400, "invalid_request_error", "prompt", "context_length_exceeded");
  ASSERT_TRUE(worker_->AwaitLive(0));
  EXPECT_LE(worker_->seen().submits, 1);
}

TEST_F(OpenAiTest, NamesWhatIsWrong) {
  StartAll();
  const std::string invalid = "invalid_request_error";
  ExpectError(Chat("oops"), 400, invalid, nullptr, nullptr);
  ExpectError(Chat(absl::StrCat(kUserTurn, R"(,"temperature":3)")), 400, invalid, "temperature",
              nullptr);
  ExpectError(Chat(absl::StrCat(kUserTurn, R"(,"max_tokens":-1)")), 400, invalid, "max_tokens",
              nullptr);
  ExpectError(Chat(absl::StrCat(kUserTurn, R"(,"frobnicate":1)")), 400, invalid, "frobnicate",
              nullptr);
  ExpectError(Chat(absl::StrCat(kUserTurn, R"(,"n":17)")), 400, invalid, "n", nullptr);
  ExpectError(Chat(absl::StrCat(kUserTurn, R"(,"store":true)")), 400, invalid, "store",
              "unsupported_value");
  ExpectError(Chat(absl::StrCat(kUserTurn, R"(,"min_p":2)")), 400, invalid, "min_p", nullptr);
  ExpectError(Chat(absl::StrCat(kUserTurn, R"(,"logit_bias":{"5":101})")), 400, invalid,
              "logit_bias", nullptr);
  ExpectError(Chat(absl::StrCat(kUserTurn, R"(,"max_tokens":300)")), 400, invalid, "max_tokens",
              "context_length_exceeded");
  ExpectError(Chat(absl::StrCat(kUserTurn, R"(,"model":"gpt")")), 404, invalid, "model",
              "model_not_found");
  ExpectError(Complete(R"("prompt":[3999999])"), 400, invalid, "prompt", nullptr);
  ExpectError(Get("/v1/chat/completions"), 405, invalid, nullptr, nullptr);
  ExpectError(Get("/v1/nothing"), 404, invalid, nullptr, nullptr);
  HttpClient client(server_->port());
  ASSERT_TRUE(
      client.Send("POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\n"
                  "Content-Length: 2\r\n\r\n{}"));
  ExpectError(client.Read(), 415, invalid, nullptr, nullptr);
  EXPECT_EQ(worker_->seen().submits, 0);
  // The connection and the others still serve.
  EXPECT_EQ(client.Post("/v1/completions", R"({"prompt":"hello"})").status, 200);
}

TEST_F(OpenAiTest, SaysNoAtOnceAndWhenToComeAgain) {
  worker_options_.automatic = false;
  worker_options_.sequences_max = 1;
  fleet_options_.worker_queue_requests = 0;
  admit_options_.queue_requests_max = 2;
  admit_options_.queue_tenant_share = 0.5;
  admit_options_.requests_max = 3;
  StartAll();
  const std::string body = absl::StrCat("{", kUserTurn, "}");
  HttpClient running(server_->port());
  running.SendPost("/v1/chat/completions", body);
  ASSERT_TRUE(worker_->AwaitLive(1));
  HttpClient waiting(server_->port());
  waiting.SendPost("/v1/chat/completions", body, "Authorization: Bearer one\r\n");
  while (admission_->counts().waiting < 1) std::this_thread::yield();

  // Another of the same tenant; though it wrote a book, nobody reads it.
  HttpClient client(server_->port());
  const std::string book = absl::StrCat(R"({"prompt":")", std::string(8 << 20, 'x'), R"("})");
  client.SendPost("/v1/completions", book, "Authorization: Bearer one\r\n");
  const HttpAnswered share = client.Read();
  ExpectError(share, 429, "rate_limit_error", nullptr, "rate_limit_exceeded");
  EXPECT_THAT(share.body, HasSubstr("--queue-tenant-share"));
  EXPECT_EQ(share.headers.at("retry-after"), "1");
  EXPECT_EQ(share.body.find("Bearer"), std::string::npos);

  const auto asked = std::chrono::steady_clock::now();
  const HttpAnswered refused =
      client.Post("/v1/chat/completions", body, "X-Api-Key: Bearer one\r\n");
  EXPECT_LT(std::chrono::steady_clock::now() - asked, std::chrono::milliseconds(10));
  EXPECT_EQ(refused.status, 429);

  HttpClient other(server_->port());
  other.SendPost("/v1/chat/completions", body, "Authorization: Bearer two\r\n");
  while (admission_->counts().waiting < 2) std::this_thread::yield();
  EXPECT_THAT(client.Post("/v1/chat/completions", body).body, HasSubstr("--requests-max"));
  worker_->SetAutomatic(true);
  EXPECT_EQ(running.Read().status, 200);
  EXPECT_EQ(waiting.Read().status, 200);
  EXPECT_EQ(other.Read().status, 200);
}

TEST_F(OpenAiTest, AHeaderSaysHowLongItMayWait) {
  worker_options_.automatic = false;
  worker_options_.sequences_max = 1;
  fleet_options_.worker_queue_requests = 0;
  StartAll();
  const std::string body = absl::StrCat("{", kUserTurn, "}");
  HttpClient running(server_->port());
  running.SendPost("/v1/chat/completions", body);
  ASSERT_TRUE(worker_->AwaitLive(1));
  HttpClient client(server_->port());
  const HttpAnswered late = client.Post("/v1/chat/completions", body, "X-Queue-Timeout-Ms: 15\r\n");
  ExpectError(late, 429, "rate_limit_error", nullptr, "rate_limit_exceeded");
  EXPECT_THAT(late.body, HasSubstr("within 15 ms"));
  const HttpAnswered bad =
      client.Post("/v1/chat/completions", body, "X-Queue-Timeout-Ms: soon\r\n");
  ExpectError(bad, 400, "invalid_request_error", "x-queue-timeout-ms", nullptr);
  const HttpAnswered negative =
      client.Post("/v1/chat/completions", body, "X-Queue-Timeout-Ms: -1\r\n");
  ExpectError(negative, 400, "invalid_request_error", "queue_timeout_ms", nullptr);
}

TEST_F(OpenAiTest, AHeaderOfTheOptionNamesTheTenant) {
  worker_options_.automatic = false;
  worker_options_.sequences_max = 1;
  fleet_options_.worker_queue_requests = 0;
  admit_options_.queue_requests_max = 4;
  admit_options_.queue_tenant_share = 0.25;
  admit_options_.tenant_header = "x-team";
  StartAll();
  const std::string body = absl::StrCat("{", kUserTurn, "}");
  HttpClient running(server_->port());
  running.SendPost("/v1/chat/completions", body);
  ASSERT_TRUE(worker_->AwaitLive(1));
  HttpClient blue(server_->port());
  blue.SendPost("/v1/chat/completions", body, "X-Team: blue\r\n");
  while (admission_->counts().waiting < 1) std::this_thread::yield();
  HttpClient client(server_->port());
  EXPECT_EQ(
      client.Post("/v1/chat/completions", body, "X-Team: blue\r\nAuthorization: x\r\n").status,
      429);
  HttpClient red(server_->port());
  red.SendPost("/v1/chat/completions", body, "X-Team: red\r\n");
  while (admission_->counts().waiting < 2) std::this_thread::yield();
}

TEST_F(OpenAiTest, TellsAFullWorkerAndALostOne) {
  worker_options_.automatic = false;
  StartAll();
  worker_->Refuse(absl::ResourceExhaustedError("full"));
  const HttpAnswered full = Chat(absl::StrCat(kUserTurn, R"(,"stream":true)"));
  ExpectError(full, 429, "rate_limit_error", nullptr, "rate_limit_exceeded");
  EXPECT_EQ(full.headers.at("retry-after"), "1");

  worker_->Refuse(absl::OkStatus());
  HttpClient client(server_->port());
  client.SendPost("/v1/chat/completions", absl::StrCat("{", kUserTurn, R"(,"stream":true})"));
  ASSERT_TRUE(worker_->AwaitLive(1));
  worker_->Step();
  EXPECT_EQ(client.ReadHead().status, 200);
  std::string body;
  ASSERT_TRUE(client.ReadChunk(&body));
  worker_->BreakSessions(absl::UnavailableError("gone"));
  std::string chunk;
  do {
    ASSERT_TRUE(client.ReadChunk(&chunk));
    body += chunk;
  } while (!chunk.empty());
  const std::vector<Json> events = Events(body);
  EXPECT_EQ(events.back()["error"]["code"], "unavailable");
  EXPECT_EQ(events.back()["error"]["type"], "server_error");
}

TEST_F(OpenAiTest, TellsModelsAndHealth) {
  worker_ = FakeWorker::Start(worker_options_);
  StartFront();
  EXPECT_EQ(Get("/livez").status, 200);
  EXPECT_EQ(Get("/readyz").status, 503);
  EXPECT_EQ(Get("/health").status, 503);
  const HttpAnswered early = Chat(kUserTurn);
  ExpectError(early, 503, "server_error", nullptr, "unavailable");
  EXPECT_EQ(early.headers.at("retry-after"), "1");
  EXPECT_FALSE(Parsed(Get("/v1/models"))["data"][0].contains("max_model_len"));

  StartFleet();
  EXPECT_EQ(Get("/readyz").status, 200);
  EXPECT_EQ(Get("/health").status, 200);
  const Json models = Parsed(Get("/v1/models"));
  EXPECT_EQ(models["object"], "list");
  ASSERT_EQ(models["data"].size(), 1u);
  EXPECT_EQ(models["data"][0]["id"], "tiny");
  EXPECT_EQ(models["data"][0]["object"], "model");
  EXPECT_EQ(models["data"][0]["max_model_len"], 256);
  EXPECT_EQ(Parsed(Get("/v1/models/tiny")), models["data"][0]);
  ExpectError(Get("/v1/models/other"), 404, "invalid_request_error", "model", "model_not_found");
  EXPECT_FALSE(Parsed(Get("/version"))["version"].get<std::string>().empty());

  front_->BeginDrain();
  EXPECT_EQ(Get("/readyz").status, 503);
  EXPECT_EQ(Get("/livez").status, 200);
}

TEST_F(OpenAiTest, CountsWhatItDid) {
  StartAll();
  ASSERT_EQ(Chat(kUserTurn).status, 200);
  ASSERT_EQ(Chat("").status, 400);
  const HttpAnswered metrics = Get("/metrics");
  EXPECT_THAT(metrics.headers.at("content-type"), StartsWith("text/plain; version=0.0.4"));
  EXPECT_THAT(metrics.body, HasSubstr("glmserve_router_"));
  EXPECT_THAT(metrics.body, HasSubstr("chat_completions"));
  EXPECT_THAT(metrics.body, HasSubstr("invalid"));
}

TEST_F(OpenAiTest, ServesManyClientsAtOnce) {
  StartAll();
  std::vector<std::thread> clients;
  for (int i = 0; i < 8; ++i) {
    clients.emplace_back([this, i] {
      HttpClient client(server_->port());
      for (int turn = 0; turn < 10; ++turn) {
        const bool stream = (i + turn) % 2 == 0;
        const HttpAnswered answered =
            client.Post("/v1/chat/completions",
                        absl::StrCat("{", kUserTurn, stream ? R"(,"stream":true})" : "}"));
        ASSERT_EQ(answered.status, 200);
        const std::string content =
            stream ? Joined(Events(answered.body), "content")
                   : Parsed(answered)["choices"][0]["message"]["content"].get<std::string>();
        EXPECT_EQ(content, "The quick brown fox");
      }
    });
  }
  for (std::thread& client : clients) client.join();
}

}  // namespace
}  // namespace glm::router
