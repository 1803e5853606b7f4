#include "router/admit/fair_queue.h"

#include <algorithm>
#include <cmath>

#include "proto/base/log.h"

namespace glm::router {
namespace {

/// The seat that all share for whom there is none of their own.
constexpr TenantId kOthers{~0ULL, ~0ULL};
/// What an answer counts before one of its tenant has ended, in tokens.
constexpr double kAnswerTokensGuess = 256;
/// The weight of the newest answer in a tenant's mean.
constexpr double kAnswerWeight = 0.1;

}  // namespace

TenantId FairQueue::SeatOf(TenantId tenant) const {
  if (tenants_.contains(tenant)) return tenant;
  const bool full = static_cast<int64_t>(tenants_.size()) >= options_.tenants_max && idle_.empty();
  return full ? kOthers : tenant;
}

FairQueue::Tenant& FairQueue::TakeSeat(TenantId tenant, TenantId* seat) {
  *seat = SeatOf(tenant);
  if (!tenants_.contains(*seat) && *seat != kOthers &&
      static_cast<int64_t>(tenants_.size()) >= options_.tenants_max) {
    tenants_.erase(idle_.back());
    idle_.pop_back();
  }
  Tenant& taken = tenants_[*seat];
  if (taken.idle.has_value()) idle_.erase(*taken.idle);
  taken.idle.reset();
  return taken;
}

void FairQueue::LeaveSeat(TenantId seat, const QueuedRequest& request) {
  Tenant& tenant = tenants_.at(seat);
  --tenant.requests;
  tenant.prompt_tokens -= request.prompt_tokens;
  if (tenant.requests > 0) return;
  idle_.push_front(seat);
  tenant.idle = idle_.begin();
}

FairQueue::Standing FairQueue::StandingOf(const Line& line, TenantId seat) {
  return {line.counter, line.waiting.empty() ? 0 : line.waiting.begin()->first.second, seat};
}

/// What an idle line was served beyond the virtual time is forgotten once that has caught up. Time
/// does not wait for ever: else tenants that come once each would never let it pass.
void FairQueue::PassTime(Class* one) const {
  if (static_cast<int64_t>(one->idle.size()) > options_.tenants_max) {
    one->virtual_time = std::max(one->virtual_time, std::get<0>(*one->idle.begin()));
  }
  while (!one->idle.empty() && std::get<0>(*one->idle.begin()) <= one->virtual_time) {
    one->lines.erase(std::get<TenantId>(*one->idle.begin()));
    one->idle.erase(one->idle.begin());
  }
}

void FairQueue::Push(const QueuedRequest& request) {
  DCHECK(request.cost_tokens >= 1) << "a request costs at least 1 token";
  Place place{
      .class_key = ClassKey(request.priority), .seat = {}, .turn = {request.priority, ++arrivals_}};
  Tenant& tenant = TakeSeat(request.tenant, &place.seat);
  ++tenant.requests;
  tenant.prompt_tokens += request.prompt_tokens;

  Class& one = classes_[place.class_key];
  Line& line = one.lines[place.seat];
  (line.waiting.empty() ? one.idle : one.waiting).erase(StandingOf(line, place.seat));
  if (line.waiting.empty()) line.counter = std::max(line.counter, one.virtual_time);
  line.waiting.emplace(place.turn, request);
  one.waiting.insert(StandingOf(line, place.seat));
  line.cost += request.cost_tokens;
  one.cost += request.cost_tokens;
  CHECK(places_.emplace(request.ticket, place).second)
      << "ticket " << request.ticket << " waits already";
}

QueuedRequest FairQueue::TakeOut(Classes::iterator found, TenantId seat,
                                 std::map<Turn, QueuedRequest>::iterator request, int64_t charge) {
  Class& one = found->second;
  Line& line = one.lines.at(seat);
  const QueuedRequest taken = request->second;
  one.waiting.erase(StandingOf(line, seat));
  line.waiting.erase(request);
  line.cost -= taken.cost_tokens;
  one.cost -= taken.cost_tokens;
  places_.erase(taken.ticket);
  LeaveSeat(seat, taken);

  line.counter += charge;
  (line.waiting.empty() ? one.idle : one.waiting).insert(StandingOf(line, seat));
  PassTime(&one);
  if (one.waiting.empty()) classes_.erase(found);
  return taken;
}

std::optional<QueuedRequest> FairQueue::Pop() {
  if (classes_.empty()) return std::nullopt;
  const auto found = classes_.begin();
  Class& one = found->second;
  const auto [counter, arrival, seat] = *one.waiting.begin();
  one.virtual_time = std::max(one.virtual_time, counter);
  const auto request = one.lines.at(seat).waiting.begin();
  return TakeOut(found, seat, request, request->second.cost_tokens);
}

bool FairQueue::Remove(uint64_t ticket) {
  const auto place = places_.find(ticket);
  if (place == places_.end()) return false;
  const auto [class_key, seat, turn] = place->second;
  const auto found = classes_.find(class_key);
  TakeOut(found, seat, found->second.lines.at(seat).waiting.find(turn), 0);
  return true;
}

int64_t FairQueue::RequestsOf(TenantId tenant) const {
  const auto found = tenants_.find(SeatOf(tenant));
  return found == tenants_.end() ? 0 : found->second.requests;
}

int64_t FairQueue::PromptTokensOf(TenantId tenant) const {
  const auto found = tenants_.find(SeatOf(tenant));
  return found == tenants_.end() ? 0 : found->second.prompt_tokens;
}

int64_t FairQueue::CostAhead(TenantId tenant, int32_t priority) const {
  const int32_t class_key = ClassKey(priority);
  int64_t ahead = 0;
  auto found = classes_.begin();
  for (; found != classes_.end() && found->first < class_key; ++found) ahead += found->second.cost;
  if (found == classes_.end() || found->first != class_key) return ahead;
  const Class& one = found->second;
  const TenantId seat = SeatOf(tenant);
  const auto own = one.lines.find(seat);
  const bool known = own != one.lines.end();
  // Within a tenant a better priority overtakes too, where it does not count across.
  int64_t own_cost = known ? own->second.cost : 0;
  if (known && !options_.priority_across_tenants) {
    own_cost = 0;
    for (const auto& [turn, request] : own->second.waiting) {
      if (turn.first > priority) break;
      own_cost += request.cost_tokens;
    }
  }
  // It would begin here; others are served while their counter is below that.
  const int64_t begin = std::max(known ? own->second.counter : 0, one.virtual_time) + own_cost;
  ahead += own_cost;
  for (const auto& [counter, arrival, other] : one.waiting) {
    if (counter > begin) break;
    if (other == seat) continue;
    const Line& line = one.lines.at(other);
    // The one that crosses the line counts in full, and so does one that stands where it begins.
    const int64_t first = line.waiting.begin()->second.cost_tokens;
    ahead += std::min(line.cost, std::max(begin - counter, first));
  }
  return ahead;
}

void FairQueue::LearnAnswer(TenantId tenant, int64_t tokens) {
  TenantId seat;
  Tenant& taken = TakeSeat(tenant, &seat);
  if (taken.requests == 0) {
    idle_.push_front(seat);
    taken.idle = idle_.begin();
  }
  const double said = static_cast<double>(tokens);
  taken.answer_tokens = taken.answer_tokens == 0
                            ? said
                            : taken.answer_tokens + kAnswerWeight * (said - taken.answer_tokens);
}

int64_t FairQueue::ExpectedAnswer(TenantId tenant, int64_t most) const {
  const auto found = tenants_.find(SeatOf(tenant));
  const double mean = found == tenants_.end() || found->second.answer_tokens == 0
                          ? kAnswerTokensGuess
                          : found->second.answer_tokens;
  return std::clamp<int64_t>(std::llround(mean), 1, std::max<int64_t>(1, most));
}

}  // namespace glm::router
