// The second source of sums (EventSource): tables of the sums of all subsets of a few rows of weights.
//
// A dense product of integers: the spikes of kTableBits channels look up the sum of their rows of weights, among all
// that there are. So the number of additions, a fifth of the channels', does not depend on the spikes.
#pragma once

#include "cpu/simd.inl.h"
#include "ops/product/cpu_event_kernels.h"
#include "ops/product/event_rows.inl.h"
#include "ops/product/views.inl.h"

namespace tandem::TANDEM_ISA {

// table[channel / kTableBits][spikes of these channels]: one vector of the sums of n rows of weights.
template <class E>
TANDEM_HOST void fill_table(const E* rows, int64_t n, int64_t block, Vec<SumOf<E>>* table) {
  using V = Vec<SumOf<E>>;
  for (int64_t first = 0; first < n; first += kTableBits, table += 1 << kTableBits) {
    const auto row = [&](int64_t i) TANDEM_INLINE { return first + i < n ? widened(rows + (first + i) * block) : V{}; };
    // The first half, which stays in registers; the other is that and one more row.
    constexpr int kHalf = 1 << (kTableBits - 1);
    V sum[kHalf];
    sum[0] = V{};
    unrolled<kTableBits - 1>([&](auto i) TANDEM_INLINE {
      const V more = row(i);
      unrolled<1 << i>([&](auto j) TANDEM_INLINE { sum[j + (1 << i)] = sum[j] + more; });
    });
    const V last = row(kTableBits - 1);
    unrolled<kHalf>([&](int j) TANDEM_INLINE {
      table[j] = sum[j];
      table[j + kHalf] = sum[j] + last;
    });
  }
}

// acc[step * stride] += what the words of a pixel look up, one vector. kLookups: 0 where `lookups` says how many.
template <class A, int kLookups>
TANDEM_HOST void add_words(const uint64_t* words, int64_t steps, int64_t lookups, const Vec<A>* table, A* acc,
                           int64_t stride) {
  constexpr uint64_t kMask = (1 << kTableBits) - 1;
  for (int64_t s = 0; s < steps; ++s, acc += stride) {
    uint64_t word = words[s];  // seldom zero where tables pay: a look would cost a tenth
    // Two sums, since an addition waits for the one before it.
    Vec<A> even = *reinterpret_cast<Vec<A>*>(acc), odd = {};
    const Vec<A>* at = table;
    const auto next = [&]() TANDEM_INLINE {
      const Vec<A>& found = at[word & kMask];
      at += kMask + 1;
      word >>= kTableBits;
      return found;
    };
    if constexpr (kLookups > 0) {
      unrolled<kLookups>([&](auto i) TANDEM_INLINE {
        if constexpr (i % 2 == 0) even += next();
        if constexpr (i % 2 == 1) odd += next();
      });
    } else {
      for (int64_t i = 0; i < lookups; ++i) even += next();
    }
    *reinterpret_cast<Vec<A>*>(acc) = even + odd;
  }
}

// As accumulate, of integers, with tables. 16-bit sums hold kChunkRows rows.
template <class E, class T, int kVectors>
void accumulate_words(const EventTileArgs<E, T>& a, int64_t plane, int64_t steps, SumOf<E>* acc, int32_t* wide,
                      Vec<SumOf<E>>* table) {
  using A = SumOf<E>;
  constexpr int64_t block = kVectors * kLanes<A>;
  const ConvGeometry& g = *a.geometry;
  const int64_t rows = a.row_end - a.row_begin, channels = g.group_in(), size = g.pixels_in() * kStepsPerPlane;
  const uint64_t* const words = a.source.words + (plane * g.groups + a.group) * a.source.group_words * size;
  Views<kTileRows> views;
  views.look(g, a.row_begin, rows);
  int64_t since = 0;  // rows in the 16-bit sums
  for (int64_t tap = 0; tap < g.taps(); ++tap) {
    int64_t seen[kTileRows];
    for (int64_t row = 0; row < rows; ++row) seen[row] = views.seen(g, row, tap);
    for (int64_t w = 0; w < a.source.group_words; ++w) {
      const int64_t left = channels - w * kWordChannels, n = left < kWordChannels ? left : kWordChannels;
      if (sizeof(A) == 2 && since + n > kChunkRows) {
        for (int64_t slot = 0; slot < rows * steps; ++slot) {
          empty_slot<kVectors>(reinterpret_cast<int16_t*>(acc + slot * block), wide + slot * block);
        }
        since = 0;
      }
      since += n;
      const E* const weights = a.weight + (tap * channels + w * kWordChannels) * a.weight_stride;
      for (int64_t c = 0; c < block; c += kLanes<A>) {
        fill_table(weights + c, n, a.weight_stride, table);
        for (int64_t row = 0; row < rows; ++row) {
          if (seen[row] < 0) continue;
          const uint64_t* const from = words + w * size + seen[row] * kStepsPerPlane;
          A* const to = acc + row * steps * block + c;
          if (n == kWordChannels) {
            add_words<A, kTables>(from, steps, 0, table, to, block);
          } else {
            add_words<A, 0>(from, steps, (n + kTableBits - 1) / kTableBits, table, to, block);
          }
        }
      }
    }
  }
}

}  // namespace tandem::TANDEM_ISA
