// tandem_norm_count and its gradient on the CPU.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "cpu/parallel.h"
#include "ops/spike_train/cpu_count.h"
#include "ops/tandem_count/cpu_kernels.h"
#include "ops/tandem_count/norm_gain.h"
#include "ops/tandem_count/norm_plan.h"

namespace tandem {

namespace {

Tensor tandem_norm_count(const Tensor& bits, const Tensor& product, const Tensor& mean, const Tensor& var,
                         const Tensor& gamma, const Tensor& beta, double eps, int64_t time_steps, double threshold,
                         double upper, const std::optional<Tensor>& unit, bool radix) {
  const TrainPlan plan =
      plan_tandem_norm_count(bits, {product, mean, var, gamma, beta, eps, threshold, upper, unit}, time_steps, radix);
  return run_count("tandem_norm_count", plan, radix);
}

template <class T>
void run(const NormGradientPlan& plan, double eps, double threshold, double upper) {
  const int64_t channels = plan.channels, rows = plan.rows, chunks = (rows + kNormRows - 1) / kNormRows;
  const auto data = [](const Tensor& tensor) { return static_cast<const T*>(tensor.const_data_ptr()); };
  std::vector<T> gain(channels), sums(chunks * 2 * channels), mean_grad(channels), mean_along(channels);
  const T* const unit = data_or_null<T>(plan.unit);
  for (int64_t c = 0; c < channels; ++c) {
    gain[c] = norm_gain(data(plan.var)[c], unit == nullptr ? nullptr : unit + c, static_cast<T>(eps));
  }
  NormGradientArgs<T> args = {};
  args.grad = data(plan.grad), args.product = data(plan.product);
  args.mean = data(plan.mean), args.gamma = data(plan.gamma), args.beta = data(plan.beta);
  args.gain = gain.data(), args.sums = sums.data();
  args.mean_grad = mean_grad.data(), args.mean_along = mean_along.data();
  args.out = static_cast<T*>(plan.grad_product.mutable_data_ptr());
  args.rows = rows, args.channels = channels;
  args.threshold = static_cast<T>(threshold), args.upper = static_cast<T>(upper);
  const TandemCountKernels& k = kernels<TandemCountKernels>();
  parallel_ranges(chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t chunk = begin; chunk < end; ++chunk) k.norm_sums(args, chunk);
  });
  T* const grad_gamma = static_cast<T*>(plan.grad_gamma.mutable_data_ptr());
  T* const grad_beta = static_cast<T*>(plan.grad_beta.mutable_data_ptr());
  for (int64_t c = 0; c < channels; ++c) {
    double sum = 0, along = 0;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      sum += static_cast<double>(sums[chunk * 2 * channels + c]);
      along += static_cast<double>(sums[(chunk * 2 + 1) * channels + c]);
    }
    grad_beta[c] = static_cast<T>(sum);
    grad_gamma[c] = static_cast<T>(along);
    mean_grad[c] = static_cast<T>(sum / static_cast<double>(rows));
    mean_along[c] = static_cast<T>(along / static_cast<double>(rows));
  }
  // A chunk at a time, which is still in a cache for its next channels.
  parallel_ranges(chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      k.norm_gradient(args, chunk * kNormRows, std::min(rows, (chunk + 1) * kNormRows));
    }
  });
}

std::tuple<Tensor, Tensor, Tensor> tandem_norm_count_backward(const Tensor& grad, const Tensor& product,
                                                              const Tensor& mean, const Tensor& var,
                                                              const Tensor& gamma, const Tensor& beta, double eps,
                                                              double threshold, double upper,
                                                              const std::optional<Tensor>& unit) {
  const NormGradientPlan plan =
      plan_tandem_norm_count_backward(grad, {product, mean, var, gamma, beta, eps, threshold, upper, unit});
  dispatch_floating("tandem_norm_count_backward", product.scalar_type(),
                    [&](auto type) { run<decltype(type)>(plan, eps, threshold, upper); });
  return {plan.grad_product, plan.grad_gamma, plan.grad_beta};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tandem_cuda, CPU, m) {
  m.impl("tandem_norm_count", TORCH_BOX(&tandem_norm_count));
  m.impl("tandem_norm_count_backward", TORCH_BOX(&tandem_norm_count_backward));
}

}  // namespace tandem
