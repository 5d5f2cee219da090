// What becomes of the sums of a tile (EventSink): the neuron loop, a count product or currents.
#pragma once

#include "core/bit_planes.h"
#include "cpu/simd.inl.h"
#include "neuron/epilogue.inl.h"
#include "ops/product/cpu_event_kernels.h"
#include "ops/product/event_rows.inl.h"

namespace tandem::TANDEM_ISA {

// The sums of one plane, [rows, steps, block].
template <class A>
struct Sums {
  const A* narrow;
  const int32_t* wide;  // what was moved out of 16-bit sums; null where nothing was

  // One vector of the neurons' type, from element `at` on; of integers as they are.
  template <class T>
  TANDEM_HOST auto exact(int64_t at) const {
    using Wide = typename Simd<T>::Int32;
    if constexpr (sizeof(A) == 2) {
      auto sum = reinterpret_cast<Wide>(widened(narrow + at));
      if (wide) sum += *reinterpret_cast<const Wide*>(wide + at);
      return sum;
    } else if constexpr (std::is_integral_v<A>) {
      return *reinterpret_cast<const Wide*>(narrow + at);
    } else {
      return *reinterpret_cast<const Vec<T>*>(narrow + at);
    }
  }
  template <class T>
  TANDEM_HOST Vec<T> operator()(int64_t at) const {
    if constexpr (std::is_integral_v<A>) {
      return __builtin_convertvector(exact<T>(at), Vec<T>);
    } else {
      return exact<T>(at);
    }
  }
};

// The neurons of one plane; states and sums are carried from plane to plane in [rows, block]. kVectors of a row step
// together. kJoins: with what another branch brings. kPlain: with scale and bias, no wide sums, and nobody wants the
// sum of currents.
template <class E, class T, int kVectors, bool kJoins, bool kPlain, class Model>
TANDEM_HOST void fire(const EventTileArgs<E, T>& args, const Model& model, int64_t plane, int64_t steps,
                      const Sums<SumOf<E>>& all_sums, State<T> carried, T* carried_sum) {
  const EventTileArgs<E, T> a = args;  // a copy, which the stores cannot change
  const Sums<SumOf<E>> sums = {all_sums.narrow, kPlain ? nullptr : all_sums.wide};
  constexpr int64_t lanes = kLanes<T>;
  const Joined<T> joined = a.sink.joined.at(plane, a.row_begin * a.row_stride);
  for (int64_t row = 0; row < a.row_end - a.row_begin; ++row) {
    uint8_t* bits = a.sink.bits + plane * a.sink.bits_stride + (a.row_begin + row) * a.row_stride;
    for (int64_t c = 0; c < a.valid; c += kVectors * lanes) {
      const int64_t place = row * a.block + c;
      Stepping<!kPlain, T, Model, SpikeWord<T, kVectors>, 1> stepping(model);
      auto& neurons = stepping.neurons;
      Vec<T> scale[kVectors], bias[kVectors], amplitude[kJoins ? kVectors : 1];
      unrolled<kVectors>([&](int j) TANDEM_INLINE {
        const int64_t left = a.valid - c - j * lanes;
        load_state<T>(read_only(carried), place + j * lanes, lanes, neurons.state[j]);
        if constexpr (!kPlain) neurons.sum[j] = load(carried_sum + place + j * lanes, lanes);
        scale[j] = a.sink.scale && left > 0 ? load(a.sink.scale + c + j * lanes, left) : Vec<T>{};
        bias[j] = a.sink.bias && left > 0 ? load(a.sink.bias + c + j * lanes, left) : Vec<T>{};
        if constexpr (kJoins) amplitude[j] = load_amplitude(joined, c + j * lanes, left);
      });
      SpikeWord<T, kVectors> words[1];
      const auto current = [&](int s, int j) TANDEM_INLINE {
        const Vec<T> sum = sums.template operator()<T>((row * steps + s) * a.block + c + j * lanes);
        const Vec<T> x = current_of(sum, kPlain || a.sink.scale, scale[j], kPlain || a.sink.bias, bias[j]);
        if constexpr (!kJoins) return x;
        const int64_t at = c + j * lanes;
        return add_joined(joined, s, row * a.row_stride + at, a.valid - at, amplitude[j], x);
      };
      stepping.begin(true, current);
      stepping.template run_plane<!kJoins>(steps, false, current, words);
      words[0].store(bits + c, a.valid - c);
      unrolled<kVectors>([&](int j) TANDEM_INLINE {
        store_state<T>(carried, place + j * lanes, neurons.state[j], lanes);
        if constexpr (!kPlain) store(carried_sum + place + j * lanes, neurons.sum[j], lanes);
      });
    }
  }
}

// kLanes<float> integers as doubles.
TANDEM_HOST LanesOf<float, double>::type as_doubles(Simd<float>::Int32 integers) {
  using Doubles = LanesOf<float, double>::type;
#if defined(TANDEM_NEON)
  // GCC would convert lane by lane.
  const auto in = reinterpret_cast<int32x4_t>(integers);
  const float64x2_t halves[] = {vcvtq_f64_s64(vmovl_s32(vget_low_s32(in))), vcvtq_f64_s64(vmovl_high_s32(in))};
  Doubles out;
  static_assert(sizeof(out) == sizeof(halves));
  std::memcpy(&out, halves, sizeof(out));
  return out;
#else
  return __builtin_convertvector(integers, Doubles);
#endif
}

// A product of counts with integers: the sums belong to the binary digits of the counts. They are exact: doubles hold
// them.
template <class E, class T>
void weigh_digits(const EventTileArgs<E, T>& a, int64_t plane, int64_t steps, const Sums<SumOf<E>>& sums,
                  Carried<E, T>* carried_sum) {
  using C = Carried<E, T>;
  using Many = typename LanesOf<T, C>::type;
  constexpr int64_t lanes = kLanes<T>;
  C first = 1;
  for (int64_t p = 0; p < plane * kStepsPerPlane; ++p) first *= 2;
  for (int64_t row = 0; row < a.row_end - a.row_begin; ++row) {
    for (int64_t c = 0; c < a.valid; c += lanes) {
      Many& place = *reinterpret_cast<Many*>(carried_sum + row * a.block + c);
      Many sum = place, factor = Many{} + first;
      for (int64_t t = 0; t < steps; ++t) {
        const auto digit = sums.template exact<T>((row * steps + t) * a.block + c);
        sum += factor * as_doubles(digit);
        factor += factor;
      }
      place = sum;
    }
  }
}

// The currents of one plane.
template <class E, class T>
void write_currents(const EventTileArgs<E, T>& a, int64_t plane, int64_t steps, const Sums<SumOf<E>>& sums) {
  constexpr int64_t lanes = kLanes<T>;
  for (int64_t row = 0; row < a.row_end - a.row_begin; ++row) {
    for (int64_t t = 0; t < steps; ++t) {
      T* const to =
          a.sink.currents + (plane * kStepsPerPlane + t) * a.sink.currents_stride + (a.row_begin + row) * a.row_stride;
      for (int64_t c = 0; c < a.valid; c += lanes) {
        const int64_t left = a.valid - c;
        const Vec<T> sum = sums.template operator()<T>((row * steps + t) * a.block + c);
        const Vec<T> scale = a.sink.scale ? load(a.sink.scale + c, left) : Vec<T>{};
        const Vec<T> bias = a.sink.bias ? load(a.sink.bias + c, left) : Vec<T>{};
        store(to + c, current_of(sum, a.sink.scale != nullptr, scale, a.sink.bias != nullptr, bias), left);
      }
    }
  }
}

}  // namespace tandem::TANDEM_ISA
