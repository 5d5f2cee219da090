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

// What both passes over memory read. gain: scratch.
template <class T>
NormGradientArgs<T> arguments_of(const NormPlan& plan, const NormArguments& a, std::vector<T>& gain) {
  const auto data = [](const Tensor& tensor) { return static_cast<const T*>(tensor.const_data_ptr()); };
  const T* const unit = data_or_null<T>(plan.unit);
  gain.resize(plan.channels);
  for (int64_t c = 0; c < plan.channels; ++c) {
    gain[c] = norm_gain(data(plan.var)[c], unit == nullptr ? nullptr : unit + c, static_cast<T>(a.eps));
  }
  NormGradientArgs<T> args = {};
  args.grad = data(plan.grad), args.product = data(plan.product);
  args.mean = data(plan.mean), args.gamma = data(plan.gamma), args.beta = data(plan.beta), args.gain = gain.data();
  args.rows = plan.rows, args.channels = plan.channels;
  args.threshold = static_cast<T>(a.threshold), args.upper = static_cast<T>(a.upper);
  return args;
}

// f(chunk) for chunks of kNormRows rows.
template <class F>
void for_chunks(int64_t rows, const F& f) {
  parallel_ranges((rows + kNormRows - 1) / kNormRows, 1, [&](int64_t begin, int64_t end) {
    for (int64_t chunk = begin; chunk < end; ++chunk) f(chunk);
  });
}

std::tuple<Tensor, Tensor> tandem_norm_count_sums(const Tensor& grad, const Tensor& product, const Tensor& mean,
                                                  const Tensor& var, const Tensor& gamma, const Tensor& beta,
                                                  double eps, double threshold, double upper,
                                                  const std::optional<Tensor>& unit) {
  const NormArguments a = {product, mean, var, gamma, beta, eps, threshold, upper, unit};
  const NormSumsPlan plan = plan_norm_sums(grad, a);
  dispatch_floating("tandem_norm_count_sums", product.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const int64_t channels = plan.norm.channels, chunks = (plan.norm.rows + kNormRows - 1) / kNormRows;
    std::vector<T> gain, sums(chunks * 2 * channels);
    NormGradientArgs<T> args = arguments_of(plan.norm, a, gain);
    args.sums = sums.data();
    for_chunks(args.rows, [&](int64_t chunk) { kernels<TandemCountKernels>().norm_sums(args, chunk); });
    for (int64_t c = 0; c < channels; ++c) {
      double sum = 0, along = 0;
      for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        sum += static_cast<double>(sums[chunk * 2 * channels + c]);
        along += static_cast<double>(sums[(chunk * 2 + 1) * channels + c]);
      }
      static_cast<T*>(plan.grad_beta.mutable_data_ptr())[c] = static_cast<T>(sum);
      static_cast<T*>(plan.grad_gamma.mutable_data_ptr())[c] = static_cast<T>(along);
    }
  });
  return {plan.grad_gamma, plan.grad_beta};
}

Tensor tandem_norm_count_gradient(const Tensor& grad, const Tensor& product, const Tensor& mean, const Tensor& var,
                                  const Tensor& gamma, const Tensor& beta, const Tensor& grad_gamma,
                                  const Tensor& grad_beta, const std::optional<Tensor>& rows, double eps,
                                  double threshold, double upper, const std::optional<Tensor>& unit) {
  const NormArguments a = {product, mean, var, gamma, beta, eps, threshold, upper, unit};
  const NormGradientPlan plan = plan_norm_gradient(grad, a, grad_gamma, grad_beta, rows);
  dispatch_floating("tandem_norm_count_gradient", product.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const int64_t channels = plan.norm.channels;
    std::vector<T> gain, mean_grad(channels), mean_along(channels);
    NormGradientArgs<T> args = arguments_of(plan.norm, a, gain);
    const T count = plan.all_rows ? *static_cast<const T*>(plan.all_rows->const_data_ptr()) : static_cast<T>(args.rows);
    for (int64_t c = 0; c < channels; ++c) {
      mean_grad[c] = static_cast<const T*>(plan.grad_beta.const_data_ptr())[c] / count;
      mean_along[c] = static_cast<const T*>(plan.grad_gamma.const_data_ptr())[c] / count;
    }
    args.mean_grad = mean_grad.data(), args.mean_along = mean_along.data();
    args.out = static_cast<T*>(plan.grad_product.mutable_data_ptr());
    // A chunk at a time, which is still in a cache for its next channels.
    for_chunks(args.rows, [&](int64_t chunk) {
      kernels<TandemCountKernels>().norm_gradient(args, chunk * kNormRows,
                                                  std::min(args.rows, (chunk + 1) * kNormRows));
    });
  });
  return plan.grad_product;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tandem_cuda, CPU, m) {
  m.impl("tandem_norm_count", TORCH_BOX(&tandem_norm_count));
  m.impl("tandem_norm_count_sums", TORCH_BOX(&tandem_norm_count_sums));
  m.impl("tandem_norm_count_gradient", TORCH_BOX(&tandem_norm_count_gradient));
}

}  // namespace tandem
