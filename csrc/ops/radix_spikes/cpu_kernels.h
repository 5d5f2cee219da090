// The CPU kernel of radix spikes: plain pointers and sizes. Torch-free.
#pragma once

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

template <class T>
using RadixSpikes = void(const RadixSpikesArgs<T>&, int64_t begin, int64_t end);

struct RadixSpikesKernels {
  // The neurons begin..end-1.
  KernelOf<RadixSpikes<float>, RadixSpikes<double>> radix_spikes;
};

TANDEM_KERNELS(RadixSpikesKernels)

}  // namespace tandem
