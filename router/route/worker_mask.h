// A set of workers, by the slots that the prefix index gave them. A value; no thread owns it.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>

namespace glm::router {

/// Of the slots below 64 * kWords: a fleet that is small pays for few words.
template <size_t kWords>
class WorkerBits {
 public:
  static constexpr int32_t kWorkersMax = 64 * kWords;

  WorkerBits() = default;
  /// Those of `other` that are below kWorkersMax.
  template <size_t kMore>
  explicit WorkerBits(const WorkerBits<kMore>& other) {
    static_assert(kMore >= kWords);
    for (size_t i = 0; i < kWords; ++i) words_[i] = other.words_[i];
  }

  void Set(int32_t slot) { words_[slot / 64] |= Bit(slot); }
  void Clear(int32_t slot) { words_[slot / 64] &= ~Bit(slot); }
  bool Has(int32_t slot) const { return (words_[slot / 64] & Bit(slot)) != 0; }
  bool empty() const {
    uint64_t any = 0;
    for (const uint64_t word : words_) any |= word;
    return any == 0;
  }
  int32_t count() const {
    int32_t count = 0;
    for (const uint64_t word : words_) count += std::popcount(word);
    return count;
  }
  void KeepOnly(const WorkerBits& other) {
    for (size_t i = 0; i < words_.size(); ++i) words_[i] &= other.words_[i];
  }
  void Subtract(const WorkerBits& other) {
    for (size_t i = 0; i < words_.size(); ++i) words_[i] &= ~other.words_[i];
  }
  /// Calls fn(slot) for each slot in the set, rising.
  template <typename Fn>
  void ForEach(Fn fn) const {
    for (size_t i = 0; i < words_.size(); ++i) {
      for (uint64_t word = words_[i]; word != 0; word &= word - 1) {
        fn(static_cast<int32_t>(64 * i) + std::countr_zero(word));
      }
    }
  }
  bool operator==(const WorkerBits&) const = default;

 private:
  template <size_t>
  friend class WorkerBits;
  static uint64_t Bit(int32_t slot) { return uint64_t{1} << (slot % 64); }
  std::array<uint64_t, kWords> words_{};
};

using WorkerMask = WorkerBits<16>;

}  // namespace glm::router
