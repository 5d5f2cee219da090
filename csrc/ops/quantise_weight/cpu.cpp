// quantise_weight on the CPU.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <tuple>

#include "cpu/parallel.h"
#include "ops/quantise_weight/cpu_kernels.h"
#include "ops/quantise_weight/plan.h"

namespace tandem {

namespace {

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
        scales[o] =
            kernels<QuantiseKernels>().quantise_channel(from + o * n, n, static_cast<float>(largest), to + o * n);
        if (std::isnan(scales[o])) finite = false;
      }
    });
  });
  TANDEM_CHECK(finite, "quantise_weight", "weight must be finite");
  return {plan.integers, plan.scale};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tandem_cuda, CPU, m) { m.impl("quantise_weight", TORCH_BOX(&quantise_weight)); }

}  // namespace tandem
