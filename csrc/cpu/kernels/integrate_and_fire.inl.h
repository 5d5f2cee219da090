// The neuron loop on given currents: the potential stays in a register for all time steps.
#include "common/bit_planes.h"
#include "cpu/kernels/kernels.h"

namespace tandem::TANDEM_ISA {

// Lanes c..c+n-1 of one row.
template <class T, CurrentMode kMode>
TANDEM_HOST_DEVICE void fire_lanes(const IntegrateAndFireArgs<T>& a, int64_t row, int64_t c, int64_t n,
                                   Vec<T> threshold, Vec<T> leak) {
  using Mask = typename Simd<T>::Mask;
  const int64_t at = row * a.channels + c;
  const Vec<T> bias = a.bias ? load(a.bias + c, n) : Vec<T>{};
  Vec<T> u = a.initial ? load(a.initial + at, n) : Vec<T>{};
  Vec<T> sum = {};
  Vec<T> x = {};
  if (kMode != CurrentMode::kSeries) {
    x = load(a.current + at, n);
    if (a.bias) x += bias;
  }
  int64_t t = 0;
  for (int64_t p = 0; p * kStepsPerPlane < a.time_steps; ++p) {
    Mask word = {};
    const int64_t steps = steps_in_plane(p, a.time_steps);
    for (int64_t s = 0; s < steps; ++s, ++t) {
      if (kMode == CurrentMode::kSeries) {
        x = load(a.current + t * a.current_stride + at, n);
        if (a.bias) x += bias;
      } else if (kMode == CurrentMode::kImpulse) {
        if (t == 1) x = bias;
      }
      u = membrane_update(u, x, threshold, leak);
      sum += x;
      word |= (u >= threshold) & (typename IntegerOf<T>::type{1} << s);
    }
    store_bytes<T>(a.bits + p * a.bits_stride + at, word, n);
  }
  if (a.sum) store(a.sum + at, sum, n);
  if (a.potential) store(a.potential + at, u, n);
}

template <class T, CurrentMode kMode>
void integrate_and_fire_rows(const IntegrateAndFireArgs<T>& a, int64_t begin, int64_t end) {
  const Vec<T> threshold = broadcast(a.neuron.threshold), leak = broadcast(a.neuron.leak);
  for (int64_t row = begin; row < end; ++row) {
    int64_t c = 0;
    for (; c + kLanes<T> <= a.channels; c += kLanes<T>) {
      fire_lanes<T, kMode>(a, row, c, kLanes<T>, threshold, leak);
    }
    if (c < a.channels) fire_lanes<T, kMode>(a, row, c, a.channels - c, threshold, leak);
  }
}

template <class T>
void integrate_and_fire(const IntegrateAndFireArgs<T>& a, int64_t begin, int64_t end) {
  if (a.mode == CurrentMode::kConstant) {
    integrate_and_fire_rows<T, CurrentMode::kConstant>(a, begin, end);
  } else if (a.mode == CurrentMode::kImpulse) {
    integrate_and_fire_rows<T, CurrentMode::kImpulse>(a, begin, end);
  } else {
    integrate_and_fire_rows<T, CurrentMode::kSeries>(a, begin, end);
  }
}

}  // namespace tandem::TANDEM_ISA
