// The gradient of neurons behind batch norm: sums over the batch, then the gradient itself.
#pragma once

#include "cpu/simd.inl.h"
#include "ops/tandem_count/cpu_kernels.h"

namespace tandem::TANDEM_ISA {

// A vector of channels.
template <class T>
struct NormLanes {
  Vec<T> mean, gain, gamma, beta;
};

// f(lanes, first channel, channels) for every vector of channels.
template <class T, class F>
TANDEM_HOST void for_norm_channels(const NormGradientArgs<T>& a, const F& f) {
  for (int64_t c = 0; c < a.channels; c += kLanes<T>) {
    const int64_t n = a.channels - c;
    f(NormLanes<T>{load(a.mean + c, n), load(a.gain + c, n), load(a.gamma + c, n), load(a.beta + c, n)}, c, n);
  }
}

template <class T>
void norm_sums(const NormGradientArgs<T>& a, int64_t chunk) {
  const Vec<T> threshold = broadcast(a.threshold), upper = broadcast(a.upper);
  const int64_t begin = chunk * kNormRows, end = begin + kNormRows < a.rows ? begin + kNormRows : a.rows;
  T* const out = a.sums + chunk * 2 * a.channels;
  for_norm_channels(a, [&](const NormLanes<T>& lanes, int64_t c, int64_t n) {
    Vec<T> sum = {}, along = {};
    for (int64_t row = begin; row < end; ++row) {
      const Vec<T> normal = normalised(load(a.product + row * a.channels + c, n), lanes.mean, lanes.gain);
      const Vec<T> g =
          gated_gradient(load(a.grad + row * a.channels + c, n), normal, lanes.gamma, lanes.beta, threshold, upper);
      sum += g;
      along += g * normal;
    }
    store(out + c, sum, n);
    store(out + a.channels + c, along, n);
  });
}

// Rows begin..end-1.
template <class T>
void norm_gradient(const NormGradientArgs<T>& a, int64_t begin, int64_t end) {
  const Vec<T> threshold = broadcast(a.threshold), upper = broadcast(a.upper);
  for_norm_channels(a, [&](const NormLanes<T>& lanes, int64_t c, int64_t n) {
    const Vec<T> factor = lanes.gamma * lanes.gain, mean = load(a.mean_grad + c, n);
    const Vec<T> along = load(a.mean_along + c, n);
    for (int64_t row = begin; row < end; ++row) {
      const Vec<T> normal = normalised(load(a.product + row * a.channels + c, n), lanes.mean, lanes.gain);
      const Vec<T> g =
          gated_gradient(load(a.grad + row * a.channels + c, n), normal, lanes.gamma, lanes.beta, threshold, upper);
      store(a.out + row * a.channels + c, factor * (g - mean - normal * along), n);
    }
  });
}

}  // namespace tandem::TANDEM_ISA
