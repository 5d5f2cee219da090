// Max pooling of spikes by count: the largest count of a window grows by at most one a step, and where it grows, the
// pooled neuron spikes. A vector takes a channel a byte.
#pragma once

#include "core/bit_planes.h"
#include "cpu/simd.inl.h"
#include "ops/max_pool/cpu_kernels.h"

namespace tandem::TANDEM_ISA {

typedef uint8_t PoolVec __attribute__((vector_size(kVectorBytes), may_alias));
typedef uint16_t PoolPairs __attribute__((vector_size(kVectorBytes), may_alias));
typedef uint64_t PoolWords __attribute__((vector_size(kVectorBytes), may_alias));
constexpr int64_t kPoolVector = kVectorBytes;

// The neurons of a window that lie in the image, one channel of each.
struct PoolWindow {
  int64_t rows, columns;              // of neurons
  int64_t first;                      // element of [pixels_in, channels]
  int64_t row_stride, column_stride;  // elements

  int64_t taps() const { return rows * columns; }
  // f(number, element) of each neuron in turn
  template <class F>
  TANDEM_HOST void each(const F& f) const {
    int64_t i = 0;
    for (int64_t y = 0; y < rows; ++y) {
      for (int64_t x = 0; x < columns; ++x, ++i) f(i, first + y * row_stride + x * column_stride);
    }
  }
};

// Along an axis: the first neuron of the window that lies in the image, and how many do.
inline int64_t pool_range(int64_t start, int64_t size, int64_t kernel, int64_t dilation, int64_t* first) {
  const int64_t skipped = start < 0 ? (dilation - 1 - start) / dilation : 0;
  *first = start + skipped * dilation;
  const int64_t fitting = *first < size ? (size - 1 - *first) / dilation + 1 : 0;
  return fitting < kernel - skipped ? fitting : kernel - skipped;
}

inline PoolWindow pool_window(const ConvGeometry& g, int64_t pixel, int64_t channel) {
  const int64_t column = pixel % g.out_width, row = pixel / g.out_width % g.out_height;
  const int64_t image = pixel / g.out_width / g.out_height;
  PoolWindow out;
  int64_t y = 0, x = 0;
  out.rows = pool_range(row * g.stride_h - g.padding_h, g.height, g.kernel_h, g.dilation_h, &y);
  out.columns = pool_range(column * g.stride_w - g.padding_w, g.width, g.kernel_w, g.dilation_w, &x);
  out.first = ((image * g.height + y) * g.width + x) * g.in_channels + channel;
  out.row_stride = g.dilation_h * g.width * g.in_channels;
  out.column_stride = g.dilation_w * g.in_channels;
  return out;
}

// Reads and writes a vector of channels. Where a pixel has fewer, the rest are those of the pixels behind: to read
// these is harmless, and what is written there is overwritten in turn; but neither goes past the end of the memory.
struct PoolMemory {
  const uint8_t* bits;
  int64_t bits_size;  // of all planes
  uint8_t* out;
  int64_t out_end;  // of what may be written in a plane
  int64_t n;        // channels

  TANDEM_HOST PoolVec load(int64_t at) const {
    PoolVec v = {};
    std::memcpy(&v, bits + at, at + kPoolVector <= bits_size ? sizeof(v) : static_cast<size_t>(n));
    return v;
  }
  // `at`: in a plane, which begins at `plane`
  TANDEM_HOST void store(int64_t plane, int64_t at, PoolVec v) const {
    std::memcpy(out + plane + at, &v, at + kPoolVector <= out_end ? sizeof(v) : static_cast<size_t>(n));
  }
};

TANDEM_HOST bool any_spike(PoolVec v) {
#if defined(__AVX512BW__)
  const auto words = reinterpret_cast<__m512i>(v);
  return _mm512_test_epi32_mask(words, words) != 0;
#elif defined(__AVX2__)
  const auto words = reinterpret_cast<__m256i>(v);
  return !_mm256_testz_si256(words, words);
#else
  const auto words = reinterpret_cast<PoolWords>(v);
  return (words[0] | words[1]) != 0;
#endif
}

// The spikes of the only plane, where all counts begin at zero: the pooled neuron's k-th spike is the first among the
// k-th ones of its window, each of which is the lowest bit once k - 1 bits have been cleared.
// words: [taps, kPoolVector]
TANDEM_HOST PoolVec pool_plane(const PoolMemory& memory, const PoolWindow& window, uint8_t* scratch) {
  auto* const words = reinterpret_cast<PoolVec*>(scratch);
  PoolVec left = {}, spikes = {};
  window.each([&](int64_t i, int64_t at) TANDEM_INLINE {
    words[i] = memory.load(at);
    left |= words[i];
  });
  const int64_t taps = window.taps();
  while (any_spike(left)) {
    spikes |= left & -left;
    left = PoolVec{};
    for (int64_t i = 0; i < taps; ++i) {
      words[i] &= words[i] - 1;
      left |= words[i];
    }
  }
  return spikes;
}

// The largest value of a window of radix spikes.
TANDEM_HOST PoolVec pool_values(const PoolMemory& memory, const PoolWindow& window) {
  PoolVec most = {};
  window.each([&](int64_t, int64_t at) TANDEM_INLINE {
    const PoolVec value = memory.load(at);
    most = most > value ? most : value;
  });
  return most;
}

// count += 1 where bit `s` is set.
template <int s>
TANDEM_HOST PoolVec with_spike(PoolVec count, PoolVec bits) {
#if defined(__AVX512BW__)
  const auto c = reinterpret_cast<__m512i>(count), b = reinterpret_cast<__m512i>(bits);
  const __mmask64 spikes = _mm512_test_epi8_mask(b, _mm512_set1_epi8(static_cast<char>(1 << s)));
  return reinterpret_cast<PoolVec>(_mm512_mask_add_epi8(c, spikes, c, _mm512_set1_epi8(1)));
#elif defined(TANDEM_NEON)
  // A lane that passes the test is -1.
  return count - reinterpret_cast<PoolVec>(vtstq_u8(reinterpret_cast<uint8x16_t>(bits), vdupq_n_u8(1 << s)));
#else
  // Bits of the neighbouring byte are shifted in, too, but not to bit 0.
  return count + (reinterpret_cast<PoolVec>(reinterpret_cast<PoolPairs>(bits) >> s) & 1);
#endif
}

// A window whose counts are carried from plane to plane: as bytes, relative to the largest one when they were last made
// anew, kPoolSteps or fewer steps ago. That one stood at kPoolSteps. A neuron further behind stands at 0: it cannot
// catch up in that time, and how far it really lies behind is kept beside.
struct CarriedPool {
  PoolWindow window;
  int64_t at;        // of the output in a plane
  uint8_t* counts;   // [taps, kPoolVector]
  uint32_t* behind;  // likewise: how far behind the largest count, when they were made anew
  PoolVec most;      // the largest count

  static uint8_t relative(uint32_t behind) {
    return static_cast<uint8_t>(behind < kPoolSteps ? kPoolSteps - behind : 0);
  }

  // The counts before the first step; `given` [pixels_in, channels] or null, n channels of it.
  void start(const int32_t* given, int64_t n) {
    std::memset(behind, 0, sizeof(uint32_t) * static_cast<size_t>(window.taps() * kPoolVector));
    if (!given) return;
    int32_t largest[kPoolVector];
    for (int32_t& count : largest) count = std::numeric_limits<int32_t>::min();
    window.each([&](int64_t, int64_t from) TANDEM_INLINE {
      for (int64_t j = 0; j < n; ++j) largest[j] = given[from + j] > largest[j] ? given[from + j] : largest[j];
    });
    window.each([&](int64_t i, int64_t from) TANDEM_INLINE {
      for (int64_t j = 0; j < n; ++j) {
        behind[i * kPoolVector + j] = static_cast<uint32_t>(largest[j]) - static_cast<uint32_t>(given[from + j]);
      }
    });
  }

  void make_counts() {
    const int64_t bytes = window.taps() * kPoolVector;
    for (int64_t i = 0; i < bytes; ++i) counts[i] = relative(behind[i]);
    most = PoolVec{} + static_cast<uint8_t>(kPoolSteps);
  }

  // The spikes of the plane that begins at `plane`.
  PoolVec advance(const PoolMemory& memory, int64_t plane) {
    PoolVec largest[kStepsPerPlane];
    for (PoolVec& x : largest) x = most;
    window.each([&](int64_t i, int64_t from) TANDEM_INLINE {
      auto* const carried = reinterpret_cast<PoolVec*>(counts + i * kPoolVector);
      const PoolVec bits = memory.load(plane + from);
      PoolVec count = *carried;
      unrolled<kStepsPerPlane>([&](auto s) TANDEM_INLINE {
        count = with_spike<s>(count, bits);
        largest[s] = largest[s] > count ? largest[s] : count;
      });
      *carried = count;
    });
    PoolVec spikes = {};
    for (int64_t s = kStepsPerPlane - 1; s >= 0; --s) spikes += spikes + largest[s] - (s > 0 ? largest[s - 1] : most);
    most = largest[kStepsPerPlane - 1];
    return spikes;
  }

  // How far behind neurons lie now.
  void keep() {
    uint8_t largest[kPoolVector];
    std::memcpy(largest, &most, sizeof(most));
    for (int64_t i = 0; i < window.taps() * kPoolVector; i += kPoolVector) {
      for (int64_t j = 0; j < kPoolVector; ++j) {
        const int32_t spikes = counts[i + j] - relative(behind[i + j]);
        behind[i + j] += static_cast<uint32_t>(largest[j] - static_cast<int32_t>(kPoolSteps) - spikes);
      }
    }
  }
};

// All planes of n channels of `pixels` neighbouring windows: plane by plane, so that memory is read in longer rows.
inline void pool_carrying(const MaxPoolArgs& a, const PoolMemory& memory, int64_t pixel, int64_t pixels,
                          int64_t channel, uint8_t* scratch) {
  const ConvGeometry& g = *a.geometry;
  const int64_t bits_stride = g.pixels_in() * g.in_channels, out_stride = g.pixels_out() * g.in_channels;
  constexpr int64_t kPlanes = kPoolSteps / kStepsPerPlane;
  CarriedPool pools[kPoolPixels];
  for (int64_t i = 0; i < pixels; ++i) {
    CarriedPool& pool = pools[i];
    pool.window = pool_window(g, pixel + i, channel);
    pool.at = (pixel + i) * g.in_channels + channel;
    pool.counts = scratch;
    pool.behind = reinterpret_cast<uint32_t*>(scratch + pool.window.taps() * kPoolVector);
    scratch += pool_scratch_bytes(pool.window.taps());
    pool.start(a.count, memory.n);
  }
  for (int64_t p = 0; p < a.planes; ++p) {
    for (int64_t i = 0; i < pixels; ++i) {
      if (p % kPlanes == 0) {
        if (p > 0) pools[i].keep();
        pools[i].make_counts();
      }
      memory.store(p * out_stride, pools[i].at, pools[i].advance(memory, p * bits_stride));
    }
  }
}

// The last vector of channels overlaps the one before it, unless there are fewer channels than it has.
inline void max_pool(const MaxPoolArgs& a, int64_t begin, int64_t end, uint8_t* scratch) {
  static_assert(kPoolVector <= kPoolLanes, "room for counts");
  const ConvGeometry& g = *a.geometry;
  const int64_t channels = g.in_channels, n = channels < kPoolVector ? channels : kPoolVector;
  const PoolMemory memory = {a.bits, a.planes * g.pixels_in() * channels, a.out, end * channels, n};
  const bool carries = a.planes > 1 || a.count;
  const int64_t step = carries ? pool_pixels(g) : 1;
  for (int64_t pixel = begin; pixel < end; pixel += step) {
    for (int64_t c = 0; c < channels; c += kPoolVector) {
      const int64_t channel = c + n <= channels ? c : channels - n;
      if (carries) {
        pool_carrying(a, memory, pixel, step < end - pixel ? step : end - pixel, channel, scratch);
      } else {
        const PoolWindow window = pool_window(g, pixel, channel);
        memory.store(0, pixel * channels + channel,
                     a.radix ? pool_values(memory, window) : pool_plane(memory, window, scratch));
      }
    }
  }
}

}  // namespace tandem::TANDEM_ISA
