#include "router/front/openai.h"

#include <algorithm>
#include <iterator>
#include <optional>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "router/admit/admission.h"
#include "router/admit/retry_after.h"
#include "router/fleet/fleet.h"
#include "router/front/json_fields.h"
#include "router/front/openai_answer.h"
#include "router/front/openai_logprobs.h"
#include "router/route/placement.h"

namespace glm::router {
namespace {

constexpr absl::string_view kJson = "application/json";

void SendStatus(HttpReply* reply, const absl::Status& status) {
  const int http_status = HttpStatusOf(status);
  HttpHeaders headers;
  if (http_status == 429 || http_status == 503) {
    headers.emplace_back("Retry-After", absl::StrCat(RetryAfterOf(status).value_or(1)));
  }
  reply->Send(http_status, kJson, ErrorJson(status), headers);
}

void SendJson(HttpReply* reply, const Json& json, int http_status = 200) {
  reply->Send(http_status, kJson,
              json.dump(-1, ' ', /*ensure_ascii=*/false, Json::error_handler_t::replace));
}

/// An absent type is taken as JSON.
bool IsJsonType(absl::string_view content_type) {
  const absl::string_view type =
      absl::StripAsciiWhitespace(content_type.substr(0, content_type.find(';')));
  return type.empty() || absl::EqualsIgnoreCase(type, kJson) ||
         absl::EndsWithIgnoreCase(type, "+json");
}

/// What names a request's tenant: the header of the option, or the API key in either of its places.
absl::string_view TenantNameOf(const HttpRequest& request, const std::string& header) {
  if (!header.empty()) return request.Header(header);
  const absl::string_view key = request.Header("authorization");
  return key.empty() ? request.Header("x-api-key") : key;
}

/// The header that says how long a request waits for its turn.
constexpr absl::string_view kQueueTimeoutHeader = "x-queue-timeout-ms";

absl::Status ReadQueueTimeout(const HttpRequest& request, std::optional<int32_t>* timeout_ms) {
  const absl::string_view text = request.Header(kQueueTimeoutHeader);
  if (text.empty()) return absl::OkStatus();
  int32_t read = 0;
  if (!absl::SimpleAtoi(text, &read)) {
    return FieldError(
        absl::StatusCode::kInvalidArgument, kQueueTimeoutHeader,
        absl::StrCat("of '", text.substr(0, 64), "' must be a number from 0 to ", 3'600'000));
  }
  *timeout_ms = read;
  return absl::OkStatus();
}

/// The exchanges of one request and the answer that grows from them. Its callbacks come from the
/// exchanges that it owns, so they never outlive it.
class OpenAiAnswer final : public HttpAnswer {
 public:
  OpenAiAnswer(AnswerHead head, const OpenAiCall& call, HttpReply* reply)
      : head_(std::move(head)),
        stream_(call.stream),
        include_usage_(call.include_usage),
        answers_per_prompt_(static_cast<size_t>(call.answers_per_prompt)),
        logprobs_(call.logprobs),
        prompt_logprobs_(call.prompt_logprobs),
        echo_(call.requests[0].echo),
        reply_(reply),
        events_(head_),
        parts_(call.requests.size()) {}

  void Start(const ExchangeRooms& rooms, std::vector<ExchangeRequest> requests) {
    for (size_t i = 0; i < requests.size() && !is_over_; ++i) {
      ExchangeSink sink;
      sink.on_delta = [this, i](AnswerDelta delta) { OnDelta(i, std::move(delta)); };
      sink.on_error = [this](absl::Status status) { OnError(status); };
      parts_[i].exchange = Exchange::Start(rooms, std::move(requests[i]), std::move(sink));
    }
  }

 private:
  struct Part {
    std::unique_ptr<Exchange> exchange;
    AnswerChoice choice;             // whole answers only
    std::vector<TokenScore> scores;  // whole answers only
    bool is_first = true;            // streams only: nothing was sent for it yet
    int64_t characters = 0;          // of the tokens whose logprobs were written
  };

  void OnDelta(size_t index, AnswerDelta delta) {
    if (is_over_) return;
    Part& part = parts_[index];
    if (prompt_logprobs_ >= 0 && !delta.prompt_logprobs.empty()) {
      part.choice.prompt_logprobs = PromptLogprobsJson(delta.prompt_logprobs, prompt_logprobs_);
    }
    if (echo_ && logprobs_ >= 0) {
      delta.logprobs.insert(delta.logprobs.begin(), delta.prompt_logprobs.begin(),
                            delta.prompt_logprobs.end());
    }
    if (stream_) {
      Stream(static_cast<int32_t>(index), &part, delta);
    } else {
      part.choice.content += delta.content;
      part.choice.reasoning += delta.reasoning;
      std::move(delta.logprobs.begin(), delta.logprobs.end(), std::back_inserter(part.scores));
    }
    if (!delta.end.has_value()) return;
    part.choice.end = *delta.end;
    if (!stream_) part.choice.logprobs = Logprobs(&part, part.scores);
    usage_.completion_tokens += delta.usage.completion_tokens;
    if (index % answers_per_prompt_ == 0) {  // the answers to one prompt share it
      usage_.prompt_tokens += delta.usage.prompt_tokens;
      usage_.cached_tokens += delta.usage.cached_tokens;
    }
    if (++ended_count_ == parts_.size()) Finish();
  }

  /// The value of "logprobs".
  Json Logprobs(Part* part, const std::vector<TokenScore>& scores) const {
    if (logprobs_ < 0) return nullptr;
    return head_.is_chat ? ChatLogprobsJson(scores)
                         : CompletionLogprobsJson(scores, logprobs_, &part->characters);
  }

  void Stream(int32_t index, Part* part, const AnswerDelta& delta) {
    const bool has_text =
        !delta.content.empty() || !delta.reasoning.empty() || !delta.logprobs.empty();
    if (!has_text && !delta.end.has_value()) return;
    // The stream begins with the first text: until then an error still has its own HTTP status.
    if (!is_streaming_) {
      is_streaming_ = true;
      reply_->StartStream("text/event-stream",
                          {{"Cache-Control", "no-cache"}, {"X-Accel-Buffering", "no"}});
    }
    std::string text;
    if (has_text) {
      const Json logprobs = delta.logprobs.empty() ? Json(nullptr) : Logprobs(part, delta.logprobs);
      events_.AppendDelta(index, part->is_first, delta, logprobs, &text);
      part->is_first = false;
    }
    if (delta.end.has_value()) events_.AppendEnd(index, part->is_first, *delta.end, &text);
    reply_->Write(text);
  }

  void Finish() {
    is_over_ = true;
    if (stream_) {
      std::string text;
      if (include_usage_) events_.AppendUsage(usage_, &text);
      AnswerEvents::AppendDone(&text);
      reply_->Write(text);
      reply_->EndStream();
      return;
    }
    std::vector<AnswerChoice> choices;
    for (Part& part : parts_) choices.push_back(std::move(part.choice));
    reply_->Send(200, kJson, WholeAnswerJson(head_, choices, usage_));
  }

  /// The other exchanges end with this answer, which the connection destroys next.
  void OnError(const absl::Status& status) {
    if (is_over_) return;
    is_over_ = true;
    if (!is_streaming_) return SendStatus(reply_, status);
    std::string text;
    AnswerEvents::AppendError(status, &text);
    AnswerEvents::AppendDone(&text);
    reply_->Write(text);
    reply_->EndStream();
  }

  const AnswerHead head_;
  const bool stream_;
  const bool include_usage_;
  const size_t answers_per_prompt_;
  const int32_t logprobs_;
  const int32_t prompt_logprobs_;
  const bool echo_;
  HttpReply* const reply_;
  const AnswerEvents events_;
  std::vector<Part> parts_;
  Usage usage_;
  size_t ended_count_ = 0;
  bool is_streaming_ = false;
  bool is_over_ = false;
};

}  // namespace

OpenAiFront::OpenAiFront(const ExchangeRooms& rooms, LoopPool* loops)
    : lanes_(loops->size()),
      model_name_(rooms.model_name),
      started_s_(absl::ToUnixSeconds(absl::Now())),
      fleet_(rooms.fleet),
      metrics_(rooms.metrics) {
  for (int32_t i = 0; i < loops->size(); ++i) {
    lanes_[i].rooms = rooms;
    lanes_[i].rooms.loop = &loops->at(i);
  }
}

void OpenAiFront::AddRoutes(HttpRoutes* routes) {
  const auto at_once = [](auto&& send) -> HttpRoute {
    return [send](const HttpCall& call) {
      send(call);
      return nullptr;
    };
  };
  routes->Add("POST", "/v1/chat/completions",
              [this](const HttpCall& call) { return Generate(Endpoint::kChatCompletions, call); });
  routes->Add("POST", "/v1/completions",
              [this](const HttpCall& call) { return Generate(Endpoint::kCompletions, call); });
  routes->Add("GET", "/v1/models", at_once([this](const HttpCall& call) { SendModels(call); }));
  routes->Add("GET", "/v1/models/*", at_once([this](const HttpCall& call) { SendModel(call); }));
  const HttpRoute readiness = at_once([this](const HttpCall& call) { SendReadiness(call); });
  routes->Add("GET", "/health", readiness);
  routes->Add("GET", "/readyz", readiness);
  routes->Add("GET", "/livez", at_once([](const HttpCall& call) {
                SendJson(call.reply, Json{{"status", "ok"}});
              }));
  routes->Add("GET", "/version", at_once([](const HttpCall& call) {
                SendJson(call.reply, Json{{"version", GLM_VERSION}});
              }));
  routes->Add("GET", "/metrics", at_once([this](const HttpCall& call) {
                const PrefixIndex& index = lanes_[0].rooms.placement->index();
                metrics_->SetIndex(index.blocks(), index.bytes(), index.blocks_refused());
                call.reply->Send(200, "text/plain; version=0.0.4; charset=utf-8", metrics_->Text());
              }));
}

absl::StatusOr<OpenAiCall> OpenAiFront::Read(const ExchangeRooms& rooms, bool is_chat,
                                             const HttpRequest& http) const {
  Admission& admission = *rooms.admission;
  const absl::string_view name = TenantNameOf(http, admission.options().tenant_header);
  const TenantId tenant = admission.TenantOf({name.data(), name.size()});
  // Before the body is looked at: to say no costs little then.
  absl::Status status = admission.CheckBounds(tenant, NowMs(*rooms.loop));
  std::optional<int32_t> queue_timeout_ms;
  if (status.ok()) status = ReadQueueTimeout(http, &queue_timeout_ms);
  if (!status.ok()) return status;
  absl::StatusOr<OpenAiCall> read =
      is_chat ? ReadChatBody(http.body) : ReadCompletionBody(http.body);
  if (!read.ok()) return read;
  for (ExchangeRequest& request : read->requests) {
    request.session = std::string(http.Header("x-session-id"));
    request.tenant = tenant;
    request.queue_timeout_ms = queue_timeout_ms;
  }
  return read;
}

std::unique_ptr<HttpAnswer> OpenAiFront::Generate(Endpoint endpoint, const HttpCall& call) {
  const absl::string_view content_type = call.request.Header("content-type");
  if (!IsJsonType(content_type)) {
    metrics_->CountRequest(endpoint, Outcome::kInvalid);
    call.reply->Send(415, kJson,
                     HttpErrorJson(415, absl::StrCat("Content-Type must be application/json, not '",
                                                     content_type.substr(0, 64), "'")));
    return nullptr;
  }
  const bool is_chat = endpoint == Endpoint::kChatCompletions;
  Lane& lane = lanes_[call.loop->index()];
  absl::StatusOr<OpenAiCall> read = Read(lane.rooms, is_chat, call.request);
  if (!read.ok()) {
    metrics_->CountRequest(endpoint, OutcomeOf(read.status()));
    SendStatus(call.reply, read.status());
    return nullptr;
  }
  AnswerHead head;
  head.is_chat = is_chat;
  head.id =
      absl::StrFormat("%s-%016x%016x", is_chat ? "chatcmpl" : "cmpl", lane.random(), lane.random());
  head.created_s = absl::ToUnixSeconds(absl::Now());
  head.model = model_name_;
  auto answer = std::make_unique<OpenAiAnswer>(std::move(head), *read, call.reply);
  answer->Start(lane.rooms, std::move(read->requests));
  return answer;
}

// ---- Models and health
// ---------------------------------------------------------------------------

namespace {

Json ModelJson(const std::string& name, int64_t created_s, const FleetSnapshot& fleet) {
  Json json{{"id", name}, {"object", "model"}, {"created", created_s}, {"owned_by", "glmserve"}};
  if (fleet.length_max > 0) json["max_model_len"] = fleet.length_max;
  return json;
}

}  // namespace

void OpenAiFront::SendModels(const HttpCall& call) const {
  Json models = Json::array();
  models.push_back(ModelJson(model_name_, started_s_, *fleet_->Snapshot()));
  SendJson(call.reply, Json{{"object", "list"}, {"data", std::move(models)}});
}

void OpenAiFront::SendModel(const HttpCall& call) const {
  if (call.rest != model_name_) {
    return SendStatus(call.reply,
                      FieldError(absl::StatusCode::kNotFound, "model",
                                 absl::StrCat("'", call.rest.substr(0, 256),
                                              "' is not served here; '", model_name_, "' is")));
  }
  SendJson(call.reply, ModelJson(model_name_, started_s_, *fleet_->Snapshot()));
}

void OpenAiFront::SendReadiness(const HttpCall& call) const {
  if (draining_) return SendJson(call.reply, Json{{"status", "draining"}}, 503);
  if (fleet_->ready()) return SendJson(call.reply, Json{{"status", "ok"}});
  const std::vector<FleetWorker>& workers = fleet_->Snapshot()->workers;
  const auto unauthenticated =
      std::count_if(workers.begin(), workers.end(),
                    [](const FleetWorker& worker) { return worker.unauthenticated; });
  SendJson(call.reply,
           Json{{"status", "no worker is ready"},
                {"workers", workers.size()},
                {"workers_unauthenticated", unauthenticated}},
           503);
}

}  // namespace glm::router
