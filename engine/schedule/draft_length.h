// How many drafts a step should make: as many as pay, by what was measured.
//
// Who calls: the scheduler, on the engine thread. Pure: the same calls in the same order give the
// same lengths; there is no clock in it, step times come in with the results.
//
// With k drafts a sequence gains 1 + a1 + a1 a2 + ... + a1..ak tokens a step, aj being how often
// draft j is right when those before it were. A step costs what steps with k drafts took lately, on
// batches of about this size (sizes are told apart by powers of two: a small batch has arithmetic
// to spare for drafts, a large one has not). The length with the most tokens a second is taken.
// Only steps that decode alone, and that follow one of the same length, are measured.
//
// Lengths are tried: every kProbeEvery steps of a size, for kProbeSteps steps, the other lengths in
// turn. A round of probes that changed nothing doubles the time to the next one, up to
// kProbeEveryMax, so that a length of 0 that stays right costs next to nothing.
#pragma once

#include <array>
#include <cstdint>

namespace glm::engine {

class DraftLength {
 public:
  static constexpr int32_t kDraftsMax = 5;
  static constexpr int32_t kProbeEvery = 64;
  static constexpr int32_t kProbeEveryMax = 4096;
  static constexpr int32_t kProbeSteps = 6;
  /// Another length must promise this much more to be taken.
  static constexpr double kGain = 1.02;

  /// Lengths are 0..drafts_max; if not `adaptive`, always drafts_max.
  DraftLength(int32_t drafts_max, bool adaptive);

  /// How many drafts the sequences of a step are to make; `decodes` sequences decode in it.
  int32_t Choose(int32_t decodes);

  /// One sequence's drafts were judged: of `drafts`, the first `accepted` were right.
  void NoteDrafts(int32_t drafts, int32_t accepted);

  /// A step is done that had `decodes` sequences decoding, and nothing else, judged up to `judged`
  /// drafts of each and made `drafts` more.
  void NoteStep(int32_t decodes, int32_t judged, int32_t drafts, double seconds);

  /// The length last chosen.
  int32_t now() const { return now_; }

  /// Tokens that a sequence gains in a step with so many drafts, by what was measured.
  double TokensExpected(int32_t drafts) const;

 private:
  struct Size {  // what is known of batches of one size
    std::array<double, kDraftsMax + 1> seconds{};
    std::array<int32_t, kDraftsMax + 1> steps{};
    int32_t best = -1;  // in use; -1: not yet chosen
    bool probing = false;
    int32_t probe = 0;       // the length tried now, or last
    int32_t steps_left = 0;  // to the next probe, or of this one
    int32_t unchanged = 0;   // probes since the last that changed something
    int32_t probe_every = kProbeEvery;
  };
  void BeginProbe(Size* size) const;
  void EndProbe(Size* size) const;
  int32_t BestOf(const Size& size) const;

  const int32_t drafts_max_;
  const bool adaptive_;
  std::array<double, kDraftsMax> right_;  // how often draft j is, if those before it are
  std::array<Size, 16> sizes_;
  int32_t now_;
};

}  // namespace glm::engine
