#include "tests/kernels/case_parts.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

namespace glm::test {
namespace {

constexpr int32_t kGarbage = 0x7F7F7F7F;

int64_t Product(const std::vector<int64_t>& shape) {
  return std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
}

Tensor TensorOver(void* data, DType dtype, const std::vector<int64_t>& shape) {
  switch (shape.size()) {
    case 1:
      return Tensor(data, dtype, {shape[0]});
    case 2:
      return Tensor(data, dtype, {shape[0], shape[1]});
    case 3:
      return Tensor(data, dtype, {shape[0], shape[1], shape[2]});
    default:
      return Tensor(data, dtype, {shape[0], shape[1], shape[2], shape[3]});
  }
}

}  // namespace

double RoundTo(DType dtype, double value) {
  const float rounded = static_cast<float>(value);
  if (dtype == DType::kBF16) return ToFloat(ToBFloat16(rounded));
  if (dtype == DType::kF8E4M3) return ToFloat(ToFloat8(rounded));
  return rounded;
}

HostTensor::HostTensor(DType dtype, std::vector<int64_t> shape)
    : dtype_(dtype), shape_(std::move(shape)), bytes_(Product(shape_) * ByteSize(dtype), 0xFF) {
  DecodeAll();
}

void HostTensor::DecodeAll() {
  numbers_.resize(elements());
  for (size_t i = 0; i < numbers_.size(); ++i) numbers_[i] = Decode(static_cast<int64_t>(i));
}

HostTensor::HostTensor(Random& random, DType dtype, std::vector<int64_t> shape, double magnitude,
                       int64_t rows)
    : HostTensor(dtype, std::move(shape)) {
  const int64_t count = shape_[0] == 0 ? 0 : elements() / shape_[0] * rows;
  for (int64_t i = 0; i < count; ++i) Set(i, random.Uniform(-magnitude, magnitude));
}

HostTensor HostTensor::OfInts(const std::vector<int32_t>& values, std::vector<int64_t> shape) {
  HostTensor tensor(DType::kI32, std::move(shape));
  CHECK_EQ(tensor.elements(), static_cast<int64_t>(values.size()));
  std::memcpy(tensor.bytes_.data(), values.data(), tensor.bytes_.size());
  tensor.DecodeAll();
  return tensor;
}

HostTensor HostTensor::Download(Device& device, const Tensor& tensor) {
  CHECK(tensor.contiguous());
  HostTensor host(tensor.dtype,
                  std::vector<int64_t>(tensor.shape.begin(), tensor.shape.begin() + tensor.rank));
  device.CopyToHost(host.bytes_.data(), tensor.data, tensor.bytes());
  device.Synchronize();
  host.DecodeAll();
  return host;
}

int64_t HostTensor::elements() const { return Product(shape_); }

double HostTensor::Decode(int64_t index) const {
  const auto load = [&](auto value) {
    std::memcpy(&value, bytes_.data() + index * sizeof(value), sizeof(value));
    return value;
  };
  switch (dtype_) {
    case DType::kF32:
      return load(float{});
    case DType::kBF16:
      return ToFloat(load(BFloat16{}));
    case DType::kF8E4M3:
      return ToFloat(load(Float8{}));
    default:
      return load(int32_t{});
  }
}

void HostTensor::Set(int64_t index, double value) {
  const auto store = [&](auto rounded) {
    std::memcpy(bytes_.data() + index * sizeof(rounded), &rounded, sizeof(rounded));
    numbers_[index] = Decode(index);
  };
  const float narrow = static_cast<float>(value);
  switch (dtype_) {
    case DType::kF32:
      return store(narrow);
    case DType::kBF16:
      return store(ToBFloat16(narrow));
    case DType::kF8E4M3:
      return store(ToFloat8(narrow));
    default:
      return store(static_cast<int32_t>(value));
  }
}

Tensor HostTensor::Upload(Device& device) const {
  const int64_t bytes = static_cast<int64_t>(bytes_.size());
  void* memory = device.Allocate(bytes);
  device.CopyToDevice(memory, bytes_.data(), bytes);
  device.Synchronize();
  return TensorOver(memory, dtype_, shape_);
}

CaseBatch::CaseBatch(Random& random, const BatchSpec& spec, int32_t vocabulary)
    : block_size(spec.block_size) {
  const int32_t sequences = static_cast<int32_t>(spec.sequences.size());
  sequences_padded = sequences + spec.padding_sequences;
  query_starts = {0};
  for (int32_t s = 0; s < sequences; ++s) {
    const BatchSpec::Part& part = spec.sequences[s];
    for (int32_t i = 0; i < part.tokens; ++i) {
      token_ids.push_back(static_cast<int32_t>(random.Below(vocabulary)));
      positions.push_back(part.cached + i);
      token_sequences.push_back(s);
    }
    query_starts.push_back(static_cast<int32_t>(token_ids.size()));
    kv_lengths.push_back(part.cached + part.tokens);
    logit_tokens.push_back(static_cast<int32_t>(token_ids.size()) - 1);
    blocks_max = std::max(blocks_max, (kv_lengths[s] + block_size - 1) / block_size);
  }
  tokens = static_cast<int32_t>(token_ids.size());
  if (spec.logit_rows >= 0) {
    logit_tokens.assign(spec.logit_rows, 0);
    for (int32_t& token : logit_tokens) token = static_cast<int32_t>(random.Below(tokens));
  }
  logit_rows = static_cast<int32_t>(logit_tokens.size());

  // Blocks in random order; a few belong to nobody.
  ++blocks_max;
  blocks = sequences * blocks_max + 3;
  std::vector<int32_t> free(blocks);
  std::iota(free.begin(), free.end(), 0);
  for (int32_t i = blocks - 1; i > 0; --i) std::swap(free[i], free[random.Below(i + 1)]);
  block_tables.assign(static_cast<size_t>(sequences_padded) * blocks_max, kGarbage);
  for (int32_t s = 0; s < sequences; ++s) {
    for (int32_t b = 0; b * block_size < kv_lengths[s]; ++b) {
      block_tables[s * blocks_max + b] = free.back();
      free.pop_back();
    }
  }
  tokens_padded = tokens + spec.padding_tokens;
  logit_rows_padded = logit_rows + spec.padding_logit_rows;
  token_ids.resize(tokens_padded, kGarbage);
  positions.resize(tokens_padded, kGarbage);
  token_sequences.resize(tokens_padded, kGarbage);
  query_starts.resize(sequences_padded + 1, tokens);
  kv_lengths.resize(sequences_padded, kGarbage);
  logit_tokens.resize(logit_rows_padded, kGarbage);
  counts = {tokens, sequences, logit_rows};
  last_ids.resize(sequences_padded + logit_rows_padded + 4);
  for (int32_t& id : last_ids) id = static_cast<int32_t>(random.Below(vocabulary));
}

BatchView CaseBatch::Upload(Device& device) const {
  const auto upload = [&](const std::vector<int32_t>& values) {
    return HostTensor::OfInts(values, {static_cast<int64_t>(values.size())}).Upload(device);
  };
  BatchView view;
  view.token_ids = upload(token_ids);
  view.positions = upload(positions);
  view.token_sequences = upload(token_sequences);
  view.query_starts = upload(query_starts);
  view.kv_lengths = upload(kv_lengths);
  view.block_tables =
      HostTensor::OfInts(block_tables, {sequences_padded, blocks_max}).Upload(device);
  view.logit_tokens = upload(logit_tokens);
  view.counts = upload(counts);
  view.last_ids = upload(last_ids);
  return view;
}

int64_t CaseBatch::Cell(int32_t sequence, int32_t position, int64_t kv_heads, int64_t kv_head,
                        int64_t head_size) const {
  const int64_t block = block_tables[sequence * blocks_max + position / block_size];
  return ((block * kv_heads + kv_head) * block_size + position % block_size) * head_size;
}

void Verdict::Fail(const std::string& message) {
  if (!result_.failure.empty()) result_.failure += "; ";
  result_.failure += message;
}

void Verdict::AddBits(const std::vector<uint8_t>& bytes) {
  result_.bits.insert(result_.bits.end(), bytes.begin(), bytes.end());
}

void Verdict::Near(Device& device, const char* name, const Tensor& tensor, int64_t rows,
                   const std::vector<double>& want, const Tolerance& tolerance) {
  const HostTensor host = HostTensor::Download(device, tensor.Rows(0, rows));
  AddBits(host.bytes());
  std::vector<double> got(host.elements());
  for (size_t i = 0; i < got.size(); ++i) got[i] = host.At(static_cast<int64_t>(i));
  const std::string message = Compare(got, want, tolerance, host.columns());
  if (!message.empty()) Fail(std::string(name) + ": " + message);
}

void Verdict::NearQuantized(Device& device, const char* name, const Activation& quantized,
                            int64_t rows, const std::vector<double>& want, int64_t group, DType act,
                            double absolute) {
  const HostTensor codes = HostTensor::Download(device, quantized.values.Rows(0, rows));
  const HostTensor scales = HostTensor::Download(device, quantized.scales.Rows(0, rows));
  AddBits(codes.bytes());
  AddBits(scales.bytes());
  const int64_t columns = codes.columns();
  const int64_t groups = (columns + group - 1) / group;
  std::vector<double> got(codes.elements());
  std::vector<double> got_scales(rows * groups);
  std::vector<double> want_scales(rows * groups);
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t g = 0; g < groups; ++g) {
      double largest = 0;
      const int64_t end = std::min((g + 1) * group, columns);
      for (int64_t i = g * group; i < end; ++i) {
        largest = std::max(largest, std::abs(want[row * columns + i]));
      }
      const double scale = scales.At(row * groups + g);
      got_scales[row * groups + g] = scale;
      want_scales[row * groups + g] = largest == 0 ? 1 : largest / 448;
      for (int64_t i = g * group; i < end; ++i) {
        got[row * columns + i] = codes.At(row * columns + i) * scale;
      }
    }
  }
  const Tolerance scale_tolerance = ToleranceOf(act, 0, 2);
  std::string message = Compare(
      got_scales, want_scales,
      {.relative = scale_tolerance.relative, .absolute = absolute / 448, .similarity = 0}, groups);
  if (!message.empty()) Fail(std::string(name) + " scales: " + message);
  // Half a step of FP8 is 1/16 of the value, or 2^-10 scales near zero.
  const double largest_scale = *std::max_element(want_scales.begin(), want_scales.end());
  message = Compare(got, want,
                    {.relative = 0.0626 + 2 * scale_tolerance.relative,
                     .absolute = largest_scale * 0.001 + absolute,
                     .similarity = 0.999},
                    columns);
  if (!message.empty()) Fail(std::string(name) + ": " + message);
}

void Verdict::NearCodes(Device& device, const char* name, const Tensor& tensor,
                        const HostTensor& want, DType act) {
  std::vector<double> numbers(want.elements());
  for (size_t i = 0; i < numbers.size(); ++i) numbers[i] = want.At(static_cast<int64_t>(i));
  // A code's neighbour is 1/8 of it away at most, or 2^-9 near zero.
  Near(device, name, tensor, tensor.shape[0], numbers, {.relative = 0.13, .absolute = 0.002});
  const HostTensor got = HostTensor::Download(device, tensor);
  int64_t stored = 0;
  int64_t others = 0;
  for (int64_t i = 0; i < want.elements(); ++i) {
    if (std::isnan(want.At(i))) continue;
    ++stored;
    others += got.At(i) == want.At(i) ? 0 : 1;
  }
  if (others > 2 + stored / (act == DType::kF32 ? 500 : 20)) {
    Fail(std::string(name) + ": " + std::to_string(others) + " of " + std::to_string(stored) +
         " codes are not the right ones");
  }
}

void Verdict::Equal(const char* name, const std::vector<int32_t>& got,
                    const std::vector<int32_t>& want) {
  std::vector<uint8_t> bytes(got.size() * sizeof(int32_t));
  if (!got.empty()) std::memcpy(bytes.data(), got.data(), bytes.size());
  AddBits(bytes);
  const size_t count = std::max(got.size(), want.size());
  for (size_t i = 0; i < count; ++i) {
    if (i < got.size() && i < want.size() && got[i] == want[i]) continue;
    Fail(std::string(name) + "[" + std::to_string(i) + "] is " +
         (i < got.size() ? std::to_string(got[i]) : "missing") + ", expected " +
         (i < want.size() ? std::to_string(want[i]) : "nothing"));
    return;
  }
}

Tolerance ToleranceOf(DType act, double scale, int depth) {
  if (act == DType::kF32) {
    return {.relative = 2e-5, .absolute = 4e-6 * scale, .similarity = 1 - 1e-9};
  }
  // One rounding on the other side is 2^-8 to 2^-7 of the value.
  return {.relative = depth * 0x1.02p-7, .absolute = 4e-6 * scale, .similarity = 1 - 3e-5};
}

std::vector<int32_t> DownloadInts(Device& device, const Tensor& tensor, int64_t count) {
  std::vector<int32_t> values(count);
  device.CopyToHost(values.data(), tensor.data, count * static_cast<int64_t>(sizeof(int32_t)));
  device.Synchronize();
  return values;
}

uint64_t SeedOf(const std::string& name) {
  uint64_t seed = 0xCBF29CE484222325u;  // FNV-1a
  for (const char c : name) seed = (seed ^ static_cast<uint8_t>(c)) * 0x100000001B3u;
  return seed;
}

std::vector<OpCase> AllOpCases() {
  std::vector<OpCase> all;
  for (const auto make : {EmbedCases,           AddRmsNormCases,    LinearCases,
                          NormRopeStoreCases,   AttentionCases,     SiluMulCases,
                          MoeRouteCases,        MoeExpertsCases,    GatherLogitRowsCases,
                          SampleCases,          MlaRopeStoreCases,  MlaAttentionCases,
                          EmbedSliceCases,      RmsNormCases,       NormRopeStoreFloat8Cases,
                          AttentionFloat8Cases, SampleFeatureCases, SampleSliceCases,
                          StoreTokensCases,     DraftCases}) {
    std::vector<OpCase> cases = make();
    std::move(cases.begin(), cases.end(), std::back_inserter(all));
  }
  return all;
}

StepLimits LimitsOf(const std::vector<OpCase>& cases) {
  StepLimits limits;
  for (const OpCase& one : cases) {
    for (int64_t StepLimits::*field :
         {&StepLimits::tokens_max, &StepLimits::sequences_max, &StepLimits::logit_rows_max,
          &StepLimits::hidden, &StepLimits::query_heads, &StepLimits::kv_heads,
          &StepLimits::head_size, &StepLimits::query_latent, &StepLimits::latent,
          &StepLimits::experts, &StepLimits::experts_per_token, &StepLimits::expert_width,
          &StepLimits::dense_width, &StepLimits::vocabulary}) {
      limits.*field = std::max(limits.*field, one.limits.*field);
    }
  }
  return limits;
}

}  // namespace glm::test
