#include "core/tensors.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <iomanip>

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
    TANDEM_CHECK(size >= 0 && !__builtin_mul_overflow(numel, size, &numel), op, "shape ", to_string(sizes),
                 " is negative or has more elements than 64 bits can count");
  }
  return numel;
}

void check_bits(const char* op, const Tensor& bits, int64_t min_dim) {
  TANDEM_CHECK(bits.scalar_type() == ScalarType::Byte, op, "bits must be uint8, got ", name_of(bits.scalar_type()));
  TANDEM_CHECK(bits.dim() >= min_dim, op, "bits must have at least ", min_dim, " dimensions [P, N, ...], got ",
               shape(bits));
  TANDEM_CHECK(bits.size(0) >= 1, op, "bits must hold at least one plane, got ", shape(bits));
}

void check_floating(const char* op, const char* argument, const Tensor& tensor) {
  const ScalarType type = tensor.scalar_type();
  TANDEM_CHECK(type == ScalarType::Float || type == ScalarType::Double, op, argument,
               " must be float32 or float64, got ", name_of(type));
}

void check_shape(const char* op, const char* argument, const Tensor& tensor, const Sizes& expected) {
  TANDEM_CHECK(sizes_of(tensor) == expected, op, argument, " must be ", to_string(expected), ", got ", shape(tensor));
}

void check_same_device(const char* op, const char* argument, const Tensor& tensor, const Tensor& like,
                       const char* like_name) {
  TANDEM_CHECK(tensor.is_cpu() == like.is_cpu() && tensor.is_cuda() == like.is_cuda() &&
                   tensor.get_device() == like.get_device(),
               op, argument, " must be on the device of ", like_name);
}

void check_like(const char* op, const char* argument, const Tensor& tensor, const Tensor& like, const char* like_name,
                const Sizes& expected) {
  TANDEM_CHECK(tensor.scalar_type() == like.scalar_type(), op, argument, " must have the dtype of ", like_name, ", ",
               name_of(like.scalar_type()), ", got ", name_of(tensor.scalar_type()));
  check_same_device(op, argument, tensor, like, like_name);
  check_shape(op, argument, tensor, expected);
}

void check_time_steps(const char* op, int64_t time_steps) {
  TANDEM_CHECK(time_steps >= 1, op, "time_steps must be at least 1, got ", time_steps);
}

void check_planes(const char* op, const Tensor& bits, int64_t time_steps) {
  check_time_steps(op, time_steps);
  // Compared without planes_for, which could overflow for a hostile time_steps.
  TANDEM_CHECK((time_steps - 1) / kStepsPerPlane == bits.size(0) - 1, op,
               "bits must have ceil(time_steps / 8) planes for ", time_steps, " time steps, got ", shape(bits));
}

void check_radix_steps(const char* op, int64_t time_steps) {
  TANDEM_CHECK(time_steps >= 1 && time_steps <= kStepsPerPlane, op,
               "time_steps of radix spikes must be from 1 to 8, got ", time_steps);
}

void check_past_end(const char* op, const char* argument, const Tensor& bits, int64_t time_steps) {
  const uint8_t past = bits_past(time_steps);
  if (past == 0 || !bits.is_cpu() || bits.numel() == 0) return;
  const int64_t bytes = bits.numel() / bits.size(0);
  const auto* const last = static_cast<const uint8_t*>(bits.const_data_ptr()) + bits.numel() - bytes;
  std::atomic<bool> found{false};
  torch::stable::parallel_for(0, bytes, int64_t{1} << 18, [&](int64_t begin, int64_t end) {
    uint8_t any = 0;
    for (int64_t i = begin; i < end; ++i) any |= last[i];
    if (any & past) found = true;
  });
  if (!found) return;
  const unsigned odd = *std::find_if(last, last + bytes, [past](uint8_t byte) { return (byte & past) != 0; });
  std::ostringstream text;
  text << "0x" << std::hex << std::setw(2) << std::setfill('0') << odd;
  fail(op, argument, " must be zero past time_steps = ", time_steps, ", got ", text.str(), " in the last plane");
}

void check_finite(const char* op, const char* argument, const Tensor& tensor) {
  if (!tensor.is_cpu()) return;
  dispatch_floating(op, tensor.scalar_type(), [&](auto type) {
    const auto* const values = static_cast<const decltype(type)*>(tensor.const_data_ptr());
    for (int64_t i = 0; i < tensor.numel(); ++i) {
      const auto value = static_cast<double>(values[i]);  // a NaN prints its sign
      TANDEM_CHECK(std::isfinite(value), op, argument, " must be finite, got ",
                   std::isnan(value) ? std::fabs(value) : value, " at [", i, "]");
    }
  });
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
    case ScalarType::Char:
      return aoti_torch_dtype_int8();
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

// Of an element.
int64_t bytes_of(ScalarType type) {
  switch (type) {
    case ScalarType::Double:
      return 8;
    case ScalarType::Float:
    case ScalarType::Int:
      return 4;
    case ScalarType::Short:
      return 2;
    default:
      return 1;
  }
}

}  // namespace

Tensor empty_channels_last(const char* op, const Tensor& like, const Sizes& sizes, ScalarType type,
                           int64_t channel_dim) {
  const Sizes strides = channels_last_strides(sizes, channel_dim);
  AtenTensorHandle handle = nullptr;
  const auto code = aoti_torch_empty_strided(
      static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(), shim_dtype(type),
      like.is_cpu() ? aoti_torch_device_type_cpu() : aoti_torch_device_type_cuda(), like.get_device_index(), &handle);
  TANDEM_CHECK(code == AOTI_TORCH_SUCCESS, op, "cannot allocate a tensor ", to_string(sizes), " of ", name_of(type),
               ", ", checked_numel(op, sizes), " times ", bytes_of(type), " bytes");
  return Tensor(handle);
}

namespace {

// The tensor, or a view of it, with exactly the strides of channels_last_strides; nothing where its memory is in
// another order.
std::optional<Tensor> viewed(const Tensor& tensor, int64_t channel_dim) {
  const Sizes sizes = sizes_of(tensor);
  const Sizes strides = channels_last_strides(sizes, channel_dim);
  bool same = true, exact = true;
  for (size_t d = 0; d < sizes.size(); ++d) {
    const bool equal = tensor.stride(d) == strides[d];
    exact = exact && equal;
    same = same && (equal || sizes[d] <= 1);
  }
  if (exact || tensor.numel() == 0) return tensor;
  if (!same) return std::nullopt;
  AtenTensorHandle view = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_as_strided(tensor.get(), sizes.data(), strides.data(), &view));
  return Tensor(view);
}

}  // namespace

Tensor canonical(const Tensor& tensor) {
  if (const auto view = viewed(tensor, tensor.dim() - 1)) return *view;
  return viewed(tensor, 1).value_or(tensor);
}

Tensor channels_last(const char* op, const Tensor& tensor, int64_t channel_dim) {
  if (const auto view = viewed(tensor, channel_dim)) return *view;
  Tensor copy = empty_channels_last(op, tensor, sizes_of(tensor), tensor.scalar_type(), channel_dim);
  torch::stable::copy_(copy, tensor);
  return copy;
}

std::optional<Tensor> channels_last(const char* op, const std::optional<Tensor>& tensor, int64_t channel_dim) {
  if (!tensor) return std::nullopt;
  return channels_last(op, *tensor, channel_dim);
}

Tensor no_tensor(const char* op, const Tensor& like, ScalarType type) {
  return empty_channels_last(op, like, {0}, type, 0);
}

}  // namespace tandem
