// tandem_count_backward on the CPU: layouts, threads and kernel choice.
#include <torch/csrc/stable/library.h>

#include "common/tensors.h"
#include "cpu/isa.h"
#include "cpu/kernels/kernels.h"
#include "cpu/parallel.h"

namespace tandem {

namespace {

constexpr int64_t kGrain = 16384;

bool laid_out_alike(const Tensor& a, const Tensor& b) {
  for (int64_t d = 0; d < a.dim(); ++d) {
    if (a.size(d) > 1 && a.stride(d) != b.stride(d)) return false;
  }
  return true;
}

Tensor tandem_count_backward(const Tensor& grad, const Tensor& pre_activation, double threshold, double upper) {
  const char* op = "tandem_count_backward";
  check_floating(op, "pre_activation", pre_activation);
  check_like(op, "grad", grad, pre_activation, "pre_activation", sizes_of(pre_activation));
  check_neuron(op, threshold, 1.0);
  check(upper > 0, op, "upper must be positive, got ", upper);
  // Without gaps and, if pre_activation has none, in the same order.
  const Tensor out = torch::stable::empty_like(pre_activation);
  if (out.numel() == 0) return out;
  Tensor v = pre_activation;
  if (!laid_out_alike(v, out)) {
    v = torch::stable::empty_like(out);
    torch::stable::copy_(v, pre_activation);
  }
  Tensor from = grad;
  if (!laid_out_alike(from, out)) {
    from = out;
    torch::stable::copy_(from, grad);
  }
  dispatch_floating(op, out.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const T* grads = static_cast<const T*>(from.const_data_ptr());
    const T* values = static_cast<const T*>(v.const_data_ptr());
    T* to = static_cast<T*>(out.mutable_data_ptr());
    const TypedKernels<T>& k = kernels().typed<T>();
    parallel_ranges(out.numel(), kGrain, [&](int64_t begin, int64_t end) {
      k.tandem_count_backward(grads, values, begin, end, static_cast<T>(threshold), static_cast<T>(upper), to);
    });
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tandem_cuda, CPU, m) { m.impl("tandem_count_backward", TORCH_BOX(&tandem_count_backward)); }

}  // namespace tandem
