// quantise_weight on the CPU.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <tuple>

#include "cpu/finite.h"
#include "cpu/parallel.h"
#include "ops/quantise_weight/nearest.h"
#include "ops/quantise_weight/plan.h"

namespace tandem {

namespace {

// A channel's n weights -> their integers; returns the scale.
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
  for (i = 0; i < n; ++i) to[i] = nearest_integer<Q>(from[i], scale, largest);
  return scale;
}

std::tuple<Tensor, Tensor> quantise_weight(const Tensor& weight, int64_t largest) {
  const QuantisePlan plan = plan_quantise_weight(weight, largest);
  const int64_t n = plan.size;
  std::atomic<bool> finite{true};
  dispatch_integers(plan, [&](auto type) {
    const auto* const from = static_cast<const float*>(plan.weight.const_data_ptr());
    auto* const to = static_cast<decltype(type)*>(plan.integers.mutable_data_ptr());
    auto* const scales = static_cast<float*>(plan.scale.mutable_data_ptr());
    parallel_ranges(plan.channels, std::max<int64_t>(1, 16384 / n), [&](int64_t begin, int64_t end) {
      for (int64_t o = begin; o < end; ++o) {
        if (!all_finite(from + o * n, n)) finite = false;
        scales[o] = quantise(from + o * n, n, static_cast<float>(largest), to + o * n);
      }
    });
  });
  TANDEM_CHECK(finite, "quantise_weight", "weight must be finite");
  return {plan.integers, plan.scale};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tandem_cuda, CPU, m) { m.impl("quantise_weight", TORCH_BOX(&quantise_weight)); }

}  // namespace tandem
