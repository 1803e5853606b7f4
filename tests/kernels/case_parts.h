// What the case generator is made of: seeded numbers, host tensors, a step's batch, and the
// comparison of outputs.
//
// Who calls: the *_cases.cc files, and tests that run an op directly.
#pragma once

#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "kernels/ops.h"
#include "tests/kernels/op_cases.h"
#include "tests/support/numeric.h"

namespace glm::test {

class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}
  double Uniform(double low, double high) {
    return low + (high - low) * static_cast<double>(engine_() >> 11) * 0x1p-53;
  }
  int64_t Below(int64_t count) { return static_cast<int64_t>(engine_() % count); }

 private:
  std::mt19937_64 engine_;
};

/// `value` as a store to `dtype` and a load from it give it.
double RoundTo(DType dtype, double value);

/// A contiguous tensor on the host.
class HostTensor {
 public:
  /// Filled with 0xFF: NaN in every float type.
  HostTensor(DType dtype, std::vector<int64_t> shape);
  /// Uniform in [-magnitude, magnitude], in the first `rows` rows; the rest is NaN.
  HostTensor(Random& random, DType dtype, std::vector<int64_t> shape, double magnitude,
             int64_t rows);
  HostTensor(Random& random, DType dtype, std::vector<int64_t> shape, double magnitude)
      : HostTensor(random, dtype, shape, magnitude, shape[0]) {}
  static HostTensor OfInts(const std::vector<int32_t>& values, std::vector<int64_t> shape);
  /// What `tensor` (contiguous) holds now.
  static HostTensor Download(Device& device, const Tensor& tensor);

  double At(int64_t index) const { return numbers_[index]; }
  void Set(int64_t index, double value);
  int64_t elements() const;
  int64_t columns() const { return shape_.back(); }
  const std::vector<int64_t>& shape() const { return shape_; }
  const std::vector<uint8_t>& bytes() const { return bytes_; }

  /// A copy in device memory.
  Tensor Upload(Device& device) const;

 private:
  /// The element as bytes_ have it.
  double Decode(int64_t index) const;
  void DecodeAll();

  DType dtype_;
  std::vector<int64_t> shape_;
  std::vector<uint8_t> bytes_;
  std::vector<double> numbers_;  // what bytes_ stand for: oracles read each element often
};

/// Sequences of a step and how they are padded.
struct BatchSpec {
  struct Part {
    int32_t cached;  // tokens in the cache before the step
    int32_t tokens;  // tokens of this step
  };
  std::vector<Part> sequences;
  int32_t padding_tokens = 0;
  int32_t padding_sequences = 0;
  int32_t padding_logit_rows = 0;
  int32_t logit_rows = -1;  // valid ones; -1: the last token of each sequence
  int32_t block_size = 16;

  static BatchSpec OneSequence(int32_t tokens, int32_t padding) {
    BatchSpec spec;
    spec.sequences = {{0, tokens}};
    spec.padding_tokens = padding;
    return spec;
  }
};

/// A step's input on the host. Padding entries are garbage, block tables are permuted.
struct CaseBatch {
  CaseBatch(Random& random, const BatchSpec& spec, int32_t vocabulary = 1000);

  int32_t tokens = 0;  // valid
  int32_t tokens_padded = 0;
  int32_t sequences_padded = 0;
  int32_t logit_rows = 0;
  int32_t logit_rows_padded = 0;
  int32_t blocks = 0;  // of the cache; some are in no table
  int32_t blocks_max = 0;
  int32_t block_size = 0;
  std::vector<int32_t> token_ids;
  std::vector<int32_t> positions;
  std::vector<int32_t> token_sequences;
  std::vector<int32_t> query_starts;
  std::vector<int32_t> kv_lengths;
  std::vector<int32_t> block_tables;
  std::vector<int32_t> logit_tokens;
  std::vector<int32_t> counts;
  std::vector<int32_t> last_ids;

  BatchView Upload(Device& device) const;
  /// Flat index of the first element of the cache cell of `position`, [B, K, P, D].
  int64_t Cell(int32_t sequence, int32_t position, int64_t kv_heads, int64_t kv_head,
               int64_t head_size) const;
};

/// Collects what a case found.
class Verdict {
 public:
  /// The first `rows` rows of `tensor` against `want`, row-major.
  void Near(Device& device, const char* name, const Tensor& tensor, int64_t rows,
            const std::vector<double>& want, const Tolerance& tolerance);
  /// FP8 values and scales against the unquantised `want`, `group` columns a scale. `absolute`:
  /// what the values before quantisation may differ by.
  void NearQuantized(Device& device, const char* name, const Activation& quantized, int64_t rows,
                     const std::vector<double>& want, int64_t group, DType act,
                     double absolute = 0);
  /// An FP8 tensor, NaN where nothing is stored: rarely a code beside the right one (values
  /// rounded to `act` before), and never one farther away.
  void NearCodes(Device& device, const char* name, const Tensor& tensor, const HostTensor& want,
                 DType act);
  void Equal(const char* name, const std::vector<int32_t>& got, const std::vector<int32_t>& want);
  void Fail(const std::string& message);
  void AddBits(const std::vector<uint8_t>& bytes);
  CaseResult Finish() { return std::move(result_); }

 private:
  CaseResult result_;
};

/// What an op's act output may differ by: sums in float, roundings at the stated places. `depth`
/// counts roundings in a row that may each fall on the other side.
Tolerance ToleranceOf(DType act, double scale, int depth = 1);

std::vector<int32_t> DownloadInts(Device& device, const Tensor& tensor, int64_t count);

/// A seed that depends on the case's name only.
uint64_t SeedOf(const std::string& name);

}  // namespace glm::test
