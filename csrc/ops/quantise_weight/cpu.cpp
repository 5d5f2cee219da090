// quantise_weight on the CPU; elsewhere torch's operators do the same (tandem_cuda/ops/quantise_weight.py).
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <tuple>

#include "core/tensors.h"
#include "cpu/finite.h"
#include "cpu/parallel.h"

namespace tandem {

namespace {

// A channel's n weights -> their integers; returns the scale. All operations are IEEE's, so that every machine rounds
// alike.
template <class Q>
float quantise(const float* from, int64_t n, float largest, Q* to) {
  constexpr int64_t kTogether = 16;  // for compilers to make vectors of
  float most[kTogether] = {};
  int64_t i = 0;
  for (; i + kTogether <= n; i += kTogether) {
    for (int64_t j = 0; j < kTogether; ++j) most[j] = std::max(most[j], std::fabs(from[i + j]));
  }
  for (; i < n; ++i) most[0] = std::max(most[0], std::fabs(from[i]));
  const float scale = *std::max_element(most, most + kTogether) / largest;
  if (scale == 0) {  // zeros, or so small that no scale is
    std::fill_n(to, n, Q{0});
    return 1;
  }
  // Added and taken away, this leaves the nearest whole number, the even one of two; std::nearbyint is a call without
  // SSE 4.1.
  constexpr float kRounds = 12582912;  // 1.5 * 2^23
  for (i = 0; i < n; ++i) {
    const float whole = (from[i] / scale + kRounds) - kRounds;
    to[i] = static_cast<Q>(static_cast<int32_t>(std::clamp(whole, -largest, largest)));
  }
  return scale;
}

std::tuple<Tensor, Tensor> quantise_weight(const Tensor& weight, int64_t largest) {
  const char* op = "quantise_weight";
  TANDEM_CHECK(weight.scalar_type() == ScalarType::Float, op, "weight must be float32, got ",
               name_of(weight.scalar_type()));
  TANDEM_CHECK(largest == 127 || largest == kLargest16, op, "largest must be 127 or 32639, got ", largest);
  TANDEM_CHECK(weight.dim() >= 2 && weight.numel() > 0, op, "weight must be [O, ...] with no empty dimension, got ",
               shape(weight));
  const Tensor source = channels_last(op, weight, weight.dim() - 1);  // contiguous
  const int64_t outputs = weight.size(0), n = weight.numel() / outputs;
  const Tensor scale = empty_channels_last(op, weight, {outputs}, ScalarType::Float, 0);
  const ScalarType type = largest == 127 ? ScalarType::Char : ScalarType::Short;
  const Tensor integers = empty_channels_last(op, weight, sizes_of(weight), type, weight.dim() - 1);
  std::atomic<bool> finite{true};
  const auto run = [&](auto zero) {
    using Q = decltype(zero);
    const auto* from = static_cast<const float*>(source.const_data_ptr());
    auto* const to = static_cast<Q*>(integers.mutable_data_ptr());
    auto* const scales = static_cast<float*>(scale.mutable_data_ptr());
    parallel_ranges(outputs, std::max<int64_t>(1, 16384 / n), [&](int64_t begin, int64_t end) {
      for (int64_t o = begin; o < end; ++o) {
        if (!all_finite(from + o * n, n)) finite = false;
        scales[o] = quantise(from + o * n, n, static_cast<float>(largest), to + o * n);
      }
    });
  };
  if (type == ScalarType::Char) {
    run(int8_t{});
  } else {
    run(int16_t{});
  }
  TANDEM_CHECK(finite, op, "weight must be finite");
  return {integers, scale};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tandem_cuda, CPU, m) { m.impl("quantise_weight", TORCH_BOX(&quantise_weight)); }

}  // namespace tandem
