// A tensor is a view: a pointer, an element type, a shape and strides. It owns nothing.
//
// Shapes are written with the letters of ARCHITECTURE.md: T tokens, S sequences, R logit rows, H
// hidden, N query heads, K kv heads, D head size, E experts, M expert width, V vocabulary, B
// blocks, P block size. Strides count elements. The last dimension is always contiguous.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "kernels/dtype.h"
#include "proto/base/log.h"

namespace glm {

inline constexpr int kMaxRank = 4;

struct Tensor {
  void* data = nullptr;
  DType dtype = DType::kF32;
  int rank = 0;
  std::array<int64_t, kMaxRank> shape{};
  std::array<int64_t, kMaxRank> stride{};

  Tensor() = default;
  /// A contiguous tensor over `data`.
  Tensor(void* data_in, DType dtype_in, std::initializer_list<int64_t> shape_in)
      : data(data_in), dtype(dtype_in), rank(static_cast<int>(shape_in.size())) {
    CHECK_LE(rank, kMaxRank);
    int i = 0;
    for (const int64_t extent : shape_in) shape[i++] = extent;
    int64_t step = 1;
    for (int d = rank - 1; d >= 0; --d) {
      stride[d] = step;
      step *= shape[d];
    }
  }

  /// True for a tensor that is not there: an optional argument left out.
  bool empty() const { return data == nullptr; }

  int64_t elements() const {
    int64_t count = 1;
    for (int d = 0; d < rank; ++d) count *= shape[d];
    return count;
  }
  int64_t bytes() const { return elements() * ByteSize(dtype); }
  bool contiguous() const {
    int64_t step = 1;
    for (int d = rank - 1; d >= 0; --d) {
      if (shape[d] != 1 && stride[d] != step) return false;
      step *= shape[d];
    }
    return true;
  }

  /// The first element of row `row` of dimension 0.
  template <typename T>
  T* Row(int64_t row) const {
    return static_cast<T*>(data) + row * stride[0];
  }
  template <typename T>
  T* Data() const {
    return static_cast<T*>(data);
  }

  /// Rows [begin, begin + count) of dimension 0.
  Tensor Rows(int64_t begin, int64_t count) const {
    Tensor view = *this;
    view.data = static_cast<char*>(data) + begin * stride[0] * ByteSize(dtype);
    view.shape[0] = count;
    return view;
  }
  /// Columns [begin, begin + count) of the last dimension.
  Tensor Columns(int64_t begin, int64_t count) const {
    Tensor view = *this;
    view.data = static_cast<char*>(data) + begin * ByteSize(dtype);
    view.shape[rank - 1] = count;
    return view;
  }
  /// Entry `index` of dimension 0, one rank less: one expert of [E, N, K].
  Tensor Slice(int64_t index) const {
    Tensor view;
    view.data = static_cast<char*>(data) + index * stride[0] * ByteSize(dtype);
    view.dtype = dtype;
    view.rank = rank - 1;
    for (int d = 1; d < rank; ++d) {
      view.shape[d - 1] = shape[d];
      view.stride[d - 1] = stride[d];
    }
    return view;
  }

  /// "BF16[12, 4096]", for messages.
  std::string ToString() const {
    std::string text = std::string(Name(dtype)) + "[";
    for (int d = 0; d < rank; ++d) text += (d == 0 ? "" : ", ") + std::to_string(shape[d]);
    return text + "]";
  }
};

/// Aborts unless `tensor` has this element type and shape; -1 stands for any extent. `name` is for
/// the message. An op calls this on each argument: a wrong shape is our fault, never the user's.
inline void CheckShape(const Tensor& tensor, DType dtype, std::initializer_list<int64_t> shape,
                       const char* name) {
  bool same = tensor.dtype == dtype && tensor.rank == static_cast<int>(shape.size());
  int d = 0;
  for (const int64_t extent : shape) {
    if (same && extent >= 0 && tensor.shape[d] != extent) same = false;
    ++d;
  }
  CHECK(same) << name << " is " << tensor.ToString() << ", expected "
              << Tensor(nullptr, dtype, shape).ToString();
}

}  // namespace glm
