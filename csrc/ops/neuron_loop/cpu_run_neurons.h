// The neuron loop on given currents: threads, and vectors of channels that a block may enter anywhere.
#pragma once

#include <vector>

#include "cpu/isa.h"
#include "cpu/kernels.h"
#include "cpu/parallel.h"

namespace tandem {

// args: scale, bias and the amplitude are [channels] here, or null.
template <class T>
void run_neurons(IntegrateAndFireArgs<T> args, int64_t neurons) {
  constexpr int64_t kGrain = 8192;  // enough work to pay for a thread
  const auto repeated = [&](const T* values) {
    std::vector<T> out(values ? args.channels + kNeuronBlock : 0);
    for (size_t i = 0; i < out.size(); ++i) out[i] = values[static_cast<int64_t>(i) % args.channels];
    return out;
  };
  const std::vector<T> scale = repeated(args.scale), bias = repeated(args.bias);
  const std::vector<T> amplitude = repeated(args.joined.amplitude);
  if (args.scale) args.scale = scale.data();
  if (args.bias) args.bias = bias.data();
  if (args.joined.amplitude) args.joined.amplitude = amplitude.data();
  parallel_ranges(neurons, kGrain,
                  [&](int64_t begin, int64_t end) { kernels().typed<T>().integrate_and_fire(args, begin, end); });
}

}  // namespace tandem
