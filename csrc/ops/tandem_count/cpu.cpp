// tandem_count and its gradient on the CPU: threads and kernel choice.
#include <torch/csrc/stable/library.h>

#include <vector>

#include "ops/spike_train/cpu_count.h"
#include "ops/tandem_count/cpu_kernels.h"
#include "ops/tandem_count/plan.h"

namespace tandem {

namespace {

constexpr int64_t kGrain = 16384;

Tensor tandem_count(const Tensor& bits, const Tensor& pre_activation, int64_t time_steps, int64_t neuron,
                    const std::vector<double>& parameters, double upper, bool radix) {
  const TrainPlan plan = plan_tandem_count(bits, pre_activation, time_steps, neuron, parameters, upper, radix);
  return run_count("tandem_count", plan, radix);
}

Tensor tandem_count_backward(const Tensor& grad, const Tensor& pre_activation, double threshold, double upper) {
  const TandemGradientPlan plan = plan_tandem_count_backward(grad, pre_activation, threshold, upper);
  if (plan.out.numel() == 0) return plan.out;
  dispatch_floating("tandem_count_backward", plan.out.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const T* grads = static_cast<const T*>(plan.grad.const_data_ptr());
    const T* values = static_cast<const T*>(plan.pre_activation.const_data_ptr());
    T* to = static_cast<T*>(plan.out.mutable_data_ptr());
    const TandemCountKernels& k = kernels<TandemCountKernels>();
    parallel_ranges(plan.out.numel(), kGrain, [&](int64_t begin, int64_t end) {
      k.tandem_count_backward(grads, values, begin, end, static_cast<T>(threshold), static_cast<T>(upper), to);
    });
  });
  return plan.out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tandem_cuda, CPU, m) {
  m.impl("tandem_count", TORCH_BOX(&tandem_count));
  m.impl("tandem_count_backward", TORCH_BOX(&tandem_count_backward));
}

}  // namespace tandem
