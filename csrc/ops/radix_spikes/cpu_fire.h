// Radix spikes of currents that a product has just computed, with scale and bias.
#pragma once

#include <algorithm>

#include "neuron/joined.h"
#include "ops/radix_spikes/cpu_kernels.h"
#include "ops/radix_spikes/plan.h"

namespace tandem {

// Adds what another branch brings to the sums of n neurons from the given one on: numbers, or the values of spikes.
template <class T>
void add_joined_values(const Joined<T>& joined, int64_t channels, int64_t neuron, int64_t n, T* sum) {
  const Joined<T> here = joined.at(0, neuron);
  for (int64_t i = 0; here.current && i < n; ++i) sum[i] += here.current[i];
  for (int64_t i = 0; here.bits && i < n;) {
    const int64_t channel = (neuron + i) % channels, end = std::min(n, i + channels - channel);
    const T* amplitude = here.amplitude ? here.amplitude + channel : nullptr;
    for (; i < end; ++i) sum[i] += static_cast<T>(here.bits[i]) * (amplitude ? *amplitude++ : T{1});
  }
}

// Writes the bits of n neurons; all channels are alike.
template <class T>
void fire_radix(const RadixNeurons& neurons, const T* current, int64_t n, uint8_t* bits) {
  RadixSpikesArgs<T> args = {};
  args.current = current;
  args.bits = bits;
  args.channels = 1;
  set_neurons<T>(args, neurons);
  kernels<RadixSpikesKernels>().radix_spikes(args, 0, n);
}

}  // namespace tandem
