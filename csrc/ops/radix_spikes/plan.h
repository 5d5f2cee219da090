// What radix_spikes checks and allocates, whatever the device.
#pragma once

#include <optional>

#include "core/tensors.h"

namespace tandem {

// Neurons with radix spikes; see radix_spikes in schemas.cpp.
struct RadixNeurons {
  int64_t time_steps;
  double threshold, initial;
};

// Throws unless there are such neurons whose potentials have this dtype.
void check_radix_neurons(const char* op, const RadixNeurons& neurons, ScalarType type);

struct RadixSpikesPlan {
  Tensor current;               // channels last
  std::optional<Tensor> scale;  // contiguous
  std::optional<Tensor> bias;   // contiguous
  Tensor bits, state;           // outputs, channels last; state of shape [0] where not wanted
  int64_t channels, neurons;    // neurons = N * C * spatial
};

RadixSpikesPlan plan_radix_spikes(const Tensor& current, const std::optional<Tensor>& scale,
                                  const std::optional<Tensor>& bias, const RadixNeurons& neurons, bool want_state);

template <class T, class Args>
void set_neurons(Args& args, const RadixNeurons& neurons) {
  args.time_steps = static_cast<int>(neurons.time_steps);
  args.threshold = static_cast<T>(neurons.threshold);
  args.start = static_cast<T>(neurons.initial) * args.threshold;
}

// The arguments of a kernel that both kinds of devices have. Args: of numbers T
template <class T, class Args>
void set_arguments(Args& args, const RadixSpikesPlan& plan, const RadixNeurons& neurons) {
  args.current = static_cast<const T*>(plan.current.const_data_ptr());
  args.scale = data_or_null<T>(plan.scale);
  args.bias = data_or_null<T>(plan.bias);
  args.bits = output<uint8_t>(plan.bits);
  args.state = output<T>(plan.state);
  args.channels = plan.channels;
  set_neurons<T>(args, neurons);
}

}  // namespace tandem
