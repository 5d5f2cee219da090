#include "common/tensors.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <algorithm>
#include <cmath>

namespace tandem {

std::string to_string(const Sizes& sizes) {
  std::ostringstream text;
  text << '[';
  for (size_t i = 0; i < sizes.size(); ++i) text << (i ? ", " : "") << sizes[i];
  text << ']';
  return text.str();
}

const char* name_of(ScalarType type) { return torch::headeronly::toString(type); }

int64_t checked_numel(const char* op, const Sizes& sizes) {
  int64_t numel = 1;
  for (const int64_t size : sizes) {
    check(size >= 0 && !__builtin_mul_overflow(numel, size, &numel), op, "shape ", to_string(sizes),
          " is negative or has more elements than 64 bits can count");
  }
  return numel;
}

void check_bits(const char* op, const Tensor& bits, int64_t min_dim) {
  check(bits.scalar_type() == ScalarType::Byte, op, "bits must be uint8, got ", name_of(bits.scalar_type()));
  check(bits.dim() >= min_dim, op, "bits must have at least ", min_dim, " dimensions [P, N, ...], got ", shape(bits));
  check(bits.size(0) >= 1, op, "bits must hold at least one plane, got ", shape(bits));
}

void check_floating(const char* op, const char* argument, const Tensor& tensor) {
  const ScalarType type = tensor.scalar_type();
  check(type == ScalarType::Float || type == ScalarType::Double, op, argument, " must be float32 or float64, got ",
        name_of(type));
}

void check_shape(const char* op, const char* argument, const Tensor& tensor, const Sizes& expected) {
  check(sizes_of(tensor) == expected, op, argument, " must be ", to_string(expected), ", got ", shape(tensor));
}

void check_same_device(const char* op, const char* argument, const Tensor& tensor, const Tensor& like,
                       const char* like_name) {
  check(tensor.is_cpu() == like.is_cpu() && tensor.is_cuda() == like.is_cuda() &&
            tensor.get_device() == like.get_device(),
        op, argument, " must be on the device of ", like_name);
}

void check_like(const char* op, const char* argument, const Tensor& tensor, const Tensor& like, const char* like_name,
                const Sizes& expected) {
  check(tensor.scalar_type() == like.scalar_type(), op, argument, " must have the dtype of ", like_name, ", ",
        name_of(like.scalar_type()), ", got ", name_of(tensor.scalar_type()));
  check_same_device(op, argument, tensor, like, like_name);
  check_shape(op, argument, tensor, expected);
}

void check_time_steps(const char* op, int64_t time_steps) {
  check(time_steps >= 1, op, "time_steps must be at least 1, got ", time_steps);
}

void check_planes(const char* op, const Tensor& bits, int64_t time_steps) {
  check_time_steps(op, time_steps);
  // Compared without planes_for, which could overflow for a hostile time_steps.
  check((time_steps - 1) / kStepsPerPlane == bits.size(0) - 1, op, "bits must have ceil(time_steps / 8) planes for ",
        time_steps, " time steps, got ", shape(bits));
}

void check_neuron(const char* op, double threshold, double leak) {
  check(threshold > 0 && std::isfinite(threshold), op, "threshold must be positive and finite, got ", threshold);
  check(leak > 0 && leak <= 1, op, "leak must be in (0, 1], got ", leak);
}

Sizes channels_last_strides(const Sizes& sizes, int64_t channel_dim) {
  Sizes strides(sizes.size());
  strides[channel_dim] = 1;
  int64_t stride = std::max<int64_t>(sizes[channel_dim], 1);
  for (int64_t d = static_cast<int64_t>(sizes.size()) - 1; d >= 0; --d) {
    if (d == channel_dim) continue;
    strides[d] = stride;
    stride *= std::max<int64_t>(sizes[d], 1);
  }
  return strides;
}

namespace {

int32_t shim_dtype(ScalarType type) {
  switch (type) {
    case ScalarType::Byte:
      return aoti_torch_dtype_uint8();
    case ScalarType::Short:
      return aoti_torch_dtype_int16();
    case ScalarType::Int:
      return aoti_torch_dtype_int32();
    case ScalarType::Bool:
      return aoti_torch_dtype_bool();
    case ScalarType::Float:
      return aoti_torch_dtype_float32();
    case ScalarType::Double:
      return aoti_torch_dtype_float64();
    default:
      throw std::runtime_error(std::string("tandem_cuda: cannot allocate dtype ") + name_of(type));
  }
}

}  // namespace

Tensor empty_channels_last(const Tensor& like, const Sizes& sizes, ScalarType type, int64_t channel_dim) {
  const Sizes strides = channels_last_strides(sizes, channel_dim);
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(), shim_dtype(type),
      like.is_cpu() ? aoti_torch_device_type_cpu() : aoti_torch_device_type_cuda(), like.get_device_index(), &handle));
  return Tensor(handle);
}

Tensor channels_last(const Tensor& tensor, int64_t channel_dim) {
  const Sizes sizes = sizes_of(tensor);
  const Sizes strides = channels_last_strides(sizes, channel_dim);
  bool same = true;
  for (size_t d = 0; d < sizes.size(); ++d) same = same && (sizes[d] <= 1 || tensor.stride(d) == strides[d]);
  if (same || tensor.numel() == 0) return tensor;
  Tensor copy = empty_channels_last(tensor, sizes, tensor.scalar_type(), channel_dim);
  torch::stable::copy_(copy, tensor);
  return copy;
}

std::optional<Tensor> channels_last(const std::optional<Tensor>& tensor, int64_t channel_dim) {
  if (!tensor) return std::nullopt;
  return channels_last(*tensor, channel_dim);
}

Tensor no_tensor(const Tensor& like, ScalarType type) { return empty_channels_last(like, {0}, type, 0); }

}  // namespace tandem
