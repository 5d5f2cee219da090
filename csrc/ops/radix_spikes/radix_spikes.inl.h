// Spikes that are the binary digits of a potential, the largest first. Each step of a neuron waits for the one before
// it: several vectors at once hide that.
#pragma once

#include "cpu/simd.inl.h"
#include "neuron/neuron.h"
#include "ops/radix_spikes/cpu_kernels.h"

namespace tandem::TANDEM_ISA {

constexpr int kRadixGroups = 2;  // of kSpikeVectors vectors
template <class T>
constexpr int64_t kRadixNeurons = kRadixGroups * kSpikeVectors * kLanes<T>;

// The spikes of four vectors of neurons, and what a step leaves of their potentials: u - threshold where a neuron
// spikes. Where they can be told by the sign of that difference, neither comparisons nor masks are needed.
template <class T, bool kSigns = kInvalidIsNegative>
struct RadixWord {
  SpikeSigns<T> spikes;

  TANDEM_HOST static Vec<T> potential(Vec<T> u) { return negative_nan<T>(u); }
  TANDEM_HOST void step(Vec<T> (&u)[kSpikeVectors], Vec<T> threshold, int bit) {
    Vec<T> reduced[kSpikeVectors];
    unrolled<kSpikeVectors>([&](int j) TANDEM_INLINE { reduced[j] = u[j] - threshold; });
    spikes.add(reduced, bit);
    unrolled<kSpikeVectors>([&](int j) TANDEM_INLINE { u[j] = reset<T>(u[j], reduced[j]); });
  }
};

template <class T>
struct RadixWord<T, false> {
  SpikeWord<T> spikes;

  TANDEM_HOST static Vec<T> potential(Vec<T> u) { return u; }
  TANDEM_HOST void step(Vec<T> (&u)[kSpikeVectors], Vec<T> threshold, int bit) {
    spikes.add(u, threshold, bit);
    unrolled<kSpikeVectors>([&](int j) TANDEM_INLINE { u[j] = Simd<T>::subtract_spiked(u[j], u[j], threshold); });
  }
};

// Neurons at..at+n-1, a whole block or fewer; the first one's channel is `channel`.
template <class T>
TANDEM_HOST void radix_block(const RadixSpikesArgs<T>& a, int64_t at, int64_t channel, int64_t n) {
  static_assert(kRadixNeurons<T> <= kRadixBlock);
  Vec<T> u[kRadixGroups][kSpikeVectors];
  RadixWord<T> words[kRadixGroups];
  const auto each = [](const auto& f) TANDEM_INLINE {
    unrolled<kRadixGroups>([&](int g) TANDEM_INLINE {
      unrolled<kSpikeVectors>([&](int j) TANDEM_INLINE { f(g, j, (g * kSpikeVectors + j) * kLanes<T>); });
    });
  };
  each([&](int g, int j, int64_t i) TANDEM_INLINE {
    const Vec<T> scale = a.scale ? load(a.scale + channel + i, n - i) : Vec<T>{};
    const Vec<T> bias = a.bias ? load(a.bias + channel + i, n - i) : Vec<T>{};
    const Vec<T> v = current_of(load(a.current + at + i, n - i), a.scale != nullptr, scale, a.bias != nullptr, bias);
    u[g][j] = RadixWord<T>::potential(v + a.start);
  });
  T threshold = a.threshold * static_cast<T>(1 << (a.time_steps - 1));
  for (int bit = a.time_steps - 1; bit >= 0; --bit) {
    unrolled<kRadixGroups>([&](int g) TANDEM_INLINE { words[g].step(u[g], broadcast(threshold), bit); });
    threshold *= T(0.5);
  }
  unrolled<kRadixGroups>([&](int g) TANDEM_INLINE {
    const int64_t i = g * kSpikeVectors * kLanes<T>;
    words[g].spikes.store(a.bits + at + i, n - i);
  });
  if (a.state) each([&](int g, int j, int64_t i) TANDEM_INLINE { store(a.state + at + i, u[g][j], n - i); });
}

template <class T>
void radix_spikes(const RadixSpikesArgs<T>& args, int64_t begin, int64_t end) {
  const RadixSpikesArgs<T> a = args;  // a copy, which the stores cannot change
  const int64_t whole = end - (end - begin) % kRadixNeurons<T>, stride = kRadixNeurons<T> % a.channels;
  int64_t channel = begin % a.channels;
  for (int64_t at = begin; at < whole; at += kRadixNeurons<T>) {
    radix_block(a, at, channel, kRadixNeurons<T>);
    channel += stride;
    if (channel >= a.channels) channel -= a.channels;
  }
  if (whole < end) radix_block(a, whole, channel, end - whole);
}

}  // namespace tandem::TANDEM_ISA
