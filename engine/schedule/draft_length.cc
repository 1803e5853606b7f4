#include "engine/schedule/draft_length.h"

#include <algorithm>
#include <bit>

#include "proto/base/log.h"

namespace glm::engine {
namespace {

constexpr double kRightAtStart = 0.7;   // before anything was judged
constexpr double kRightWeight = 0.005;  // of one judged draft
constexpr double kStepWeight = 0.1;     // of one measured step

}  // namespace

DraftLength::DraftLength(int32_t drafts_max, bool adaptive)
    : drafts_max_(drafts_max), adaptive_(adaptive), now_(drafts_max) {
  CHECK(drafts_max >= 0 && drafts_max <= kDraftsMax) << drafts_max << " drafts";
  right_.fill(kRightAtStart);
}

int32_t DraftLength::Choose(int32_t decodes) {
  if (!adaptive_ || drafts_max_ == 0 || decodes == 0) return now_;
  Size& size = sizes_[std::bit_width(static_cast<uint32_t>(decodes)) % sizes_.size()];
  if (size.best < 0) {
    size.best = drafts_max_;
    size.steps_left = size.probe_every;
  }
  if (size.steps_left == 0) {
    size.probing ? EndProbe(&size) : BeginProbe(&size);
  }
  --size.steps_left;
  now_ = size.probing ? size.probe : size.best;
  return now_;
}

void DraftLength::BeginProbe(Size* size) const {
  size->probing = true;
  do {
    size->probe = (size->probe + drafts_max_) % (drafts_max_ + 1);  // one less, round and round
  } while (size->probe == size->best);
  size->steps_left = kProbeSteps;
}

void DraftLength::EndProbe(Size* size) const {
  size->probing = false;
  const int32_t best = BestOf(*size);
  size->unchanged = best == size->best ? size->unchanged + 1 : 0;
  size->best = best;
  if (size->unchanged == 0) {
    size->probe_every = kProbeEvery;
  } else if (size->unchanged % drafts_max_ == 0) {
    size->probe_every = std::min(2 * size->probe_every, kProbeEveryMax);
  }
  size->steps_left = size->probe_every;
}

int32_t DraftLength::BestOf(const Size& size) const {
  int32_t best = size.best;
  if (size.steps[best] == 0) return best;
  double best_rate = kGain * TokensExpected(best) / size.seconds[best];
  for (int32_t drafts = 0; drafts <= drafts_max_; ++drafts) {
    if (drafts == size.best || size.steps[drafts] == 0) continue;
    const double rate = TokensExpected(drafts) / size.seconds[drafts];
    if (rate <= best_rate) continue;
    best = drafts;
    best_rate = rate;
  }
  return best;
}

void DraftLength::NoteDrafts(int32_t drafts, int32_t accepted) {
  for (int32_t j = 0; j < drafts && j <= accepted; ++j) {
    right_[j] += kRightWeight * ((j < accepted ? 1.0 : 0.0) - right_[j]);
  }
}

void DraftLength::NoteStep(int32_t decodes, int32_t judged, int32_t drafts, double seconds) {
  if (decodes == 0 || judged != drafts || !(seconds > 0)) return;
  Size& size = sizes_[std::bit_width(static_cast<uint32_t>(decodes)) % sizes_.size()];
  double& mean = size.seconds[drafts];
  // The first steps count in full, so that a short probe can be judged.
  const double weight = std::max(kStepWeight, 1.0 / (1 + size.steps[drafts]));
  mean += weight * (seconds - mean);
  size.steps[drafts] = std::min(size.steps[drafts] + 1, 1 << 20);
}

double DraftLength::TokensExpected(int32_t drafts) const {
  double tokens = 1;
  double right = 1;
  for (int32_t j = 0; j < drafts; ++j) {
    right *= right_[j];
    tokens += right;
  }
  return tokens;
}

}  // namespace glm::engine
