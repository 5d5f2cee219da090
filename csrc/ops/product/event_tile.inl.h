// Event-driven product fused with the neuron loop: rows of weights are added for the inputs that spike, nothing else.
//
// The features of a neuron (taps x channels) fall into chunks of at most 256. A tile of output pixels is swept with one
// chunk of weights at a time, which stays in the inner caches while every pixel and step of the tile picks its rows
// from it; the accumulators [pixel, step, channel] stay in L2. Three stages:
// - a unit lists the spikes of some channels of one input pixel, for each of 8 steps;
// - a visit is one (pixel, step) of a tile that has spikes in a chunk, with the list of the rows to add. The visits of
//   a chunk are sorted by the length of their lists: the loop over a list is short, its mispredicted end costs more
//   than its additions, and equal lengths in a row are predicted. Slots and lists are written down in that order, once
//   for all output channels, so that the sweep reads memory from one end to the other;
// - the sweep makes the visits, for each block of output channels anew.
// Where the weights are few, a window's lists are made just before they are added instead (window_lists.inl.h).
//
// 8-bit weights are summed in 16 bits, twice the lanes of a float. A visit that could overflow the sums of its slot
// first moves them to 32 bits, so that the sums are exact whatever the weights, the fan-in and the rate.
#pragma once

#include "core/bit_planes.h"
#include "cpu/kernels.h"
#include "cpu/simd.inl.h"
#include "neuron/epilogue.inl.h"
#include "ops/product/window_lists.inl.h"

namespace tandem::TANDEM_ISA {

// As many weights as a vector of their sums has lanes, widened to these. They may lie anywhere: a caller packed them.
template <class E>
TANDEM_HOST Vec<SumOf<E>> widened(const E* from) {
  using A = SumOf<E>;
  if constexpr (std::is_same_v<A, E>) {
    return *reinterpret_cast<const typename Simd<E>::Unaligned*>(from);
  } else {
    // GCC would convert half vectors and join them.
#if defined(__AVX512BW__)
    const __m256i narrow = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    return reinterpret_cast<Vec<A>>(sizeof(E) == 1 ? _mm512_cvtepi8_epi16(narrow) : _mm512_cvtepi16_epi32(narrow));
#elif defined(__AVX2__)
    const __m128i narrow = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return reinterpret_cast<Vec<A>>(sizeof(E) == 1 ? _mm256_cvtepi8_epi16(narrow) : _mm256_cvtepi16_epi32(narrow));
#elif defined(__SSE2__)
    const __m128i narrow = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
    return reinterpret_cast<Vec<A>>(sizeof(E) == 1 ? _mm_srai_epi16(_mm_unpacklo_epi8(narrow, narrow), 8)
                                                   : _mm_srai_epi32(_mm_unpacklo_epi16(narrow, narrow), 16));
#elif defined(TANDEM_NEON)
    if constexpr (sizeof(E) == 1) return reinterpret_cast<Vec<A>>(vmovl_s8(vld1_s8(from)));
    if constexpr (sizeof(E) == 2) return reinterpret_cast<Vec<A>>(vmovl_s16(vld1_s16(from)));
#else
    typedef E Weights __attribute__((vector_size(kLanes<A> * sizeof(E)), may_alias, aligned(alignof(E))));
    return __builtin_convertvector(*reinterpret_cast<const Weights*>(from), Vec<A>);
#endif
  }
}

// Sums of 16 bits -> 32 bits, for all lanes of a slot: wide += narrow, narrow = 0.
template <int kVectors>
TANDEM_HOST void empty_slot(int16_t* narrow, int32_t* wide) {
  for (int64_t i = 0; i < int64_t{2} * kVectors; ++i) {
    Vec<int32_t>& to = reinterpret_cast<Vec<int32_t>*>(wide)[i];
    to += widened(narrow + i * kLanes<int32_t>);
  }
  for (int64_t i = 0; i < kVectors; ++i) reinterpret_cast<Vec<int16_t>*>(narrow)[i] = Vec<int16_t>{};
}

// sum += a row of weights.
template <class E, int kVectors>
TANDEM_HOST void add_row(const E* from, Vec<SumOf<E>> (&sum)[kVectors]) {
  using A = SumOf<E>;
#if defined(TANDEM_NEON)
  // A load serves two vectors of sums: there are additions that widen the upper half of what they add.
  if constexpr (!std::is_same_v<A, E>) {
    static_assert(kVectors % 2 == 0);
    for (int i = 0; i < kVectors; i += 2, from += 2 * kLanes<A>) {
      if constexpr (sizeof(E) == 1) {
        const int8x16_t weights = vld1q_s8(from);
        sum[i] = reinterpret_cast<Vec<A>>(vaddw_s8(reinterpret_cast<int16x8_t>(sum[i]), vget_low_s8(weights)));
        sum[i + 1] = reinterpret_cast<Vec<A>>(vaddw_high_s8(reinterpret_cast<int16x8_t>(sum[i + 1]), weights));
      } else {
        const int16x8_t weights = vld1q_s16(from);
        sum[i] = reinterpret_cast<Vec<A>>(vaddw_s16(reinterpret_cast<int32x4_t>(sum[i]), vget_low_s16(weights)));
        sum[i + 1] = reinterpret_cast<Vec<A>>(vaddw_high_s16(reinterpret_cast<int32x4_t>(sum[i + 1]), weights));
      }
    }
    return;
  }
#endif
  for (int i = 0; i < kVectors; ++i) sum[i] += widened(from + i * kLanes<A>);
}

// One row after the other: GCC would rather add half of each of eight rows and then their other halves, so that each
// sum waits for itself twice as often (3 to 6 % of the sweep's time).
template <class V, int kVectors>
TANDEM_HOST void finish([[maybe_unused]] V (&sum)[kVectors]) {
#if defined(__AVX512BW__)
  if constexpr (kVectors == 2) asm("" : "+v"(sum[0]), "+v"(sum[1]));
  if constexpr (kVectors == 4) asm("" : "+v"(sum[0]), "+v"(sum[1]), "+v"(sum[2]), "+v"(sum[3]));
#elif defined(__AVX2__)
  if constexpr (kVectors == 8) {
    asm(""
        : "+x"(sum[0]), "+x"(sum[1]), "+x"(sum[2]), "+x"(sum[3]), "+x"(sum[4]), "+x"(sum[5]), "+x"(sum[6]),
          "+x"(sum[7]));
  }
#endif
}

// Weights that are fetched ahead: in turn a line of their first and one of their second half, since memory is read
// faster from two places than from one.
struct Ahead {
  const char* weights;
  int64_t lines, next;  // of 64 bytes: all, and the one to fetch next

  TANDEM_HOST const char* line(int64_t i) const { return weights + ((i & 1) * ((lines + 1) / 2) + (i >> 1)) * 64; }
};

// acc[slot, :] += sweep[row, :] for the rows of the lists of one group. kRest: their length modulo 8.
template <class E, int kVectors, int kRest>
void add_rows(VisitGroup group, const uint16_t* slot, const uint8_t* list, const E* sweep, SumOf<E>* acc, int32_t* wide,
              Ahead& ahead, int64_t lines_a_visit) {
  using A = SumOf<E>;
  constexpr int64_t block = kVectors * kLanes<A>;
  const int eights = group.length / 8;
  const Ahead fetched = ahead;  // a copy, which the stores cannot change
  int64_t line = ahead.next;
  uint64_t next, after;
  std::memcpy(&next, list, sizeof(next));
  std::memcpy(&after, list + 8, sizeof(after));
  uint16_t next_slot = *slot;
  for (const uint16_t* const end = slot + group.visits; slot != end;) {
    for (int64_t i = 0; i < lines_a_visit; ++i) __builtin_prefetch(fetched.line(line++), 0, 2);
    int64_t at = next_slot;
    next_slot = *++slot;
    if (sizeof(A) == 2 && (at & kWiden)) {
      at ^= kWiden;
      empty_slot<kVectors>(reinterpret_cast<int16_t*>(acc + at * block), wide + at * block);
    }
    Vec<A>* to = reinterpret_cast<Vec<A>*>(acc + at * block);
    Vec<A> sum[kVectors];
    for (int i = 0; i < kVectors; ++i) sum[i] = to[i];
    // Eight entries come in one load: a load each would take the places of loads of weights, which bound the loop. They
    // come two turns ahead, and slots one: the processor makes its oldest loads first, so that entries would only come
    // once all rows before them have, and the next rows had to wait for them.
    const auto add = [&](auto count) TANDEM_INLINE {
      static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__);
      const uint64_t entries = next;
      next = after;
      list += 8;
      std::memcpy(&after, list + 8, sizeof(after));
      unrolled<count>([&](int j) TANDEM_INLINE {
        add_row(sweep + (entries >> (8 * j) & 255) * block, sum);
        finish(sum);
      });
    };
    for (int i = 0; i < eights; ++i) add(std::integral_constant<int, 8>{});
    if constexpr (kRest > 0) add(std::integral_constant<int, kRest>{});
    for (int i = 0; i < kVectors; ++i) to[i] = sum[i];
  }
  ahead.next = line;
}

template <class E, int kVectors>
constexpr decltype(&add_rows<E, kVectors, 0>) kAddRows[8] = {
    add_rows<E, kVectors, 0>, add_rows<E, kVectors, 1>, add_rows<E, kVectors, 2>, add_rows<E, kVectors, 3>,
    add_rows<E, kVectors, 4>, add_rows<E, kVectors, 5>, add_rows<E, kVectors, 6>, add_rows<E, kVectors, 7>};

// Weights of a block beyond this many bytes do not stay in the L2 cache from tile to tile.
constexpr int64_t kResidentBytes = int64_t{256} << 10;

// acc[row, step, :] += weight[feature, :] for every feature that spikes. kVectors: vectors in a row of weight.
template <class E, class T, int kVectors>
void accumulate(const EventTileArgs<E, T>& a, int64_t plane, SumOf<E>* acc, int32_t* wide) {
  constexpr int64_t block = kVectors * kLanes<SumOf<E>>;
  constexpr int64_t row_bytes = block * static_cast<int64_t>(sizeof(E));
  const bool large = a.geometry->features() * row_bytes > kResidentBytes;
  const uint8_t* at = a.visits + ((plane * a.geometry->groups + a.group) * a.tiles + a.tile) * a.visits_per_tile;
  for (int64_t chunk = 0; chunk < a.chunks; ++chunk) {
    const ChunkVisits& visits = *reinterpret_cast<const ChunkVisits*>(at);
    // The next chunk's weights (the first one's, for the next tile) come to the L2 cache while this one's are added,
    // unless spikes are so few that most rows are not needed.
    const int64_t next = chunk + 1 < a.chunks ? chunk + 1 : 0;
    const int64_t next_rows = a.chunk_begin[next + 1] - a.chunk_begin[next];
    Ahead ahead = {reinterpret_cast<const char*>(a.weight + a.chunk_begin[next] * block), next_rows * row_bytes / 64,
                   0};
    const bool fetches = large && 2 * static_cast<int64_t>(visits.events) > next_rows;
    const int64_t lines_a_visit = fetches ? (ahead.lines + visits.visits - 1) / visits.visits : 0;

    const VisitGroup* group = reinterpret_cast<const VisitGroup*>(at + sizeof(ChunkVisits));
    const VisitGroup* const end = group + visits.groups;
    const uint16_t* slot = reinterpret_cast<const uint16_t*>(end);
    const uint8_t* list = reinterpret_cast<const uint8_t*>(slot + visits.slots);
    const E* sweep = a.weight + a.chunk_begin[chunk] * block;
    for (; group != end; ++group) {
      kAddRows<E, kVectors>[group->length % 8](*group, slot, list, sweep, acc, wide, ahead,
                                               ahead.next < ahead.lines ? lines_a_visit : 0);
      slot += group->visits;
      list += group->visits * list_room(group->length) + kGroupSlack;
    }
    at += visits.bytes;
  }
}

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

// A dense product of integers: the spikes of kTableBits channels look up the sum of their rows of weights, among all
// that there are. So the number of additions, a fifth of the channels', does not depend on the spikes.

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

// Where output pixels look: the input pixel that a tap sees, or -1 outside the image.
struct Views {
  int64_t image[kCountRows], top[kCountRows], side[kCountRows];

  TANDEM_HOST void look(const ConvGeometry& g, int64_t row_begin, int64_t rows) {
    // A division takes as long as ten additions or more.
    int64_t n = row_begin / (g.out_height * g.out_width), h = row_begin / g.out_width % g.out_height;
    int64_t w = row_begin % g.out_width;
    for (int64_t i = 0; i < rows; ++i) {
      image[i] = n * g.height * g.width;
      top[i] = h * g.stride_h - g.padding_h;
      side[i] = w * g.stride_w - g.padding_w;
      if (++w < g.out_width) continue;
      w = 0;
      if (++h < g.out_height) continue;
      h = 0;
      ++n;
    }
  }
  TANDEM_HOST int64_t seen(const ConvGeometry& g, int64_t i, int64_t tap) const {
    const int64_t h = top[i] + tap / g.kernel_w * g.dilation_h, w = side[i] + tap % g.kernel_w * g.dilation_w;
    return h < 0 || h >= g.height || w < 0 || w >= g.width ? -1 : image[i] + h * g.width + w;
  }
};

// As accumulate, of integers, with tables. 16-bit sums hold kChunkRows rows.
template <class E, class T, int kVectors>
void accumulate_words(const EventTileArgs<E, T>& a, int64_t plane, int64_t steps, SumOf<E>* acc, int32_t* wide,
                      Vec<SumOf<E>>* table) {
  using A = SumOf<E>;
  constexpr int64_t block = kVectors * kLanes<A>;
  const ConvGeometry& g = *a.geometry;
  const int64_t rows = a.row_end - a.row_begin, channels = g.group_in(), size = g.pixels_in() * kStepsPerPlane;
  const uint64_t* const words = a.words + (plane * g.groups + a.group) * a.group_words * size;
  Views views;
  views.look(g, a.row_begin, rows);
  int64_t since = 0;  // rows in the 16-bit sums
  for (int64_t tap = 0; tap < g.taps(); ++tap) {
    int64_t seen[kTileRows];
    for (int64_t row = 0; row < rows; ++row) seen[row] = views.seen(g, row, tap);
    for (int64_t w = 0; w < a.group_words; ++w) {
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

// sum += the rows of weights of a list, four a turn. Integers, whose sums do not depend on the order, have two sums of
// narrow rows, which wait less for each other; and what is left at the end is added as if it were three rows, of which
// some count for nothing: a branch would be mispredicted as often as not. So three entries behind the list are read.
template <class E, int kVectors>
TANDEM_HOST void add_listed(const E* weight, const uint16_t* list, const uint16_t* end,
                            Vec<SumOf<E>> (&sum)[kVectors]) {
  using A = SumOf<E>;
  constexpr int64_t block = kVectors * kLanes<A>;
  constexpr bool kTwo = std::is_integral_v<E> && kVectors <= 2;
  Vec<A> other[kVectors] = {};
  const auto four = [&]() TANDEM_INLINE {
    uint64_t rows;
    std::memcpy(&rows, list, sizeof(rows));
    return [=](int j) TANDEM_INLINE { return weight + (rows >> (16 * j) & 0xffff) * block; };
  };
  for (; end - list >= 4; list += 4) {
    const auto from = four();
    unrolled<4>([&](auto j) TANDEM_INLINE {
      if constexpr (kTwo && j % 2 == 1) {
        add_row(from(j), other);
        finish(other);
      } else {
        add_row(from(j), sum);
        finish(sum);
      }
    });
  }
  if constexpr (kTwo) {
    const auto from = four();
    unrolled<3>([&](auto j) TANDEM_INLINE {
      const Vec<A> counts = broadcast(static_cast<A>(j < end - list ? -1 : 0));
      for (int i = 0; i < kVectors; ++i) (j % 2 ? other : sum)[i] += widened(from(j) + i * kLanes<A>) & counts;
    });
    for (int i = 0; i < kVectors; ++i) sum[i] += other[i];
  } else {
    for (; list != end; ++list) {
      add_row(weight + *list * block, sum);
      finish(sum);
    }
  }
}

// acc[row, step, :] = the rows of weights of all spikes that a window sees. Returns whether `wide` holds some of it,
// which it clears when it first needs it.
template <class E, class T, int kVectors>
bool accumulate_windows(const EventTileArgs<E, T>& a, int64_t plane, int64_t steps, SumOf<E>* acc, int32_t* wide) {
  using A = SumOf<E>;
  constexpr int64_t block = kVectors * kLanes<A>;
  const ConvGeometry& g = *a.geometry;
  const int64_t rows = a.row_end - a.row_begin;
  const E* const weight = a.weight;
  const uint8_t* const bits = a.spikes + plane * a.spikes_stride + a.group * g.group_in();
  Views views;
  views.look(g, a.row_begin, rows);
  WindowLists lists = {static_cast<uint16_t*>(a.table), window_stride(g), {}};
  bool widens = false;
  for (int64_t row = 0; row < rows; ++row) {
    list_window(g, bits, views.image[row], views.top[row], views.side[row], steps, lists);
    for (int64_t t = 0; t < steps; ++t, acc += block) {
      const uint16_t* list = lists.rows + t * lists.stride;
      const uint16_t* const end = lists.end[t];
      Vec<A> sum[kVectors] = {};
      if constexpr (sizeof(A) == 2) {
        for (; end - list > kChunkRows; list += kChunkRows) {
          if (!widens) std::memset(wide, 0, static_cast<size_t>(rows * steps * block) * sizeof(int32_t));
          widens = true;
          for (int64_t i = 0; i < kChunkRows; ++i) add_row(weight + list[i] * block, sum);
          for (int i = 0; i < kVectors; ++i) reinterpret_cast<Vec<A>*>(acc)[i] = sum[i];
          empty_slot<kVectors>(reinterpret_cast<int16_t*>(acc), wide + (row * steps + t) * block);
          for (int i = 0; i < kVectors; ++i) sum[i] = Vec<A>{};
        }
      }
      add_listed(weight, list, end, sum);
      for (int i = 0; i < kVectors; ++i) reinterpret_cast<Vec<A>*>(acc)[i] = sum[i];
    }
  }
  return widens;
}

// The neurons of one plane; states and sums are carried from plane to plane in [rows, block]. kVectors of a row step
// together. kJoins: with what another branch brings. kPlain: with scale and bias, no wide sums, and nobody wants the
// sum of currents.
template <class E, class T, int kVectors, bool kJoins, bool kPlain, class Model>
TANDEM_HOST void fire(const EventTileArgs<E, T>& args, const Model& model, int64_t plane, int64_t steps,
                      const Sums<SumOf<E>>& all_sums, State<T> carried, T* carried_sum) {
  const EventTileArgs<E, T> a = args;  // a copy, which the stores cannot change
  const Sums<SumOf<E>> sums = {all_sums.narrow, kPlain ? nullptr : all_sums.wide};
  constexpr int64_t lanes = kLanes<T>;
  const Joined<T> joined = a.joined.at(plane, a.row_begin * a.row_stride);
  for (int64_t row = 0; row < a.row_end - a.row_begin; ++row) {
    uint8_t* bits = a.bits + plane * a.bits_stride + (a.row_begin + row) * a.row_stride;
    for (int64_t c = 0; c < a.valid; c += kVectors * lanes) {
      const int64_t place = row * a.block + c;
      Stepping<!kPlain, T, Model, SpikeWord<T, kVectors>, 1> stepping(model);
      auto& neurons = stepping.neurons;
      Vec<T> scale[kVectors], bias[kVectors], amplitude[kJoins ? kVectors : 1];
      unrolled<kVectors>([&](int j) TANDEM_INLINE {
        const int64_t left = a.valid - c - j * lanes;
        load_state<T>(read_only(carried), place + j * lanes, lanes, neurons.state[j]);
        if constexpr (!kPlain) neurons.sum[j] = load(carried_sum + place + j * lanes, lanes);
        scale[j] = a.scale && left > 0 ? load(a.scale + c + j * lanes, left) : Vec<T>{};
        bias[j] = a.bias && left > 0 ? load(a.bias + c + j * lanes, left) : Vec<T>{};
        if constexpr (kJoins) amplitude[j] = load_amplitude(joined, c + j * lanes, left);
      });
      SpikeWord<T, kVectors> words[1];
      const auto current = [&](int s, int j) TANDEM_INLINE {
        const Vec<T> sum = sums.template operator()<T>((row * steps + s) * a.block + c + j * lanes);
        const Vec<T> x = current_of(sum, kPlain || a.scale, scale[j], kPlain || a.bias, bias[j]);
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

// kLanes<T> numbers of type C.
template <class T, class C>
struct LanesOf {
  typedef C type __attribute__((vector_size(kLanes<T> * sizeof(C)), may_alias));
};

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
      T* const to = a.currents + (plane * kStepsPerPlane + t) * a.currents_stride + (a.row_begin + row) * a.row_stride;
      for (int64_t c = 0; c < a.valid; c += lanes) {
        const int64_t left = a.valid - c;
        const Vec<T> sum = sums.template operator()<T>((row * steps + t) * a.block + c);
        const Vec<T> scale = a.scale ? load(a.scale + c, left) : Vec<T>{};
        const Vec<T> bias = a.bias ? load(a.bias + c, left) : Vec<T>{};
        store(to + c, current_of(sum, a.scale != nullptr, scale, a.bias != nullptr, bias), left);
      }
    }
  }
}

// acc[row, step, :] and `wide` = the sums of a plane. Returns whether `wide` holds any.
template <class E, class T, int kVectors>
bool accumulate_plane(const EventTileArgs<E, T>& a, int64_t plane, int64_t steps, SumOf<E>* acc, int32_t* wide) {
  using A = SumOf<E>;
  constexpr int64_t block = kVectors * kLanes<A>;
  if (a.spikes) return accumulate_windows<E, T, kVectors>(a, plane, steps, acc, wide);
  const int64_t sums = (a.row_end - a.row_begin) * steps * block;
  bool wide_too = false;
  if constexpr (sizeof(A) == 2) {
    wide_too = a.words ? a.geometry->features() > kChunkRows
                       : a.widened[(plane * a.geometry->groups + a.group) * a.tiles + a.tile] != 0;
  }
  std::memset(acc, 0, static_cast<size_t>(sums) * sizeof(A));
  if (wide_too) std::memset(wide, 0, static_cast<size_t>(sums) * sizeof(int32_t));
  if constexpr (std::is_integral_v<E>) {
    if (a.words) {
      accumulate_words<E, T, kVectors>(a, plane, steps, acc, wide, static_cast<Vec<A>*>(a.table));
      return wide_too;
    }
  }
  accumulate<E, T, kVectors>(a, plane, acc, wide);
  return wide_too;
}

// Model: of the neurons that fire, or void for a count product.
template <class E, class T, int kVectors, class Model>
void event_tile_of(const EventTileArgs<E, T>& a, [[maybe_unused]] const Model* model) {
  using A = SumOf<E>;
  constexpr int64_t lanes = kLanes<T>, block = kVectors * kLanes<A>;
  constexpr bool kFires = !std::is_void_v<Model>;
  using C = Carried<E, T>;
  const int64_t rows = a.row_end - a.row_begin;
  T* sum = static_cast<T*>(a.scratch);                       // of currents
  [[maybe_unused]] C* counted = static_cast<C*>(a.scratch);  // of a count product
  [[maybe_unused]] State<T> carried = {reinterpret_cast<T*>(counted + rows * block), rows * block};
  A* acc = reinterpret_cast<A*>(carried.data);
  if constexpr (kFires) acc = reinterpret_cast<A*>(carried.data + Model::kStates * carried.stride);
  int32_t* wide = reinterpret_cast<int32_t*>(acc + rows * kStepsPerPlane * block);  // of 16-bit sums alone
  if constexpr (kFires) {
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t at = (a.row_begin + row) * a.row_stride;
      for (int64_t c = 0; c < block; c += lanes) {
        const bool real = c < a.valid;
        Vec<T> state[Model::kStates];
        first_state<T>(*model, real ? a.initial : State<const T>{}, at + c, a.valid - c, state);
        store_state<T>(carried, row * block + c, state, lanes);
        store(sum + row * block + c, real && a.add_sum ? load(a.sum + at + c, a.valid - c) : Vec<T>{}, lanes);
      }
    }
  } else {
    std::memset(counted, 0, static_cast<size_t>(rows * block) * sizeof(C));
  }
  for (int64_t plane = 0; plane * kStepsPerPlane < a.steps; ++plane) {
    const int64_t steps = steps_in_plane(plane, a.steps);
    const bool wide_too = accumulate_plane<E, T, kVectors>(a, plane, steps, acc, wide);
    const Sums<A> sums = {acc, wide_too ? wide : nullptr};
    if constexpr (kFires) {
      constexpr int kTogether = block / lanes < kSpikeVectors ? 1 : kSpikeVectors;
      if (a.joined) {
        fire<E, T, 1, true, false>(a, *model, plane, steps, sums, carried, sum);  // the rarer case, so short code
      } else if (a.scale && a.bias && !a.sum && !wide_too) {
        fire<E, T, kTogether, false, true>(a, *model, plane, steps, sums, carried, sum);
      } else {
        fire<E, T, kTogether, false, false>(a, *model, plane, steps, sums, carried, sum);
      }
    } else {
      weigh_digits<E, T>(a, plane, steps, sums, counted);
    }
  }
  if (!a.sum && !a.state) return;
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t at = (a.row_begin + row) * a.row_stride;
    for (int64_t c = 0; c < a.valid; c += lanes) {
      const int64_t left = a.valid - c;
      Vec<T> total;
      if constexpr (kFires) {
        total = load(sum + row * block + c, lanes);
      } else {
        total = __builtin_convertvector(*reinterpret_cast<typename LanesOf<T, C>::type*>(counted + row * block + c),
                                        Vec<T>);
      }
      if constexpr (!kFires) {
        if (a.scale) total *= load(a.scale + c, left);
        if (a.bias) total += load(a.bias + c, left);
      }
      if (a.sum) store(a.sum + at + c, total, left);
      if constexpr (kFires) {
        if (!a.state) continue;
        Vec<T> state[Model::kStates];
        load_state<T>(read_only(carried), row * block + c, lanes, state);
        store_state<T>(a.state, at + c, state, left);
      }
    }
  }
}

// Currents alone.
template <class E, class T, int kVectors>
void event_currents(const EventTileArgs<E, T>& a) {
  using A = SumOf<E>;
  const int64_t slots = (a.row_end - a.row_begin) * kStepsPerPlane;
  A* const acc = static_cast<A*>(a.scratch);
  auto* const wide = reinterpret_cast<int32_t*>(acc + slots * kVectors * kLanes<A>);  // of 16-bit sums alone
  for (int64_t plane = 0; plane * kStepsPerPlane < a.steps; ++plane) {
    const int64_t steps = steps_in_plane(plane, a.steps);
    const bool wide_too = accumulate_plane<E, T, kVectors>(a, plane, steps, acc, wide);
    write_currents(a, plane, steps, Sums<A>{acc, wide_too ? wide : nullptr});
  }
}

// kVectors: vectors in a row of weights.
template <int kVectors, class E, class T>
void event_tile_in(const EventTileArgs<E, T>& a) {
  if (a.currents) {
    event_currents<E, T, kVectors>(a);
  } else if (a.bits == nullptr) {
    if constexpr (std::is_integral_v<E>) event_tile_of<E, T, kVectors, void>(a, nullptr);
  } else {
    visit_model<Simd<T>>(a.neuron, [&](const auto& model) { event_tile_of<E, T, kVectors>(a, &model); });
  }
}

template <class E, class T>
void event_tile(const EventTileArgs<E, T>& a) {
  const int64_t row_bytes = a.block * static_cast<int64_t>(sizeof(SumOf<E>));
  if (row_bytes == 256) {
    event_tile_in<256 / kVectorBytes>(a);
  } else if (row_bytes == 128) {
    event_tile_in<128 / kVectorBytes>(a);
  } else {
    event_tile_in<64 / kVectorBytes>(a);
  }
}

}  // namespace tandem::TANDEM_ISA
