// What radix_spikes checks and allocates, whatever the device.
#pragma once

#include <optional>

#include "core/tensors.h"

namespace tandem {

struct RadixSpikesPlan {
  Tensor current;               // channels last
  std::optional<Tensor> scale;  // contiguous
  std::optional<Tensor> bias;   // contiguous
  Tensor bits, state;           // outputs, channels last; state of shape [0] where not wanted
  int64_t channels, neurons;    // neurons = N * C * spatial
};

RadixSpikesPlan plan_radix_spikes(const Tensor& current, const std::optional<Tensor>& scale,
                                  const std::optional<Tensor>& bias, int64_t time_steps, double threshold,
                                  double initial, bool want_state);

// The arguments of a kernel that both kinds of devices have. Args: of numbers T
template <class T, class Args>
void set_arguments(Args& args, const RadixSpikesPlan& plan, int64_t time_steps, double threshold, double initial) {
  args.current = static_cast<const T*>(plan.current.const_data_ptr());
  args.scale = data_or_null<T>(plan.scale);
  args.bias = data_or_null<T>(plan.bias);
  args.bits = output<uint8_t>(plan.bits);
  args.state = output<T>(plan.state);
  args.channels = plan.channels;
  args.time_steps = static_cast<int>(time_steps);
  args.threshold = static_cast<T>(threshold);
  args.start = static_cast<T>(initial) * args.threshold;
}

}  // namespace tandem
