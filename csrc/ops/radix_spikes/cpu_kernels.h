// The CPU kernel of radix spikes: plain pointers and sizes. Torch-free.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

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

// How float potentials become spikes at once: the steps of a neuron leave min(2^T - 1, floor(u / threshold)). None of
// them rounds, since it subtracts at least half of u (Sterbenz's lemma), but where all of them spike.
struct RadixFiring {
  float start;    // what the potential starts from
  float most;     // the value of spikes in all steps
  float scale;    // a power of two, which takes the threshold to 1 or more but less than 2, or as near as it can
  float inverse;  // 1 / the scaled threshold, rounded up: a quotient is right or one too large, as the remainder tells
  float high, low;  // the scaled threshold: 16 bits and the other 8, which times a value of 8 bits are exact
  bool exact;       // whether the scaled threshold is 1, and u * scale the quotient
};

// Every instruction set compiles its own.
[[maybe_unused]] static RadixFiring firing_at_once(const RadixSpikesArgs<float>& neurons) {
  int exponent = 0;
  std::frexp(neurons.threshold, &exponent);
  // The largest thresholds and the subnormal ones stay outside of these bounds.
  const float scale = std::ldexp(1.0F, std::max(-126, std::min(127, 1 - exponent)));
  const float scaled = neurons.threshold * scale;
  uint32_t word = 0;
  std::memcpy(&word, &scaled, sizeof(word));
  word &= 0xffffff00U;
  float high = 0;
  std::memcpy(&high, &word, sizeof(high));
  return {neurons.start, static_cast<float>((1 << neurons.time_steps) - 1),
          scale,         std::nextafter(1 / scaled, HUGE_VALF),
          high,          scaled - high,
          scaled == 1};
}

template <class T>
using RadixSpikes = void(const RadixSpikesArgs<T>&, int64_t begin, int64_t end);

struct RadixSpikesKernels {
  // The neurons begin..end-1.
  KernelOf<RadixSpikes<float>, RadixSpikes<double>> radix_spikes;
};

TANDEM_KERNELS(RadixSpikesKernels)

}  // namespace tandem
