#include "engine/schedule/step_time.h"

#include <algorithm>
#include <cmath>

namespace glm::engine {
namespace {

constexpr double kMicro = 1e-6;
constexpr double kExpectedMin = kMicro;  // of a step; a fit may say less
constexpr int32_t kSweeps = 8;

/// Values before the first steps, in seconds: only how they compare counts, since the first steps
/// scale them. About those of a mid-sized model on one GPU.
constexpr std::array<double, 4> kAtStart = {10e-3, 0.1e-3, 0.02e-3, 1e-8};

std::array<double, 4> InputsOf(const StepWork& work) {
  return {1.0, static_cast<double>(work.decodes), static_cast<double>(work.prompt_tokens),
          static_cast<double>(work.context_tokens)};
}

double Dot(const std::array<double, 4>& a, const std::array<double, 4>& b) {
  return a[0] * b[0] + a[1] * b[1] + a[2] * b[2] + a[3] * b[3];
}

}  // namespace

StepTimeModel::StepTimeModel() : values_(kAtStart) {}

void StepTimeModel::Note(const StepWork& work, double seconds) {
  if (work.decodes + work.prompt_tokens <= 0 || !(seconds > 0) || !std::isfinite(seconds)) return;
  steps_ = std::min(steps_ + 1, kToldSteps);
  const Vector inputs = InputsOf(work);
  const double expected = std::max(kExpectedMin, Dot(values_, inputs));
  if (ShiftLevel(seconds / expected) || !known_) return;
  Learn(inputs, seconds, expected);
}

bool StepTimeModel::ShiftLevel(double ratio) {
  ratios_[ratios_next_] = ratio;
  ratios_next_ = (ratios_next_ + 1) % kRecentSteps;
  ratios_count_ = std::min(ratios_count_ + 1, kRecentSteps);
  if (ratios_count_ < (known_ ? kShiftSteps : kFirstSteps)) return false;
  std::array<double, kRecentSteps> sorted = ratios_;
  const auto end = sorted.begin() + ratios_count_;
  std::sort(sorted.begin(), end);
  if (known_) {
    const bool slower = *(end - kShiftSteps) > kShift;
    const bool faster = sorted[kShiftSteps - 1] < 1 / kShift;
    if (!slower && !faster) return false;
    // Of those that speak for it, not of the others.
    const double median = slower ? *(end - (kShiftSteps + 1) / 2) : sorted[kShiftSteps / 2];
    Scale(std::clamp(median, 1 / kShiftMost, kShiftMost));
  } else {
    Scale(sorted[kFirstSteps / 2]);
    known_ = true;
  }
  ratios_count_ = 0;
  ratios_next_ = 0;
  return true;
}

/// As if all steps so far had taken `ratio` times as long.
void StepTimeModel::Scale(double ratio) {
  for (int32_t i = 0; i < kInputs; ++i) {
    values_[i] *= ratio;
    targets_[i] /= ratio;
    most_known_[i] /= ratio * ratio;
    for (double& product : products_[i]) product /= ratio * ratio;
  }
}

void StepTimeModel::Learn(const Vector& inputs, double seconds, double expected) {
  constexpr double kKeep = 1.0 - 1.0 / kMemorySteps;
  const double unit = std::max(seconds, expected);
  const double weight = 1 / (unit * unit);
  for (int32_t i = 0; i < kInputs; ++i) {
    for (int32_t j = 0; j < kInputs; ++j) {
      products_[i][j] = kKeep * products_[i][j] + weight * inputs[i] * inputs[j];
    }
    targets_[i] = kKeep * targets_[i] + weight * inputs[i] * seconds;
    most_known_[i] = std::max(most_known_[i], products_[i][i]);
  }
  Solve();
}

void StepTimeModel::Solve() {
  const Vector before = values_;
  for (int32_t sweep = 0; sweep < kSweeps; ++sweep) {
    for (int32_t i = 0; i < kInputs; ++i) {
      const double inertia = kInertia * most_known_[i];
      if (!(inertia > 0)) continue;  // never seen: it stays as it compares to the others
      const double others = Dot(products_[i], values_) - products_[i][i] * values_[i];
      const double target = targets_[i] + inertia * before[i] - others;
      values_[i] = std::max(0.0, target / (products_[i][i] + inertia));
    }
  }
}

StepTimes StepTimeModel::times() const {
  if (steps_ < kToldSteps) return {};
  return {.base_us = values_[0] / kMicro,
          .sequence_us = values_[1] / kMicro,
          .prompt_token_us = values_[2] / kMicro,
          .context_token_us = values_[3] / kMicro};
}

double StepTimeModel::Expect(const StepWork& work) const {
  return known_ ? Dot(values_, InputsOf(work)) : 0;
}

}  // namespace glm::engine
