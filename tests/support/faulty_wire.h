// A network of two ends with faults: a network namespace behind a virtual device whose packets a
// thread of the test carries, loses, delays or answers with a reset. Needs root and /dev/net/tun.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

namespace glm::tests {

/// What happens to packets. Towards the inside is from the test's own namespace into the other.
struct WireFaults {
  bool drop_in = false;
  bool drop_out = false;
  int loss_percent = 0;
  int delay_ms = 0;
  bool reset = false;  // each TCP packet is dropped, and both its ends get a reset
};

class FaultyWire {
 public:
  /// Why there can be none here; empty: there can.
  static std::string Unavailable();

  /// `number`, 0 to 255, tells the wires of a process apart.
  explicit FaultyWire(int number);
  ~FaultyWire();
  FaultyWire(const FaultyWire&) = delete;
  FaultyWire& operator=(const FaultyWire&) = delete;

  /// The address of the end inside, reached from the test's own namespace.
  std::string inside_address() const { return Address(2); }
  /// Runs `fn` with this thread in the namespace: sockets and processes made there stay there.
  void Inside(const std::function<void()>& fn);
  void Set(const WireFaults& faults);
  int64_t packets() const { return packets_; }  // that were carried

 private:
  struct Packet {
    std::chrono::steady_clock::time_point due;
    int to = -1;  // the descriptor
    std::vector<uint8_t> bytes;
  };

  std::string Address(int end) const;
  void Carry();
  void Take(int from, int to, bool inwards);

  const int number_;
  const std::string name_;
  int own_namespace_ = -1;
  int inner_namespace_ = -1;
  int outer_ = -1;  // the devices
  int inner_ = -1;
  std::atomic<bool> stopping_{false};
  std::atomic<int64_t> packets_{0};
  std::mutex mutex_;
  WireFaults faults_;           // guarded by the mutex
  std::minstd_rand random_{7};  // the thread's
  std::deque<Packet> waiting_;  // the thread's
  std::thread carrier_;
};

}  // namespace glm::tests
