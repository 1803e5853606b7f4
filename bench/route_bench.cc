#include "bench/route_bench.h"

#include <malloc.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_format.h"
#include "absl/types/span.h"
#include "proto/base/block_hash.h"
#include "proto/base/log.h"
#include "router/route/placement.h"
#include "router/route/policy.h"
#include "router/route/prefix_index.h"

namespace glm::bench {
namespace {

using Clock = std::chrono::steady_clock;
using router::Candidate;
using router::Placement;
using router::Policy;
using router::PrefixIndex;

double Seconds(Clock::duration duration) { return std::chrono::duration<double>(duration).count(); }

Clock::duration InSeconds(double seconds) {
  return std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
}

/// The finaliser of SplitMix64.
uint64_t Mix(uint64_t x) {
  x += 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

/// The name of block `number`, as good as random.
BlockKey NameOf(uint64_t number) { return {Mix(2 * number), Mix(2 * number + 1)}; }

std::vector<BlockKey> NamesFrom(uint64_t first, int64_t count) {
  std::vector<BlockKey> names(static_cast<size_t>(count));
  for (size_t i = 0; i < names.size(); ++i) names[i] = NameOf(first + i);
  return names;
}

int64_t ResidentBytes() {
  int64_t total_pages = 0;
  int64_t resident_pages = 0;
  std::ifstream("/proc/self/statm") >> total_pages >> resident_pages;
  return resident_pages * 4096;
}

/// Times of single calls.
class Times {
 public:
  void Add(Clock::duration time) { us_.push_back(1e6 * Seconds(time)); }
  void Join(const Times& other) { us_.insert(us_.end(), other.us_.begin(), other.us_.end()); }
  size_t count() const { return us_.size(); }
  double Quantile(double share) {
    CHECK(!us_.empty()) << "nothing was measured";
    const auto at = static_cast<size_t>(share * static_cast<double>(us_.size() - 1));
    std::nth_element(us_.begin(), us_.begin() + static_cast<int64_t>(at), us_.end());
    return us_[at];
  }
  std::string Json() {
    return absl::StrFormat(
        "\"calls\": %d, \"mean_us\": %.3f, \"p50_us\": %.3f, \"p99_us\": %.3f, \"p999_us\": %.3f",
        us_.size(), Mean(), Quantile(0.5), Quantile(0.99), Quantile(0.999));
  }

 private:
  double Mean() const {
    double sum = 0;
    for (const double us : us_) sum += us;
    return sum / static_cast<double>(us_.size());
  }

  std::vector<double> us_;
};

/// An index that workers filled, and the chains that are in it.
class Fleet {
 public:
  enum class Kind { kUsual, kScattered, kWorst };

  Fleet(const RouteBenchOptions& options, Kind kind) : options_(options), random_(17) {
    MakeChains();
    malloc_trim(0);
    const int64_t before = ResidentBytes();
    // Room for what `mixed` adds.
    index_ = std::make_unique<PrefixIndex>(options.blocks + options.blocks / 4);
    for (int32_t w = 0; w < options.workers; ++w) CHECK_EQ(index_->AddWorker(), w);
    for (size_t i = 0; i < chains_.size(); ++i) {
      StoreChain(chains_[i], kind);
      if (i % 16 == 0) {
        std::cerr << "\rindex: " << i << " of " << chains_.size() << " chains" << std::flush;
      }
    }
    std::cerr << "\r                                        \r";
    resident_bytes_ = ResidentBytes() - before;
  }

  PrefixIndex& index() { return *index_; }
  const std::vector<std::vector<BlockKey>>& chains() const { return chains_; }
  int64_t resident_bytes() const { return resident_bytes_; }

 private:
  static constexpr size_t kChainsOfABeginning = 4;

  int32_t Beginning() const { return std::max(1, options_.depth / 10); }

  /// As many as make `blocks` different blocks.
  void MakeChains() {
    const int32_t beginning = Beginning();
    const double own =
        options_.depth - beginning + static_cast<double>(beginning) / kChainsOfABeginning;
    const auto count =
        std::max<size_t>(1, static_cast<size_t>(static_cast<double>(options_.blocks) / own));
    uint64_t next = 1;
    for (size_t i = 0; i < count; ++i) {
      if (i % kChainsOfABeginning == 0) {
        chains_.push_back(NamesFrom(next, options_.depth));
        next += static_cast<uint64_t>(options_.depth);
        continue;
      }
      std::vector<BlockKey> chain(chains_[i - i % kChainsOfABeginning]);
      for (size_t b = static_cast<size_t>(beginning); b < chain.size(); ++b) {
        chain[b] = NameOf(next++);
      }
      chains_.push_back(std::move(chain));
    }
  }

  int32_t Draw(int32_t low, int32_t high) {
    return std::uniform_int_distribution<int32_t>(low, high)(random_);
  }

  void Store(int32_t worker, absl::Span<const BlockKey> blocks) {
    const auto batch = static_cast<size_t>(options_.batch);
    for (size_t i = 0; i < blocks.size(); i += batch) {
      index_->Store(worker, blocks.subspan(i, batch));
    }
  }

  void StoreChain(const std::vector<BlockKey>& chain, Kind kind) {
    const absl::Span<const BlockKey> blocks(chain);
    // One worker has all of it, so that every block is in the index.
    Store(Draw(0, options_.workers - 1), blocks);
    for (int32_t w = 0; w < options_.workers; ++w) {
      int32_t length = Beginning();
      if (w % 8 == 7) length = kind == Kind::kUsual ? 0 : Draw(0, length);
      if (kind == Kind::kWorst) length = Draw(1, options_.depth);
      Store(w, blocks.first(static_cast<size_t>(length)));
    }
    for (int32_t others = Draw(0, kind == Kind::kUsual ? 2 : 3); others > 0; --others) {
      const int32_t length = Draw(options_.depth / 2, options_.depth);
      Store(Draw(0, options_.workers - 1), blocks.first(static_cast<size_t>(length)));
    }
  }

  const RouteBenchOptions options_;
  std::mt19937_64 random_;
  std::vector<std::vector<BlockKey>> chains_;
  std::unique_ptr<PrefixIndex> index_;
  int64_t resident_bytes_ = 0;
};

/// Depths of chains at random until `end`. The names are read before, as they are when a prompt was
/// just named.
Times LookUp(Fleet& fleet, uint64_t seed, Clock::time_point end) {
  std::mt19937_64 random(seed);
  Times times;
  uint64_t sum = 0;
  for (Clock::time_point begin = Clock::now(); begin < end;) {
    const std::vector<BlockKey>& chain = fleet.chains()[random() % fleet.chains().size()];
    for (const BlockKey& name : chain) sum += name.low;
    begin = Clock::now();
    const std::vector<int32_t> depths = fleet.index().Depths(chain, 0);
    times.Add(Clock::now() - begin);
    sum += static_cast<uint64_t>(depths[0]);
  }
  CHECK_NE(sum, 0u);  // so that nothing of it is left out
  return times;
}

void MeasureLookup(const RouteBenchOptions& options, Fleet& fleet, const char* kind) {
  const int64_t blocks = fleet.index().blocks();
  CHECK_EQ(fleet.index().blocks_refused(), 0);
  const double millions = static_cast<double>(blocks) / 1e6;
  Times times = LookUp(fleet, 3, Clock::now() + InSeconds(options.seconds));
  std::cout
      << absl::StrFormat(
             "{\"bench\": \"route lookup\", \"chains\": \"%s\", \"blocks\": %d, \"workers\": "
             "%d, \"depth\": %d, \"rss_mb_per_million\": %.1f, \"bytes_per_block\": %.1f, %s}",
             kind, blocks, options.workers, options.depth,
             static_cast<double>(fleet.resident_bytes()) / 1e6 / millions,
             static_cast<double>(fleet.index().bytes()) / static_cast<double>(blocks), times.Json())
      << std::endl;
}

/// Stores new blocks and removes them again some time later, batch by batch, as a worker whose
/// cache is full does. At `rate` blocks a second, 0: as fast as it goes. Returns blocks changed.
int64_t Change(PrefixIndex& index, int32_t slot, int32_t batch, int64_t lag, double rate,
               uint64_t first, const std::atomic<bool>& stop) {
  int64_t changed = 0;
  const Clock::time_point begin = Clock::now();
  for (uint64_t round = 0; !stop.load(std::memory_order_relaxed); ++round) {
    const uint64_t size = static_cast<uint64_t>(batch);
    index.Store(slot, NamesFrom(first + round * size, batch));
    changed += batch;
    const auto behind = static_cast<uint64_t>(lag) / size;
    if (round >= behind) {
      index.Remove(slot, NamesFrom(first + (round - behind) * size, batch));
      changed += batch;
    }
    if (rate == 0) continue;
    while (Seconds(Clock::now() - begin) * rate < static_cast<double>(changed) &&
           !stop.load(std::memory_order_relaxed)) {
    }
  }
  return changed;
}

/// Writers at work while this lives.
class Writers {
 public:
  Writers(PrefixIndex& index, const RouteBenchOptions& options, int64_t lag, double rate) {
    begin_ = Clock::now();
    for (int32_t i = 0; i < options.writers; ++i) {
      threads_.emplace_back([this, &index, &options, lag, rate, i] {
        const uint64_t first = (uint64_t{1} << 40) * static_cast<uint64_t>(i + 1);
        changed_ += Change(index, i % options.workers, options.batch, lag / options.writers,
                           rate / options.writers, first, stop_);
      });
    }
  }
  ~Writers() { CHECK(threads_.empty()); }

  /// Blocks changed a second.
  double Stop() {
    stop_ = true;
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
    return static_cast<double>(changed_) / Seconds(Clock::now() - begin_);
  }

 private:
  std::atomic<bool> stop_{false};
  std::atomic<int64_t> changed_{0};
  Clock::time_point begin_;
  std::vector<std::thread> threads_;
};

void MeasureUpdate(const RouteBenchOptions& options) {
  const int64_t blocks = options.update_blocks == 0 ? options.blocks : options.update_blocks;
  malloc_trim(0);
  const int64_t before = ResidentBytes();
  PrefixIndex index(blocks + blocks / 4);
  for (int32_t w = 0; w < options.workers; ++w) CHECK_EQ(index.AddWorker(), w);
  const Clock::time_point begin = Clock::now();
  for (int64_t i = 0; i < blocks; i += options.batch) {
    index.Store(static_cast<int32_t>(i / options.batch % options.workers),
                NamesFrom(static_cast<uint64_t>(i), options.batch));
    if (i % (1 << 20) < options.batch) std::cerr << "\rfilled " << i << " blocks" << std::flush;
  }
  std::cerr << "\r                          \r";
  const double fill_rate = static_cast<double>(blocks) / Seconds(Clock::now() - begin);
  const double resident = static_cast<double>(ResidentBytes() - before);
  Writers writers(index, options, blocks / 16, /*rate=*/0);
  std::this_thread::sleep_for(InSeconds(options.seconds));
  const double rate = writers.Stop();
  std::cout << absl::StrFormat(
                   "{\"bench\": \"route update\", \"blocks\": %d, \"writers\": %d, \"batch\": %d, "
                   "\"blocks_per_s\": %.0f, \"fill_blocks_per_s\": %.0f, "
                   "\"rss_mb_per_million\": %.1f, \"refused\": %d}",
                   blocks, options.writers, options.batch, rate, fill_rate,
                   resident / static_cast<double>(blocks), index.blocks_refused())
            << std::endl;
}

void MeasureMixed(const RouteBenchOptions& options, Fleet& fleet) {
  Writers writers(fleet.index(), options, options.blocks / 16, options.mixed_rate);
  const Clock::time_point end = Clock::now() + InSeconds(options.seconds);
  std::vector<Times> times(static_cast<size_t>(options.readers));
  std::vector<std::thread> readers;
  for (size_t i = 0; i < times.size(); ++i) {
    readers.emplace_back([&, i] { times[i] = LookUp(fleet, 100 + i, end); });
  }
  for (std::thread& reader : readers) reader.join();
  const double rate = writers.Stop();
  Times all;
  for (const Times& one : times) all.Join(one);
  std::cout << absl::StrFormat(
                   "{\"bench\": \"route mixed\", \"blocks\": %d, \"writers\": %d, \"readers\": %d, "
                   "\"blocks_changed_per_s\": %.0f, \"lookups_per_s\": %.0f, %s}",
                   options.blocks, options.writers, options.readers, rate,
                   static_cast<double>(all.count()) / options.seconds, all.Json())
            << std::endl;
}

void MeasureForget(const RouteBenchOptions& options, Fleet& fleet) {
  Times times;
  const int64_t blocks = fleet.index().blocks();
  for (int32_t w = 0; w < std::min(options.workers, 8); ++w) {
    const Clock::time_point begin = Clock::now();
    fleet.index().ClearWorker(w);
    times.Add(Clock::now() - begin);
  }
  std::cout << absl::StrFormat("{\"bench\": \"route forget\", \"blocks\": %d, %s}", blocks,
                               times.Json())
            << std::endl;
}

std::vector<int32_t> PromptOf(int32_t tokens, uint64_t seed) {
  std::vector<int32_t> ids(static_cast<size_t>(tokens));
  for (size_t i = 0; i < ids.size(); ++i) {
    ids[i] = static_cast<int32_t>(Mix(seed * 1'000'003 + i) % 151'552);
  }
  return ids;
}

/// A decision as an exchange makes it, from ids on.
int32_t Decide(Placement& placement, const std::vector<int32_t>& ids, int32_t block_size,
               std::vector<Candidate>* candidates, uint64_t spread) {
  const std::vector<BlockKey> chain = placement.Chain("", ids, block_size);
  const std::vector<int32_t> depths = placement.index().Depths(chain, 0);
  for (size_t w = 0; w < candidates->size(); ++w) {
    (*candidates)[w].cached_tokens = int64_t{depths[w]} * block_size;
  }
  router::RouteRequest request;
  request.policy = placement.policy();
  request.prompt_tokens = static_cast<int64_t>(ids.size());
  request.spread = spread;
  return ChooseWorker(request, *candidates).worker;
}

void MeasureDecision(const RouteBenchOptions& options) {
  Placement placement(Policy::kPrefix, *ParseHashKey(""), options.blocks + options.blocks / 4,
                      1000);
  PrefixIndex& index = placement.index();
  std::vector<Candidate> candidates(static_cast<size_t>(options.workers));
  for (size_t w = 0; w < candidates.size(); ++w) {
    CHECK_EQ(index.AddWorker(), static_cast<int32_t>(w));
    candidates[w].usable = true;
    candidates[w].requests = static_cast<int32_t>(w % 7);
    candidates[w].sequences_max = 64;
    candidates[w].kv_blocks_free = 100'000;
    candidates[w].block_size = options.block_size;
    candidates[w].times = {.base_s = 5e-3,
                           .sequence_s = 1e-5,
                           .prompt_token_s = 5e-5 + 1e-6 * static_cast<double>(w % 5),
                           .context_token_s = 1e-8};
  }
  std::mt19937_64 random(5);
  constexpr int32_t kPrompts = 64;
  const std::vector<int32_t> lengths = {1000, 2000, 4000, 8000, 100'000};
  std::vector<std::vector<std::vector<int32_t>>> prompts;
  for (const int32_t tokens : lengths) {
    prompts.emplace_back();
    for (int32_t i = 0; i < kPrompts; ++i) {
      prompts.back().push_back(PromptOf(tokens, random()));
      const std::vector<BlockKey> chain =
          placement.Chain("", prompts.back().back(), options.block_size);
      for (int32_t holders = 0; holders < 3; ++holders) {
        const auto worker = static_cast<int32_t>(random() % candidates.size());
        index.Store(worker, absl::MakeConstSpan(chain).first(random() % (chain.size() + 1)));
      }
    }
  }
  for (uint64_t next = 1; index.blocks() < options.blocks; next += 1000) {
    index.Store(static_cast<int32_t>(random() % candidates.size()), NamesFrom(next, 1000));
  }
  for (size_t l = 0; l < lengths.size(); ++l) {
    Times times;
    const Clock::time_point end = Clock::now() + InSeconds(options.seconds);
    for (Clock::time_point begin = Clock::now(); begin < end;) {
      const std::vector<int32_t>& ids = prompts[l][random() % kPrompts];
      begin = Clock::now();
      CHECK_GE(Decide(placement, ids, options.block_size, &candidates, random()), 0);
      times.Add(Clock::now() - begin);
    }
    std::cout << absl::StrFormat(
                     "{\"bench\": \"route decision\", \"blocks\": %d, \"workers\": %d, "
                     "\"prompt_tokens\": %d, \"block_size\": %d, %s}",
                     index.blocks(), options.workers, lengths[l], options.block_size, times.Json())
              << std::endl;
  }
}

}  // namespace

absl::Status RouteBenchOptions::Validate() const {
  struct Bound {
    const char* flag;
    double value, low, high;
  };
  for (const Bound& bound : {Bound{"blocks", double(blocks), 1000, 1e9},
                             {"workers", double(workers), 1, router::WorkerMask::kWorkersMax},
                             {"depth", double(depth), 2, double(blocks)},
                             {"block-size", double(block_size), 1, 1024},
                             {"writers", double(writers), 1, 256},
                             {"readers", double(readers), 1, 256},
                             {"batch", double(batch), 1, 65536},
                             {"mixed-rate", mixed_rate, 1, 1e9},
                             {"update-blocks", double(update_blocks), 0, 1e9},
                             {"seconds", seconds, 0.01, 3600}}) {
    if (bound.value >= bound.low && bound.value <= bound.high) continue;
    return absl::InvalidArgumentError(absl::StrFormat(
        "--%s is %g, it must be from %g to %g", bound.flag, bound.value, bound.low, bound.high));
  }
  return absl::OkStatus();
}

absl::Status RunRouteBench(const RouteBenchOptions& options) {
  const auto only = [&](const char* name) {
    return options.only.empty() || std::string(name).find(options.only) != std::string::npos;
  };
  if (only("usual")) {
    Fleet fleet(options, Fleet::Kind::kUsual);
    MeasureLookup(options, fleet, "usual");
    MeasureMixed(options, fleet);
    MeasureForget(options, fleet);
  }
  if (only("scattered")) {
    Fleet fleet(options, Fleet::Kind::kScattered);
    MeasureLookup(options, fleet, "scattered");
  }
  if (only("worst")) {
    Fleet fleet(options, Fleet::Kind::kWorst);
    MeasureLookup(options, fleet, "worst");
    MeasureForget(options, fleet);
  }
  if (only("update")) MeasureUpdate(options);
  if (only("decision")) MeasureDecision(options);
  return absl::OkStatus();
}

}  // namespace glm::bench
