// How long a step takes on this machine: fitted to the engine's own steps, one after the other.
//
// Who calls: the engine loop, on the engine thread. Pure: no clock; the same calls in the same
// order give the same times. Nothing allocates, and a step costs some hundred multiplications.
//
// A step of a plan is taken to need
//   base + sequence * sequences that decode + prompt_token * prompt tokens computed
//     + context_token * tokens of context that are read,
// none of the four below 0. That is a line through something that is not straight (a batch of
// experts' rows fills up, attention of a prompt grows with its square), so it is fitted to what the
// worker does now. Two parts:
//
// Shape: recursive least squares with forgetting over the last kMemorySteps steps or so, solved by
// coordinate descent so that no value falls below 0. Errors count as shares of the larger of what
// was measured and what was expected. So a process that stood still for a minute moves nothing, and
// a step that took far longer than expected since it did something new is believed at once, since
// nothing else speaks of that. Each value is drawn a little to what it was (kInertia of the most
// that was ever known of it): where inputs move together, or one of them never moves, the values
// stay where they are instead of drifting apart, and what was learned of prompts outlasts an hour
// of decoding.
//
// Level: a machine that becomes slower or faster as a whole (a throttled GPU, a noisy neighbour)
// is slower at everything, also at what it happens not to do now. If kShiftSteps of the last
// kRecentSteps steps took over kShift times what was expected, all four values are multiplied by
// the median of those ratios, but kShiftMost at most; likewise if they took less. So five times
// slower is followed within kShiftSteps steps, and fewer outliers than that change no level.
#pragma once

#include <array>
#include <cstdint>

#include "engine/request.h"
#include "engine/schedule/step.h"

namespace glm::engine {

class StepTimeModel {
 public:
  static constexpr int32_t kFirstSteps = 5;  // before anything is known
  static constexpr int32_t kToldSteps = 64;  // before it is told: the first steps are no rule
  static constexpr int32_t kMemorySteps = 500;
  static constexpr int32_t kRecentSteps = 9;
  static constexpr int32_t kShiftSteps = 7;
  static constexpr double kShift = 1.3;
  static constexpr double kShiftMost = 8;
  static constexpr double kInertia = 1e-3;

  StepTimeModel();

  /// A step of this plan took so long. Steps of no work, or of no time, are no news.
  void Note(const StepWork& work, double seconds);

  /// What was fitted; all 0 before kToldSteps steps.
  StepTimes times() const;
  /// Seconds that a step should take; 0 before kFirstSteps steps.
  double Expect(const StepWork& work) const;

 private:
  static constexpr int32_t kInputs = 4;
  using Vector = std::array<double, kInputs>;

  void Learn(const Vector& inputs, double seconds, double expected);
  void Solve();
  /// Takes a step's ratio of measured to expected; true: the level was moved.
  bool ShiftLevel(double ratio);
  void Scale(double ratio);

  bool known_ = false;
  int32_t steps_ = 0;                       // noted, up to kToldSteps
  Vector values_;                           // seconds
  std::array<Vector, kInputs> products_{};  // of inputs with inputs, weighted and fading
  Vector targets_{};                        // of inputs with seconds, likewise
  Vector most_known_{};                     // the largest that each of products_[i][i] ever was
  std::array<double, kRecentSteps> ratios_{};
  int32_t ratios_count_ = 0;
  int32_t ratios_next_ = 0;
};

}  // namespace glm::engine
