#include "bench/timed_device.h"

#include <algorithm>
#include <cstddef>

namespace glm::bench {
namespace {

/// A name that can be a template's argument.
template <size_t N>
struct Name {
  constexpr Name(const char (&text)[N]) { std::copy_n(text, N, value); }  // NOLINT: from a literal
  char value[N];
};

template <typename Args>
std::string NameOf(const char* op, const Args& /*args*/) {
  return op;
}
std::string NameOf(const char* op, const LinearArgs& args) {
  return std::string(op) + " " + std::to_string(args.weight.values.shape[0]) + "x" +
         std::to_string(args.weight.values.shape[1]) + " " + glm::Name(args.weight.values.dtype);
}

/// The op of the inner device behind a name; null where the inner device has none.
template <Name kName, auto kOp, typename Args>
void (*Timed(void (*inner)(Device&, const Args&)))(Device&, const Args&) {
  if (inner == nullptr) return nullptr;
  return [](Device& device, const Args& args) {
    static_cast<TimedDevice&>(device).Time(NameOf(kName.value, args),
                                           [&](Device& real) { (real.ops().*kOp)(real, args); });
  };
}

}  // namespace

TimedDevice::TimedDevice(std::unique_ptr<Device> inner)
    : Device(&table_), inner_(std::move(inner)), table_(MakeTable()) {}

OpTable TimedDevice::MakeTable() const {
  const OpTable& ops = inner_->ops();
  OpTable table{};
#define GLM_TIMED(op) table.op = Timed<#op, &OpTable::op>(ops.op)
  GLM_TIMED(embed);
  GLM_TIMED(add_rms_norm);
  GLM_TIMED(linear);
  GLM_TIMED(norm_rope_store);
  GLM_TIMED(attention);
  GLM_TIMED(mla_rope_store);
  GLM_TIMED(mla_attention);
  GLM_TIMED(silu_mul);
  GLM_TIMED(moe_route);
  GLM_TIMED(moe_experts);
  GLM_TIMED(gather_logit_rows);
  GLM_TIMED(store_tokens);
  GLM_TIMED(sample);
  GLM_TIMED(choose_candidates);
  GLM_TIMED(begin_drafts);
  GLM_TIMED(advance_drafts);
#undef GLM_TIMED
  return table;
}

std::map<std::string, TimedDevice::OpTime> TimedDevice::TakeTimes() {
  timing_ = false;
  inner_->Synchronize();
  std::map<std::string, OpTime> times;
  for (const Timing& timing : timings_) {
    OpTime& time = times[timing.name];
    ++time.calls;
    time.seconds += timing.end->SecondsSince(*timing.begin);
  }
  timings_.clear();
  return times;
}

}  // namespace glm::bench
