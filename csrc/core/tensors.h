// Checks and allocation on stable-ABI tensors, shared by the CPU and the CUDA implementations of an operator.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/bit_planes.h"
#include "core/check.h"

namespace tandem {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Sizes = std::vector<int64_t>;

inline Sizes sizes_of(const Tensor& tensor) { return {tensor.sizes().begin(), tensor.sizes().end()}; }

// "[2, 3]", for messages
std::string to_string(const Sizes& sizes);
inline std::string shape(const Tensor& tensor) { return to_string(sizes_of(tensor)); }
const char* name_of(ScalarType type);

// Product of sizes; throws where it would not fit an int64.
int64_t checked_numel(const char* op, const Sizes& sizes);

void check_bits(const char* op, const Tensor& bits, int64_t min_dim);
void check_floating(const char* op, const char* argument, const Tensor& tensor);
void check_shape(const char* op, const char* argument, const Tensor& tensor, const Sizes& expected);
// The same dtype and device as `like`, and the shape expected.
void check_like(const char* op, const char* argument, const Tensor& tensor, const Tensor& like, const char* like_name,
                const Sizes& expected);
void check_same_device(const char* op, const char* argument, const Tensor& tensor, const Tensor& like,
                       const char* like_name);
// time_steps >= 1 and, where bits are given, exactly their number of planes.
void check_time_steps(const char* op, int64_t time_steps);
void check_planes(const char* op, const Tensor& bits, int64_t time_steps);
// time_steps of radix spikes, whose value fills a byte: from 1 to 8.
void check_radix_steps(const char* op, int64_t time_steps);
// That the bits past time_steps, in the last plane, are zero, where they are on the CPU: a device is not waited for,
// and its kernels ignore such bits. bits: without gaps in memory.
void check_past_end(const char* op, const char* argument, const Tensor& bits, int64_t time_steps);
// That all elements of a contiguous float32 or float64 tensor [n] are finite, where it is on the CPU: a current of NaN
// would silence a neuron without a word.
void check_finite(const char* op, const char* argument, const Tensor& tensor);

// Memory order with the dimension `channel_dim` innermost and the others as they stand ("channels last").
Sizes channels_last_strides(const Sizes& sizes, int64_t channel_dim);
// An uninitialised tensor on the device of `like`, channels last.
Tensor empty_channels_last(const char* op, const Tensor& like, const Sizes& sizes, ScalarType type,
                           int64_t channel_dim);
// The same memory where it is laid out so already, else a copy; with exactly these strides either way.
Tensor channels_last(const char* op, const Tensor& tensor, int64_t channel_dim);
std::optional<Tensor> channels_last(const char* op, const std::optional<Tensor>& tensor, int64_t channel_dim);
// The same memory, contiguous or channels last, with the strides of that order in dimensions of size 1 too, where they
// mean nothing: torch's convolution multiplies by the wrong weights where they are others. Any other tensor is returned
// as it is. At least two dimensions.
Tensor canonical(const Tensor& tensor);
// What stands for an output that was not asked for: shape [0].
Tensor no_tensor(const char* op, const Tensor& like, ScalarType type);

// Dispatch on float32 / float64: calls f(T{}).
template <class F>
void dispatch_floating(const char* op, ScalarType type, F&& f) {
  if (type == ScalarType::Float) {
    f(float{});
  } else if (type == ScalarType::Double) {
    f(double{});
  } else {
    fail(op, "dtype must be float32 or float64, got ", name_of(type));
  }
}

template <class T>
const T* data_or_null(const std::optional<Tensor>& tensor) {
  return tensor ? static_cast<const T*>(tensor->const_data_ptr()) : nullptr;
}

// An output's elements; null for one that was not asked for.
template <class T>
T* output(const Tensor& tensor) {
  return tensor.numel() ? static_cast<T*>(tensor.mutable_data_ptr()) : nullptr;
}

}  // namespace tandem
