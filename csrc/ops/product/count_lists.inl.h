// Products of spike counts with floating-point weights: for each input that is not zero its row of weights, times the
// count, is added, and nothing else.
//
// The features of a neuron (taps x channels) fall into chunks of kListChunk rows of weights, which stay in the L1
// cache while every output pixel of a tile picks its rows. Two stages: the lists of each chunk and pixel, once for all
// output channels; and the sweep of each block of these, which reads the lists from one end to the other.
//
// Each output channel adds in an order that follows from the size of its block alone, the same for every instruction
// set.
#pragma once

#include "cpu/simd.inl.h"
#include "ops/product/cpu_count_kernels.h"
#include "ops/product/event_visits.inl.h"
#include "ops/product/views.inl.h"

namespace tandem::TANDEM_ISA {

// Lists those of 64 counts that are not zero: `first` plus their places, and themselves. Returns how many there are,
// and writes up to 64 bytes to each list.
TANDEM_HOST int64_t list_counts(const uint8_t* in, uint8_t first, uint8_t* places, uint8_t* counts) {
#if defined(__AVX512VBMI2__)
  const __m512i ascending =
      _mm512_set_epi64(0x3f3e3d3c3b3a3938, 0x3736353433323130, 0x2f2e2d2c2b2a2928, 0x2726252423222120,
                       0x1f1e1d1c1b1a1918, 0x1716151413121110, 0x0f0e0d0c0b0a0908, 0x0706050403020100);
  const __m512i all = _mm512_loadu_si512(in);
  const __mmask64 live = _mm512_test_epi8_mask(all, all);
  const __m512i place = _mm512_add_epi8(ascending, _mm512_set1_epi8(static_cast<char>(first)));
  _mm512_storeu_si512(places, _mm512_maskz_compress_epi8(live, place));
  _mm512_storeu_si512(counts, _mm512_maskz_compress_epi8(live, all));
  return __builtin_popcountll(live);
#elif defined(__AVX2__) || defined(TANDEM_NEON)
#if defined(__AVX2__)
  const auto silent = [&](int64_t at) TANDEM_INLINE {
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(in + at));
    return static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_cmpeq_epi8(half, _mm256_setzero_si256())));
  };
  uint64_t live = ~(silent(0) | static_cast<uint64_t>(silent(32)) << 32);
#else
  uint8x16x4_t all = vld4q_u8(in);
  for (uint8x16_t& some : all.val) some = vtstq_u8(some, some);
  uint64_t live = high_bits(all);
#endif
  const int64_t n = __builtin_popcountll(live);
  // Four entries a turn, whether they exist or not, so that the loop of a short list does not branch.
  for (int64_t i = 0; i < n; i += 4) {
    for (int64_t j = i; j < i + 4; ++j) {
      const int place = live ? __builtin_ctzll(live) : 0;
      places[j] = static_cast<uint8_t>(first + place);
      counts[j] = in[place];
      live &= live - 1;
    }
  }
  return n;
#else
  int64_t n = 0;
  for (int64_t i = 0; i < 64; ++i) {
    places[n] = static_cast<uint8_t>(first + i);
    counts[n] = in[i];
    n += in[i] != 0;
  }
  return n;
#endif
}

// The lists of one tile.
inline void list_tile(const CountListArgs& a) {
  const ConvGeometry& g = *a.geometry;
  const int64_t rows = a.row_end - a.row_begin, channels = g.group_in(), features = g.features();
  const uint8_t* const counts = a.counts + a.group * channels;
  Views<kTileRows> views;
  views.look(g, a.row_begin, rows);
  uint16_t* quads = a.lists.quads;
  uint8_t *places = a.lists.places, *values = a.lists.counts;
  const auto finish = [&](int64_t n) TANDEM_INLINE {
    std::memset(places + n, 0, kListQuad);  // row 0 of the chunk, times nothing
    std::memset(values + n, 0, kListQuad);
    const int64_t full = (n + kListQuad - 1) / kListQuad;
    *quads++ = static_cast<uint16_t>(full);
    places += full * kListQuad;
    values += full * kListQuad;
  };
  int64_t seen[kListChunk / 64][kTileRows];  // by each tap of a chunk
  // All are filled before one is read: a load of what several stores have just written would wait for them.
  alignas(64) uint8_t windows[kTileRows][kListChunk + 64];
  for (int64_t first = 0; first < features; first += kListChunk) {
    const int64_t left = features - first, n = left < kListChunk ? left : kListChunk;
    if (channels % 64 == 0) {
      const int64_t parts = n / 64;
      for (int64_t part = 0; part < parts; ++part) {
        const int64_t tap = (first + 64 * part) / channels, c = (first + 64 * part) % channels;
        for (int64_t row = 0; row < rows; ++row) {
          const int64_t pixel = views.seen(g, row, tap);
          seen[part][row] = pixel < 0 ? -1 : pixel * g.in_channels + c;
        }
      }
      for (int64_t row = 0; row < rows; ++row) {
        int64_t found = 0;
        for (int64_t part = 0; part < parts; ++part) {
          if (seen[part][row] < 0) continue;
          found +=
              list_counts(counts + seen[part][row], static_cast<uint8_t>(64 * part), places + found, values + found);
        }
        finish(found);
      }
      continue;
    }
    for (int64_t at = 0; at < n;) {
      const int64_t tap = (first + at) / channels, c = (first + at) % channels;
      const int64_t of_tap = channels - c < n - at ? channels - c : n - at;
      for (int64_t row = 0; row < rows; ++row) {
        const int64_t pixel = views.seen(g, row, tap);
        uint8_t* const to = windows[row] + at;
        if (pixel < 0) {
          std::memset(to, 0, static_cast<size_t>(of_tap));
        } else {
          copy_bytes(to, counts + pixel * g.in_channels + c, of_tap, a.counts_end);
        }
      }
      at += of_tap;
    }
    for (int64_t row = 0; row < rows; ++row) std::memset(windows[row] + n, 0, 64);
    for (int64_t row = 0; row < rows; ++row) {
      int64_t found = 0;
      for (int64_t at = 0; at < n; at += 64) {
        found += list_counts(windows[row] + at, static_cast<uint8_t>(at), places + found, values + found);
      }
      finish(found);
    }
  }
}

// kVectors: vectors in a row of weights; kSums: sums of each channel, which take turns, so that additions wait less.
template <class T, int kVectors, int kSums>
void sweep_counts_in(const CountSweepArgs<T>& a) {
  constexpr int64_t lanes = kLanes<T>, block = kVectors * lanes;
  const int64_t rows = a.row_end - a.row_begin;
  T* const acc = static_cast<T*>(a.scratch);  // [rows, block]
  alignas(64) T value[256];
  for (int64_t i = 0; i < 256; ++i) value[i] = static_cast<T>(i) * a.factor;
  for (int64_t row = 0; row < rows; ++row) {
    const T* const from = a.sum + (a.row_begin + row) * a.row_stride;
    for (int64_t c = 0; c < block; c += lanes) {
      const int64_t left = a.valid - c;
      store(acc + row * block + c, a.add && left > 0 ? load(from + c, left) : Vec<T>{}, lanes);
    }
  }
  const uint16_t* quads = a.lists.quads;
  const uint8_t *places = a.lists.places, *counts = a.lists.counts;
  const T* weight = a.weight;
  for (int64_t first = 0; first < a.features; first += kListChunk, weight += kListChunk * block) {
    T* to = acc;
    for (int64_t row = 0; row < rows; ++row, to += block) {
      const int64_t n = *quads++;
      if (n == 0) continue;
      Vec<T> sum[kSums][kVectors] = {};
      for (int64_t q = 0; q < n; ++q, places += kListQuad, counts += kListQuad) {
        static_assert(kListQuad == 4);
        uint32_t four_places, four_counts;
        std::memcpy(&four_places, places, sizeof(four_places));
        std::memcpy(&four_counts, counts, sizeof(four_counts));
        unrolled<4>([&](auto j) TANDEM_INLINE {
          const T* const from = weight + (four_places >> (8 * j) & 255) * block;
          const Vec<T> count = broadcast(value[four_counts >> (8 * j) & 255]);
          for (int64_t i = 0; i < kVectors; ++i) sum[j % kSums][i] += count * load(from + i * lanes, lanes);
        });
      }
      for (int64_t i = 0; i < kVectors; ++i) {
        Vec<T> total = sum[0][i];
        if constexpr (kSums == 2) total += sum[1][i];
        if constexpr (kSums == 4) total = (total + sum[1][i]) + (sum[2][i] + sum[3][i]);
        store(to + i * lanes, load(to + i * lanes, lanes) + total, lanes);
      }
    }
  }
  for (int64_t row = 0; row < rows; ++row) {
    T* const to = a.sum + (a.row_begin + row) * a.row_stride;
    for (int64_t c = 0; c < a.valid; c += lanes) {
      const int64_t left = a.valid - c;
      Vec<T> total = load(acc + row * block + c, lanes);
      if (a.scale) total *= load(a.scale + c, left);
      if (a.bias) total += load(a.bias + c, left);
      store(to + c, total, left);
    }
  }
}

template <class T>
void sweep_counts(const CountSweepArgs<T>& a) {
  const int64_t row_bytes = a.block * static_cast<int64_t>(sizeof(T));
  if (row_bytes == 256) {
    sweep_counts_in<T, 256 / kVectorBytes, 2>(a);
  } else if (row_bytes == 128) {
    sweep_counts_in<T, 128 / kVectorBytes, 2>(a);
  } else {
    sweep_counts_in<T, 64 / kVectorBytes, 4>(a);
  }
}

}  // namespace tandem::TANDEM_ISA
