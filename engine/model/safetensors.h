// Safetensors: mapped files and the directory of the tensors in them.
//
// Who calls: the loader, and tests. Everything in a header is checked before a byte of it is
// believed; afterwards a StoredTensor may be read without checks. Any thread may read.
// Format: 8 bytes little-endian header size, a JSON header of name -> {dtype, shape, data_offsets},
// then the data; the tensors cover the data without holes or overlaps.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/dtype.h"

namespace glm::engine {

/// A tensor in a mapped file; row-major, little-endian, of any alignment.
struct StoredTensor {
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  const std::byte* data = nullptr;
  int64_t bytes = 0;
};

/// Tensors by name, in order of name.
using StoredTensors = std::map<std::string, StoredTensor>;

/// "[12, 4096]", for messages.
std::string ShapeText(const std::vector<int64_t>& shape);

/// One mapped .safetensors file.
class SafetensorsFile {
 public:
  /// Longest header that is read: what the format allows.
  static constexpr int64_t kHeaderBytesMax = 100'000'000;
  static constexpr int64_t kRankMax = 8;

  /// NOT_FOUND for a missing file; INVALID_ARGUMENT names the file, the tensor and the fault.
  static absl::StatusOr<std::unique_ptr<SafetensorsFile>> Open(const std::string& path);

  SafetensorsFile(const SafetensorsFile&) = delete;
  SafetensorsFile& operator=(const SafetensorsFile&) = delete;
  ~SafetensorsFile();

  const StoredTensors& tensors() const { return tensors_; }

 private:
  SafetensorsFile(void* map, int64_t bytes) : map_(map), bytes_(bytes) {}

  void* map_;
  int64_t bytes_;
  StoredTensors tensors_;
};

/// All files of a checkpoint folder: those that model.safetensors.index.json names, or
/// model.safetensors alone.
class Checkpoint {
 public:
  /// NOT_FOUND names the missing file. INVALID_ARGUMENT also when index and files disagree about
  /// where a tensor is, or when the index names a file outside the folder.
  static absl::StatusOr<Checkpoint> Open(const std::string& folder);

  const StoredTensors& tensors() const { return tensors_; }
  const std::string& folder() const { return folder_; }
  int64_t file_count() const { return static_cast<int64_t>(files_.size()); }

 private:
  std::string folder_;
  std::vector<std::unique_ptr<SafetensorsFile>> files_;
  StoredTensors tensors_;
};

}  // namespace glm::engine
