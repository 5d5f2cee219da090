// Event-driven product fused with the neuron loop: rows of weights are added for the inputs that spike, nothing else.
//
// A tile of output pixels is swept with 128 rows of weights at a time, which stay in the L1 cache while every pixel and
// step of the tile picks its rows from them; the accumulators [pixel, step, channel] stay in L2. The receptive field of
// each pixel is gathered beforehand into a patch of masks (one bit per feature and step), so that the sweep knows
// neither borders nor strides, and narrow layers fill their words with several taps.
#include "common/bit_planes.h"
#include "cpu/kernels/kernels.h"

namespace tandem::TANDEM_ISA {

constexpr int64_t kWordsPerSweep = 2;

// ORs n bits of 8 interleaved bit streams into another place: dst[.., step] |= src[.., step] for all 8 steps.
TANDEM_HOST_DEVICE void merge_bits(uint64_t* dst, int64_t dst_bit, const uint64_t* src, int64_t src_bit, int64_t n) {
  while (n > 0) {
    const int64_t d = dst_bit % 64, s = src_bit % 64;
    int64_t take = n;
    if (take > 64 - d) take = 64 - d;
    if (take > 64 - s) take = 64 - s;
    const uint64_t mask = (take == 64 ? ~uint64_t{0} : (uint64_t{1} << take) - 1);
    uint64_t* to = dst + dst_bit / 64 * 8;
    const uint64_t* from = src + src_bit / 64 * 8;
    for (int t = 0; t < 8; ++t) to[t] |= (from[t] >> s & mask) << d;
    dst_bit += take;
    src_bit += take;
    n -= take;
  }
}

// Receptive fields of the tile's pixels in plane p: patch [rows, words, 8], feature (tap, channel) in bit order.
template <class T>
void gather_patches(const EventTileArgs<T>& a, int64_t plane, uint64_t* patch) {
  const ConvGeometry& g = *a.geometry;
  const int64_t channels = g.group_in(), first = a.group * channels, words = words_for(g.features());
  const bool whole_words = channels % 64 == 0;
  const uint64_t* masks = a.masks + plane * g.pixels_in() * a.words_in * 8;
  for (int64_t row = a.row_begin; row < a.row_end; ++row, patch += words * 8) {
    const int64_t n = row / (g.out_height * g.out_width), oh = row / g.out_width % g.out_height, ow = row % g.out_width;
    if (!whole_words) std::memset(patch, 0, static_cast<size_t>(words) * 64);
    int64_t tap = 0;
    for (int64_t kh = 0; kh < g.kernel_h; ++kh) {
      const int64_t ih = oh * g.stride_h - g.padding_h + kh * g.dilation_h;
      for (int64_t kw = 0; kw < g.kernel_w; ++kw, ++tap) {
        const int64_t iw = ow * g.stride_w - g.padding_w + kw * g.dilation_w;
        const bool inside = ih >= 0 && ih < g.height && iw >= 0 && iw < g.width;
        const uint64_t* pixel = inside ? masks + ((n * g.height + ih) * g.width + iw) * a.words_in * 8 : nullptr;
        if (whole_words) {
          const size_t bytes = static_cast<size_t>(channels);
          if (inside) {
            std::memcpy(patch + tap * channels / 8, pixel + first / 8, bytes);
          } else {
            std::memset(patch + tap * channels / 8, 0, bytes);
          }
        } else if (inside) {
          merge_bits(patch, tap * channels, pixel, first, channels);
        }
      }
    }
  }
}

// acc[row, step, :] += weight[feature, :] for every feature that spikes. kVectors: vectors in a row of weight.
template <class T, int kVectors>
void accumulate(const uint64_t* patch, int64_t rows, int64_t words, int64_t steps, const T* weight, T* acc) {
  constexpr int64_t block = kVectors * kLanes<T>;
  for (int64_t w = 0; w < words; w += kWordsPerSweep) {
    const T* sweep = weight + w * 64 * block;
    const bool two = w + 1 < words;
    for (int64_t row = 0; row < rows; ++row) {
      const uint64_t* masks = patch + (row * words + w) * 8;
      T* out = acc + row * steps * block;
      for (int64_t t = 0; t < steps; ++t, out += block) {
        uint64_t first = masks[t], second = two ? masks[8 + t] : 0;
        if ((first | second) == 0) continue;
        Vec<T>* to = reinterpret_cast<Vec<T>*>(out);
        Vec<T> sum[kVectors];
        for (int i = 0; i < kVectors; ++i) sum[i] = to[i];
        for (; first; first &= first - 1) {
          const Vec<T>* from = reinterpret_cast<const Vec<T>*>(sweep + __builtin_ctzll(first) * block);
          for (int i = 0; i < kVectors; ++i) sum[i] += from[i];
        }
        for (; second; second &= second - 1) {
          const Vec<T>* from = reinterpret_cast<const Vec<T>*>(sweep + (64 + __builtin_ctzll(second)) * block);
          for (int i = 0; i < kVectors; ++i) sum[i] += from[i];
        }
        for (int i = 0; i < kVectors; ++i) to[i] = sum[i];
      }
    }
  }
}

// The neuron loop over the steps of one plane; potential and sum are carried from plane to plane in [rows, block].
template <class T, int kVectors>
void fire(const EventTileArgs<T>& a, int64_t plane, int64_t steps, const T* acc, T* carried_u, T* carried_sum) {
  using Mask = typename Simd<T>::Mask;
  constexpr int64_t lanes = kLanes<T>, block = kVectors * lanes;
  const Vec<T> threshold = broadcast(a.neuron.threshold), leak = broadcast(a.neuron.leak);
  for (int64_t row = 0; row < a.row_end - a.row_begin; ++row) {
    uint8_t* bits = a.bits + plane * a.bits_stride + (a.row_begin + row) * a.row_stride;
    for (int64_t c = 0; c < a.valid; c += lanes) {
      Vec<T>& u_place = *reinterpret_cast<Vec<T>*>(carried_u + row * block + c);
      Vec<T>& sum_place = *reinterpret_cast<Vec<T>*>(carried_sum + row * block + c);
      Vec<T> u = u_place, sum = sum_place;
      const Vec<T> bias = a.bias ? load(a.bias + c, a.valid - c) : Vec<T>{};
      const T* current = acc + row * steps * block + c;
      Mask word = {};
      for (int64_t t = 0; t < steps; ++t, current += block) {
        Vec<T> x = *reinterpret_cast<const Vec<T>*>(current);
        if (a.bias) x += bias;
        u = membrane_update(u, x, threshold, leak);
        sum += x;
        word |= (u >= threshold) & (typename IntegerOf<T>::type{1} << t);
      }
      u_place = u;
      sum_place = sum;
      store_bytes<T>(bits + c, word, a.valid - c);
    }
  }
}

// A count product: the sums belong to the binary digits of the counts.
template <class T, int kVectors>
void weigh_digits(const EventTileArgs<T>& a, int64_t plane, int64_t steps, const T* acc, T* carried_sum) {
  constexpr int64_t lanes = kLanes<T>, block = kVectors * lanes;
  T scale = 1;
  for (int64_t p = 0; p < plane * kStepsPerPlane; ++p) scale *= 2;
  for (int64_t row = 0; row < a.row_end - a.row_begin; ++row) {
    for (int64_t c = 0; c < a.valid; c += lanes) {
      Vec<T>& place = *reinterpret_cast<Vec<T>*>(carried_sum + row * block + c);
      const T* digit = acc + row * steps * block + c;
      Vec<T> sum = place, factor = broadcast(scale);
      for (int64_t t = 0; t < steps; ++t, digit += block) {
        sum += factor * *reinterpret_cast<const Vec<T>*>(digit);
        factor += factor;
      }
      place = sum;
    }
  }
}

template <class T, int kVectors>
void event_tile_of(const EventTileArgs<T>& a) {
  constexpr int64_t lanes = kLanes<T>, block = kVectors * lanes;
  const int64_t rows = a.row_end - a.row_begin, words = words_for(a.geometry->features());
  uint64_t* patch = static_cast<uint64_t*>(a.scratch);
  T* acc = reinterpret_cast<T*>(patch + rows * words * 8);
  T* u = acc + rows * 8 * block;
  T* sum = u + rows * block;
  const bool fires = a.bits != nullptr;

  for (int64_t row = 0; row < rows; ++row) {
    const int64_t at = (a.row_begin + row) * a.row_stride;
    for (int64_t c = 0; c < block; c += lanes) {
      const bool real = c < a.valid;
      *reinterpret_cast<Vec<T>*>(u + row * block + c) =
          real && a.initial ? load(a.initial + at + c, a.valid - c) : Vec<T>{};
      *reinterpret_cast<Vec<T>*>(sum + row * block + c) =
          real && !fires && a.bias ? load(a.bias + c, a.valid - c) : Vec<T>{};
    }
  }
  for (int64_t plane = 0; plane * kStepsPerPlane < a.steps; ++plane) {
    const int64_t steps = steps_in_plane(plane, a.steps);
    gather_patches(a, plane, patch);
    std::memset(acc, 0, static_cast<size_t>(rows * steps * block) * sizeof(T));
    accumulate<T, kVectors>(patch, rows, words, steps, a.weight, acc);
    if (fires) {
      fire<T, kVectors>(a, plane, steps, acc, u, sum);
    } else {
      weigh_digits<T, kVectors>(a, plane, steps, acc, sum);
    }
  }
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t at = (a.row_begin + row) * a.row_stride;
    for (int64_t c = 0; c < a.valid; c += lanes) {
      if (a.sum) store(a.sum + at + c, *reinterpret_cast<Vec<T>*>(sum + row * block + c), a.valid - c);
      if (a.potential) store(a.potential + at + c, *reinterpret_cast<Vec<T>*>(u + row * block + c), a.valid - c);
    }
  }
}

template <class T>
void event_tile(const EventTileArgs<T>& a) {
  const int64_t row_bytes = a.block * static_cast<int64_t>(sizeof(T));
  if (row_bytes == 256) {
    event_tile_of<T, 256 / kVectorBytes>(a);
  } else if (row_bytes == 128) {
    event_tile_of<T, 128 / kVectorBytes>(a);
  } else {
    event_tile_of<T, 64 / kVectorBytes>(a);
  }
}

}  // namespace tandem::TANDEM_ISA
