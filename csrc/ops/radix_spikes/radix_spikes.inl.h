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

// Stores floor(quotient) in n bytes: 0 where it is negative or a NaN, at most `most`, which is less than 256.
TANDEM_HOST void store_floors(const Vec<float> (&quotient)[kSpikeVectors], float most, uint8_t* p, int64_t n) {
#if defined(__SSE2__)
  // The smaller of most and a NaN is the NaN, which becomes the least integer. Saturation makes zeros of all negative
  // ones.
#if defined(__AVX512BW__)
  const auto whole = [&](int j) { return _mm512_cvttps_epi32(_mm512_min_ps(broadcast(most), quotient[j])); };
  const __m512i all =
      _mm512_packus_epi16(_mm512_packs_epi32(whole(0), whole(1)), _mm512_packs_epi32(whole(2), whole(3)));
#elif defined(__AVX2__)
  const auto whole = [&](int j) { return _mm256_cvttps_epi32(_mm256_min_ps(broadcast(most), quotient[j])); };
  const __m256i all =
      _mm256_packus_epi16(_mm256_packs_epi32(whole(0), whole(1)), _mm256_packs_epi32(whole(2), whole(3)));
#else
  const auto whole = [&](int j) { return _mm_cvttps_epi32(_mm_min_ps(broadcast(most), quotient[j])); };
  const __m128i all = _mm_packus_epi16(_mm_packs_epi32(whole(0), whole(1)), _mm_packs_epi32(whole(2), whole(3)));
#endif
  store_word<float>(p, unpermute<float>(reinterpret_cast<Simd<float>::Word>(all)), n);
#else
  for (int64_t j = 0; j < kSpikeVectors; ++j) {
    const Vec<float> positive = quotient[j] > 0 ? quotient[j] : Vec<float>{};
    const Vec<float> value = positive < most ? positive : broadcast(most);
    store_bytes<float>(p + j * kLanes<float>, __builtin_convertvector(value, Simd<float>::Mask), n - j * kLanes<float>);
  }
#endif
}

// What store_floors makes the spikes of n neurons of, whose inputs are v: u / threshold, or numbers with the same
// floors.
TANDEM_HOST Vec<float> quotient_of(Vec<float> v, const RadixFiring& by) {
  const Vec<float> u = (v + by.start) * by.scale;
  if (by.exact) return u;
  Vec<float> quotient = u * by.inverse;
  quotient = quotient > 0 ? quotient : Vec<float>{};
  quotient = quotient < by.most ? quotient : broadcast(by.most);
  const Vec<float> whole = __builtin_convertvector(__builtin_convertvector(quotient, Simd<float>::Mask), Vec<float>);
  const Vec<float> left = u - whole * by.high - whole * by.low;
  return left < 0 ? whole - 1 : whole;
}

// f(g, j, i) for vector j of group g of a block, whose first neuron is the block's i-th.
template <class T, class F>
TANDEM_HOST void each_vector(const F& f) {
  static_assert(kRadixNeurons<T> <= kRadixBlock);
  unrolled<kRadixGroups>([&](int g) TANDEM_INLINE {
    unrolled<kSpikeVectors>([&](int j) TANDEM_INLINE { f(g, j, (g * kSpikeVectors + j) * kLanes<T>); });
  });
}

// The inputs of neurons at..at+n-1, a whole block or fewer; the first one's channel is `channel`.
template <class T>
TANDEM_HOST void load_inputs(const RadixSpikesArgs<T>& a, int64_t at, int64_t channel, int64_t n,
                             Vec<T> (&v)[kRadixGroups][kSpikeVectors]) {
  each_vector<T>([&](int g, int j, int64_t i) TANDEM_INLINE {
    const Vec<T> scale = a.scale ? load(a.scale + channel + i, n - i) : Vec<T>{};
    const Vec<T> bias = a.bias ? load(a.bias + channel + i, n - i) : Vec<T>{};
    v[g][j] = current_of(load(a.current + at + i, n - i), a.scale != nullptr, scale, a.bias != nullptr, bias);
  });
}

// Step by step.
template <class T>
TANDEM_HOST void step_block(const RadixSpikesArgs<T>& a, int64_t at, int64_t channel, int64_t n) {
  Vec<T> u[kRadixGroups][kSpikeVectors];
  RadixWord<T> words[kRadixGroups];
  load_inputs(a, at, channel, n, u);
  each_vector<T>([&](int g, int j, int64_t) TANDEM_INLINE { u[g][j] = RadixWord<T>::potential(u[g][j] + a.start); });
  T threshold = a.threshold * static_cast<T>(1 << (a.time_steps - 1));
  for (int bit = a.time_steps - 1; bit >= 0; --bit) {
    unrolled<kRadixGroups>([&](int g) TANDEM_INLINE { words[g].step(u[g], broadcast(threshold), bit); });
    threshold *= T(0.5);
  }
  unrolled<kRadixGroups>([&](int g) TANDEM_INLINE {
    const int64_t i = g * kSpikeVectors * kLanes<T>;
    words[g].spikes.store(a.bits + at + i, n - i);
  });
  if (a.state) each_vector<T>([&](int g, int j, int64_t i) TANDEM_INLINE { store(a.state + at + i, u[g][j], n - i); });
}

// At once.
TANDEM_HOST void fire_block(const RadixSpikesArgs<float>& a, const RadixFiring& by, int64_t at, int64_t channel,
                            int64_t n) {
  Vec<float> v[kRadixGroups][kSpikeVectors];
  load_inputs(a, at, channel, n, v);
  each_vector<float>([&](int g, int j, int64_t) TANDEM_INLINE { v[g][j] = quotient_of(v[g][j], by); });
  unrolled<kRadixGroups>([&](int g) TANDEM_INLINE {
    const int64_t i = int64_t(g) * kSpikeVectors * kLanes<float>;
    store_floors(v[g], by.most, a.bits + at + i, n - i);
  });
}

template <class T>
void radix_spikes(const RadixSpikesArgs<T>& args, int64_t begin, int64_t end) {
  const RadixSpikesArgs<T> a = args;  // a copy, which the stores cannot change
  // block(at, channel, n) for the neurons at..at+n-1.
  const auto walk = [&](const auto& block) TANDEM_INLINE {
    const int64_t whole = end - (end - begin) % kRadixNeurons<T>, stride = kRadixNeurons<T> % a.channels;
    int64_t channel = begin % a.channels;
    for (int64_t at = begin; at < whole; at += kRadixNeurons<T>) {
      block(at, channel, kRadixNeurons<T>);
      channel += stride;
      if (channel >= a.channels) channel -= a.channels;
    }
    if (whole < end) block(whole, channel, end - whole);
  };
  if constexpr (sizeof(T) == 4) {
    if (!a.state) {
      const RadixFiring by = firing_at_once(a);
      walk([&](int64_t at, int64_t channel, int64_t n) TANDEM_INLINE { fire_block(a, by, at, channel, n); });
      return;
    }
  }
  walk([&](int64_t at, int64_t channel, int64_t n) TANDEM_INLINE { step_block(a, at, channel, n); });
}

}  // namespace tandem::TANDEM_ISA
