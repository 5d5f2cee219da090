// tandem_count_backward on the CPU: threads and kernel choice.
#include <torch/csrc/stable/library.h>

#include "common/spike_train_plan.h"
#include "cpu/isa.h"
#include "cpu/kernels/kernels.h"
#include "cpu/parallel.h"

namespace tandem {

namespace {

constexpr int64_t kGrain = 16384;

Tensor tandem_count_backward(const Tensor& grad, const Tensor& pre_activation, double threshold, double upper) {
  const TandemGradientPlan plan = plan_tandem_count_backward(grad, pre_activation, threshold, upper);
  if (plan.out.numel() == 0) return plan.out;
  dispatch_floating("tandem_count_backward", plan.out.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const T* grads = static_cast<const T*>(plan.grad.const_data_ptr());
    const T* values = static_cast<const T*>(plan.pre_activation.const_data_ptr());
    T* to = static_cast<T*>(plan.out.mutable_data_ptr());
    const TypedKernels<T>& k = kernels().typed<T>();
    parallel_ranges(plan.out.numel(), kGrain, [&](int64_t begin, int64_t end) {
      k.tandem_count_backward(grads, values, begin, end, static_cast<T>(threshold), static_cast<T>(upper), to);
    });
  });
  return plan.out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tandem_cuda, CPU, m) { m.impl("tandem_count_backward", TORCH_BOX(&tandem_count_backward)); }

}  // namespace tandem
