// The gradient of the ANN activation: one pass, whether the gate is open or not.
#pragma once

#include "cpu/simd.inl.h"
#include "ops/tandem_count/cpu_kernels.h"

namespace tandem::TANDEM_ISA {

template <class T>
void tandem_count_backward(const T* grad, const T* pre_activation, int64_t begin, int64_t end, T threshold, T upper,
                           T* out) {
  const Vec<T> zero = {}, divisor = broadcast(threshold), limit = broadcast(upper);
  for (int64_t i = begin; i < end; i += kLanes<T>) {
    const Vec<T> v = load(pre_activation + i, end - i);
    const Vec<T> scaled = load(grad + i, end - i) / divisor;
    store(out + i, ((v > zero) & (v <= limit)) ? scaled : zero, end - i);
  }
}

}  // namespace tandem::TANDEM_ISA
