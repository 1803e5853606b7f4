#include "engine/model/safetensors.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"
#include "engine/model/json_file.h"

namespace glm::engine {
namespace {

using nlohmann::json;

constexpr int64_t kIndexBytesMax = 100'000'000;
constexpr int64_t kLengthBytes = 8;

absl::Status Fault(absl::string_view file, absl::string_view tensor, absl::string_view fault) {
  return absl::InvalidArgumentError(
      absl::StrCat(file, ": tensor ", absl::Utf8SafeCEscape(tensor), ": ", fault));
}

std::optional<DType> DTypeOf(absl::string_view name) {
  for (const DType dtype :
       {DType::kF32, DType::kBF16, DType::kF8E4M3, DType::kI32, DType::kI64, DType::kU8}) {
    if (name == Name(dtype)) return dtype;
  }
  return std::nullopt;
}

// An array of non-negative integers that fit in int64.
std::optional<std::vector<int64_t>> Extents(const json& value, int64_t count_max) {
  if (!value.is_array() || static_cast<int64_t>(value.size()) > count_max) return std::nullopt;
  std::vector<int64_t> extents;
  for (const json& entry : value) {
    if (!entry.is_number_unsigned()) return std::nullopt;
    const uint64_t extent = entry.get<uint64_t>();
    if (extent > static_cast<uint64_t>(INT64_MAX)) return std::nullopt;
    extents.push_back(static_cast<int64_t>(extent));
  }
  return extents;
}

std::optional<int64_t> BytesOf(DType dtype, const std::vector<int64_t>& shape) {
  int64_t bytes = ByteSize(dtype);
  for (const int64_t extent : shape) {
    if (__builtin_mul_overflow(bytes, extent, &bytes)) return std::nullopt;
  }
  return bytes;
}

absl::StatusOr<StoredTensor> ParseEntry(const std::string& path, const std::string& name,
                                        const json& entry, const std::byte* data,
                                        int64_t data_bytes) {
  if (!entry.is_object()) return Fault(path, name, "its header entry is not an object");
  for (const auto& [key, value] : entry.items()) {
    if (key != "dtype" && key != "shape" && key != "data_offsets") {
      return Fault(
          path, name,
          absl::StrCat("unknown key \"", absl::Utf8SafeCEscape(key), "\" in its header entry"));
    }
  }
  const auto dtype_entry = entry.find("dtype");
  const auto shape_entry = entry.find("shape");
  const auto offsets_entry = entry.find("data_offsets");
  if (dtype_entry == entry.end() || !dtype_entry->is_string()) {
    return Fault(path, name, "dtype is not there, or not a string");
  }
  const std::optional<DType> dtype = DTypeOf(dtype_entry->get_ref<const std::string&>());
  if (!dtype.has_value()) {
    return Fault(path, name,
                 absl::StrCat("dtype is ", dtype_entry->get_ref<const std::string&>(),
                              "; accepted: F32, BF16, F8_E4M3, I32, I64, U8"));
  }
  StoredTensor tensor;
  tensor.dtype = *dtype;
  const auto shape =
      shape_entry == entry.end() ? std::nullopt : Extents(*shape_entry, SafetensorsFile::kRankMax);
  if (!shape.has_value()) {
    return Fault(path, name,
                 absl::StrCat("shape is not a list of at most ", SafetensorsFile::kRankMax,
                              " non-negative integers"));
  }
  tensor.shape = *shape;
  const auto offsets = offsets_entry == entry.end() ? std::nullopt : Extents(*offsets_entry, 2);
  if (!offsets.has_value() || offsets->size() != 2) {
    return Fault(path, name, "data_offsets is not a pair of non-negative integers");
  }
  const int64_t begin = (*offsets)[0];
  const int64_t end = (*offsets)[1];
  if (begin > end || end > data_bytes) {
    return Fault(path, name,
                 absl::StrCat("data_offsets are [", begin, ", ", end, "]; the file has ",
                              data_bytes, " bytes of data"));
  }
  const std::optional<int64_t> bytes = BytesOf(tensor.dtype, tensor.shape);
  if (!bytes.has_value() || *bytes != end - begin) {
    return Fault(path, name,
                 absl::StrCat("data_offsets span ", end - begin, " bytes, but ", Name(tensor.dtype),
                              ShapeText(tensor.shape), " takes ",
                              bytes.has_value() ? absl::StrCat(*bytes) : "more than 2^63"));
  }
  tensor.data = data + begin;
  tensor.bytes = *bytes;
  return tensor;
}

// The tensors must lie end to end from the first byte of the data to the last.
absl::Status CheckCover(const std::string& path, const StoredTensors& tensors,
                        const std::byte* data, int64_t data_bytes) {
  std::vector<std::pair<const std::string*, const StoredTensor*>> order;
  for (const auto& [name, tensor] : tensors) {
    if (tensor.bytes > 0) order.emplace_back(&name, &tensor);
  }
  std::sort(order.begin(), order.end(),
            [](const auto& a, const auto& b) { return a.second->data < b.second->data; });
  int64_t covered = 0;
  for (const auto& [name, tensor] : order) {
    const int64_t begin = tensor->data - data;
    if (begin < covered) return Fault(path, *name, "its data overlap another tensor's");
    if (begin > covered) {
      return Fault(path, *name,
                   absl::StrCat("a hole of ", begin - covered, " bytes lies before its data"));
    }
    covered += tensor->bytes;
  }
  if (covered != data_bytes) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", data_bytes - covered,
                                                   " bytes after the last tensor belong to none"));
  }
  return absl::OkStatus();
}

absl::StatusOr<StoredTensors> ParseHeader(const std::string& path, const std::byte* map,
                                          int64_t file_bytes) {
  uint64_t header_bytes = 0;
  for (int i = 0; i < kLengthBytes; ++i) {
    header_bytes |= static_cast<uint64_t>(map[i]) << (8 * i);
  }
  if (header_bytes > static_cast<uint64_t>(SafetensorsFile::kHeaderBytesMax)) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": header of ", header_bytes,
                                                   " bytes; accepted: at most ",
                                                   SafetensorsFile::kHeaderBytesMax));
  }
  const int64_t header_end = kLengthBytes + static_cast<int64_t>(header_bytes);
  if (header_end > file_bytes) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": truncated: the header ends at byte ",
                                                   header_end, ", the file at ", file_bytes));
  }
  const absl::string_view text(reinterpret_cast<const char*>(map) + kLengthBytes, header_bytes);
  absl::StatusOr<json> header = ParseJsonObject(text, absl::StrCat(path, ": header"));
  if (!header.ok()) return header.status();

  const std::byte* data = map + header_end;
  const int64_t data_bytes = file_bytes - header_end;
  StoredTensors tensors;
  for (const auto& [name, entry] : header->items()) {
    if (name == "__metadata__") continue;  // free text
    absl::StatusOr<StoredTensor> tensor = ParseEntry(path, name, entry, data, data_bytes);
    if (!tensor.ok()) return tensor.status();
    tensors.emplace(name, *std::move(tensor));
  }
  const absl::Status cover = CheckCover(path, tensors, data, data_bytes);
  if (!cover.ok()) return cover;
  return tensors;
}

// File of each tensor, from the index.
absl::StatusOr<std::map<std::string, std::string>> ReadIndex(const std::string& path) {
  absl::StatusOr<std::string> text = ReadFile(path, kIndexBytesMax);
  if (!text.ok()) return text.status();
  absl::StatusOr<json> index = ParseJsonObject(*text, path);
  if (!index.ok()) return index.status();
  const auto weight_map = index->find("weight_map");
  if (weight_map == index->end() || !weight_map->is_object() || weight_map->empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": weight_map is not there, or not an object with entries"));
  }
  std::map<std::string, std::string> files;
  for (const auto& [name, value] : weight_map->items()) {
    if (!value.is_string()) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": weight_map of ", name, " is not a file name"));
    }
    const std::string& file = value.get_ref<const std::string&>();
    // A plain name cannot lead out of the folder.
    const bool plain = file.find('/') == std::string::npos &&
                       file.find('\0') == std::string::npos && absl::EndsWith(file, ".safetensors");
    if (!plain) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": weight_map of ", name, " is \"", file,
                       "\"; accepted: the name of a .safetensors file in the same folder"));
    }
    files.emplace(name, file);
  }
  return files;
}

}  // namespace

std::string ShapeText(const std::vector<int64_t>& shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
}

absl::StatusOr<std::unique_ptr<SafetensorsFile>> SafetensorsFile::Open(const std::string& path) {
  const int descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) return absl::NotFoundError(absl::StrCat(path, ": ", std::strerror(errno)));
  struct stat status {};
  const bool regular = fstat(descriptor, &status) == 0 && S_ISREG(status.st_mode);
  const int64_t bytes = regular ? status.st_size : 0;
  if (!regular || bytes < kLengthBytes) {
    close(descriptor);
    return absl::InvalidArgumentError(regular ? absl::StrCat(path, ": truncated: ", bytes,
                                                             " bytes, a header needs at least ",
                                                             kLengthBytes)
                                              : absl::StrCat(path, ": not a regular file"));
  }
  void* map = mmap(nullptr, static_cast<size_t>(bytes), PROT_READ, MAP_PRIVATE, descriptor, 0);
  const int map_error = errno;
  close(descriptor);
  if (map == MAP_FAILED) {
    return absl::ResourceExhaustedError(
        absl::StrCat(path, ": cannot map ", bytes, " bytes: ", std::strerror(map_error)));
  }
  std::unique_ptr<SafetensorsFile> file(new SafetensorsFile(map, bytes));
  absl::StatusOr<StoredTensors> tensors =
      ParseHeader(path, static_cast<const std::byte*>(map), bytes);
  if (!tensors.ok()) return tensors.status();
  file->tensors_ = *std::move(tensors);
  return file;
}

SafetensorsFile::~SafetensorsFile() { munmap(map_, static_cast<size_t>(bytes_)); }

absl::StatusOr<Checkpoint> Checkpoint::Open(const std::string& folder) {
  Checkpoint checkpoint;
  checkpoint.folder_ = folder;
  const std::string index_path = folder + "/model.safetensors.index.json";
  std::error_code ignored;
  if (!std::filesystem::exists(index_path, ignored)) {
    absl::StatusOr<std::unique_ptr<SafetensorsFile>> file =
        SafetensorsFile::Open(folder + "/model.safetensors");
    if (!file.ok()) return file.status();
    checkpoint.tensors_ = (*file)->tensors();
    checkpoint.files_.push_back(*std::move(file));
    return checkpoint;
  }

  absl::StatusOr<std::map<std::string, std::string>> index = ReadIndex(index_path);
  if (!index.ok()) return index.status();
  std::map<std::string, const SafetensorsFile*> opened;
  for (const auto& [name, file_name] : *index) {
    if (opened.count(file_name) != 0) continue;
    absl::StatusOr<std::unique_ptr<SafetensorsFile>> file =
        SafetensorsFile::Open(folder + "/" + file_name);
    if (!file.ok()) return file.status();
    for (const auto& [stored, tensor] : (*file)->tensors()) {
      const auto expected = index->find(stored);
      if (expected == index->end() || expected->second != file_name) {
        return Fault(index_path, stored,
                     absl::StrCat("is in ", file_name, ", the index says ",
                                  expected == index->end() ? "nothing of it" : expected->second));
      }
      checkpoint.tensors_.emplace(stored, tensor);
    }
    opened.emplace(file_name, file->get());
    checkpoint.files_.push_back(*std::move(file));
  }
  for (const auto& [name, file_name] : *index) {
    if (checkpoint.tensors_.count(name) == 0) {
      return absl::NotFoundError(
          absl::StrCat(index_path, ": tensor ", name, " is not in ", file_name));
    }
  }
  return checkpoint;
}

}  // namespace glm::engine
