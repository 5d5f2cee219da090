// The neuron loop on given currents. Each step of a neuron waits for the one before it: several vectors at once hide
// that, and their potentials stay in registers for all time steps.
#include "common/bit_planes.h"
#include "cpu/kernels/kernels.h"

namespace tandem::TANDEM_ISA {

constexpr int kGroups = 2;  // of kSpikeVectors vectors
template <class T>
constexpr int64_t kFireBlock = kGroups * kSpikeVectors * kLanes<T>;

// Neurons at..at+n-1, a whole block or fewer; the first one's channel is `channel`.
template <bool kSeries, bool kPlain, bool kWhole, class T, class Leak>
TANDEM_HOST_DEVICE void fire_block(const IntegrateAndFireArgs<T>& a, int64_t at, int64_t channel, int64_t n,
                                   Vec<T> threshold, Leak leak) {
  static_assert(kFireBlock<T> <= kNeuronBlock);
  constexpr bool kSigns = kInvalidIsNegative && std::is_same_v<Leak, NoLeak>;
  using Group = Vec<T>[kSpikeVectors];
  Group bias[kGroups] = {}, next[kGroups] = {}, u[kGroups], sum[kGroups] = {};
  const auto every = [&](const auto& f) TANDEM_INLINE {
    unrolled<kGroups>([&](int g) TANDEM_INLINE {
      unrolled<kSpikeVectors>([&](int j) TANDEM_INLINE { f(g, j, (g * kSpikeVectors + j) * kLanes<T>); });
    });
  };
  const auto canonical = [](Vec<T> x) TANDEM_INLINE {
    if constexpr (kSigns) x = negative_nan<T>(x);
    return x;
  };
  // The current of a step after the first.
  const auto current = [&](int64_t t, int g, int j) TANDEM_INLINE {
    if (!kSeries) return next[g][j];
    const int64_t i = (g * kSpikeVectors + j) * kLanes<T>;
    Vec<T> given = load(a.current + t * a.current_stride + at + i, n - i);
    if (a.scale) given *= load(a.scale + channel + i, n - i);
    if (a.bias) given += bias[g][j];
    return canonical(given);
  };
  every([&](int g, int j, int64_t i) TANDEM_INLINE {
    Vec<T> x = load(a.current + at + i, n - i);
    if (a.scale) x *= load(a.scale + channel + i, n - i);
    if (a.bias) {
      bias[g][j] = load(a.bias + channel + i, n - i);
      x += bias[g][j];
    }
    x = canonical(x);
    next[g][j] = a.mode == CurrentMode::kConstant ? x : canonical(bias[g][j]);
    if (a.sum) sum[g][j] = a.add_sum ? load(a.sum + at + i, n - i) + x : x;
    // Where the potential is known to be zero, most of the step falls away.
    if (kPlain) {
      u[g][j] = x;  // but for the sign of a zero, which nobody sees
    } else if (a.initial) {
      u[g][j] = membrane_update(canonical(load(a.initial + at + i, n - i)), x, threshold, leak);
    } else {
      u[g][j] = membrane_update(Vec<T>{}, x, threshold, leak);
    }
  });
  for (int64_t first = 0; first < a.time_steps; first += kStepsPerPlane) {
    const int64_t plane = first / kStepsPerPlane, steps = steps_in_plane(plane, a.time_steps);
    std::conditional_t<kSigns, SpikeSigns<T>, SpikeWord<T>> word[kGroups];
    // The spikes of step s, then the potential of the next one: what tells spikes serves both and need not be kept.
    const auto fire = [&](int s, bool more) TANDEM_INLINE {
      unrolled<kGroups>([&](int g) TANDEM_INLINE {
        if constexpr (kSigns) {
          Group reduced;
          unrolled<kSpikeVectors>([&](int j) TANDEM_INLINE { reduced[j] = u[g][j] - threshold; });
          word[g].add(reduced, s);
          if (!more) return;
          unrolled<kSpikeVectors>(
              [&](int j) TANDEM_INLINE { u[g][j] = reset<T>(u[g][j], reduced[j]) + current(first + s + 1, g, j); });
        } else {
          word[g].add(u[g], threshold, s);
          if (!more) return;
          unrolled<kSpikeVectors>([&](int j) TANDEM_INLINE {
            u[g][j] = membrane_update(u[g][j], current(first + s + 1, g, j), threshold, leak);
          });
        }
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
    for (int64_t t = first ? first : 1; t < first + steps; ++t) {
      every([&](int g, int j, int64_t) TANDEM_INLINE { sum[g][j] += current(t, g, j); });
    }
  }
  every([&](int g, int j, int64_t i) TANDEM_INLINE {
    if (a.sum) store(a.sum + at + i, sum[g][j], n - i);
    if (a.potential) store(a.potential + at + i, u[g][j], n - i);
  });
}

constexpr int64_t kFetchAhead = 8192;  // bytes

// Whole blocks. kPlain: bits alone of a constant current from rest, without all that the compiler need not plan for
// then.
template <bool kSeries, bool kPlain, class T, class Leak>
void fire_blocks(const IntegrateAndFireArgs<T>& args, int64_t begin, int64_t end, Leak leak) {
  IntegrateAndFireArgs<T> a = args;  // a copy, which the stores cannot change
  if (kPlain) {
    a.mode = CurrentMode::kConstant;
    a.initial = nullptr;
    a.sum = a.potential = nullptr;
  }
  const Vec<T> threshold = broadcast(a.neuron.threshold);
  const int64_t stride = kFireBlock<T> % a.channels;
  int64_t channel = begin % a.channels;
  for (int64_t at = begin; at < end; at += kFireBlock<T>) {
    if (kPlain) {  // takes little longer than reading, and the processor itself fetches ahead within a page alone
      const char* ahead = reinterpret_cast<const char*>(a.current + at) + kFetchAhead;
      unrolled<kGroups * kSpikeVectors>([&](int i)
                                            TANDEM_INLINE { __builtin_prefetch(ahead + int64_t{i} * kVectorBytes); });
    }
    fire_block<kSeries, kPlain, true>(a, at, channel, kFireBlock<T>, threshold, leak);
    channel += stride;
    if (channel >= a.channels) channel -= a.channels;
  }
}

template <bool kSeries, class T>
void fire_range(const IntegrateAndFireArgs<T>& a, int64_t begin, int64_t end) {
  const Vec<T> threshold = broadcast(a.neuron.threshold), leak = broadcast(a.neuron.leak);
  const int64_t rest = (end - begin) % kFireBlock<T>, whole = end - rest;
  const bool plain = a.mode == CurrentMode::kConstant && !a.initial && !a.sum && !a.potential;
  if (a.neuron.leak != 1) {
    fire_blocks<kSeries, false>(a, begin, whole, leak);
  } else if (kSeries || !plain) {
    fire_blocks<kSeries, false>(a, begin, whole, NoLeak{});
  } else {
    fire_blocks<false, true>(a, begin, whole, NoLeak{});
  }
  if (rest > 0) fire_block<kSeries, false, false>(a, whole, whole % a.channels, rest, threshold, leak);
}

template <class T>
void integrate_and_fire(const IntegrateAndFireArgs<T>& a, int64_t begin, int64_t end) {
  if (a.mode == CurrentMode::kSeries) {
    fire_range<true>(a, begin, end);
  } else {
    fire_range<false>(a, begin, end);
  }
}

}  // namespace tandem::TANDEM_ISA
