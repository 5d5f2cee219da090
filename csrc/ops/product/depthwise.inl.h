// Depthwise products: an output channel sees one input channel or, of counts, a pair of them, so that a list of spikes
// would hold few entries. Here the lanes are output channels, and the byte of a lane's input channel at a tap says at
// which steps the lane adds the tap's weight. Nothing but a vector's sums of 8 steps is stored on the way.
#pragma once

#include "core/bit_planes.h"
#include "cpu/simd.inl.h"
#include "neuron/epilogue.inl.h"
#include "ops/product/cpu_depthwise_kernels.h"

namespace tandem::TANDEM_ISA {

TANDEM_HOST bool is_silent(LaneBytes bytes) {
#if defined(__AVX2__)
  return _mm_testz_si128(reinterpret_cast<__m128i>(bytes), reinterpret_cast<__m128i>(bytes));
#else
  return (bytes[0] | bytes[1]) == 0;
#endif
}

// The bit of one step in every lane, in the form that add_spiking wants. The kernel keeps them in memory: as constants
// in its loop they would be made anew at each tap.
#if defined(__AVX512BW__)
template <class T>
using StepBit = LaneBytes;
template <class T>
constexpr uint64_t kFirstStep = 0x0101010101010101;
#else
template <class T>
using StepBit = typename Simd<T>::Mask;
template <class T>
constexpr typename IntegerOf<T>::type kFirstStep = 1;
#endif

// sum[t] += weight in the lanes that spike at step t.
template <class T, int kSteps>
TANDEM_HOST void add_spiking(LaneBytes bytes, Vec<T> weight, const StepBit<T>* steps, Vec<T>* sum) {
#if defined(__AVX512BW__)
  for (int t = 0; t < kSteps; ++t) {
    const __mmask16 lanes = _mm_test_epi8_mask(reinterpret_cast<__m128i>(bytes), reinterpret_cast<__m128i>(steps[t]));
    if constexpr (sizeof(T) == 4) {
      sum[t] = _mm512_mask_add_ps(sum[t], lanes, sum[t], weight);
    } else {
      sum[t] = _mm512_mask_add_pd(sum[t], static_cast<__mmask8>(lanes), sum[t], weight);
    }
  }
#else
  using Vector = Vec<T>;
  using Mask = typename Simd<T>::Mask;
  const Mask word = widen<T>(bytes);
  for (int t = 0; t < kSteps; ++t) {
    sum[t] += reinterpret_cast<Vector>(((word & steps[t]) != 0) & reinterpret_cast<Mask>(weight));
  }
#endif
}

// The spikes in each byte.
TANDEM_HOST LaneBytes count_spiking(LaneBytes bytes) {
#if defined(TANDEM_NEON)
  return reinterpret_cast<LaneBytes>(vcntq_u8(reinterpret_cast<uint8x16_t>(bytes)));
#else
  bytes -= (bytes >> 1) & 0x5555555555555555;
  bytes = (bytes & 0x3333333333333333) + ((bytes >> 2) & 0x3333333333333333);
  return (bytes + (bytes >> 4)) & 0x0F0F0F0F0F0F0F0F;
#endif
}

// One vector of output channels.
template <class T>
struct DepthwiseLanes {
  StepBit<T> steps[kStepsPerPlane];
  int64_t first, n;
  int64_t channel;     // input channel of the first lane
  uint8_t source[16];  // those of all lanes, counted from that one; 128 behind the last lane
};

// 16 bytes. end: of the input, where reading has to stop; zero from there on.
TANDEM_HOST LaneBytes load_16_bytes(const uint8_t* from, const uint8_t* end) {
  LaneBytes in;
  if (end - from >= 16) {
    std::memcpy(&in, from, 16);
  } else {
    uint8_t last[16] = {};
    for (int64_t i = 0; i < end - from; ++i) last[i] = from[i];
    std::memcpy(&in, last, 16);
  }
  return in;
}

// The bytes of lanes whose input channels are not one full vector of neighbours; `in` begins with the first lane's.
template <class T>
TANDEM_HOST LaneBytes move_lane_bytes(LaneBytes in, const DepthwiseLanes<T>& lanes) {
#if defined(__AVX2__) || defined(TANDEM_NEON)
  LaneBytes source;
  std::memcpy(&source, lanes.source, 16);
#if defined(__AVX2__)
  return reinterpret_cast<LaneBytes>(
      _mm_shuffle_epi8(reinterpret_cast<__m128i>(in), reinterpret_cast<__m128i>(source)));
#else
  return reinterpret_cast<LaneBytes>(
      vqtbl1q_u8(reinterpret_cast<uint8x16_t>(in), reinterpret_cast<uint8x16_t>(source)));
#endif
#else
  uint8_t from[16], moved[16] = {};
  std::memcpy(from, &in, 16);
  for (int64_t i = 0; i < lanes.n; ++i) moved[i] = from[lanes.source[i]];
  return load_lane_bytes<T>(moved);
#endif
}

// The taps of an output pixel that lie in the image.
struct TapList {
  const DepthwiseTap* begin;
  const DepthwiseTap* end;
};

// f(bytes, weight) for each tap in one plane, except where no lane spikes. kMoved: as move_lane_bytes says.
template <class T, bool kMoved, class F>
TANDEM_HOST void for_taps(const DepthwiseArgs<T>& a, const DepthwiseLanes<T>& lanes, TapList taps, int64_t plane,
                          const F& f) {
  const int64_t plane_size = a.geometry->pixels_in() * a.geometry->in_channels;
  const int64_t first = plane * plane_size + lanes.channel;
  const uint8_t* end = a.bits + a.planes * plane_size;
  const T* weight = a.weight + lanes.first;
  for (const DepthwiseTap* tap = taps.begin; tap != taps.end; ++tap) {
    const uint8_t* from = a.bits + (first + tap->input);
    const LaneBytes bytes = kMoved ? move_lane_bytes(load_16_bytes(from, end), lanes) : load_lane_bytes<T>(from);
    if (!is_silent(bytes)) f(bytes, load(weight + tap->weight, kLanes<T>));
  }
}

template <class T, bool kMoved, int kSteps>
TANDEM_HOST void depthwise_sums(const DepthwiseArgs<T>& a, const DepthwiseLanes<T>& lanes, TapList taps, int64_t plane,
                                Vec<T>* out) {
  Vec<T> sum[kSteps];
#pragma GCC unroll 8
  for (int t = 0; t < kSteps; ++t) sum[t] = Vec<T>{};
  for_taps<T, kMoved>(a, lanes, taps, plane,
                      [&](LaneBytes bytes, Vec<T> weight) { add_spiking<T, kSteps>(bytes, weight, lanes.steps, sum); });
#pragma GCC unroll 8
  for (int t = 0; t < kSteps; ++t) out[t] = sum[t];
}

// Several pixels' neurons step together, since each of them waits for itself from step to step.
template <class T, bool kMoved, int kPixels, class Model>
TANDEM_HOST void depthwise_neurons(const DepthwiseArgs<T>& a, const Model& model, const DepthwiseLanes<T>& lanes,
                                   const TapList* taps, int64_t pixel) {
  const int64_t n = kMoved ? lanes.n : kLanes<T>;
  const int64_t channels = a.geometry->out_channels, plane_size = a.geometry->pixels_out() * channels;
  const int64_t at = pixel * channels + lanes.first;
  const Vec<T> scale = a.scale ? load(a.scale + lanes.first, n) : Vec<T>{};
  const Vec<T> bias = a.bias ? load(a.bias + lanes.first, n) : Vec<T>{};
  const Vec<T> amplitude = load_amplitude(a.joined, lanes.first, n);
  Vec<T> sum[kPixels][kStepsPerPlane];
  Stepping<true, T, Model, SpikeWord<T, 1>, kPixels> stepping(model);
  auto& neurons = stepping.neurons;
  unrolled<kPixels>([&](int i) TANDEM_INLINE {
    first_state<T>(model, a.initial, at + i * channels, n, neurons.state[i]);
    neurons.sum[i] = Vec<T>{};
  });
  for (int64_t p = 0; p < a.planes; ++p) {
    const int64_t steps = steps_in_plane(p, a.time_steps);
    if (steps > 4) {  // half the work where not: trains of 4 steps are common
      for (int i = 0; i < kPixels; ++i) depthwise_sums<T, kMoved, 8>(a, lanes, taps[i], p, sum[i]);
    } else {
      for (int i = 0; i < kPixels; ++i) depthwise_sums<T, kMoved, 4>(a, lanes, taps[i], p, sum[i]);
    }
    SpikeWord<T, 1> words[kPixels];
    const Joined<T> joined = a.joined.at(p, at);
    const auto current = [&](int s, int i) TANDEM_INLINE {
      const Vec<T> x = current_of(sum[i][s], a.scale != nullptr, scale, a.bias != nullptr, bias);
      return joined ? add_joined(joined, s, i * channels, n, amplitude, x) : x;
    };
    stepping.begin(true, current);
    stepping.template run_plane<false>(steps, false, current, words);
    unrolled<kPixels>([&](int i) TANDEM_INLINE { words[i].store(a.out_bits + p * plane_size + at + i * channels, n); });
  }
  unrolled<kPixels>([&](int i) TANDEM_INLINE {
    if (a.sum) store(a.sum + at + i * channels, neurons.sum[i], n);
    if (a.state) store_state<T>(a.state, at + i * channels, neurons.state[i], n);
  });
}

template <class T, bool kMoved>
void depthwise_count(const DepthwiseArgs<T>& a, const DepthwiseLanes<T>& lanes, TapList taps, int64_t pixel) {
  const int64_t n = kMoved ? lanes.n : kLanes<T>;
  Vec<T> total = {};
  for (int64_t p = 0; p < a.planes; ++p) {
    for_taps<T, kMoved>(a, lanes, taps, p, [&](LaneBytes bytes, Vec<T> weight) {
      total += weight * __builtin_convertvector(widen<T>(a.values ? bytes : count_spiking(bytes)), Vec<T>);
    });
  }
  if (a.scale) total *= load(a.scale + lanes.first, n);
  if (a.bias) total += load(a.bias + lanes.first, n);
  store(a.sum + (pixel - a.sum_pixel) * a.geometry->out_channels + lanes.first, total, n);
}

// The numbers of half a vector of 16 bits.
TANDEM_HOST Vec<float> widen_shorts(const int16_t* p) {
#if defined(__AVX512BW__)
  return _mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
#elif defined(__AVX2__)
  return _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#elif defined(TANDEM_NEON)
  return reinterpret_cast<Vec<float>>(vcvtq_f32_s32(vmovl_s16(vld1_s16(p))));
#else
  typename Simd<float>::Int32 wide;
  for (int i = 0; i < kLanes<float>; ++i) wide[i] = p[i];
  return __builtin_convertvector(wide, Vec<float>);
#endif
}

// A pixel's sums of values times weights, for some vectors of channels: in 16 bits, and so with no order to keep.
template <int kVectors>
TANDEM_HOST void depthwise_shorts(const DepthwiseArgs<float>& a, TapList taps, int64_t first, float* out) {
  constexpr int64_t kShorts = kLanes<int16_t>;
  Vec<int16_t> sum[kVectors] = {};
  for (const DepthwiseTap* tap = taps.begin; tap != taps.end; ++tap) {
    unrolled<kVectors>([&](int i) TANDEM_INLINE {
      Simd<int16_t>::Bytes values;
      std::memcpy(&values, a.bits + tap->input + first + i * kShorts, sizeof(values));
      const Vec<int16_t> weight = load(a.short_weight + tap->weight + first + i * kShorts, kShorts);
      sum[i] += __builtin_convertvector(values, Vec<int16_t>) * weight;
    });
  }
  int16_t sums[kVectors * kShorts];
  std::memcpy(sums, sum, sizeof(sums));
  for (int64_t i = 0; i < kVectors * kShorts; i += kLanes<float>) {
    const Vec<float> scale = a.scale ? load(a.scale + first + i, kLanes<float>) : Vec<float>{};
    const Vec<float> bias = a.bias ? load(a.bias + first + i, kLanes<float>) : Vec<float>{};
    const Vec<float> total = current_of(widen_shorts(sums + i), a.scale != nullptr, scale, a.bias != nullptr, bias);
    store(out + first + i, total, kLanes<float>);
  }
}

// All channels of a pixel.
template <int kVectors>
void depthwise_pixel(const DepthwiseArgs<float>& a, TapList taps, int64_t pixel) {
  constexpr int64_t kAll = int64_t{kVectors} * kLanes<int16_t>;
  const int64_t channels = a.geometry->out_channels;
  float* out = a.sum + (pixel - a.sum_pixel) * channels;
  for (int64_t c = 0; c < channels; c += kAll) {
    depthwise_shorts<kVectors>(a, taps, c + kAll <= channels ? c : channels - kAll, out);
  }
}

// number[i] += the lanes' inputs i of their groups. kMoved: some outputs share a group, or do not fill a vector.
template <class T, bool kMoved>
TANDEM_HOST void add_pairs(const DepthwiseArgs<T>& a, const DepthwiseLanes<T>& lanes, const uint8_t* from,
                           const uint8_t* end, typename Simd<T>::Mask* number) {
  using Integers = typename Simd<T>::Mask;
  if constexpr (kMoved) {
    const LaneBytes in = load_16_bytes(from, end), numbers = a.values ? in : count_spiking(in);
    number[0] += widen<T>(move_lane_bytes(numbers, lanes));
    number[1] += widen<T>(move_lane_bytes(numbers >> 8, lanes));  // the second of a pair lies behind the first
  } else {
    typedef uint16_t Pairs __attribute__((vector_size(2 * kLanes<T>)));
    Pairs in;
    std::memcpy(&in, from, sizeof(in));
    if (!a.values) {
      in -= (in >> 1) & 0x5555;
      in = (in & 0x3333) + ((in >> 2) & 0x3333);
      in = (in + (in >> 4)) & 0x0F0F;
    }
    number[0] += __builtin_convertvector(in & 0xFF, Integers);
    number[1] += __builtin_convertvector(in >> 8, Integers);
  }
}

// depthwise_count, of outputs that read both inputs of their groups. An input's number is that of all planes, so that
// TandemElementwise computes the same where torch multiplies.
template <class T, bool kMoved>
TANDEM_HOST void pair_count(const DepthwiseArgs<T>& a, const DepthwiseLanes<T>& lanes, TapList taps, int64_t pixel) {
  const ConvGeometry& g = *a.geometry;
  const int64_t plane = g.pixels_in() * g.in_channels, n = kMoved ? lanes.n : kLanes<T>;
  const uint8_t* const end = a.bits + a.planes * plane;
  const uint8_t* const bits = a.bits + lanes.channel;
  const T* weight = a.weight + lanes.first;
  Vec<T> total = {};
  for (const DepthwiseTap* tap = taps.begin; tap != taps.end; ++tap) {
    typename Simd<T>::Mask number[2] = {};
    const uint8_t* from = bits + tap->input;
    add_pairs<T, kMoved>(a, lanes, from, end, number);
    for (int64_t p = 1; p < a.planes; ++p) add_pairs<T, kMoved>(a, lanes, from += plane, end, number);
    total += load(weight + tap->weight, n) * __builtin_convertvector(number[0], Vec<T>);
    total += load(weight + tap->weight + a.weight_stride, n) * __builtin_convertvector(number[1], Vec<T>);
  }
  const Vec<T> scale = a.scale ? load(a.scale + lanes.first, n) : Vec<T>{};
  const Vec<T> bias = a.bias ? load(a.bias + lanes.first, n) : Vec<T>{};
  total = current_of(total, a.scale != nullptr, scale, a.bias != nullptr, bias);
  store(a.sum + (pixel - a.sum_pixel) * g.out_channels + lanes.first, total, n);
}

// The lanes of outputs that read both inputs of their groups; `first` and `channel` are left to set.
template <class T>
DepthwiseLanes<T> pair_lanes(const ConvGeometry& g, bool moved) {
  DepthwiseLanes<T> lanes = {};
  const int64_t most = moved ? 8 * g.group_out() : kLanes<T>;  // outputs whose inputs 16 bytes hold
  lanes.n = g.out_channels < kLanes<T> ? g.out_channels : kLanes<T>;
  lanes.n = lanes.n < most ? lanes.n : most;
  for (int64_t i = 0; i < 16; ++i) {
    lanes.source[i] = static_cast<uint8_t>(i < lanes.n ? i / g.group_out() * 2 : 128);
  }
  return lanes;
}

// All output channels of some pixels, each of which reads both inputs of its group.
template <class T, bool kMoved>
void pair_pixels(const DepthwiseArgs<T>& a, DepthwiseLanes<T> lanes, const TapList* taps, int64_t pixel,
                 int64_t pixels) {
  const ConvGeometry& g = *a.geometry;
  for (int64_t c = 0; c < g.out_channels; c += lanes.n) {
    // The last vector overlaps the one before it, so that it is full, too.
    lanes.first = c + lanes.n <= g.out_channels ? c : g.out_channels - lanes.n;
    lanes.channel = lanes.first / g.group_out() * 2;
    for (int64_t i = 0; i < pixels; ++i) pair_count<T, kMoved>(a, lanes, taps[i], pixel + i);
  }
}

// All output channels of at most kDepthwisePixels pixels.
template <class T, bool kMoved>
void depthwise_pixels(const DepthwiseArgs<T>& a, const TapList* taps, int64_t pixel, int64_t pixels) {
  const int64_t channels = a.geometry->out_channels, multiplier = a.geometry->group_out();
  DepthwiseLanes<T> lanes = {};
  for (int t = 0; t < kStepsPerPlane; ++t) lanes.steps[t] = StepBit<T>{} + (kFirstStep<T> << t);
  lanes.n = channels < kLanes<T> ? channels : kLanes<T>;
  for (int64_t c = 0; c < channels; c += lanes.n) {
    // The last vector overlaps the one before it, so that it is full, too.
    lanes.first = c + lanes.n <= channels ? c : channels - lanes.n;
    lanes.channel = kMoved ? lanes.first / multiplier : lanes.first;
    if (kMoved) {
      int64_t next = lanes.first % multiplier, source = 0;
      for (int64_t i = 0; i < 16; ++i) {
        lanes.source[i] = static_cast<uint8_t>(i < lanes.n ? source : 128);
        if (++next == multiplier) next = 0, ++source;
      }
    }
    if (a.out_bits == nullptr) {
      for (int64_t i = 0; i < pixels; ++i) depthwise_count<T, kMoved>(a, lanes, taps[i], pixel + i);
      continue;
    }
    visit_model<Simd<T>>(a.neuron, [&](const auto& model) {
      if (pixels == kDepthwisePixels) {
        depthwise_neurons<T, kMoved, kDepthwisePixels>(a, model, lanes, taps, pixel);
      } else {
        for (int64_t i = 0; i < pixels; ++i) depthwise_neurons<T, kMoved, 1>(a, model, lanes, taps + i, pixel + i);
      }
    });
  }
}

// Output pixels begin..end-1.
template <class T>
void depthwise(const DepthwiseArgs<T>& a, int64_t begin, int64_t end) {
  const ConvGeometry& g = *a.geometry;
  const bool moved = g.group_out() > 1 || g.out_channels < kLanes<T>;
  int64_t column = begin % g.out_width, row = begin / g.out_width % g.out_height;
  int64_t image = begin / g.out_width / g.out_height * g.height;  // its first row
  const DepthwiseLanes<T> pairs = g.group_in() == 2 ? pair_lanes<T>(g, moved) : DepthwiseLanes<T>{};
  const int64_t tap_stride = g.group_in() * a.weight_stride;
  for (int64_t pixel = begin; pixel < end; pixel += kDepthwisePixels) {
    TapList taps[kDepthwisePixels];
    const int64_t pixels = end - pixel < kDepthwisePixels ? end - pixel : kDepthwisePixels;
    DepthwiseTap* tap = a.scratch;
    for (int64_t i = 0; i < pixels; ++i) {
      const int64_t top = row * g.stride_h - g.padding_h, left = column * g.stride_w - g.padding_w;
      taps[i].begin = tap;
      for (int64_t kh = 0; kh < g.kernel_h; ++kh) {
        const int64_t h = top + kh * g.dilation_h;
        if (h < 0 || h >= g.height) continue;
        for (int64_t kw = 0; kw < g.kernel_w; ++kw) {
          const int64_t w = left + kw * g.dilation_w;
          if (w < 0 || w >= g.width) continue;
          *tap++ = {((image + h) * g.width + w) * g.in_channels, (kh * g.kernel_w + kw) * tap_stride};
        }
      }
      taps[i].end = tap;
      if (++column == g.out_width) {
        column = 0;
        if (++row == g.out_height) row = 0, image += g.height;
      }
    }
    if (g.group_in() == 2) {
      (moved ? pair_pixels<T, true> : pair_pixels<T, false>)(a, pairs, taps, pixel, pixels);
      continue;
    }
    if constexpr (sizeof(T) == 4) {
      if (a.short_weight) {
        constexpr int64_t kTwo = int64_t{2} * kLanes<int16_t>;
        for (int64_t i = 0; i < pixels; ++i) {
          (g.out_channels < kTwo ? depthwise_pixel<1> : depthwise_pixel<2>)(a, taps[i], pixel + i);
        }
        continue;
      }
    }
    (moved ? depthwise_pixels<T, true> : depthwise_pixels<T, false>)(a, taps, pixel, pixels);
  }
}

}  // namespace tandem::TANDEM_ISA
