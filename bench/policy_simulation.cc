#include "bench/policy_simulation.h"

#include <algorithm>
#include <cmath>
#include <deque>
#include <limits>
#include <list>
#include <memory>
#include <random>
#include <unordered_map>
#include <utility>

#include "engine/schedule/step_time.h"
#include "proto/base/block_hash.h"
#include "proto/base/log.h"
#include "router/route/prefix_index.h"

namespace glm::bench {
namespace {

using router::Candidate;
using router::PrefixIndex;

constexpr double kNever = std::numeric_limits<double>::infinity();
constexpr double kBurstS = 0.01;
constexpr int64_t kExpectMs = 10'000;  // as router/options.h prefix_expect_ms

/// Draws that are the same on every machine.
class Random {
 public:
  explicit Random(uint64_t seed) : bits_(seed) {}
  uint64_t Bits() { return bits_(); }
  double Unit() { return static_cast<double>(bits_() >> 11) * 0x1p-53; }
  double Exponential(double mean) { return -mean * std::log1p(-Unit()); }
  double Normal() {
    return std::sqrt(-2 * std::log1p(-Unit())) * std::cos(2 * 3.14159265358979323846 * Unit());
  }

 private:
  std::mt19937_64 bits_;
};

/// A request on its way through a worker.
struct Job {
  size_t outcome = 0;
  std::vector<BlockKey> chain;  // full blocks of the prompt, all but its last token
  int32_t shared_tokens = 0;
  int32_t prompt_tokens = 0;
  int32_t answer_tokens = 0;
  int64_t counted_tokens = 0;  // by the router, until its first token
  int32_t computed = 0;        // of prompt and answer
  int32_t answered = 0;
  int32_t cached_tokens = 0;
  int32_t published = 0;  // blocks of the chain that are the cache's
  int32_t own_blocks = 0;
};

/// A worker's prefix cache: blocks with references, and those without in the order of their use.
class Cache {
 public:
  Cache(int64_t blocks, PrefixIndex* index, int32_t slot)
      : free_(blocks), index_(index), slot_(slot) {}

  /// Blocks that can be had: free, or held by the cache alone.
  int64_t available() const { return free_ + static_cast<int64_t>(idle_.size()); }
  int64_t IdleAmong(const std::vector<BlockKey>& chain, int32_t count) const {
    int64_t idle = 0;
    for (int32_t i = 0; i < count; ++i) idle += entries_.at(chain[i]).references == 0 ? 1 : 0;
    return idle;
  }
  int32_t Match(const std::vector<BlockKey>& chain) const {
    int32_t found = 0;
    while (found < static_cast<int32_t>(chain.size()) && entries_.contains(chain[found])) ++found;
    return found;
  }
  void Share(const BlockKey& block) {
    Entry& entry = entries_.at(block);
    if (entry.references++ == 0) idle_.erase(entry.place);
  }
  /// Takes so many blocks. REQUIRES that they are available.
  void Take(int64_t count) {
    for (; count > 0; --count) {
      if (free_ > 0) {
        --free_;
        continue;
      }
      CHECK(!idle_.empty());
      index_->Remove(slot_, idle_.front());
      entries_.erase(idle_.front());
      idle_.pop_front();
    }
  }
  void Give(int64_t count) { free_ += count; }
  /// A block that was taken becomes the cache's, with a reference; false: it had one like it, to
  /// which the reference goes, and the block is free.
  bool Publish(const BlockKey& block) {
    const auto [entry, is_new] = entries_.try_emplace(block);
    if (!is_new) {
      Share(block);
      ++free_;
      return false;
    }
    entry->second.references = 1;
    index_->Store(slot_, block);
    return true;
  }
  void Release(const BlockKey& block) {
    Entry& entry = entries_.at(block);
    if (--entry.references > 0) return;
    entry.place = idle_.insert(idle_.end(), block);
  }

 private:
  struct Entry {
    int32_t references = 0;
    std::list<BlockKey>::iterator place;  // in idle_, without references
  };
  int64_t free_;
  std::list<BlockKey> idle_;  // the least recently used first
  std::unordered_map<BlockKey, Entry, BlockKeyHash> entries_;
  PrefixIndex* const index_;
  const int32_t slot_;
};

/// One worker, and what the router knows of it.
class Worker {
 public:
  Worker(const RouteFleet& fleet, int32_t number, PrefixIndex* index)
      : fleet_(fleet),
        number_(number),
        slot_(index->AddWorker()),
        cache_(fleet.kv_blocks, index, slot_) {}

  double step_ends() const { return step_ends_; }
  int32_t slot() const { return slot_; }

  /// What router/exchange.cc and fleet/session.cc would make of it.
  Candidate Look(double now) const {
    const engine::StepTimes times = said_.step_times;
    return {.usable = true,
            .requests = std::max(own_requests_, said_.requests_running + said_.requests_waiting),
            .sequences_max = fleet_.sequences_max,
            .tokens_waiting = std::max(own_tokens_, said_.tokens_waiting),
            .context_tokens = said_.context_tokens,
            .kv_blocks_free = fleet_.kv_blocks - said_.kv_blocks_used,
            .block_size = fleet_.block_size,
            .step_tokens_max = fleet_.step_tokens_max,
            .times = {.base_s = 1e-6 * times.base_us,
                      .sequence_s = 1e-6 * times.sequence_us,
                      .prompt_token_s = 1e-6 * times.prompt_token_us,
                      .context_token_s = 1e-6 * times.context_token_us},
            .times_age_s = now - said_at_};
  }

  void Submit(Job job, double now, Random* random) {
    ++own_requests_;
    own_tokens_ += job.counted_tokens;
    tokens_queued_ += job.prompt_tokens;
    waiting_.push_back(std::move(job));
    if (step_ends_ == kNever) BeginStep(now, random);
  }

  void EndStep(double now, Random* random, RouteResult* result) {
    step_time_.Note(work_, now - step_began_);
    for (size_t i = 0; i < running_.size(); ++i) Advance(&running_[i], planned_[i], now, result);
    std::erase_if(running_, [](const Job& job) { return job.answered == job.answer_tokens; });
    step_ends_ = kNever;
    Say(now);
    BeginStep(now, random);
  }

 private:
  int64_t BlocksFor(int64_t tokens) const {
    return (tokens + fleet_.block_size - 1) / fleet_.block_size;
  }

  void BeginStep(double now, Random* random) {
    planned_.assign(running_.size(), 0);
    work_ = {};
    int32_t left = fleet_.step_tokens_max;
    for (size_t i = 0; i < running_.size(); ++i) {
      if (running_[i].computed < running_[i].prompt_tokens) continue;
      planned_[i] = 1;
      --left;
      ++work_.decodes;
    }
    for (size_t i = 0; i < running_.size() && left > 0; ++i) {
      if (planned_[i] == 0) left -= PlanPrompt(i, left);
    }
    while (left > 0 && Start()) left -= PlanPrompt(running_.size() - 1, left);
    for (size_t i = 0; i < running_.size(); ++i) {
      if (planned_[i] > 0) work_.context_tokens += running_[i].computed + planned_[i];
    }
    if (work_.decodes + work_.prompt_tokens == 0) return;
    const engine::StepTimes& truth = fleet_.truth;
    const double seconds =
        1e-6 * (truth.base_us + truth.sequence_us * work_.decodes +
                truth.prompt_token_us * work_.prompt_tokens +
                truth.context_token_us * static_cast<double>(work_.context_tokens));
    const double noise = std::max(0.2, 1 + fleet_.noise * random->Normal());
    step_began_ = now;
    step_ends_ = now + seconds * noise * fleet_.slowness(number_, now);
  }

  int32_t PlanPrompt(size_t i, int32_t left) {
    planned_[i] = std::min(left, running_[i].prompt_tokens - running_[i].computed);
    work_.prompt_tokens += planned_[i];
    return planned_[i];
  }

  /// Starts the first of those that wait, if its whole length has room.
  bool Start() {
    if (waiting_.empty() || static_cast<int32_t>(running_.size()) >= fleet_.sequences_max) {
      return false;
    }
    Job& job = waiting_.front();
    const int32_t found = cache_.Match(job.chain);
    const int64_t blocks = BlocksFor(job.prompt_tokens + job.answer_tokens) - found;
    if (blocks > cache_.available() - cache_.IdleAmong(job.chain, found)) return false;
    for (int32_t i = 0; i < found; ++i) cache_.Share(job.chain[i]);
    cache_.Take(blocks);
    job.own_blocks = static_cast<int32_t>(blocks);
    job.published = found;
    job.computed = found * fleet_.block_size;
    job.cached_tokens = job.computed;
    tokens_queued_ -= job.prompt_tokens;
    running_.push_back(std::move(job));
    planned_.push_back(0);
    waiting_.pop_front();
    return true;
  }

  void Advance(Job* job, int32_t tokens, double now, RouteResult* result) {
    if (tokens == 0) return;
    RouteOutcome& outcome = result->outcomes[job->outcome];
    if (job->answered == 0) {
      outcome.cached_tokens = job->cached_tokens;
      result->shared_computed += std::max(0, std::min(job->computed + tokens, job->shared_tokens) -
                                                 std::min(job->computed, job->shared_tokens));
    }
    job->computed += tokens;
    Publish(job);
    if (job->computed < job->prompt_tokens) return;
    result->answer_tokens.resize(std::max(result->answer_tokens.size(), size_t(now) + 1));
    ++result->answer_tokens[size_t(now)];
    if (job->answered++ == 0) {
      outcome.first_token = now - outcome.arrived;
      own_tokens_ -= job->counted_tokens;
    }
    if (job->answered < job->answer_tokens) return;
    outcome.ended = now;
    --own_requests_;
    cache_.Give(job->own_blocks);
    for (int32_t i = job->published - 1; i >= 0; --i) cache_.Release(job->chain[i]);
  }

  void Publish(Job* job) {
    while (job->published < static_cast<int32_t>(job->chain.size()) &&
           (job->published + 1) * fleet_.block_size <= job->computed) {
      cache_.Publish(job->chain[job->published]);
      --job->own_blocks;
      ++job->published;
    }
  }

  /// As Scheduler::Load.
  void Say(double now) {
    said_at_ = now;
    said_ = {.requests_running = static_cast<int32_t>(running_.size()),
             .requests_waiting = static_cast<int32_t>(waiting_.size()),
             .tokens_waiting = tokens_queued_,
             .kv_blocks_used = fleet_.kv_blocks - cache_.available(),
             .kv_blocks_total = fleet_.kv_blocks,
             .step_times = step_time_.times()};
    for (const Job& job : running_) {
      said_.context_tokens += job.computed;
      said_.tokens_waiting += std::max(0, job.prompt_tokens - job.computed);
    }
  }

  const RouteFleet& fleet_;
  const int32_t number_;
  const int32_t slot_;
  Cache cache_;
  std::deque<Job> waiting_;
  std::vector<Job> running_;
  std::vector<int32_t> planned_;  // tokens of each of running_ in the step under way
  engine::StepWork work_;
  engine::StepTimeModel step_time_;
  double step_began_ = 0;
  double step_ends_ = kNever;
  int64_t tokens_queued_ = 0;

  // The router's side.
  int32_t own_requests_ = 0;
  int64_t own_tokens_ = 0;
  engine::EngineLoad said_;
  double said_at_ = 0;
};

/// What arrives: the same for all policies.
class Clients {
 public:
  Clients(const RouteMix& mix, int32_t block_size, uint64_t seed)
      : mix_(mix), block_size_(block_size), random_(seed) {
    double sum = 0;
    for (int32_t i = 0; i < mix.prefixes; ++i) popularity_.push_back(sum += 1.0 / (i + 1));
  }

  double Gap(double rate) { return random_.Exponential(1 / rate); }
  Job Next(size_t outcome) { return Make(outcome, DrawPrefix()); }
  /// With a prefix that Next never draws.
  Job OfBurst(size_t outcome) { return Make(outcome, mix_.prefixes); }

 private:
  Job Make(size_t outcome, int32_t prefix) {
    Job job;
    job.outcome = outcome;
    job.prompt_tokens = mix_.prompt_tokens;
    job.answer_tokens = static_cast<int32_t>(
        std::clamp(std::ceil(random_.Exponential(mix_.answer_tokens)), 1.0, 1000.0));
    const int32_t shared = mix_.prompt_tokens * mix_.shared_percent / 100 / block_size_;
    job.shared_tokens = shared * block_size_;
    // A block's name is only ever compared: any number that tells blocks apart will do.
    for (int32_t i = 0; i < (mix_.prompt_tokens - 1) / block_size_; ++i) {
      const uint64_t of = i < shared ? uint64_t(prefix) : (uint64_t{1} << 32) + outcome;
      job.chain.push_back({Mix(of * 65'536 + i), Mix(of * 65'536 + i + (uint64_t{1} << 63))});
    }
    return job;
  }

  static uint64_t Mix(uint64_t x) {
    x += 0x9E3779B97F4A7C15u;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
  }
  int32_t DrawPrefix() {
    if (100 * random_.Unit() < mix_.hot_percent) return 0;
    const double drawn = random_.Unit() * popularity_.back();
    const auto found = std::upper_bound(popularity_.begin(), popularity_.end(), drawn);
    return static_cast<int32_t>(std::min(found, popularity_.end() - 1) - popularity_.begin());
  }

  const RouteMix& mix_;
  const int32_t block_size_;
  Random random_;
  std::vector<double> popularity_;  // summed
};

class Simulation {
 public:
  Simulation(const RouteFleet& fleet, const RouteMix& mix, const RouteRun& run)
      : fleet_(fleet),
        run_(run),
        clients_(mix, fleet.block_size, run.seed),
        random_(run.seed ^ 0x5EEDu),
        index_(int64_t{4} << 20) {
    for (int32_t i = 0; i < fleet.workers; ++i) {
      workers_.push_back(std::make_unique<Worker>(fleet, i, &index_));
    }
  }

  RouteResult Run() {
    double arrival = clients_.Gap(run_.rate);
    while (true) {
      Worker* next = nullptr;
      for (const auto& worker : workers_) {
        if (next == nullptr || worker->step_ends() < next->step_ends()) next = worker.get();
      }
      if (arrival <= next->step_ends()) {
        if (arrival == kNever) return std::move(result_);
        Arrive(arrival);
        arrival = NextArrival(arrival);
      } else {
        next->EndStep(next->step_ends(), &random_, &result_);
      }
    }
  }

 private:
  int64_t arrived() const { return static_cast<int64_t>(result_.outcomes.size()); }
  double NextArrival(double now) {
    if (arrived() < run_.requests) return now + clients_.Gap(run_.rate);
    if (arrived() == run_.requests + run_.burst) return kNever;
    return now + (arrived() == run_.requests ? 1.0 : kBurstS / static_cast<double>(run_.burst));
  }
  void Arrive(double now) {
    Job job = arrived() < run_.requests ? clients_.Next(result_.outcomes.size())
                                        : clients_.OfBurst(result_.outcomes.size());
    RouteOutcome& outcome = result_.outcomes.emplace_back();
    result_.last_arrival = now;
    outcome.arrived = now;
    outcome.answer_tokens = job.answer_tokens;
    const auto now_ms = static_cast<int64_t>(1e3 * now);
    std::vector<int32_t> depths;
    if (router::CountsPrefixes(run_.policy)) depths = index_.Depths(job.chain, now_ms);
    std::vector<Candidate> candidates;
    for (const auto& worker : workers_) {
      Candidate& candidate = candidates.emplace_back(worker->Look(now));
      if (depths.empty()) continue;
      candidate.cached_tokens = int64_t{depths[worker->slot()]} * fleet_.block_size;
    }
    const router::Choice choice = router::ChooseWorker({.policy = run_.policy,
                                                        .prompt_tokens = job.prompt_tokens,
                                                        .spread = random_.Bits(),
                                                        .turn = turns_++},
                                                       candidates);
    outcome.worker = choice.worker;
    outcome.predicted_first_token = choice.first_token_s;
    Worker& worker = *workers_[choice.worker];
    job.counted_tokens = job.prompt_tokens - candidates[choice.worker].cached_tokens;
    if (!depths.empty()) index_.Expect(worker.slot(), job.chain, now_ms, now_ms + kExpectMs);
    worker.Submit(std::move(job), now, &random_);
  }

  const RouteFleet& fleet_;
  const RouteRun& run_;
  Clients clients_;
  Random random_;  // of steps and choices
  PrefixIndex index_;
  std::vector<std::unique_ptr<Worker>> workers_;
  uint64_t turns_ = 0;
  RouteResult result_;
};

}  // namespace

RouteResult Simulate(const RouteFleet& fleet, const RouteMix& mix, const RouteRun& run) {
  CHECK(fleet.workers > 0 && run.requests > 0 && run.rate > 0);
  return Simulation(fleet, mix, run).Run();
}

double AnswerTokensPerSecond(const RouteResult& result, double begin, double end) {
  int64_t tokens = 0;
  int64_t seconds = 0;
  for (auto second = static_cast<int64_t>(std::ceil(begin)); second + 1 <= end; ++second) {
    ++seconds;
    if (second < static_cast<int64_t>(result.answer_tokens.size())) {
      tokens += result.answer_tokens[second];
    }
  }
  return static_cast<double>(tokens) / static_cast<double>(std::max<int64_t>(1, seconds));
}

double FirstTokenQuantile(const RouteResult& result, double share, double begin, double end) {
  std::vector<double> seconds;
  for (const RouteOutcome& outcome : result.outcomes) {
    if (outcome.arrived >= begin && outcome.arrived < end) seconds.push_back(outcome.first_token);
  }
  if (seconds.empty()) return 0;
  const auto at =
      seconds.begin() + static_cast<int64_t>(share * static_cast<double>(seconds.size() - 1));
  std::nth_element(seconds.begin(), at, seconds.end());
  return *at;
}

std::vector<int64_t> RequestsByWorker(const RouteResult& result, int32_t workers, double begin,
                                      double end) {
  std::vector<int64_t> counts(workers, 0);
  for (const RouteOutcome& outcome : result.outcomes) {
    if (outcome.arrived >= begin && outcome.arrived < end) ++counts[outcome.worker];
  }
  return counts;
}

double MaxOverMean(const std::vector<int64_t>& counts) {
  int64_t sum = 0;
  for (const int64_t count : counts) sum += count;
  return static_cast<double>(*std::max_element(counts.begin(), counts.end())) *
         static_cast<double>(counts.size()) / static_cast<double>(std::max<int64_t>(1, sum));
}

double CachedShare(const RouteResult& result, const RouteMix& mix) {
  double cached = 0;
  for (const RouteOutcome& outcome : result.outcomes) cached += outcome.cached_tokens;
  return cached / (static_cast<double>(result.outcomes.size()) * mix.prompt_tokens);
}

double Capacity(const RouteFleet& fleet, const RouteMix& mix, router::Policy policy) {
  RouteRun run{.policy = policy, .rate = 1e6, .requests = 1000 * fleet.workers};
  const RouteResult result = Simulate(fleet, mix, run);
  // Without its beginning, when nothing has ended yet, and without the end, when batches shrink.
  std::vector<double> ends;
  for (const RouteOutcome& outcome : result.outcomes) ends.push_back(outcome.ended);
  std::sort(ends.begin(), ends.end());
  const double begin = ends[ends.size() / 4];
  const double end = ends[ends.size() * 3 / 4];
  return static_cast<double>(ends.size()) / 2 / (end - begin);
}

}  // namespace glm::bench
