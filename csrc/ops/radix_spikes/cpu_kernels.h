// The CPU kernel of radix spikes: plain pointers and sizes. Torch-free.
#pragma once

#include <cmath>
#include <cstdint>

#include "cpu/kernel_table.h"

namespace tandem {

// Neurons that radix_spikes handles at once, at most.
constexpr int64_t kRadixBlock = 128;

// Channels lie last, so that neuron i belongs to channel i % channels.
template <class T>
struct RadixSpikesArgs {
  const T* current;  // [neurons], summed over all time steps
  const T* scale;    // [channels + kRadixBlock], those of `channels` again and again, or null
  const T* bias;     // as scale
  uint8_t* bits;     // [neurons]
  T* state;          // the potential that no spike stands for, [neurons], or null
  int64_t channels;
  int time_steps;  // 1 to 8
  T threshold;     // of the last time step; that of each step before is twice as large
  T start;         // what the potential starts from
};

// 1 / threshold where the steps of a neuron leave floor(u / threshold), capped: for a power of two, as calibration and
// batch norm leave, neither the steps nor the quotient are rounded. 0 for other thresholds, and for doubles, which have
// no such path. Every instruction set compiles its own.
template <class T>
static T exact_inverse(T threshold) {
  int exponent = 0;
  const bool exact = sizeof(T) == 4 && std::frexp(threshold, &exponent) == T(0.5);
  return exact && exponent > -100 && exponent < 100 ? 1 / threshold : 0;
}

template <class T>
using RadixSpikes = void(const RadixSpikesArgs<T>&, int64_t begin, int64_t end);

struct RadixSpikesKernels {
  // The neurons begin..end-1.
  KernelOf<RadixSpikes<float>, RadixSpikes<double>> radix_spikes;
};

TANDEM_KERNELS(RadixSpikesKernels)

}  // namespace tandem
