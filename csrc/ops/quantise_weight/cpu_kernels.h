// The CPU kernel of weights that become integers: plain pointers and sizes. Torch-free.
#pragma once

#include <cstdint>

#include "cpu/kernel_table.h"

namespace tandem {

// A channel's n weights -> their integers, at most `largest` and at least -largest; returns the scale, or NaN where a
// weight is not finite.
template <class Q>
using QuantiseChannel = float(const float* from, int64_t n, float largest, Q* to);

struct QuantiseKernels {
  KernelOf<QuantiseChannel<int8_t>, QuantiseChannel<int16_t>> quantise_channel;
};

TANDEM_KERNELS(QuantiseKernels)

}  // namespace tandem
