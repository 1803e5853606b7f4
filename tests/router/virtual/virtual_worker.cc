#include "tests/router/virtual/virtual_worker.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "router/fleet/session.h"

namespace glm::router {
namespace {

constexpr std::chrono::milliseconds kBeatEvery{100};
constexpr std::chrono::milliseconds kQuietMax{500};
/// A router's ping and how long it waits for the answer: what finds a broken network without work.
constexpr std::chrono::seconds kKeepalive{15};

uint64_t Mix(uint64_t state, uint64_t value) {
  state = (state ^ value) * 0x9E3779B97F4A7C15u;
  return state ^ (state >> 29);
}

uint64_t FirstState(const AnswerKey& key) {
  uint64_t state = Mix(Mix(77, key.seed), key.choice);
  for (const int32_t id : key.prompt_ids) state = Mix(state, static_cast<uint64_t>(id));
  // A token of the prompt is not the same as one of the answer.
  return Mix(state, key.prompt_ids.size() + 1'000'000);
}

/// Of the state; never an eos id, which are small.
int32_t TokenOf(uint64_t state, int32_t vocabulary) {
  return 10 + static_cast<int32_t>((state >> 20) % static_cast<uint64_t>(vocabulary - 10));
}

std::pair<uint64_t, uint64_t> PairOf(const BlockKey& key) { return {key.high, key.low}; }

/// As names are made in a deployment with the public key.
std::vector<BlockKey> ChainOf(const std::string& salt, const std::vector<int32_t>& ids,
                              int32_t block_size) {
  BlockHasher hasher(*ParseHashKey(""));
  std::vector<BlockKey> chain;
  const auto size = static_cast<size_t>(block_size);
  for (size_t begin = 0; begin + size <= ids.size(); begin += size) {
    const std::span<const int32_t> block(ids.data() + begin, size);
    chain.push_back(begin == 0 ? hasher.First(salt, block) : hasher.Next(chain.back(), block));
  }
  return chain;
}

}  // namespace

std::vector<int32_t> VirtualAnswer(const AnswerKey& key, int32_t count, int32_t vocabulary) {
  std::vector<int32_t> answer;
  uint64_t state = FirstState(key);
  for (int32_t i = 0; i < count; ++i) {
    answer.push_back(TokenOf(state, vocabulary));
    state = Mix(state, static_cast<uint64_t>(answer.back()));
  }
  return answer;
}

// The link.

void VirtualLink::Start() {
  Carry(&down_, [this] {
    if (worker_->alive_) return worker_->OnConnected(shared_from_this());
    Close(absl::UnavailableError("connection refused"));
  });
}

void VirtualLink::Write(const wire::RouterFrame* frame) {
  Carry(&down_, [this, frame = *frame] { worker_->OnRouterFrame(shared_from_this(), frame); });
  time_->After(std::chrono::microseconds(time_->Draw(1, 20)), [self = shared_from_this()] {
    if (!self->closed_) self->reader_->OnWritten(true);
  });
}

void VirtualLink::Cancel() {
  if (closed_) return;
  Close(absl::CancelledError("cancelled here"));
  if (!held_) worker_->OnRouterGone(shared_from_this());
}

void VirtualLink::Send(wire::WorkerFrame frame) {
  Carry(&up_, [this, frame = std::move(frame)]() mutable { reader_->OnFrame(&frame); });
}

void VirtualLink::End(const absl::Status& status) {
  Carry(&up_, [this, status] { Close(status); });
}

void VirtualLink::SetHeld(bool held) {
  held_ = held;
  if (held) {
    time_->After(kKeepalive, [self = shared_from_this(), hold = ++holds_] {
      if (self->held_ && hold == self->holds_) self->Close(absl::UnavailableError("no pong"));
    });
    return;
  }
  if (closed_) return worker_->OnRouterGone(shared_from_this());
  for (Lane* lane : {&down_, &up_}) {
    for (size_t i = 0; i < lane->waiting.size(); ++i) Arrive(lane);
  }
}

void VirtualLink::Carry(Lane* lane, Delivery delivery) {
  lane->waiting.push_back(std::move(delivery));
  Arrive(lane);
}

/// One delivery of the lane, the first by then, a little later.
void VirtualLink::Arrive(Lane* lane) {
  lane->last = std::max(lane->last, time_->now() + std::chrono::microseconds(time_->Draw(50, 800)));
  time_->At(lane->last, [self = shared_from_this(), lane] {
    if (self->held_ || self->closed_ || lane->waiting.empty()) return;
    Delivery delivery = std::move(lane->waiting.front());
    lane->waiting.pop_front();
    delivery();
  });
}

void VirtualLink::Close(const absl::Status& status) {
  if (closed_) return;
  closed_ = true;
  const auto soon = [this] { return std::chrono::microseconds(time_->Draw(1, 100)); };
  time_->After(soon(), [self = shared_from_this(), status, soon] {
    self->reader_->OnBroken();
    self->time_->After(soon(), [self, status] { self->reader_->OnClosed(status); });
  });
}

// The worker.

VirtualWorker::VirtualWorker(VirtualTime* time, std::string address, VirtualWorkerOptions options,
                             PlantedBugs bugs)
    : time_(time), address_(std::move(address)), options_(std::move(options)), bugs_(bugs) {}

void VirtualWorker::Kill() {
  if (!alive_) return;
  alive_ = false;
  ++life_;
  ++plans_made_;
  for (const auto& link : links_) link->End(absl::UnavailableError("connection reset"));
  links_.clear();
  greeted_.clear();
  requests_.clear();
  inbox_.clear();
  cache_.clear();
  ever_held_.clear();
  secret_.clear();
  changes_.clear();
  digest_ = Digest();
  sequence_ = 0;
  stepping_ = beating_ = hung_ = stuck_ = draining_ = garble_ = digest_owed_ = false;
  slow_ = 1;
  refusal_ = absl::OkStatus();
}

void VirtualWorker::Start() { alive_ = true; }

void VirtualWorker::SetHung(bool hung) {
  if (!alive_) return;
  hung_ = hung;
  if (hung) return;
  for (auto& fn : std::exchange(inbox_, {})) fn();
  stepping_ = false;
  ScheduleStep();
}

void VirtualWorker::SetStuck(bool stuck) {
  if (!alive_) return;
  stuck_ = stuck;
  if (stuck) return;
  stepping_ = false;
  ScheduleStep();
}

void VirtualWorker::SetHeld(bool held) {
  held_ = held;
  // Those of an earlier life too: what they had under way is still on the network.
  std::erase_if(links_made_, [](const auto& link) { return link.expired(); });
  for (const auto& link : links_made_) link.lock()->SetHeld(held);
}

void VirtualWorker::Drain() {
  if (!alive_ || draining_) return;
  draining_ = true;
  SayLoad();
}

void VirtualWorker::BreakLinks() {
  for (const auto& link : std::set(links_)) {
    link->End(absl::UnavailableError("broken"));
    OnRouterGone(link);
  }
}

std::string VirtualWorker::Picture() const {
  std::string text = absl::StrCat(address_, ": ", requests_.size(), " requests, ", links_.size(),
                                  " links, incarnation ", life_);
  if (!alive_) text += ", dead";
  if (hung_) text += ", hung";
  if (stuck_) text += ", stuck";
  if (held_) text += ", cut off";
  if (draining_) text += ", draining";
  if (slow_ > 1) text += ", slow";
  if (!refusal_.ok()) text += ", refusing";
  return text;
}

int32_t VirtualWorker::Held(const std::vector<BlockKey>& chain) const {
  int32_t depth = 0;
  for (const BlockKey& key : chain) {
    if (!cache_.contains(PairOf(key))) break;
    ++depth;
  }
  return depth;
}

int32_t VirtualWorker::EverHeld(const std::vector<BlockKey>& chain) const {
  int32_t depth = 0;
  for (const BlockKey& key : chain) {
    if (!ever_held_.contains(PairOf(key))) break;
    ++depth;
  }
  return depth;
}

void VirtualWorker::OnConnected(const std::shared_ptr<VirtualLink>& link) {
  links_.insert(link);
  links_made_.push_back(link);
  if (held_) link->SetHeld(true);
}

void VirtualWorker::OnRouterFrame(const std::shared_ptr<VirtualLink>& link,
                                  const wire::RouterFrame& frame) {
  if (!alive_ || !links_.contains(link)) return;
  if (hung_) {
    inbox_.push_back([this, link, frame] { Take(link, frame); });
  } else {
    Take(link, frame);
  }
}

void VirtualWorker::OnRouterGone(const std::shared_ptr<VirtualLink>& link) {
  if (hung_) {
    inbox_.push_back([this, link] { OnRouterGone(link); });
    return;
  }
  links_.erase(link);
  greeted_.erase(link);
  if (std::erase_if(requests_, [&](const auto& request) { return request->link == link; }) > 0) {
    SayLoad();
  }
}

/// As an engine does whose requests were cancelled.
void VirtualWorker::SayLoad() {
  for (const auto& link : greeted_) link->Send(StepFrame());
}

void VirtualWorker::Take(const std::shared_ptr<VirtualLink>& link, const wire::RouterFrame& frame) {
  if (!links_.contains(link)) return;
  if (frame.has_hello()) {
    wire::WorkerFrame answer;
    wire::Welcome* const welcome = answer.mutable_welcome();
    welcome->set_protocol_version(kProtocolVersion);
    welcome->set_incarnation(life_);
    welcome->set_model_name(options_.model_name);
    welcome->set_vocabulary(static_cast<uint32_t>(options_.vocabulary));
    welcome->set_length_max(static_cast<uint32_t>(options_.length_max));
    welcome->set_block_size(static_cast<uint32_t>(options_.block_size));
    welcome->set_kv_blocks_total(static_cast<uint64_t>(options_.kv_blocks));
    welcome->set_sequences_max(static_cast<uint32_t>(options_.sequences_max));
    welcome->add_eos_ids(2);
    welcome->set_prefix_caching(true);
    link->Send(std::move(answer));
    greeted_.insert(link);
    if (draining_) link->Send(StepFrame());
  } else if (frame.has_submit()) {
    Submit(link, frame.submit());
  } else if (frame.has_cancel()) {
    std::erase_if(requests_, [&](const auto& request) {
      return request->link == link && request->submit.request_id() == frame.cancel().request_id();
    });
    SayLoad();
  } else if (frame.has_ask_cache_snapshot()) {
    SendSnapshot(link);
  }
}

void VirtualWorker::RefuseOne(const std::shared_ptr<VirtualLink>& link, uint64_t id,
                              const absl::Status& status) {
  wire::WorkerFrame frame;
  wire::Output* const output = frame.mutable_step()->add_outputs();
  output->set_request_id(id);
  output->set_finish(wire::FINISH_REFUSED);
  output->set_error(std::string(status.message()));
  output->set_error_code(static_cast<int32_t>(status.code()));
  link->Send(std::move(frame));
}

void VirtualWorker::Submit(const std::shared_ptr<VirtualLink>& link, const wire::Submit& submit) {
  ++submits_;
  const uint64_t id = submit.request_id();
  if (!refusal_.ok()) return RefuseOne(link, id, refusal_);
  if (draining_) return RefuseOne(link, id, absl::UnavailableError("draining"));
  if (static_cast<int32_t>(requests_.size()) >= options_.sequences_max + options_.waiting_max) {
    return RefuseOne(link, id, absl::ResourceExhaustedError("too many wait"));
  }
  auto request = std::make_unique<Request>();
  request->link = link;
  request->submit = submit;
  request->ids.assign(submit.prompt_ids().begin(), submit.prompt_ids().end());
  const size_t before = submit.generated_before();
  AnswerKey key{
      .prompt_ids = {request->ids.begin(), request->ids.end() - static_cast<ptrdiff_t>(before)},
      .seed = submit.sampling().seed(),
      .choice = submit.sampling().choice()};
  request->state = FirstState(key);
  for (size_t i = key.prompt_ids.size(); i < request->ids.size(); ++i) {
    request->state = Mix(request->state, static_cast<uint64_t>(request->ids[i]));
  }
  request->chain = ChainOf(submit.cache_salt(), request->ids, options_.block_size);
  requests_.push_back(std::move(request));
  ScheduleStep();
}

void VirtualWorker::ScheduleStep() {
  if (!alive_ || requests_.empty() || stepping_) return;
  stepping_ = true;
  step_began_ = time_->now();
  const auto length = std::chrono::microseconds(options_.step_us * slow_);
  time_->After(length, [this, plan = ++plans_made_] {
    if (plan != plans_made_ || hung_ || stuck_) return;
    stepping_ = false;
    Step();
    ScheduleStep();
  });
  if (!beating_) {
    beating_ = true;
    time_->After(kBeatEvery, [this, life = life_] {
      if (life == life_) Beat();
    });
  }
}

void VirtualWorker::Beat() {
  if (requests_.empty() && !digest_owed_) {
    beating_ = false;
    return;
  }
  if (!hung_ && time_->now() - sent_last_ >= kQuietMax) {
    wire::WorkerFrame frame;
    wire::Heartbeat* const beat = frame.mutable_heartbeat();
    beat->set_step(step_number_);
    if (stepping_) {
      beat->set_step_age_ms(static_cast<uint32_t>(
          std::chrono::duration_cast<std::chrono::milliseconds>(time_->now() - step_began_)
              .count()));
    }
    beat->set_step_expected_ms(static_cast<uint32_t>(options_.step_us * slow_ / 1000 + 1));
    FillLoad(beat->mutable_load());
    beat->mutable_cache()->set_sequence(sequence_ + 1);
    beat->mutable_cache()->set_digest(digest_.value());
    for (const auto& link : greeted_) link->Send(frame);
    sent_last_ = time_->now();
    digest_owed_ = false;
  }
  time_->After(kBeatEvery, [this, life = life_] {
    if (life == life_) Beat();
  });
}

void VirtualWorker::FillLoad(wire::Load* load) const {
  int64_t running = 0;
  int64_t tokens = 0;
  for (const auto& request : requests_) {
    running += request->running ? 1 : 0;
    tokens += request->running ? request->prompt_left
                               : static_cast<int64_t>(request->submit.prompt_ids_size());
  }
  load->set_requests_running(static_cast<uint32_t>(running));
  load->set_requests_waiting(
      static_cast<uint32_t>(static_cast<int64_t>(requests_.size()) - running));
  load->set_tokens_waiting(static_cast<uint64_t>(tokens));
  load->set_kv_blocks_total(static_cast<uint64_t>(options_.kv_blocks));
}

wire::WorkerFrame VirtualWorker::StepFrame() {
  wire::WorkerFrame frame;
  frame.mutable_step()->set_step(step_number_);
  frame.mutable_step()->set_draining(draining_);
  FillLoad(frame.mutable_step()->mutable_load());
  return frame;
}

void VirtualWorker::FillChanges(wire::CacheChanges* cache) const {
  cache->set_sequence(sequence_ - changes_.size() + 1);
  for (const auto& [stored, block] : changes_) {
    cache->add_stored(stored);
    cache->add_blocks(block.high);
    cache->add_blocks(block.low);
  }
  cache->set_digest(digest_.value());
}

void VirtualWorker::Step() {
  ++step_number_;
  std::map<std::shared_ptr<VirtualLink>, wire::WorkerFrame> frames;
  for (const auto& link : greeted_) frames[link] = StepFrame();
  int32_t running = 0;
  int64_t budget = options_.prompt_tokens_per_step;
  for (auto at = requests_.begin(); at != requests_.end() && running < options_.sequences_max;
       ++running) {
    Request& request = **at;
    bool ended = false;
    if (!request.running) {
      request.running = true;
      const int64_t size = static_cast<int64_t>(request.ids.size());
      const int64_t held = int64_t{Held(request.chain)} * options_.block_size;
      const int64_t cached = std::min(held, (size - 1) / options_.block_size * options_.block_size);
      request.cached_tokens = static_cast<int32_t>(cached);
      request.prompt_left = size - cached;
    }
    if (request.prompt_left > budget) {
      request.prompt_left -= budget;
      budget = 0;
    } else {
      budget -= request.prompt_left;
      StepOne(&request, frames[request.link].mutable_step(), &ended);
    }
    at = ended ? requests_.erase(at) : std::next(at);
  }
  Evict();
  for (auto& [link, frame] : frames) FillLoad(frame.mutable_step()->mutable_load());
  for (auto& [link, frame] : frames) {
    if (changes_.empty()) break;
    FillChanges(frame.mutable_step()->mutable_cache());
  }
  const bool garbled = garble_ && !changes_.empty();
  const int64_t kind = garbled ? time_->Draw(0, 3) : -1;
  for (auto& [link, frame] : frames) {
    wire::CacheChanges* const cache = frame.mutable_step()->mutable_cache();
    if (changes_.empty() || kind == 0) frame.mutable_step()->clear_cache();
    if (kind == 1 && cache->stored_size() > 1) {  // out of turn
      cache->mutable_stored()->SwapElements(0, 1);
      cache->mutable_blocks()->SwapElements(0, 2);
      cache->mutable_blocks()->SwapElements(1, 3);
    }
    if (kind == 3 && cache->stored_size() > 1) cache->mutable_blocks()->SwapElements(0, 2);
    link->Send(frame);
    if (kind != 2) continue;
    wire::WorkerFrame again;  // the changes, not the tokens
    *again.mutable_step()->mutable_cache() = *cache;
    link->Send(std::move(again));
  }
  if (garbled) garble_ = false;
  if (!changes_.empty()) digest_owed_ = true;
  changes_.clear();
  sent_last_ = time_->now();
}

void VirtualWorker::StepOne(Request* request, wire::Step* step, bool* ended) {
  const bool first = request->prompt_left > 0;
  request->prompt_left = 0;
  const int32_t token = TokenOf(request->state, options_.vocabulary);
  request->state = Mix(request->state, static_cast<uint64_t>(token));
  request->ids.push_back(token);
  ++request->answered;
  wire::Output* const output = step->add_outputs();
  output->set_request_id(request->submit.request_id());
  output->add_token_ids(static_cast<uint32_t>(token));
  if (request->submit.sampling().has_logprobs()) {
    wire::TokenLogprobs* const logprobs = output->add_logprobs();
    logprobs->set_id(static_cast<uint32_t>(token));
    logprobs->set_logprob(-1);
    logprobs->set_rank(1);
  }
  const size_t known = request->chain.size();
  if (request->ids.size() / static_cast<size_t>(options_.block_size) > known) {
    request->chain = ChainOf(request->submit.cache_salt(), request->ids, options_.block_size);
  }
  for (size_t i = first ? 0 : known; i < request->chain.size(); ++i) {
    Hold(request->chain[i], i == 0 ? BlockKey() : request->chain[i - 1]);
  }
  *ended = request->answered == static_cast<int32_t>(request->submit.stop().max_tokens());
  if (!*ended && !first) return;
  output->set_prompt_tokens(static_cast<uint32_t>(request->submit.prompt_ids_size()));
  output->set_cached_tokens(static_cast<uint32_t>(request->cached_tokens));
  if (*ended) output->set_finish(wire::FINISH_LENGTH);
}

void VirtualWorker::Hold(const BlockKey& block, const BlockKey& parent) {
  const auto above = cache_.find(PairOf(parent));
  const bool is_first = parent == BlockKey();
  if (!is_first && above == cache_.end()) return;  // evicted meanwhile: what follows is of no use
  const auto [at, is_new] = cache_.try_emplace(PairOf(block), CachedBlock{.parent = parent});
  at->second.used = ++uses_;
  if (!is_new) return;
  if (!is_first) ++above->second.children;
  ever_held_.insert(PairOf(block));
  if (bugs_.loses_cache_changes && time_->OneIn(8)) {
    secret_.insert(PairOf(block));
    return;
  }
  digest_.Store(block);
  ++sequence_;
  changes_.emplace_back(true, block);
}

void VirtualWorker::Evict() {
  while (static_cast<int64_t>(cache_.size()) > options_.kv_blocks) {
    auto oldest = cache_.end();
    for (auto at = cache_.begin(); at != cache_.end(); ++at) {
      if (at->second.children > 0) continue;
      if (oldest == cache_.end() || at->second.used < oldest->second.used) oldest = at;
    }
    const BlockKey block{oldest->first.first, oldest->first.second};
    const auto above = cache_.find(PairOf(oldest->second.parent));
    if (above != cache_.end()) --above->second.children;
    cache_.erase(oldest);
    if (secret_.erase(PairOf(block)) > 0) continue;
    digest_.Remove(block);
    ++sequence_;
    changes_.emplace_back(false, block);
  }
}

void VirtualWorker::SendSnapshot(const std::shared_ptr<VirtualLink>& link) {
  std::vector<wire::WorkerFrame> frames(1);
  for (const auto& [pair, block] : cache_) {
    if (secret_.contains(pair)) continue;
    if (frames.back().cache_snapshot().blocks_size() >= 64) frames.emplace_back();
    frames.back().mutable_cache_snapshot()->add_blocks(pair.first);
    frames.back().mutable_cache_snapshot()->add_blocks(pair.second);
  }
  for (size_t i = 0; i < frames.size(); ++i) {
    wire::CacheSnapshot* const snapshot = frames[i].mutable_cache_snapshot();
    // Changes that no frame has told yet are in it, and come once more after it: so it is sent
    // between steps only, when there are none.
    snapshot->set_sequence(sequence_);
    snapshot->set_digest(digest_.value());
    snapshot->set_first(i == 0);
    snapshot->set_last(i + 1 == frames.size());
    link->Send(std::move(frames[i]));
  }
}

// The network.

namespace {

class VirtualStream final : public WorkerStream {
 public:
  explicit VirtualStream(std::shared_ptr<VirtualLink> link) : link_(std::move(link)) {}
  void Start() override { link_->Start(); }
  void Write(const wire::RouterFrame* frame) override { link_->Write(frame); }
  void Cancel() override { link_->Cancel(); }

 private:
  const std::shared_ptr<VirtualLink> link_;
};

}  // namespace

DialWorker VirtualNetwork::dialer() {
  return [this](const std::string& address, StreamReader* reader) {
    auto link = std::make_shared<VirtualLink>(time_, workers_.at(address), reader);
    return std::make_unique<VirtualStream>(std::move(link));
  };
}

}  // namespace glm::router
