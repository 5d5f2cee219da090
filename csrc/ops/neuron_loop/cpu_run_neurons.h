// The neuron loop on given currents: threads, and vectors of channels that a block may enter anywhere.
#pragma once

#include <algorithm>
#include <vector>

#include "cpu/parallel.h"
#include "neuron/joined.h"
#include "ops/neuron_loop/cpu_kernels.h"

namespace tandem {

// Scale and bias of `args`, [channels] or null, as often as a block of neurons may need them from any channel on.
template <class T>
class RepeatedChannels {
 public:
  template <class Args>
  explicit RepeatedChannels(Args& args)
      : scale_(repeated(args.scale, args.channels)), bias_(repeated(args.bias, args.channels)) {
    if (args.scale) args.scale = scale_.data();
    if (args.bias) args.bias = bias_.data();
  }

 private:
  static std::vector<T> repeated(const T* values, int64_t channels) {
    std::vector<T> out;
    if (values == nullptr) return out;
    out.reserve(static_cast<size_t>(channels + kNeuronBlock));
    out.assign(values, values + channels);
    for (int64_t i = 0; i < kNeuronBlock; ++i) out.push_back(out[i]);
    return out;
  }

  std::vector<T> scale_, bias_;
};

// args: scale and bias are [channels] here, or null.
template <class T>
void run_neurons(IntegrateAndFireArgs<T> args, int64_t neurons) {
  constexpr int64_t kGrain = 8192;  // enough work to pay for a thread
  const RepeatedChannels<T> repeated(args);
  parallel_ranges(neurons, kGrain, [&](int64_t begin, int64_t end) {
    kernels<NeuronLoopKernels>().integrate_and_fire(args, begin, end);
  });
}

// Lets another branch join a series of currents, args.current, which are `current`: with scale and bias applied, they
// are what drives the neurons.
template <class T>
void join_series(IntegrateAndFireArgs<T>& args, const Joined<T>& joined, T* current, int64_t neurons) {
  if (!joined) return;
  const int64_t steps = args.time_steps, channels = args.channels;
  parallel_ranges(steps * neurons / channels, std::max<int64_t>(1, 8192 / channels), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t t = row / (neurons / channels), first = row % (neurons / channels) * channels;
      const Joined<T> here = joined.at(t / kStepsPerPlane, first);
      T* const to = current + t * args.current_stride + first;
      for (int64_t c = 0; c < channels; ++c) {
        T x = current_of(to[c], args.scale != nullptr, args.scale ? args.scale[c] : T{}, args.bias != nullptr,
                         args.bias ? args.bias[c] : T{});
        if (here.current) {
          x += here.current[t % kStepsPerPlane * here.stride + c];
        } else if (here.bits[c] >> t % kStepsPerPlane & 1) {
          x += here.amplitude ? here.amplitude[c] : T{1};
        }
        to[c] = x;
      }
    }
  });
  args.scale = args.bias = nullptr;
}

}  // namespace tandem
