// How fast the queue drains: tokens of cost a second, measured while somebody waits and some worker
// is there, over the last seconds of such time. Pure: the clock is a parameter, milliseconds that
// never go back.
#pragma once

#include <cstdint>
#include <optional>

namespace glm::router {

class DrainRate {
 public:
  /// Whether the queue is at work from `now_ms` on: somebody waits, and a worker is there. Time
  /// without either says nothing of the rate.
  void SetBusy(bool busy, int64_t now_ms);
  /// Requests that cost `tokens` left the queue for a worker.
  void Served(int64_t tokens, int64_t now_ms);

  /// What is known of the rate; nothing before a second of work and a few requests were seen. The
  /// rate of the last busy time is kept until there is a newer one.
  std::optional<double> TokensPerSecond(int64_t now_ms);
  /// How long nothing has been served, of the time since the queue is at work; 0 if it is not.
  double IdleSeconds(int64_t now_ms) const;

 private:
  void Advance(int64_t now_ms);

  // Sums that forget: what is kTimeConstantS old weighs 1/e.
  double busy_s_ = 0;
  double tokens_ = 0;
  bool busy_ = false;
  int64_t now_ms_ = 0;
  int64_t served_ms_ = 0;  // the last time, or the begin of this busy time
  int64_t requests_ = 0;   // served while busy, ever
};

}  // namespace glm::router
