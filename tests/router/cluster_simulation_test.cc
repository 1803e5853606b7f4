// A seeded simulation of whole clusters: the real exchange, fleet, sessions, placement and index of
// one or two routers, over a virtual clock and network, with workers that die, hang, stall, drain,
// refuse, slow down, are cut off, and garble what they say of their caches.
//
//   cluster_simulation_test                        200 seeds, as ctest runs it
//   cluster_simulation_test --seeds=10000          more of them
//   cluster_simulation_test --first=77 --seeds=1   one again
//   cluster_simulation_test --plant=lost-change    with a bug in the workers; it must be caught
//   cluster_mutant_NAME                            with one in the router
//
// A seed decides all, so one that fails can be run again. Held after every event:
//   (a) a request ends once, and is never heard of again;
//   (b) its tokens are a beginning of the only right answer: none lost, none twice, and (e) none of
//       an attempt that was given up;
//   (d) a router's index knows no block that the worker has not held in this life;
//   (f) the index stays within its bound;
//   (g) under a salt that nobody has nothing is found;
//   (h) a request goes on within a bounded time as long as one worker is well.
// And when all is quiet: every request has ended, (c) nobody counts any more, no worker has a
// request left, and the index knows exactly what each worker holds.
#include <gtest/gtest.h>

#include <algorithm>
#include <iostream>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "router/admit/admission.h"
#include "router/exchange.h"
#include "router/fleet/fleet.h"
#include "router/metrics.h"
#include "router/route/placement.h"
#include "tests/router/golden_text.h"
#include "tests/router/virtual/virtual_time.h"
#include "tests/router/virtual/virtual_worker.h"

namespace glm::router {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

uint64_t first_seed = 1;
uint64_t seeds = 200;
PlantedBugs planted;
bool expects_violation = false;

/// Until a hung worker is found and its requests have begun elsewhere, were it idle.
constexpr seconds kFailoverMax{15};
constexpr int64_t kIndexBlocksMax = 100'000;

/// The same for all seeds: nothing of it changes.
const TextModel& Text() {
  static const std::unique_ptr<const TextModel> model = GoldenModel(ChatDialect::kGlm45);
  return *model;
}

/// What happened over many seeds.
struct Coverage {
  int64_t requests = 0;
  int64_t answered = 0;
  int64_t cancelled = 0;
  int64_t failed = 0;
  int64_t tokens = 0;
  int64_t attempts = 0;
  int64_t hangs = 0;
  int64_t snapshots = 0;
  int64_t events = 0;
};

int64_t MetricOf(const RouterMetrics& metrics, const std::string& name) {
  const std::string text = metrics.Text();
  const size_t begin = text.find("\n" + name + " ");
  if (begin == std::string::npos) return -1;
  const size_t value = begin + name.size() + 2;
  return std::stoll(text.substr(value, text.find('\n', value) - value));
}

class Simulation;

/// One router: its own loops, fleet, index and counters.
struct VirtualRouter {
  VirtualRouter(VirtualTime* time, Policy policy, const FleetOptions& fleet_options,
                const AdmitOptions& admit_options, const ExchangeOptions& exchange_options,
                int32_t loop_count, DialWorker dial)
      : placement(policy, *ParseHashKey(""), kIndexBlocksMax, /*expect_ms=*/2000) {
    for (int32_t i = 0; i < loop_count; ++i) {
      loops.push_back(std::make_unique<VirtualLoop>(time, i));
    }
    std::vector<Loop*> all;
    for (const auto& loop : loops) all.push_back(loop.get());
    admission = std::make_unique<Admission>(
        admit_options, *ParseHashKey(""),
        AdmissionRooms{
            .loop = all[0], .metrics = &metrics, .room = [this] { return fleet->Room(); }});
    fleet = std::make_unique<Fleet>(fleet_options,
                                    WorkerDemand{"tiny", Text().tokenizer().vocabulary()},
                                    FleetRooms{.loops = all,
                                               .index = &placement.index(),
                                               .metrics = &metrics,
                                               .dial = dial,
                                               .on_room = [this] { admission->RoomChanged(); }},
                                    nullptr);
    rooms = {.fleet = fleet.get(),
             .admission = admission.get(),
             .placement = &placement,
             .text = &Text(),
             .metrics = &metrics,
             .model_name = "tiny",
             .options = exchange_options};
  }

  std::vector<std::unique_ptr<VirtualLoop>> loops;
  RouterMetrics metrics;
  Placement placement;
  std::unique_ptr<Admission> admission;
  std::unique_ptr<Fleet> fleet;
  ExchangeRooms rooms;
};

/// One request of a client, and what it should get.
struct VirtualClient {
  ExchangeRequest request;
  VirtualRouter* router = nullptr;
  Loop* loop = nullptr;
  std::vector<int32_t> answer;          // the right one, whole
  std::vector<BlockKey> chain;          // of prompt and answer
  std::vector<BlockKey> foreign_chain;  // of the same under a salt that nobody has
  std::unique_ptr<Exchange> exchange;
  bool started = false;
  bool leaves = false;  // before its answer has ended, perhaps
  bool left = false;
  VirtualClient* successor = nullptr;  // begins on the same loop when this one leaves
  bool ended = false;
  std::optional<absl::Status> error;
  size_t got = 0;
  VirtualTime::Time progressed;
};

class Simulation {
 public:
  Simulation(uint64_t seed, Coverage* coverage);
  ~Simulation();

  /// What was violated; empty: nothing.
  std::string Run();

 private:
  void MakeWorkers();
  void MakeRouters();
  void MakeClient();
  void MakeFault();
  void NameWorkers(const VirtualWorker* but);
  void Begin(VirtualClient* client);
  void OnDelta(VirtualClient* client, const AnswerDelta& delta);
  void OnError(VirtualClient* client, const absl::Status& status);
  void Leave(VirtualClient* client);
  void CheckAfterEvent();
  void CheckIndex(const VirtualRouter& router, const VirtualClient& client, bool is_quiet);
  void CheckProgress();
  void CheckQuiet();
  bool AllEnded() const;
  double SecondsOf(VirtualTime::Time at) const {
    return std::chrono::duration<double>(at - began_).count();
  }
  /// The moment in words.
  std::string Picture() const;
  void Violate(const std::string& what) {
    if (violation_.empty()) violation_ = what;
  }

  VirtualTime time_;
  Coverage* const coverage_;
  VirtualNetwork network_{&time_};
  VirtualTime::Time began_;
  std::vector<std::unique_ptr<VirtualWorker>> workers_;
  std::vector<VirtualTime::Time> well_since_;  // of each worker; far in the future: it is not
  std::vector<std::unique_ptr<VirtualRouter>> routers_;
  std::vector<std::unique_ptr<VirtualClient>> clients_;
  std::vector<std::vector<int32_t>> prefixes_;
  /// No fault touches the first worker, and no request may fail.
  bool is_strict_ = false;
  const VirtualWorker* unnamed_ = nullptr;  // that no source of members names now
  bool may_hang_ = false;                   // some worker stands still, or seems to
  int64_t faults_ = 0;
  VirtualWorkerOptions worker_options_;
  /// kFailoverMax, and all the work of all clients one after the other.
  std::chrono::microseconds progress_max_ = kFailoverMax;
  uint64_t events_ = 0;
  std::string violation_;
};

Simulation::Simulation(uint64_t seed, Coverage* coverage)
    : time_(seed), coverage_(coverage), began_(time_.now()) {
  is_strict_ = time_.OneIn(2);
  faults_ = time_.Draw(0, 6);
  MakeWorkers();
  MakeRouters();
  for (int64_t i = time_.Draw(1, 4); i > 0; --i) {
    std::vector<int32_t> prefix;
    for (int64_t length = time_.Draw(1, 60); length > 0; --length) {
      prefix.push_back(static_cast<int32_t>(time_.Draw(300, 999)));
    }
    prefixes_.push_back(std::move(prefix));
  }
  for (int64_t i = time_.Draw(3, 25); i > 0; --i) MakeClient();
  if (!is_strict_ || workers_.size() > 1) {
    for (int64_t i = 0; i < faults_; ++i) MakeFault();
  }
}

Simulation::~Simulation() {
  for (const auto& client : clients_) {
    client->loop->Run([&] { client->exchange = nullptr; });
  }
  for (const auto& router : routers_) {
    router->fleet->BeginStop();
    time_.RunUntil(time_.now() + seconds(1));
    router->fleet->Stop();
  }
}

void Simulation::MakeWorkers() {
  VirtualWorkerOptions& options = worker_options_;
  options.vocabulary = std::max(1000, Text().tokenizer().vocabulary());
  options.kv_blocks = time_.Draw(20, 400);
  options.sequences_max = static_cast<int32_t>(time_.Draw(1, 12));
  options.step_us = static_cast<int32_t>(time_.Draw(500, 20'000));
  options.waiting_max = 64;
  for (int64_t i = time_.Draw(1, 5); i > 0; --i) {
    workers_.push_back(std::make_unique<VirtualWorker>(
        &time_, absl::StrCat("worker-", workers_.size()), options, planted));
    network_.Add(workers_.back().get());
    well_since_.push_back(time_.now());
  }
}

void Simulation::MakeRouters() {
  FleetOptions fleet_options;
  for (const auto& worker : workers_) fleet_options.workers.push_back(worker->address());
  ExchangeOptions exchange_options;
  exchange_options.worker_wait_ms = 60'000;
  // A fault may cost a request a refusal and a loss.
  exchange_options.attempts_max = is_strict_ ? static_cast<int32_t>(2 * faults_ + 2) : 3;
  AdmitOptions admit_options;
  admit_options.queue_timeout_ms = 3'600'000;
  admit_options.queue_wait_max_ms = 3'600'000;
  // No loss and no drain may need it.
  if (is_strict_) admit_options.retry_percent = admit_options.retry_burst = 0;
  fleet_options.worker_queue_requests = static_cast<int32_t>(time_.Draw(0, 6));
  fleet_options.worker_queue_tokens = time_.Draw(1, 1000);
  for (int64_t i = time_.OneIn(3) ? 2 : 1; i > 0; --i) {
    const auto policy = static_cast<Policy>(time_.Draw(0, 4));
    routers_.push_back(std::make_unique<VirtualRouter>(
        &time_, policy, fleet_options, admit_options, exchange_options,
        static_cast<int32_t>(time_.Draw(1, 3)), network_.dialer()));
    routers_.back()->fleet->Start();
  }
}

void Simulation::MakeClient() {
  auto client = std::make_unique<VirtualClient>();
  client->router = routers_[time_.Draw(0, static_cast<int64_t>(routers_.size()) - 1)].get();
  auto& loops = client->router->loops;
  client->loop = loops[time_.Draw(0, static_cast<int64_t>(loops.size()) - 1)].get();
  std::vector<int32_t> prompt =
      prefixes_[time_.Draw(0, static_cast<int64_t>(prefixes_.size()) - 1)];
  for (int64_t i = time_.Draw(0, 20); i > 0; --i) {
    prompt.push_back(static_cast<int32_t>(time_.Draw(300, 999)));
  }
  ExchangeRequest& request = client->request;
  request.prompt = prompt;
  request.max_tokens = static_cast<int32_t>(time_.Draw(1, 60));
  request.seed = time_.random();
  request.choice = static_cast<int32_t>(time_.Draw(0, 3));
  request.temperature = 1;
  request.priority = static_cast<int32_t>(time_.Draw(-1, 1));
  request.tenant = {.high = 1, .low = static_cast<uint64_t>(time_.Draw(1, 4))};
  if (time_.OneIn(3)) request.logprobs = 0;
  if (time_.OneIn(3)) request.session = absl::StrCat("session-", time_.Draw(0, 3));
  if (time_.OneIn(4)) request.cache_salt = "salt";
  const AnswerKey key{prompt, *request.seed, static_cast<uint32_t>(request.choice)};
  client->answer =
      VirtualAnswer(key, *request.max_tokens, std::max(1000, Text().tokenizer().vocabulary()));
  std::vector<int32_t> ids = prompt;
  ids.insert(ids.end(), client->answer.begin(), client->answer.end());
  ids.push_back(0);  // Chain leaves out the block of the last id
  Placement namer(Policy::kPrefix, *ParseHashKey(""), 1, 1);
  client->chain = namer.Chain(request.cache_salt, ids, VirtualWorkerOptions().block_size);
  client->foreign_chain = namer.Chain("nobody's", ids, VirtualWorkerOptions().block_size);

  VirtualClient* const raw = client.get();
  const auto at = milliseconds(time_.Draw(0, 10'000));
  VirtualClient* const before = clients_.empty() ? nullptr : clients_.back().get();
  if (before != nullptr && before->leaves && before->loop == raw->loop && time_.OneIn(2)) {
    before->successor = raw;
  } else {
    time_.At(began_ + at, [this, raw] { raw->loop->Post([this, raw] { Begin(raw); }); });
  }
  if (time_.OneIn(3)) {
    raw->leaves = true;
    time_.At(began_ + at + milliseconds(time_.Draw(0, time_.OneIn(2) ? 200 : 3000)),
             [this, raw] { raw->loop->Post([this, raw] { Leave(raw); }); });
  }
  const int64_t steps =
      *request.max_tokens +
      static_cast<int64_t>(prompt.size()) / worker_options_.prompt_tokens_per_step + 1;
  progress_max_ += std::chrono::microseconds(steps * worker_options_.step_us);
  clients_.push_back(std::move(client));
}

void Simulation::MakeFault() {
  const auto count = static_cast<int64_t>(workers_.size());
  VirtualWorker* const worker = workers_[time_.Draw(is_strict_ ? 1 : 0, count - 1)].get();
  const auto begin = began_ + milliseconds(time_.Draw(0, 12'000));
  const auto end = begin + milliseconds(time_.Draw(10, time_.OneIn(3) ? 60'000 : 10'000));
  const auto toggle = [&](auto set) {
    time_.At(begin, [worker, set] { set(worker, true); });
    time_.At(end, [worker, set] { set(worker, false); });
  };
  const int64_t kind = time_.Draw(0, 10);
  may_hang_ = may_hang_ || (kind >= 1 && kind <= 3);
  switch (kind) {
    case 0:
      return toggle([](VirtualWorker* w, bool on) { on ? w->Kill() : w->Start(); });
    case 1:
      return toggle([](VirtualWorker* w, bool on) { w->SetHung(on); });
    case 2:
      return toggle([](VirtualWorker* w, bool on) { w->SetStuck(on); });
    case 3:
      return toggle([](VirtualWorker* w, bool on) { w->SetHeld(on); });
    case 4:
      return toggle([](VirtualWorker* w, bool on) { w->SetSlow(on ? 8 : 1); });
    case 5:
      if (is_strict_) return;  // retries after refusals have a budget
      return toggle([](VirtualWorker* w, bool on) {
        w->Refuse(on ? absl::ResourceExhaustedError("full") : absl::OkStatus());
      });
    case 6:
      time_.At(begin, [worker] { worker->Drain(); });
      time_.At(end, [worker] { worker->Kill(); });
      time_.At(end + seconds(1), [worker] { worker->Start(); });
      return;
    case 7:
      time_.At(begin, [worker] { worker->BreakLinks(); });
      return;
    case 8:  // a source of members forgets it for a while
      time_.At(begin, [this, worker] { NameWorkers(worker); });
      time_.At(end, [this] { NameWorkers(nullptr); });
      return;
    case 9:
      if (is_strict_) return;
      return toggle([](VirtualWorker* w, bool on) {
        w->Refuse(on ? absl::InternalError("broken") : absl::OkStatus());
      });
    default:
      for (int i = 0; i < 5; ++i) {
        time_.At(begin + milliseconds(time_.Draw(0, 5000)),
                 [worker] { worker->GarbleNextChanges(); });
      }
  }
}

/// Tells every router who the workers are: all, but for this one.
void Simulation::NameWorkers(const VirtualWorker* but) {
  unnamed_ = but;
  std::vector<std::string> addresses;
  for (const auto& worker : workers_) {
    if (worker.get() != but) addresses.push_back(worker->address());
  }
  for (const auto& router : routers_) {
    const absl::Status status = router->fleet->SetMembers(MemberSource::kStatic, addresses);
    if (!status.ok()) Violate(absl::StrCat("members are refused: ", status.ToString()));
  }
}

void Simulation::Begin(VirtualClient* client) {
  if (client->left) return;
  client->started = true;
  client->progressed = time_.now();
  ++coverage_->requests;
  ExchangeRooms rooms = client->router->rooms;
  rooms.loop = client->loop;
  client->exchange = Exchange::Start(
      rooms, client->request,
      {.on_delta = [this, client](const AnswerDelta& delta) { OnDelta(client, delta); },
       .on_error = [this, client](const absl::Status& status) { OnError(client, status); }});
}

void Simulation::Leave(VirtualClient* client) {
  VirtualClient* const successor = client->successor;
  if (!client->ended) {
    client->left = true;
    client->exchange = nullptr;
    ++coverage_->cancelled;
  }
  if (successor != nullptr) Begin(successor);
}

void Simulation::OnDelta(VirtualClient* client, const AnswerDelta& delta) {
  if (client->ended || client->left) return Violate("a request was heard of after its end");
  client->progressed = time_.now();
  for (const int32_t id : delta.token_ids) {
    if (client->got >= client->answer.size()) return Violate("more tokens than were asked for");
    if (id != client->answer[client->got]) {
      return Violate(
          absl::StrCat("token ", client->got, " is ", id, ", not ", client->answer[client->got]));
    }
    ++client->got;
    ++coverage_->tokens;
  }
  if (client->request.logprobs >= 0 && delta.logprobs.size() != delta.token_ids.size()) {
    return Violate("tokens without their logprobs");
  }
  if (!delta.end.has_value()) return;
  client->ended = true;
  ++coverage_->answered;
  if (client->got != client->answer.size()) Violate("an answer ended before its last token");
  if (delta.usage.completion_tokens != *client->request.max_tokens) Violate("wrong usage");
  if (delta.usage.prompt_tokens < delta.usage.cached_tokens) Violate("more cached than prompt");
}

void Simulation::OnError(VirtualClient* client, const absl::Status& status) {
  if (client->ended || client->left) return Violate("a request failed after its end");
  client->ended = true;
  client->error = status;
  ++coverage_->failed;
  if (is_strict_) Violate(absl::StrCat("a request failed: ", status.ToString()));
  // Errors are a broken worker's own.
  if (!absl::IsUnavailable(status) && !absl::IsResourceExhausted(status) &&
      !absl::StartsWith(status.message(), "broken")) {
    Violate(absl::StrCat("a request failed in a strange way: ", status.ToString()));
  }
}

void Simulation::CheckIndex(const VirtualRouter& router, const VirtualClient& client,
                            bool is_quiet) {
  // As if every expectation had passed: what is left is what workers said.
  const auto depths =
      const_cast<VirtualRouter&>(router).placement.index().Depths(client.chain, int64_t{1} << 60);
  const std::shared_ptr<const FleetSnapshot> snapshot = router.fleet->Snapshot();
  const auto foreign =
      const_cast<VirtualRouter&>(router).placement.index().Depths(client.foreign_chain, 0);
  if (std::any_of(foreign.begin(), foreign.end(), [](int32_t depth) { return depth > 0; })) {
    Violate("the index finds blocks under another salt");
  }
  for (const FleetWorker& known : snapshot->workers) {
    if (known.session == nullptr || !known.session->accepting()) continue;
    const VirtualWorker& worker = *network_.at(known.address);
    // Its end is on its way.
    if (!worker.alive() || known.session->shape().incarnation != worker.incarnation()) continue;
    const int32_t depth = depths[known.session->cache_slot()];
    if (depth > worker.EverHeld(client.chain)) {
      Violate(absl::StrCat("the index knows ", depth, " blocks of ", worker.address(),
                           ", which has never held more than ", worker.EverHeld(client.chain)));
    }
    if (is_quiet && depth != worker.Held(client.chain)) {
      Violate(absl::StrCat("when all is quiet the index knows ", depth, " blocks of ",
                           worker.address(), ", which holds ", worker.Held(client.chain)));
    }
  }
  if (const_cast<VirtualRouter&>(router).placement.index().blocks() > kIndexBlocksMax) {
    Violate("the index is over its bound");
  }
}

void Simulation::CheckProgress() {
  const auto now = time_.now();
  bool one_is_well = false;
  for (size_t i = 0; i < workers_.size(); ++i) {
    const bool is_well = workers_[i]->healthy() && workers_[i].get() != unnamed_;
    if (!is_well) well_since_[i] = now + std::chrono::hours(1);
    if (is_well && well_since_[i] > now) well_since_[i] = now;
    one_is_well = one_is_well || now - well_since_[i] > progress_max_;
  }
  if (!one_is_well) return;
  for (const auto& client : clients_) {
    if (!client->started || client->ended || client->left) continue;
    if (now - client->progressed > progress_max_) {
      return Violate(absl::StrCat("a request stands still since ", SecondsOf(client->progressed),
                                  " s though a worker is well, at ", Picture()));
    }
  }
}

void Simulation::CheckAfterEvent() {
  ++events_;
  // One prompt an event, all in turn.
  VirtualClient& client = *clients_[events_ % clients_.size()];
  CheckIndex(*client.router, client, false);
  if (events_ % 64 == 0) CheckProgress();
}

std::string Simulation::Picture() const {
  std::string text = absl::StrCat(SecondsOf(time_.now()), " s:");
  for (const auto& worker : workers_) absl::StrAppend(&text, "\n  ", worker->Picture());
  for (const auto& router : routers_) {
    for (const FleetWorker& worker : router->fleet->Snapshot()->workers) {
      absl::StrAppend(&text, "\n  a router sees ", worker.address, " in state ",
                      static_cast<int>(worker.state));
      if (worker.session != nullptr) {
        absl::StrAppend(&text, ", load ", worker.session->Load().requests);
      }
    }
  }
  return text;
}

bool Simulation::AllEnded() const {
  for (const auto& client : clients_) {
    if (!client->left && !client->ended) return false;
  }
  return true;
}

void Simulation::CheckQuiet() {
  std::set<std::pair<uint64_t, uint64_t>> held;
  for (const auto& worker : workers_) worker->AddHeld(&held);
  for (const auto& router : routers_) {
    for (const auto& client : clients_) CheckIndex(*router, *client, true);
    const int64_t known = router->placement.index().blocks();
    if (known != static_cast<int64_t>(held.size())) {
      Violate(absl::StrCat("the index has ", known, " blocks, the workers ", held.size()));
    }
    if (MetricOf(router->metrics, "glmserve_router_requests_running") != 0) {
      Violate("requests count as running though all have ended");
    }
    if (MetricOf(router->metrics, "glmserve_router_requests_waiting") != 0) {
      Violate("requests count as waiting though all have ended");
    }
    if (router->admission->counts() != Admission::Counts{}) {
      Violate("the queue counts requests though all have ended");
    }
    coverage_->attempts += MetricOf(router->metrics, "glmserve_router_attempts_total");
    coverage_->snapshots += MetricOf(router->metrics, "glmserve_router_cache_snapshots_total");
    for (const char* const kind : {"silent", "step"}) {
      const int64_t hangs = MetricOf(
          router->metrics, absl::StrCat("glmserve_router_worker_hangs_total{kind=\"", kind, "\"}"));
      coverage_->hangs += hangs;
      if (hangs > 0 && !may_hang_) Violate("a worker was taken for hung that never was");
    }
    const std::shared_ptr<const FleetSnapshot> snapshot = router->fleet->Snapshot();
    if (snapshot->ready != static_cast<int32_t>(workers_.size())) {
      Violate("a worker that is well is not ready");
    }
    for (const FleetWorker& worker : snapshot->workers) {
      if (worker.session == nullptr) continue;
      const WorkerLoad load = worker.session->Load();
      if (load.requests != 0) {
        Violate(absl::StrCat(load.requests, " requests are left in a load, at ", Picture()));
      }
    }
  }
  for (const auto& worker : workers_) {
    if (!worker->idle()) Violate("a worker still has a request that nobody waits for");
  }
}

std::string Simulation::Run() {
  // Faults are over after 73 s; whatever waits for a worker then has its time.
  const auto end = began_ + seconds(240);
  while (violation_.empty() && time_.now() < end) {
    if (AllEnded() && time_.now() > began_ + seconds(75)) break;
    if (!time_.RunNext()) break;
    CheckAfterEvent();
  }
  coverage_->events += static_cast<int64_t>(events_);
  if (violation_.empty() && !AllEnded()) Violate("a request never ended");
  if (!violation_.empty()) return violation_;
  time_.RunUntil(time_.now() + seconds(10));
  CheckQuiet();
  return violation_;
}

TEST(ClusterSimulation, KeepsItsPromises) {
  Coverage coverage;
  for (uint64_t seed = first_seed; seed < first_seed + seeds; ++seed) {
    const std::string violation = Simulation(seed, &coverage).Run();
    if (violation.empty()) continue;
    if (expects_violation) {
      std::cout << "caught at seed " << seed << ": " << violation << "\n";
      return;
    }
    FAIL() << violation << "; again: --first=" << seed << " --seeds=1";
  }
  ASSERT_FALSE(expects_violation) << "the planted bug was not caught in " << seeds << " seeds";
  std::cout << coverage.requests << " requests: " << coverage.answered << " answered, "
            << coverage.cancelled << " cancelled, " << coverage.failed << " failed; "
            << coverage.tokens << " tokens, " << coverage.attempts << " attempts, "
            << coverage.hangs << " hangs seen, " << coverage.snapshots << " snapshots, "
            << coverage.events << " events\n";
  if (seeds < 200) return;
  EXPECT_GT(coverage.answered, 0);
  EXPECT_GT(coverage.hangs, 0);
  EXPECT_GT(coverage.attempts, coverage.requests);  // requests went on elsewhere
}

}  // namespace
}  // namespace glm::router

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  using namespace glm::router;
  for (int i = 1; i < argc; ++i) {
    const absl::string_view arg = argv[i];
    bool ok = true;
    if (absl::StartsWith(arg, "--seeds=")) {
      ok = absl::SimpleAtoi(arg.substr(8), &seeds);
    } else if (absl::StartsWith(arg, "--first=")) {
      ok = absl::SimpleAtoi(arg.substr(8), &first_seed);
    } else if (arg == "--plant=lost-change") {
      planted.loses_cache_changes = expects_violation = true;
    } else if (arg == "--plant=mutant") {  // this program was built with one
      expects_violation = true;
    } else {
      ok = false;
    }
    if (!ok) {
      std::cerr << "unknown argument " << arg << "\n";
      return 2;
    }
  }
  return RUN_ALL_TESTS();
}
