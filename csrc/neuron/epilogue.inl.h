// The neuron loop on the CPU: the steps of one plane, for neurons that stay in registers. Every kernel whose neurons
// fire ends in it.
#pragma once

#include "core/bit_planes.h"
#include "cpu/simd.inl.h"
#include "neuron/joined.h"
#include "neuron/models.h"
#include "neuron/state.h"

namespace tandem::TANDEM_ISA {

// kVectors vectors of neurons. Model: of Simd<T>.
template <class T, class Model, int kVectors>
struct Neurons {
  Vec<T> state[kVectors][Model::kStates];
  Vec<T> sum[kVectors];  // of currents
};

// The states of n neurons from a place on.
template <class T, int kStates>
TANDEM_HOST void load_state(State<const T> from, int64_t neuron, int64_t n, Vec<T> (&state)[kStates]) {
  unrolled<kStates>([&](int v) TANDEM_INLINE { state[v] = load(from.at(v, neuron), n); });
}

template <class T, int kStates>
TANDEM_HOST void store_state(State<T> to, int64_t neuron, const Vec<T> (&state)[kStates], int64_t n) {
  unrolled<kStates>([&](int v) TANDEM_INLINE { store(to.at(v, neuron), state[v], n); });
}

// The states before the first step: those given, or where there are none the model's.
template <class T, class Model>
TANDEM_HOST void first_state(const Model& model, State<const T> given, int64_t neuron, int64_t n,
                             Vec<T> (&state)[Model::kStates]) {
  if (given) {
    load_state<T>(given, neuron, n, state);
  } else {
    unrolled<Model::kStates>([&](int v) TANDEM_INLINE { state[v] = model.start(v); });
  }
}

// A byte for each lane of a vector, and zero behind them.
typedef uint64_t LaneBytes __attribute__((vector_size(16)));

// n of them, the rest zero; n may exceed the lanes.
template <class T>
TANDEM_HOST LaneBytes load_lane_bytes(const uint8_t* from, int64_t n = kLanes<T>) {
  LaneBytes bytes = {};
  if (n < kLanes<T>) {
    std::memcpy(&bytes, from, static_cast<size_t>(n));
  } else if constexpr (kLanes<T> > 8) {
    std::memcpy(&bytes, from, sizeof(bytes));
  } else {
    uint64_t word = 0;
    std::memcpy(&word, from, kLanes<T>);
    bytes[0] = word;
  }
  return bytes;
}

template <class T>
TANDEM_HOST typename Simd<T>::Mask widen(LaneBytes bytes) {
  using Mask = typename Simd<T>::Mask;
#if defined(__AVX512BW__)
  const __m128i in = reinterpret_cast<__m128i>(bytes);
  return reinterpret_cast<Mask>(sizeof(T) == 4 ? _mm512_cvtepu8_epi32(in) : _mm512_cvtepu8_epi64(in));
#elif defined(__AVX2__)
  const __m128i in = reinterpret_cast<__m128i>(bytes);
  return reinterpret_cast<Mask>(sizeof(T) == 4 ? _mm256_cvtepu8_epi32(in) : _mm256_cvtepu8_epi64(in));
#elif defined(TANDEM_NEON)
  const uint16x8_t pairs = vmovl_u8(vget_low_u8(reinterpret_cast<uint8x16_t>(bytes)));
  const uint32x4_t quads = vmovl_u16(vget_low_u16(pairs));
  if constexpr (sizeof(T) == 4) return reinterpret_cast<Mask>(quads);
  if constexpr (sizeof(T) == 8) return reinterpret_cast<Mask>(vmovl_u32(vget_low_u32(quads)));
#else
  typename Simd<T>::Bytes low;
  std::memcpy(&low, &bytes, sizeof(low));
  return __builtin_convertvector(low, Mask);
#endif
}

// What spikes of the other branch bring to n channels from the given one on.
template <class T>
TANDEM_HOST Vec<T> load_amplitude(const Joined<T>& joined, int64_t channel, int64_t n) {
  return joined.amplitude && n > 0 ? load(joined.amplitude + channel, n) : broadcast(T{1});
}

// x and what the other branch brings at a step of the plane that `joined` begins with, to n neurons from a place on.
template <class T>
TANDEM_HOST Vec<T> add_joined(const Joined<T>& joined, int64_t step, int64_t place, int64_t n, Vec<T> amplitude,
                              Vec<T> x) {
  if (n <= 0) return x;
  if (joined.current) return x + load(joined.current + step * joined.stride + place, n);
  const LaneBytes bytes = load_lane_bytes<T>(joined.bits + place, n);
  const auto spikes = (widen<T>(bytes) & (typename IntegerOf<T>::type{1} << step)) != 0;
  return x + (spikes ? amplitude : Vec<T>{});
}

// x and what the other branch brings all at once to n neurons from a place on: numbers, or the values of spikes times
// the amplitude.
template <class T>
TANDEM_HOST Vec<T> add_joined_values(const Joined<T>& joined, int64_t place, Vec<T> amplitude, int64_t n, Vec<T> x) {
  if (joined.current) return x + load(joined.current + place, n);
  return x + __builtin_convertvector(widen<T>(load_lane_bytes<T>(joined.bits + place, n)), Vec<T>) * amplitude;
}

// The neurons of the words of spikes that step together, since each neuron waits for itself.
template <bool kSum, class T, class Model, class Word, int kWords>
class Stepping {
  static constexpr int kVectors = Word::kVectors;
  // Spikes are told by the signs of u - threshold, which is what a reset needs, too.
  static constexpr bool kSigns = std::is_same_v<Word, SpikeSigns<T>>;
  static_assert(!kSigns || Model::kSubtractive);
  using Group = Vec<T>[kVectors];
  Group value_[kWords];  // what is compared with the threshold, or u - threshold
  const Model model_;

  // The next step of word g's neurons.
  template <class Current>
  TANDEM_HOST void advance(int g, int s, const Current& current) {
    unrolled<kVectors>([&](int j) TANDEM_INLINE {
      const int i = g * kVectors + j;
      const Vec<T> x = current(s, i);
      if constexpr (kSum) neurons.sum[i] += x;
      if constexpr (kSigns) {
        neurons.state[i][0] = reset<T>(neurons.state[i][0], value_[g][j]) + x;
      } else {
        value_[g][j] = model_.step(neurons.state[i], x);
      }
    });
  }

  TANDEM_HOST void reduce(int g) {
    unrolled<kVectors>([&](int j)
                           TANDEM_INLINE { value_[g][j] = neurons.state[g * kVectors + j][0] - model_.threshold; });
  }

 public:
  Neurons<T, Model, kWords * kVectors> neurons;

  TANDEM_HOST explicit Stepping(const Model& model) : model_(model) {}

  // Step 0. spiked: whether a neuron may have spiked just before; after a model's start none has.
  template <class Current>
  TANDEM_HOST void begin(bool spiked, const Current& current) {
    unrolled<kWords>([&](int g) TANDEM_INLINE {
      if (!kSigns || spiked) {
        if constexpr (kSigns) reduce(g);
        advance(g, 0, current);
        return;
      }
      unrolled<kVectors>([&](int j) TANDEM_INLINE {
        const int i = g * kVectors + j;
        const Vec<T> x = current(0, i);
        if constexpr (kSum) neurons.sum[i] += x;
        neurons.state[i][0] += x;
      });
    });
  }

  // The spikes of one plane, whose step 0 is done. current(s, i): what step s brings vector i, scale and bias included
  // (current_of). words: empty. more: whether the step that follows the plane is to be done as well. kUnroll: a whole
  // plane is one piece of code without branches.
  template <bool kUnroll, class Current>
  TANDEM_HOST void run_plane(int64_t steps, bool more, const Current& current, Word (&words)[kWords]) {
    // The spikes of step s, then the neurons' next step: what tells spikes serves both and need not be kept.
    const auto fire = [&](int s, bool next) TANDEM_INLINE {
      unrolled<kWords>([&](int g) TANDEM_INLINE {
        if constexpr (kSigns) {
          reduce(g);
          words[g].add(value_[g], s);
        } else {
          words[g].add(value_[g], model_.threshold, s);
        }
        if (next) advance(g, s + 1, current);
      });
    };
    if (kUnroll && steps == kStepsPerPlane) {
      unrolled<kStepsPerPlane>([&](int s) TANDEM_INLINE { fire(s, s + 1 < kStepsPerPlane || more); });
    } else {
      for (int s = 0; s < steps; ++s) fire(s, s + 1 < steps || more);
    }
  }
};

}  // namespace tandem::TANDEM_ISA
