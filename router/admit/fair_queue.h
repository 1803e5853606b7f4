// The order in which waiting requests go to the workers. Pure: no clock, no lock, no I/O.
//
// Classes come first: of two priorities the lower number is always served first. Within a class
// each tenant has a counter of the tokens it was served, and the tenant with the smallest counter
// is next (start-time fair queueing): so tenants that have enough waiting get equal shares in
// tokens, whatever the number and the size of their requests. A tenant that comes back is lifted to
// where the others are: nobody saves up what he did not use. Within a tenant it is first come,
// first served.
//
// Who calls: Admission, under its lock; tests.
#pragma once

#include <cstdint>
#include <list>
#include <map>
#include <optional>
#include <set>
#include <tuple>
#include <unordered_map>
#include <utility>

#include "router/admit/tenant.h"

namespace glm::router {

struct QueuedRequest {
  uint64_t ticket = 0;        // unique among those that wait
  TenantId tenant;            //
  int32_t priority = 0;       // the lower is served first
  int64_t cost_tokens = 1;    // prompt and expected answer; at least 1
  int64_t prompt_tokens = 0;  // what it holds in memory while it waits
};

struct FairQueueOptions {
  /// Tenants that are told apart. When so many have requests waiting, all others share one place;
  /// of those that have none the longest unheard is forgotten first.
  int32_t tenants_max = 1024;
  /// Whether a priority counts among all tenants. Else it orders the requests of each tenant, and
  /// shares stay equal whatever priorities are asked for.
  bool priority_across_tenants = true;
};

class FairQueue {
 public:
  explicit FairQueue(const FairQueueOptions& options) : options_(options) {}
  FairQueue(const FairQueue&) = delete;
  FairQueue& operator=(const FairQueue&) = delete;

  void Push(const QueuedRequest& request);
  /// Takes out the next one; its tenant is charged its cost.
  std::optional<QueuedRequest> Pop();
  /// Takes out a request that waits, at no cost for its tenant. False when it does not.
  bool Remove(uint64_t ticket);

  int64_t requests() const { return static_cast<int64_t>(places_.size()); }
  int64_t RequestsOf(TenantId tenant) const;
  int64_t PromptTokensOf(TenantId tenant) const;
  /// Cost of what would be served before a request that came now. Time: the number of tenants that
  /// wait.
  int64_t CostAhead(TenantId tenant, int32_t priority) const;

  /// An answer of `tokens` tokens has ended.
  void LearnAnswer(TenantId tenant, int64_t tokens);
  /// How long an answer of this tenant's will be, by its last ones; from 1 to `most`.
  int64_t ExpectedAnswer(TenantId tenant, int64_t most) const;

  /// How many tenants are known; at most tenants_max, and one that others share.
  int64_t tenants() const { return static_cast<int64_t>(tenants_.size()); }

 private:
  /// The order within a tenant.
  using Turn = std::pair<int32_t, uint64_t>;  // priority, arrival
  /// What a tenant has waiting in one class.
  struct Line {
    std::map<Turn, QueuedRequest> waiting;
    int64_t counter = 0;  // tokens served, in the class's virtual time
    int64_t cost = 0;     // of all that wait
  };
  /// A line's counter, the arrival of its next request, whose it is.
  using Standing = std::tuple<int64_t, uint64_t, TenantId>;
  using ByCounter = std::set<Standing>;
  struct Class {
    std::unordered_map<TenantId, Line, TenantIdHash> lines;
    ByCounter waiting;         // lines that have requests
    ByCounter idle;            // lines without, served beyond the virtual time; <= tenants_max
    int64_t virtual_time = 0;  // where the line that was served last began
    int64_t cost = 0;
  };
  struct Tenant {
    int64_t requests = 0;  // that wait
    int64_t prompt_tokens = 0;
    double answer_tokens = 0;  // mean of the last ones; 0: none has ended
    /// Where it stands among those with no request waiting.
    std::optional<std::list<TenantId>::iterator> idle;
  };
  struct Place {
    int32_t class_key = 0;
    TenantId seat;
    Turn turn;
  };
  using Classes = std::map<int32_t, Class>;

  int32_t ClassKey(int32_t priority) const {
    return options_.priority_across_tenants ? priority : 0;
  }
  TenantId SeatOf(TenantId tenant) const;
  Tenant& TakeSeat(TenantId tenant, TenantId* seat);
  void LeaveSeat(TenantId seat, const QueuedRequest& request);
  static Standing StandingOf(const Line& line, TenantId seat);
  void PassTime(Class* one) const;
  QueuedRequest TakeOut(Classes::iterator found, TenantId seat,
                        std::map<Turn, QueuedRequest>::iterator request, int64_t charge);

  const FairQueueOptions options_;
  Classes classes_;  // those in which somebody waits
  std::unordered_map<uint64_t, Place> places_;
  std::unordered_map<TenantId, Tenant, TenantIdHash> tenants_;
  std::list<TenantId> idle_;  // the longest unheard last
  uint64_t arrivals_ = 0;
};

}  // namespace glm::router
