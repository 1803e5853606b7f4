// Generated cases for every entry of the op table, each judged by an oracle in double precision.
//
// Who calls: the suites of the CPU backend and of every other backend. A case builds its inputs
// from a seed, uploads them, runs one op, and compares what the op wrote with the oracle, which
// shares no code with any backend. Padding rows and unused cache slots are poisoned with NaN.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "kernels/device.h"

namespace glm::test {

struct CaseResult {
  std::string failure;        // empty: the op did as its contract says
  std::vector<uint8_t> bits;  // all that the op specifies, to compare two runs bit by bit
};

struct OpCase {
  std::string name;   // "linear F32 4x128x96 bias"
  DType act;          // activation type; backends without F32 leave those cases out
  StepLimits limits;  // what the device must have planned
  std::function<CaseResult(Device&)> run;
};

std::vector<OpCase> EmbedCases();
std::vector<OpCase> AddRmsNormCases();
std::vector<OpCase> LinearCases();
std::vector<OpCase> NormRopeStoreCases();
std::vector<OpCase> AttentionCases();
std::vector<OpCase> MlaRopeStoreCases();
std::vector<OpCase> MlaAttentionCases();
std::vector<OpCase> SiluMulCases();
std::vector<OpCase> MoeRouteCases();
std::vector<OpCase> MoeExpertsCases();
std::vector<OpCase> GatherLogitRowsCases();
std::vector<OpCase> SampleCases();

/// BF16 cases of sizes at which GPU kernels take their other paths; too slow for the CPU's debug
/// tests.
std::vector<OpCase> LinearLargeCases();
std::vector<OpCase> AttentionLargeCases();
std::vector<OpCase> MlaAttentionLargeCases();
std::vector<OpCase> MlaAttentionDecodeCases();
std::vector<OpCase> MoeExpertsLargeCases();

// What came later to ops of the above, apart for backends that do not have it: slices of the
// vocabulary, a norm without a residual, and FP8 caches.
std::vector<OpCase> EmbedSliceCases();
std::vector<OpCase> RmsNormCases();
std::vector<OpCase> NormRopeStoreFloat8Cases();
std::vector<OpCase> AttentionFloat8Cases();

/// Penalties, edits, masks, targets and logprobs, each alone and all at once; NaN logits.
std::vector<OpCase> SampleFeatureCases();
/// Slices of the ids, of which choose_candidates takes the best.
std::vector<OpCase> SampleSliceCases();
std::vector<OpCase> StoreTokensCases();
std::vector<OpCase> DraftCases();

/// All of the above but the large ones.
std::vector<OpCase> AllOpCases();

/// Limits that hold every case of `cases`, for a device that runs them all.
StepLimits LimitsOf(const std::vector<OpCase>& cases);

}  // namespace glm::test
