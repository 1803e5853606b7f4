// What the engine loop needs of the ranks: steps go in, results come out in the same order.
//
// Who calls: the engine thread. Implementations: RankGroup; in tests, a fake without a
// model.
#pragma once

#include "engine/schedule/step.h"

namespace glm::engine {

class StepRunner {
 public:
  virtual ~StepRunner() = default;

  /// Hands a step over and returns without waiting for it. `plan` stays unchanged until the Wait
  /// that returns its result. At most plans_in_flight_max steps may be handed over and not waited
  /// for.
  virtual void Submit(const StepPlan* plan) = 0;

  /// Blocks until the oldest step handed over is done. REQUIRES that there is one.
  virtual StepResult Wait() = 0;
};

}  // namespace glm::engine
