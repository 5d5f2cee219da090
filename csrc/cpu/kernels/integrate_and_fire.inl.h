// The neuron loop on given currents. Each step of a neuron waits for the one before it: several vectors at once hide
// that, and their potentials stay in registers for all time steps.
#include "common/bit_planes.h"
#include "cpu/kernels/kernels.h"

namespace tandem::TANDEM_ISA {

constexpr int kGroups = 2;  // of kSpikeVectors vectors
template <class T>
constexpr int64_t kFireBlock = kGroups * kSpikeVectors * kLanes<T>;

// Neurons at..at+n-1, a whole block or fewer; the first one's channel is `channel`.
template <class T, CurrentMode kMode, bool kWhole>
TANDEM_HOST_DEVICE void fire_block(const IntegrateAndFireArgs<T>& a, int64_t at, int64_t channel, int64_t n,
                                   Vec<T> threshold, Vec<T> leak) {
  static_assert(kFireBlock<T> <= kNeuronBlock);
  using Group = Vec<T>[kSpikeVectors];
  Group x[kGroups], bias[kGroups] = {}, u[kGroups], sum[kGroups] = {};  // x: the current of the first step
  const auto every = [&](const auto& f) TANDEM_INLINE {
    unrolled<kGroups>([&](int g) TANDEM_INLINE {
      unrolled<kSpikeVectors>([&](int j) TANDEM_INLINE { f(g, j, (g * kSpikeVectors + j) * kLanes<T>); });
    });
  };
  const auto later = [&](int64_t t, int g, int j) TANDEM_INLINE {
    if (kMode == CurrentMode::kConstant) return x[g][j];
    if (kMode == CurrentMode::kImpulse) return bias[g][j];
    const int64_t i = (g * kSpikeVectors + j) * kLanes<T>;
    Vec<T> given = load(a.current + t * a.current_stride + at + i, n - i);
    if (a.scale) given *= load(a.scale + channel + i, n - i);
    return a.bias ? given + bias[g][j] : given;
  };
  every([&](int g, int j, int64_t i) TANDEM_INLINE {
    x[g][j] = load(a.current + at + i, n - i);
    if (a.scale) x[g][j] *= load(a.scale + channel + i, n - i);
    if (a.add_sum && a.sum) sum[g][j] = load(a.sum + at + i, n - i);
    if (a.bias) {
      bias[g][j] = load(a.bias + channel + i, n - i);
      x[g][j] += bias[g][j];
    }
    // Where the potential is known to be zero, most of the step falls away.
    if (a.initial) {
      u[g][j] = membrane_update(load(a.initial + at + i, n - i), x[g][j], threshold, leak);
    } else {
      u[g][j] = membrane_update(Vec<T>{}, x[g][j], threshold, leak);
    }
  });
  for (int64_t first = 0; first < a.time_steps; first += kStepsPerPlane) {
    const int64_t plane = first / kStepsPerPlane, steps = steps_in_plane(plane, a.time_steps);
    SpikeWord<T> word[kGroups];
    // The spikes of step s, then the potential of the next one: a comparison serves both and need not be kept.
    const auto fire = [&](int s, bool more) TANDEM_INLINE {
      unrolled<kGroups>([&](int g) TANDEM_INLINE {
        word[g].add(u[g], threshold, s);
        if (!more) return;
        unrolled<kSpikeVectors>([&](int j) TANDEM_INLINE {
          u[g][j] = membrane_update(u[g][j], later(first + s + 1, g, j), threshold, leak);
        });
      });
    };
    // Not for the few neurons of a last block, whose loads of single elements would make it long.
    if (kWhole && steps == kStepsPerPlane) {
      unrolled<kStepsPerPlane>(
          [&](int s) TANDEM_INLINE { fire(s, s + 1 < kStepsPerPlane || first + kStepsPerPlane < a.time_steps); });
    } else {
      for (int s = 0; s < steps; ++s) fire(s, first + s + 1 < a.time_steps);
    }
    unrolled<kGroups>([&](int g) TANDEM_INLINE {
      const int64_t i = g * kSpikeVectors * kLanes<T>;
      word[g].store(a.bits + plane * a.bits_stride + at + i, n - i);
    });
    if (a.sum == nullptr) continue;
    for (int64_t t = first; t < first + steps; ++t) {
      every([&](int g, int j, int64_t) TANDEM_INLINE { sum[g][j] += t == 0 ? x[g][j] : later(t, g, j); });
    }
  }
  every([&](int g, int j, int64_t i) TANDEM_INLINE {
    if (a.sum) store(a.sum + at + i, sum[g][j], n - i);
    if (a.potential) store(a.potential + at + i, u[g][j], n - i);
  });
}

template <class T, CurrentMode kMode>
void integrate_and_fire_in(const IntegrateAndFireArgs<T>& args, int64_t begin, int64_t end) {
  const IntegrateAndFireArgs<T> a = args;  // a copy, which the stores cannot change
  constexpr int64_t block = kFireBlock<T>;
  const Vec<T> threshold = broadcast(a.neuron.threshold), leak = broadcast(a.neuron.leak);
  const int64_t stride = block % a.channels;
  int64_t at = begin, channel = begin % a.channels;
  for (; at + block <= end; at += block) {
    fire_block<T, kMode, true>(a, at, channel, block, threshold, leak);
    channel += stride;
    if (channel >= a.channels) channel -= a.channels;
  }
  if (at < end) fire_block<T, kMode, false>(a, at, channel, end - at, threshold, leak);
}

template <class T>
void integrate_and_fire(const IntegrateAndFireArgs<T>& a, int64_t begin, int64_t end) {
  if (a.mode == CurrentMode::kConstant) {
    integrate_and_fire_in<T, CurrentMode::kConstant>(a, begin, end);
  } else if (a.mode == CurrentMode::kImpulse) {
    integrate_and_fire_in<T, CurrentMode::kImpulse>(a, begin, end);
  } else {
    integrate_and_fire_in<T, CurrentMode::kSeries>(a, begin, end);
  }
}

}  // namespace tandem::TANDEM_ISA
