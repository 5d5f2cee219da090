// Lists of the spikes that the window of an output pixel sees: an event-driven product without visits
// (event_visits.inl.h), for layers whose weights stay in the inner caches as they are.
#pragma once

#include "core/bit_planes.h"
#include "cpu/simd.inl.h"
#include "ops/product/cpu_event_kernels.h"
#include "ops/spike_train/bit_planes.inl.h"

namespace tandem::TANDEM_ISA {

// For each step the rows of weights to add, in order.
struct WindowLists {
  uint16_t* rows;  // [8, stride]
  int64_t stride;
  uint16_t* end[kStepsPerPlane];
};

// Appends the spikes of n bytes, whose first stands for row `first`. Writes up to kListSlack entries more.
TANDEM_HOST void append_spikes(const uint8_t* bits, int64_t n, int64_t steps, int64_t first, WindowLists& lists) {
#if defined(__AVX512VBMI2__)
  const __m512i places =
      _mm512_set_epi64(0x3f3e3d3c3b3a3938, 0x3736353433323130, 0x2f2e2d2c2b2a2928, 0x2726252423222120,
                       0x1f1e1d1c1b1a1918, 0x1716151413121110, 0x0f0e0d0c0b0a0908, 0x0706050403020100);
#endif
  for (int64_t i = 0; i < n; i += 64, first += 64) {
    const int64_t left = n - i;
#if defined(__AVX512VBMI2__)
    const __mmask64 valid = left < 64 ? (__mmask64{1} << left) - 1 : ~__mmask64{0};
    const __m512i word = _mm512_maskz_loadu_epi8(valid, bits + i);
    // Stores of 64 bytes that cross the end of a cache line would take several cycles.
    const __m256i base = _mm256_set1_epi16(static_cast<int16_t>(first));
    const auto put = [&](uint16_t* to, __m128i part) TANDEM_INLINE {
      const __m256i rows = _mm256_add_epi16(_mm256_cvtepu8_epi16(part), base);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), rows);
    };
    for (int64_t t = 0; t < steps; ++t) {
      const __mmask64 spikes = _mm512_test_epi8_mask(word, _mm512_set1_epi8(static_cast<char>(1 << t)));
      const __m512i list = _mm512_maskz_compress_epi8(spikes, places);
      uint16_t* const to = lists.end[t];
      const int64_t count = __builtin_popcountll(spikes);
      put(to, _mm512_castsi512_si128(list));
      if (count > 16) {
        put(to + 16, _mm512_extracti32x4_epi32(list, 1));
        put(to + 32, _mm512_extracti32x4_epi32(list, 2));
        put(to + 48, _mm512_extracti32x4_epi32(list, 3));
      }
      lists.end[t] = to + count;
    }
#else
    uint64_t words[kStepsPerPlane];
    if (left < 64) {
      uint8_t last[64] = {};
      std::memcpy(last, bits + i, static_cast<size_t>(left));
      transpose_64x8(last, words);
    } else {
      transpose_64x8(bits + i, words);
    }
    for (int64_t t = 0; t < steps; ++t) {
      lists.end[t] = list_ones(words[t], static_cast<uint16_t>(first), lists.end[t]);
    }
#endif
  }
}

// bits: a plane, at the group's first channel. image, top, side: as in Views.
TANDEM_HOST void list_window(const ConvGeometry& g, const uint8_t* bits, int64_t image, int64_t top, int64_t side,
                             int64_t steps, WindowLists& lists) {
  const int64_t channels = g.group_in();
  for (int64_t t = 0; t < kStepsPerPlane; ++t) lists.end[t] = lists.rows + t * lists.stride;
  for (int64_t kh = 0; kh < g.kernel_h; ++kh) {
    const int64_t h = top + kh * g.dilation_h;
    if (h < 0 || h >= g.height) continue;
    const uint8_t* const line = bits + (image + h * g.width) * g.in_channels;
    if (g.dilation_w == 1 && g.groups == 1) {  // neighbours in memory
      const int64_t first = side < 0 ? 0 : side, end = side + g.kernel_w < g.width ? side + g.kernel_w : g.width;
      append_spikes(line + first * channels, (end - first) * channels, steps,
                    (kh * g.kernel_w + first - side) * channels, lists);
    } else {
      for (int64_t kw = 0; kw < g.kernel_w; ++kw) {
        const int64_t w = side + kw * g.dilation_w;
        if (w < 0 || w >= g.width) continue;
        append_spikes(line + w * g.in_channels, channels, steps, (kh * g.kernel_w + kw) * channels, lists);
      }
    }
  }
  const uint64_t first_rows = 0;  // behind the lists, where add_listed() looks too
  for (int64_t t = 0; t < steps; ++t) std::memcpy(lists.end[t], &first_rows, sizeof(first_rows));
}

}  // namespace tandem::TANDEM_ISA
