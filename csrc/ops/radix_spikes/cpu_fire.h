// Radix spikes of currents that a product has just computed, with scale and bias.
#pragma once

#include "ops/radix_spikes/cpu_kernels.h"
#include "ops/radix_spikes/plan.h"

namespace tandem {

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
