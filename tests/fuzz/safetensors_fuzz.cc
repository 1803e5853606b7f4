// Any bytes as a .safetensors file: refused, or every tensor lies inside.
#include "engine/model/safetensors.h"

#include <cstdlib>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  const auto* map = reinterpret_cast<const std::byte*>(bytes);
  const auto tensors = glm::engine::ParseSafetensors("fuzz", map, static_cast<int64_t>(size));
  if (!tensors.ok()) return 0;
  for (const auto& [name, tensor] : *tensors) {
    if (tensor.bytes < 0 || tensor.data < map || tensor.data + tensor.bytes > map + size) abort();
    int64_t bytes_by_shape = glm::ByteSize(tensor.dtype);
    for (const int64_t extent : tensor.shape) bytes_by_shape *= extent;
    if (bytes_by_shape != tensor.bytes) abort();
  }
  return 0;
}
