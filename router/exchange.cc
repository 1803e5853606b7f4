#include "router/exchange.h"

#include <algorithm>
#include <chrono>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "proto/base/log.h"
#include "router/admit/admission.h"
#include "router/answer_scores.h"
#include "router/fleet/fleet.h"
#include "router/fleet/session.h"
#include "router/loop.h"
#include "router/route/placement.h"
#include "router/route/policy.h"
#include "router/submit.h"
#include "router/text/answer_text.h"
#include "router/text/text_model.h"

namespace glm::router {
namespace {

using Clock = Loop::Clock;

double SecondsBetween(Clock::time_point begin, Clock::time_point end) {
  return std::chrono::duration<double>(end - begin).count();
}

/// Runs through: Begin, then Dispatch at each attempt, or LineUp where it has to wait for one, then
/// outputs, then FinishAnswer or Fail. A call of
/// the sink may destroy this, so it is the last thing that any function does.
class LiveExchange final : public Exchange, private Receiver {
 public:
  LiveExchange(const ExchangeRooms& rooms, ExchangeRequest request, ExchangeSink sink)
      : rooms_(rooms),
        request_(std::move(request)),
        sink_(std::make_shared<const ExchangeSink>(std::move(sink))),
        began_(rooms.loop->Now()),
        wait_timer_(rooms.loop->NewTimer()),
        timeout_timer_(rooms.loop->NewTimer()) {}
  ~LiveExchange() override;

  void Begin();

 private:
  absl::Status MakePrompt();
  absl::Status EncodePrompt(EncodedPrompt* encoded);
  absl::Status Enter();
  void Dispatch();
  void Submit(const std::shared_ptr<Session>& session, int64_t cached_tokens);
  void LineUp(bool worker_ready);
  void OnWaited();
  void StopWaiting(bool sent);
  int32_t Choose(absl::Span<const Candidate> candidates) const;
  std::vector<Candidate> Candidates(const FleetSnapshot& snapshot, int32_t* length_max) const;
  void NameBlocks(const FleetSnapshot& snapshot);
  absl::Status NoneReady() const;
  absl::Status WhyNone(int32_t length_max) const;
  /// A worker had it before: it goes before new ones, whatever room there is.
  bool IsReplay() const { return submitted_ || !refused_by_.empty(); }
  absl::Status SettleLengths(const WorkerShape& shape);
  wire::Submit MakeSubmit(const WorkerShape& shape);

  void OnOutput(const wire::Output& output) override;
  void OnLost(const absl::Status& status) override;
  void OnRefused(const std::shared_ptr<Session>& session, const wire::Output& output);
  void TryAnother(const absl::Status& status, RetryReason reason);
  absl::Status TakeScores(const wire::Output& output);
  void TakeTokens(const wire::Output& output, AnswerDelta* delta);
  void TakeText(const wire::Output& output, AnswerDelta* delta);
  void LeaveWorker();
  void FinishAnswer(AnswerDelta delta, AnswerEnd end);
  void Fail(const absl::Status& status);
  void Close(Outcome outcome);

  /// `fn` for later on this loop: not run once this is gone or has ended.
  template <typename Fn>
  auto WhileOpen(Fn fn) {
    return [this, alive = std::weak_ptr<const bool>(alive_), fn] {
      if (!alive.expired() && !ended_) fn();
    };
  }

  const ExchangeRooms rooms_;
  ExchangeRequest request_;
  const std::shared_ptr<const ExchangeSink> sink_;  // outlives a call that destroys this
  const Clock::time_point began_;
  const std::shared_ptr<const bool> alive_ = std::make_shared<const bool>(true);

  const std::vector<int32_t>& prompt_ids() const { return prompt_->ids; }
  int32_t queue_timeout_ms() const {
    return request_.queue_timeout_ms.value_or(rooms_.admission->options().queue_timeout_ms);
  }

  bool entered_ = false;
  std::shared_ptr<EncodedPrompt> prompt_;  // perhaps other answers' too; not changed once made
  std::vector<int32_t> answer_ids_;        // kept for replay: the next worker goes on after them
  std::vector<std::vector<int32_t>> bad_words_;
  std::vector<TokenScore> prompt_scores_;  // so far; they go with the first delta
  std::optional<AnswerText> text_;
  int32_t max_tokens_ = 0;  // 0: not settled, no worker has been chosen yet
  uint64_t seed_ = 0;
  int32_t cached_tokens_ = 0;

  std::vector<BlockKey> chain_;  // names of the blocks of prompt and answer so far
  int32_t chain_block_size_ = 0;

  // The attempt under way, if any.
  std::shared_ptr<Session> session_;
  uint64_t request_id_ = 0;
  int32_t attempts_ = 0;
  bool submitted_ = false;                            // once at least
  std::vector<std::shared_ptr<Session>> refused_by_;  // full or unwilling: not asked again
  absl::Status refusal_;                              // of the last of them

  // The wait before a submit, if any.
  std::optional<uint64_t> ticket_;
  Clock::time_point wait_began_;
  const std::unique_ptr<Timer> wait_timer_;
  const std::unique_ptr<Timer> timeout_timer_;
  Clock::time_point last_token_;
  bool ended_ = false;
};

LiveExchange::~LiveExchange() {
  if (!ended_) Close(Outcome::kCancelled);
}

void LiveExchange::Begin() {
  DCHECK(rooms_.loop->OnThread());
  absl::Status status = ValidateExchangeRequest(request_, rooms_.model_name);
  if (status.ok()) status = Enter();
  if (status.ok()) status = MakePrompt();
  if (!status.ok()) return Fail(status);
  seed_ = request_.seed.has_value() ? *request_.seed : rooms_.loop->Random();
  timeout_timer_->Set(began_ + std::chrono::seconds(rooms_.options.timeout_s), [this] {
    Fail(absl::DeadlineExceededError(absl::StrCat(
        "request took longer than ", rooms_.options.timeout_s, " s (--request-timeout-s)")));
  });
  Dispatch();
}

absl::Status LiveExchange::Enter() {
  absl::Status status = rooms_.admission->Enter(request_.tenant, request_.priority,
                                                queue_timeout_ms(), NowMs(*rooms_.loop));
  entered_ = status.ok();
  return status;
}

absl::Status LiveExchange::MakePrompt() {
  prompt_ = std::exchange(request_.encoded, nullptr);
  if (prompt_ == nullptr) prompt_ = std::make_shared<EncodedPrompt>();
  if (!prompt_->is_made) {
    if (absl::Status status = EncodePrompt(prompt_.get()); !status.ok()) return status;
    prompt_->is_made = true;
    const auto bytes = static_cast<int64_t>(prompt_->ids.size() * sizeof(int32_t));
    rooms_.metrics->AddPromptBytes(bytes);
    prompt_->counted = std::shared_ptr<const void>(
        nullptr, [metrics = rooms_.metrics, bytes](auto) { metrics->AddPromptBytes(-bytes); });
  }
  request_.prompt = std::string();
  if (prompt_ids().empty()) {
    return absl::InvalidArgumentError("prompt has 0 tokens; it must have at least 1");
  }
  absl::StatusOr<std::vector<std::vector<int32_t>>> runs =
      EncodeBadWords(request_.bad_words, *rooms_.text);
  if (!runs.ok()) return runs.status();
  bad_words_ = *std::move(runs);
  text_.emplace(rooms_.text, AnswerTextOptions{.start = prompt_->start, .stop = request_.stop});
  return absl::OkStatus();
}

absl::Status LiveExchange::EncodePrompt(EncodedPrompt* encoded) {
  if (const Chat* chat = std::get_if<Chat>(&request_.prompt)) {
    absl::StatusOr<ChatPrompt> prompt = rooms_.text->EncodeChat(*chat);
    if (!prompt.ok()) return prompt.status();
    encoded->ids = std::move(prompt->ids);
    encoded->start = prompt->start;
  } else if (std::string* text = std::get_if<std::string>(&request_.prompt)) {
    absl::StatusOr<std::vector<int32_t>> ids = rooms_.text->EncodePrompt(*text);
    if (!ids.ok()) return ids.status();
    encoded->ids = *std::move(ids);
    if (request_.echo) encoded->echo = std::move(*text);
    encoded->echo_shows_special = true;
  } else {
    encoded->ids = std::move(std::get<std::vector<int32_t>>(request_.prompt));
    if (request_.echo) encoded->echo = rooms_.text->Decode(encoded->ids);
  }
  return absl::OkStatus();
}

void LiveExchange::NameBlocks(const FleetSnapshot& snapshot) {
  // Workers of one model have blocks of one size; where not, those of another size are unknown.
  const auto first =
      std::find_if(snapshot.workers.begin(), snapshot.workers.end(), [](const FleetWorker& worker) {
        return worker.session != nullptr && worker.session->cache_slot() >= 0;
      });
  chain_.clear();
  if (first == snapshot.workers.end() || !CountsPrefixes(rooms_.placement->policy())) return;
  chain_block_size_ = first->session->shape().block_size;
  std::vector<int32_t> ids = prompt_ids();
  ids.insert(ids.end(), answer_ids_.begin(), answer_ids_.end());
  chain_ = rooms_.placement->Chain(request_.cache_salt, ids, chain_block_size_);
}

std::vector<Candidate> LiveExchange::Candidates(const FleetSnapshot& snapshot,
                                                int32_t* length_max) const {
  std::vector<int32_t> depths;
  if (!chain_.empty()) depths = rooms_.placement->index().Depths(chain_, NowMs(*rooms_.loop));
  // Of the first attempt it is known only that one token must fit; later ones go on with what was
  // settled then.
  const int64_t length = static_cast<int64_t>(prompt_ids().size()) + std::max(max_tokens_, 1);
  std::vector<Candidate> candidates;
  candidates.reserve(snapshot.workers.size());
  for (const FleetWorker& worker : snapshot.workers) {
    Candidate& candidate = candidates.emplace_back();
    const std::shared_ptr<Session>& session = worker.session;
    if (session == nullptr || !session->accepting()) continue;
    *length_max = std::max(*length_max, session->shape().length_max);
    const WorkerLoad load = session->Load();
    candidate.usable = length <= session->shape().length_max &&
                       std::count(refused_by_.begin(), refused_by_.end(), session) == 0;
    candidate.ejected = worker.ejected;
    candidate.full = session->Room() <= 0;
    candidate.requests = load.requests;
    candidate.sequences_max = session->shape().sequences_max;
    candidate.tokens_waiting = load.tokens_waiting;
    candidate.kv_blocks_free = load.kv_blocks_total - load.kv_blocks_used;
    candidate.block_size = session->shape().block_size;
    candidate.context_tokens = load.context_tokens;
    candidate.step_tokens_max = session->shape().step_tokens_max;
    candidate.times = load.step_times;
    candidate.times_age_s = load.silent_s;
    if (!request_.session.empty()) {
      candidate.name_hash = rooms_.placement->HashOf(session->address());
    }
    if (!depths.empty() && session->cache_slot() >= 0 &&
        candidate.block_size == chain_block_size_) {
      candidate.cached_tokens = int64_t{depths[session->cache_slot()]} * candidate.block_size;
    }
  }
  return candidates;
}

/// -1: none may have it now.
int32_t LiveExchange::Choose(absl::Span<const Candidate> candidates) const {
  Placement& placement = *rooms_.placement;
  const RouteRequest route{
      .policy = placement.policy(),
      .prompt_tokens = static_cast<int64_t>(prompt_ids().size() + answer_ids_.size()),
      .answer_tokens = max_tokens_ > 0 ? max_tokens_ - static_cast<int64_t>(answer_ids_.size())
                                       : request_.max_tokens.value_or(0),
      .takes_full = IsReplay(),
      .spread = rooms_.loop->Random(),
      .turn = placement.policy() == Policy::kRoundRobin ? placement.NextTurn() : 0,
      .session_hash = request_.session.empty() ? 0 : placement.HashOf(request_.session)};
  return ChooseWorker(route, candidates).worker;
}

void LiveExchange::Dispatch() {
  const std::shared_ptr<const FleetSnapshot> snapshot = rooms_.fleet->Snapshot();
  const Clock::time_point asked = rooms_.loop->Now();
  int32_t length_max = 0;
  NameBlocks(*snapshot);
  const std::vector<Candidate> candidates = Candidates(*snapshot, &length_max);
  const bool any_usable = std::any_of(candidates.begin(), candidates.end(),
                                      [](const Candidate& one) { return one.usable; });
  if (length_max > 0 && !any_usable) return Fail(WhyNone(length_max));
  // No overtaking: a new request goes at once only where nobody waits.
  const bool may_go =
      any_usable && (ticket_.has_value() || IsReplay() || !rooms_.admission->IsLinedUp());
  const int32_t chosen = may_go ? Choose(candidates) : -1;
  rooms_.metrics->ObserveDecision(SecondsBetween(asked, rooms_.loop->Now()));
  if (chosen < 0) return LineUp(length_max > 0);
  Submit(snapshot->workers[chosen].session, candidates[chosen].cached_tokens);
}

void LiveExchange::Submit(const std::shared_ptr<Session>& session, int64_t cached_tokens) {
  session_ = session;
  absl::Status status = SettleLengths(session_->shape());
  if (status.ok()) status = CheckTokenIds(request_, prompt_ids(), session_->shape().vocabulary);
  if (!status.ok()) {
    session_ = nullptr;
    return Fail(status);
  }
  ++attempts_;
  absl::StatusOr<uint64_t> id =
      session_->Submit(rooms_.loop, MakeSubmit(session_->shape()), this, cached_tokens);
  if (!id.ok()) {
    session_ = nullptr;
    return TryAnother(id.status(), RetryReason::kLost);
  }
  request_id_ = *id;
  if (session_->cache_slot() >= 0) {
    const int64_t now_ms = NowMs(*rooms_.loop);
    rooms_.placement->index().Expect(session_->cache_slot(), chain_, now_ms,
                                     now_ms + rooms_.placement->expect_ms());
  }
  if (!ticket_.has_value()) rooms_.metrics->ObserveQueueWait(0);
  StopWaiting(/*sent=*/true);
  rooms_.metrics->AddRunning(1);
  rooms_.metrics->CountAttempt();
  if (!submitted_) rooms_.metrics->CountPromptTokens(static_cast<int64_t>(prompt_ids().size()));
  submitted_ = true;
}

absl::Status LiveExchange::WhyNone(int32_t length_max) const {
  if (!refused_by_.empty()) return refusal_;
  if (submitted_) {
    return absl::UnavailableError(absl::StrCat(
        "the worker was lost, and the length of those left is ", length_max, " tokens; ",
        prompt_ids().size() + static_cast<size_t>(max_tokens_), " are needed"));
  }
  return absl::OutOfRangeError(absl::StrCat("prompt has ", prompt_ids().size(),
                                            " tokens; the model's length is ", length_max,
                                            " tokens, of which at least 1 is the answer's"));
}

absl::Status LiveExchange::NoneReady() const {
  return absl::UnavailableError(absl::StrCat(
      "no worker was ready within ", rooms_.options.worker_wait_ms, " ms (--worker-wait-ms)"));
}

void LiveExchange::LineUp(bool worker_ready) {
  if (ticket_.has_value()) {  // it was its turn, in vain
    return rooms_.admission->PutBack(*ticket_, /*others_fit=*/rooms_.fleet->Room() > 0);
  }
  const int32_t worker_wait_ms = rooms_.options.worker_wait_ms;
  const int32_t timeout_ms = IsReplay() ? worker_wait_ms : queue_timeout_ms();
  if (!worker_ready && std::min(worker_wait_ms, timeout_ms) == 0) return Fail(NoneReady());
  const int64_t now_ms = NowMs(*rooms_.loop);
  if (timeout_ms == 0) {
    return Fail(rooms_.admission->TimedOut(request_.tenant, request_.priority, 0, now_ms));
  }
  absl::StatusOr<uint64_t> ticket = rooms_.admission->Wait(
      {.tenant = request_.tenant,
       .priority = request_.priority,
       .prompt_tokens = static_cast<int64_t>(prompt_ids().size()),
       .answer_tokens_max = request_.max_tokens.value_or(std::numeric_limits<int32_t>::max()),
       .timeout_ms = timeout_ms,
       .replay = IsReplay()},
      rooms_.loop, WhileOpen([this] { Dispatch(); }));
  if (!ticket.ok()) return Fail(ticket.status());
  ticket_ = *ticket;
  wait_began_ = rooms_.loop->Now();
  const int32_t first_ms = worker_ready ? timeout_ms : std::min(timeout_ms, worker_wait_ms);
  wait_timer_->Set(wait_began_ + std::chrono::milliseconds(first_ms), [this] { OnWaited(); });
}

/// It has waited for as long as it may without a worker, or at all.
void LiveExchange::OnWaited() {
  if (!rooms_.fleet->ready()) return Fail(NoneReady());
  const Clock::time_point now = rooms_.loop->Now();
  // What was at a worker has no other limit than that of the whole request.
  const Clock::time_point until =
      IsReplay() ? now + std::chrono::milliseconds(rooms_.options.worker_wait_ms)
                 : wait_began_ + std::chrono::milliseconds(queue_timeout_ms());
  if (now < until) return wait_timer_->Set(until, [this] { OnWaited(); });
  Fail(rooms_.admission->TimedOut(request_.tenant, request_.priority, queue_timeout_ms(),
                                  NowMs(*rooms_.loop)));
}

void LiveExchange::StopWaiting(bool sent) {
  if (!ticket_.has_value()) return;
  if (sent) {
    rooms_.admission->Sent(*ticket_, NowMs(*rooms_.loop));
  } else {
    rooms_.admission->Cancel(*ticket_);
  }
  ticket_.reset();
  wait_timer_->Cancel();
}

absl::Status LiveExchange::SettleLengths(const WorkerShape& shape) {
  if (max_tokens_ > 0) return absl::OkStatus();
  const int32_t left = shape.length_max - static_cast<int32_t>(prompt_ids().size());
  if (request_.max_tokens.has_value() && *request_.max_tokens > left) {
    return absl::OutOfRangeError(absl::StrCat(
        "max_tokens=", *request_.max_tokens, " must be at most ", left, ": the model's length is ",
        shape.length_max, " tokens and the prompt has ", prompt_ids().size()));
  }
  if (request_.min_tokens > left) {
    return absl::InvalidArgumentError(
        absl::StrCat("min_tokens=", request_.min_tokens, " must be at most ", left,
                     ", what the model's length leaves after the prompt"));
  }
  max_tokens_ = request_.max_tokens.value_or(left);
  return absl::OkStatus();
}

wire::Submit LiveExchange::MakeSubmit(const WorkerShape& shape) {
  // With the first token all of the prompt was there; without one its scores begin anew.
  prompt_scores_.clear();
  wire::Submit submit = router::MakeSubmit(
      request_, {.prompt_ids = prompt_ids(),
                 .answer_ids = answer_ids_,
                 .bad_words = bad_words_,
                 .eos_ids = shape.eos_ids,
                 .max_tokens = max_tokens_,
                 .seed = seed_,
                 .prompt_logprobs = request_.prompt_logprobs >= 0 && answer_ids_.empty()});
  // At the worker a priority counts among all.
  if (!rooms_.admission->options().priority_across_tenants) submit.set_priority(0);
  return submit;
}

void LiveExchange::OnOutput(const wire::Output& output) {
  if (absl::Status scores = TakeScores(output); !scores.ok()) return Fail(scores);
  AnswerDelta delta;
  TakeTokens(output, &delta);
  if (output.cached_tokens() > 0) {
    // After a replay the worker counts the answer so far as prompt; the client must not.
    cached_tokens_ = std::min(static_cast<int32_t>(output.cached_tokens()),
                              static_cast<int32_t>(prompt_ids().size()));
  }
  const bool at_end = output.finish() != wire::FINISH_NONE;
  std::shared_ptr<Session> left;
  if (at_end) {
    left = session_;
    LeaveWorker();
    if (output.finish() == wire::FINISH_STOP || output.finish() == wire::FINISH_LENGTH) {
      rooms_.fleet->TakeSuccess(left->address());
    }
  }
  if (text_->stopped()) return FinishAnswer(std::move(delta), AnswerEnd::kStop);
  if (output.finish() == wire::FINISH_STOP) {
    return FinishAnswer(std::move(delta), AnswerEnd::kStop);
  }
  if (output.finish() == wire::FINISH_LENGTH) {
    return FinishAnswer(std::move(delta), AnswerEnd::kLength);
  }
  if (output.finish() == wire::FINISH_REFUSED) return OnRefused(left, output);
  // Tokens that came go to the client, whatever becomes of the rest.
  if (!delta.token_ids.empty()) {
    const std::weak_ptr<const bool> alive = alive_;
    const std::shared_ptr<const ExchangeSink> sink = sink_;
    sink->on_delta(std::move(delta));
    if (alive.expired()) return;
  }
  if (at_end) {
    TryAnother(absl::UnavailableError("worker cancelled the request"), RetryReason::kLost);
  }
}

void LiveExchange::OnRefused(const std::shared_ptr<Session>& session, const wire::Output& output) {
  absl::Status refusal(static_cast<absl::StatusCode>(output.error_code()), output.error());
  if (refusal.ok()) {
    refusal = absl::InternalError("worker refused the request without saying why");
  }
  // An error of the worker's own; another may do better.
  const bool is_fault = absl::IsInternal(refusal) || absl::IsUnknown(refusal);
  if (is_fault) rooms_.fleet->TakeFault(session->address(), WorkerFault::kError);
  if (!is_fault && !absl::IsResourceExhausted(refusal) && !absl::IsUnavailable(refusal)) {
    return Fail(refusal);
  }
  refused_by_.push_back(session);
  refusal_ = refusal;
  // A worker that drains refuses what crossed its word on the way, once: no storm comes of that.
  const bool may_storm = session->accepting() && attempts_ < rooms_.options.attempts_max;
  if (may_storm && !rooms_.admission->retries().Take()) {
    rooms_.metrics->CountRetryDenied();
    return Fail(absl::Status(refusal.code(), absl::StrCat(refusal.message(),
                                                          " (too many requests were refused to "
                                                          "try another worker: --retry-percent)")));
  }
  TryAnother(refusal, RetryReason::kRefused);
}

absl::Status LiveExchange::TakeScores(const wire::Output& output) {
  if (request_.prompt_logprobs >= 0 && answer_ids_.empty()) {
    absl::Status status =
        TakePromptScores(output, prompt_ids(), rooms_.text->tokenizer(), &prompt_scores_);
    if (!status.ok()) return status;
  }
  return request_.logprobs < 0 ? absl::OkStatus() : CheckScores(output);
}

void LiveExchange::TakeTokens(const wire::Output& output, AnswerDelta* delta) {
  const int32_t count = output.token_ids_size();
  if (count == 0) return;
  delta->token_ids.assign(output.token_ids().begin(), output.token_ids().end());
  const Clock::time_point now = rooms_.loop->Now();
  if (answer_ids_.empty()) {
    rooms_.metrics->ObserveFirstToken(SecondsBetween(began_, now));
    delta->content = prompt_->echo;
    for (TokenScore& score : prompt_scores_) score.is_text |= prompt_->echo_shows_special;
    delta->prompt_logprobs = std::move(prompt_scores_);
  } else {
    rooms_.metrics->ObserveNextTokens(SecondsBetween(last_token_, now), count);
  }
  last_token_ = now;
  rooms_.metrics->CountCompletionTokens(count);
  answer_ids_.insert(answer_ids_.end(), delta->token_ids.begin(), delta->token_ids.end());
  TakeText(output, delta);
}

void LiveExchange::TakeText(const wire::Output& output, AnswerDelta* delta) {
  size_t shown = delta->token_ids.size();
  // The id that ended the answer is a mark, not text.
  if (output.finish() == wire::FINISH_STOP && delta->token_ids.back() == output.stop_id()) --shown;
  for (size_t i = 0; i < shown && !text_->stopped(); ++i) {
    AnswerText::Delta text = text_->Feed({&delta->token_ids[i], 1});
    delta->content += text.content;
    delta->reasoning += text.reasoning;
    if (request_.logprobs < 0) continue;
    delta->logprobs.push_back(
        ScoreOf(output.logprobs(static_cast<int>(i)), rooms_.text->tokenizer()));
  }
}

void LiveExchange::OnLost(const absl::Status& status) {
  rooms_.fleet->TakeFault(session_->address(), WorkerFault::kLost);
  LeaveWorker();
  TryAnother(status, RetryReason::kLost);
}

void LiveExchange::TryAnother(const absl::Status& status, RetryReason reason) {
  // Died between its last token and its finish.
  if (max_tokens_ > 0 && static_cast<int32_t>(answer_ids_.size()) >= max_tokens_) {
    return FinishAnswer({}, AnswerEnd::kLength);
  }
  if (attempts_ >= rooms_.options.attempts_max) {
    return Fail(absl::Status(status.code(),
                             absl::StrCat(status.message(), " (attempt ", attempts_, " of at most ",
                                          rooms_.options.attempts_max, ")")));
  }
  rooms_.metrics->CountRetry(reason);
  Dispatch();
}

void LiveExchange::LeaveWorker() {
  if (session_ == nullptr) return;
  rooms_.metrics->AddRunning(-1);
  session_ = nullptr;
}

void LiveExchange::FinishAnswer(AnswerDelta delta, AnswerEnd end) {
  if (!text_->stopped()) {
    AnswerText::Delta tail = text_->Finish();
    delta.content += tail.content;
    delta.reasoning += tail.reasoning;
    if (tail.stopped) end = AnswerEnd::kStop;
  }
  delta.end = end;
  delta.usage = {.prompt_tokens = static_cast<int32_t>(prompt_ids().size()),
                 .completion_tokens = static_cast<int32_t>(answer_ids_.size()),
                 .cached_tokens = cached_tokens_};
  rooms_.metrics->CountCachedTokens(cached_tokens_);
  rooms_.metrics->ObserveRequest(SecondsBetween(began_, rooms_.loop->Now()));
  Close(end == AnswerEnd::kStop ? Outcome::kStop : Outcome::kLength);
  const std::shared_ptr<const ExchangeSink> sink = sink_;
  sink->on_delta(std::move(delta));
}

void LiveExchange::Fail(const absl::Status& status) {
  Close(OutcomeOf(status));
  const std::shared_ptr<const ExchangeSink> sink = sink_;
  sink->on_error(status);
}

void LiveExchange::Close(Outcome outcome) {
  ended_ = true;
  StopWaiting(/*sent=*/false);
  timeout_timer_->Cancel();
  if (session_ != nullptr) {
    session_->Cancel(rooms_.loop, request_id_);
    LeaveWorker();
  }
  if (entered_) {
    rooms_.admission->Leave(request_.tenant, static_cast<int64_t>(answer_ids_.size()));
  }
  prompt_ = nullptr;  // a front may keep what has ended
  prompt_ = nullptr;  // the front may keep an exchange that has ended
  rooms_.metrics->CountRequest(request_.endpoint, outcome);
}

}  // namespace

std::unique_ptr<Exchange> Exchange::Start(const ExchangeRooms& rooms, ExchangeRequest request,
                                          ExchangeSink sink) {
  auto exchange = std::make_unique<LiveExchange>(rooms, std::move(request), std::move(sink));
  exchange->Begin();
  return exchange;
}

}  // namespace glm::router
