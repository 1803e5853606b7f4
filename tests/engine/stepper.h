// A model run step by step as a rank would, and the golden files that it is held to.
//
// Who calls: the model's tests. The golden files are made by the scripts of tests/golden.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "engine/model/glm.h"
#include "engine/model/safetensors.h"
#include "tests/support/logit_rows.h"

namespace glm::test {

using engine::Checkpoint;
using engine::Glm;
using engine::KvCache;
using engine::ModelConfig;
using engine::SafetensorsFile;

using Ids = std::vector<int32_t>;

inline constexpr int64_t kTokensMax = 160;
inline constexpr int64_t kSequencesMax = 4;
inline constexpr int32_t kBlockSize = 16;
inline constexpr int32_t kBlocksMax = 10;  // of one sequence
inline const std::string kGolden = std::string(GLM_SOURCE_DIR) + "/tests/golden/";

/// What the reference said of a case, such as "glm4_moe/air".
struct Expected {
  explicit Expected(const std::string& name) {
    auto file = SafetensorsFile::Open(kGolden + name + ".expected.safetensors");
    EXPECT_TRUE(file.ok()) << file.status();
    for (const auto& [key, tensor] : (*file)->tensors()) {
      if (tensor.dtype == DType::kI32) {
        Ids& ids = integers[key];
        ids.resize(tensor.bytes / 4);
        std::memcpy(ids.data(), tensor.data, tensor.bytes);
      } else {
        const int64_t columns = tensor.shape[1];
        for (int64_t row = 0; row < tensor.shape[0]; ++row) {
          std::vector<float>& values = rows[key].emplace_back(columns);
          std::memcpy(values.data(), tensor.data + row * columns * 4, columns * 4);
        }
      }
    }
  }
  std::map<std::string, Ids> integers;
  std::map<std::string, Rows> rows;
};

/// Tokens that a step computes for a sequence, continuing where the last step ended.
struct Chunk {
  int32_t sequence;
  Ids ids;
};

/// A model with its cache: blocks in a scattered order, and every array of a step padded with
/// rubbish.
struct StepperOptions {
  int threads = 2;
  bool mtp = false;
  bool float8_cache = false;
  bool cuda = false;      // REQUIRES that there is a GPU
  int32_t gpu = 0;        // which
  bool random = false;    // no checkpoint but weights by the config alone
  bool quantize = false;  // linears to FP8 while loading
  int64_t overlap_tokens_min = engine::GlmOptions{}.overlap_tokens_min;
  Communicator* communicator = nullptr;  // of the ranks that share the model; null: there is one
  // Makes the communicator, where that needs the device.
  std::function<std::unique_ptr<Communicator>(Device&)> join{};
};

class Stepper {
 public:
  Stepper(const std::string& folder, DType dtype, const StepperOptions& options = {})
      : device_(NewDevice(options)), joined_(options.join ? options.join(*device_) : nullptr) {
    Communicator* const communicator = joined_ != nullptr ? joined_.get() : options.communicator;
    auto config = ModelConfig::Read(folder);
    EXPECT_TRUE(config.ok()) << config.status();
    config_ = *config;
    const ModelConfig rank_config =
        config_.OfRank(communicator == nullptr ? 1 : communicator->size());
    limits_ = Glm::CompleteLimits(
        rank_config,
        {.tokens_max = kTokensMax, .sequences_max = kSequencesMax, .logit_rows_max = kTokensMax});
    device_->PlanScratch(limits_);
    engine::WeightSource source(folder);
    source.random = options.random;
    source.quantize = options.quantize;
    source.threads = options.threads;
    auto model = Glm::Load(*device_, config_, source, dtype, limits_,
                           {.mtp = options.mtp,
                            .communicator = communicator,
                            .overlap_tokens_min = options.overlap_tokens_min});
    EXPECT_TRUE(model.ok()) << model.status();
    model_ = *std::move(model);
    const int64_t blocks = kSequencesMax * kBlocksMax + 1;
    const DType cache = options.float8_cache ? DType::kF8E4M3 : dtype;
    cache_ = KvCache::Allocate(*device_, rank_config, cache, blocks, kBlockSize, model_->has_mtp());
    std::vector<KvLayer> layers = cache_.layers;
    layers.push_back(cache_.mtp);
    for (const KvLayer& layer : layers) {
      for (const Tensor& tensor : {layer.keys, layer.values}) {
        if (!tensor.empty()) device_->Fill(tensor.data, 0xFF, tensor.bytes());  // NaN
      }
    }
    logits_ = device_->NewTensor(DType::kF32, {kTokensMax, config_.vocabulary});
    last_ids_ = device_->NewTensor(DType::kI32, {kSequencesMax});
    draft_hidden_ = device_->NewTensor(dtype, {1, config_.hidden_size});
    input_ = static_cast<int32_t*>(device_->Allocate(4 * (8 * kTokensMax)));
    device_->Seal();
    // Kernels of ranks that share a GPU are all run for the first time here.
    device_->WaitAfterOps(communicator != nullptr && communicator->size() > 1);
    lengths_.assign(kSequencesMax, 0);
  }

  // Logits of every token, chunk after chunk.
  Rows Step(const std::vector<Chunk>& chunks) {
    const int32_t tokens = NewBatch(chunks);
    model_->Forward(batch_, cache_, logits_.Rows(0, batch_.token_ids.shape[0]));
    return Logits(tokens);
  }

  // Logits of the last token of each chunk whose place in `chunks` is in `wanted`, with the last
  // layer run on these rows alone.
  Rows StepApart(const std::vector<Chunk>& chunks, const Ids& wanted) {
    NewBatch(chunks);
    Ids ids, positions, starts{0}, lengths, tokens, rows;
    int32_t token = -1;
    for (int32_t s = 0; s < static_cast<int32_t>(chunks.size()); ++s) {
      token += static_cast<int32_t>(chunks[s].ids.size());
      const bool row = std::count(wanted.begin(), wanted.end(), s) > 0;
      lengths.push_back(row ? lengths_[chunks[s].sequence] : 0);
      if (row) {
        rows.push_back(static_cast<int32_t>(rows.size()));
        tokens.push_back(token);
        ids.push_back(chunks[s].ids.back());
        positions.push_back(lengths.back() - 1);
      }
      starts.push_back(static_cast<int32_t>(rows.size()));
    }
    const auto count = static_cast<int32_t>(rows.size());
    const auto sequences = static_cast<int32_t>(chunks.size());
    const int64_t padded = count + 2;
    batch_.logit_tokens = Upload(tokens, {padded});
    batch_.counts = Upload({batch_tokens_, sequences, count}, {3});
    BatchView apart = batch_;
    apart.token_ids = Upload(ids, {padded});
    apart.positions = Upload(positions, {padded});
    apart.token_sequences = Upload(wanted, {padded});
    apart.query_starts = Upload(starts, {sequences + 1});
    apart.kv_lengths = Upload(lengths, {sequences});
    apart.logit_tokens = Upload(rows, {padded});
    apart.counts = Upload({count, sequences, count}, {3});
    model_->Forward(batch_, cache_, logits_.Rows(0, padded), &apart);
    return Logits(count);
  }

  // Draft logits of every token of the last Step, of which `next_ids` are the ids after each.
  Rows Draft(const Ids& next_ids) {
    const int64_t padded = batch_.token_ids.shape[0];
    BatchView batch = batch_;
    batch.token_ids = Upload(next_ids, {padded});
    model_->ForwardMtp(batch, model_->hidden(batch.token_ids.shape[0]), cache_,
                       logits_.Rows(0, padded));
    return Logits(static_cast<int32_t>(next_ids.size()));
  }

  // Draft logits of one more token of `sequence`, `id`, on the draft layer's own output of row
  // `row` of the last Draft or DraftOn; `draft` numbers these, from 1 after a Draft.
  std::vector<float> DraftOn(int32_t sequence, int32_t id, int64_t row, int32_t draft) {
    const Tensor from = model_->mtp_hidden(row + 1).Rows(row, 1);
    device_->CopyToDevice(draft_hidden_.data, from.data, from.bytes());
    const int32_t length = lengths_[sequence] + draft;
    Ids table;
    for (int32_t i = 0; i < kBlocksMax; ++i) {
      table.push_back((sequence * kBlocksMax + i) * 7 % 41);
    }
    BatchView batch;
    next_input_ = input_;
    batch.token_ids = Upload({id}, {1});
    batch.positions = Upload({length - 1}, {1});
    batch.token_sequences = Upload({0}, {1});
    batch.query_starts = Upload({0, 1}, {2});
    batch.kv_lengths = Upload({length}, {1});
    batch.block_tables = Upload(table, {1, kBlocksMax});
    batch.logit_tokens = Upload({0}, {1});
    batch.counts = Upload({1, 1, 1}, {3});
    batch.last_ids = last_ids_;
    model_->ForwardMtp(batch, draft_hidden_, cache_, logits_.Rows(0, 1));
    return Logits(1)[0];
  }

  // Goes on from `logits` of sequence `sequence`'s newest token.
  Ids Greedy(int32_t sequence, const std::vector<float>& logits, int64_t count) {
    Ids ids{ArgMax(logits)};
    while (static_cast<int64_t>(ids.size()) < count) {
      ids.push_back(ArgMax(Step({{sequence, {ids.back()}}})[0]));
    }
    return ids;
  }

  static int32_t ArgMax(const std::vector<float>& logits) {
    return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
  }

  Device& device() { return *device_; }
  Glm& model() { return *model_; }
  const ModelConfig& config() const { return config_; }

 private:
  static std::unique_ptr<Device> NewDevice(const StepperOptions& options) {
    if (!options.cuda) return CreateCpuDevice(options.threads);
    std::string error;
    std::unique_ptr<Device> device = CreateCudaDevice(options.gpu, &error);
    EXPECT_NE(device, nullptr) << error;
    return device;
  }

  Rows Logits(int32_t tokens) {
    Rows rows(tokens, std::vector<float>(config_.vocabulary));
    for (int32_t t = 0; t < tokens; ++t) {
      device_->CopyToHost(rows[t].data(), logits_.Row<float>(t), 4 * config_.vocabulary);
    }
    device_->Synchronize();
    return rows;
  }

  // Makes `chunks` the batch, with logits of every token; returns how many there are.
  int32_t NewBatch(const std::vector<Chunk>& chunks) {
    Ids token_ids, positions, token_sequences, query_starts{0}, kv_lengths, tables;
    for (size_t s = 0; s < chunks.size(); ++s) {
      const Chunk& chunk = chunks[s];
      int32_t& length = lengths_[chunk.sequence];
      for (const int32_t id : chunk.ids) {
        token_ids.push_back(id);
        positions.push_back(length++);
        token_sequences.push_back(static_cast<int32_t>(s));
      }
      query_starts.push_back(static_cast<int32_t>(token_ids.size()));
      kv_lengths.push_back(length);
      for (int32_t i = 0; i < kBlocksMax; ++i) {
        // 7 and 41 have no common divisor: sequences' blocks are far apart and interleaved.
        tables.push_back((chunk.sequence * kBlocksMax + i) * 7 % 41);
      }
    }
    const auto tokens = static_cast<int32_t>(token_ids.size());
    Ids logit_tokens(tokens);
    std::iota(logit_tokens.begin(), logit_tokens.end(), 0);
    const Ids counts{tokens, static_cast<int32_t>(chunks.size()), tokens};

    constexpr int64_t kPadding = 3;
    const int64_t padded = std::min(tokens + kPadding, kTokensMax);
    const int64_t sequences = static_cast<int64_t>(chunks.size());
    next_input_ = input_;
    batch_ = BatchView{.token_ids = Upload(token_ids, {padded}),
                       .positions = Upload(positions, {padded}),
                       .token_sequences = Upload(token_sequences, {padded}),
                       .query_starts = Upload(query_starts, {sequences + 1}),
                       .kv_lengths = Upload(kv_lengths, {sequences}),
                       .block_tables = Upload(tables, {sequences, kBlocksMax}),
                       .logit_tokens = Upload(logit_tokens, {padded}),
                       .counts = Upload(counts, {3}),
                       .last_ids = last_ids_};
    batch_tokens_ = tokens;
    return tokens;
  }

  // A tensor of `shape` on the device; what `values` do not fill is rubbish.
  Tensor Upload(const Ids& values, std::initializer_list<int64_t> shape) {
    Tensor tensor(next_input_, DType::kI32, shape);
    device_->Fill(tensor.data, 0x7F, tensor.bytes());
    device_->CopyToDevice(tensor.data, values.data(), static_cast<int64_t>(values.size()) * 4);
    next_input_ += tensor.elements();
    EXPECT_LE(next_input_ - input_, 8 * kTokensMax);
    return tensor;
  }

  std::unique_ptr<Device> device_;
  const std::unique_ptr<Communicator> joined_;
  ModelConfig config_;
  StepLimits limits_;
  std::unique_ptr<Glm> model_;
  KvCache cache_;
  BatchView batch_;  // of the last Step
  int32_t batch_tokens_ = 0;
  Tensor logits_;        // F32 [T, V]
  Tensor last_ids_;      // I32 [slots]
  Tensor draft_hidden_;  // act [1, H]
  int32_t* input_ = nullptr;
  int32_t* next_input_ = nullptr;
  std::vector<int32_t> lengths_;
};

}  // namespace glm::test
