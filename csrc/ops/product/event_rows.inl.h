// The first source of sums (EventSource): rows of weights are added for the inputs that spike, by visits or by the
// lists of windows.
#pragma once

#include "cpu/simd.inl.h"
#include "ops/product/cpu_event_kernels.h"
#include "ops/product/views.inl.h"
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
  const uint8_t* at = a.source.visits + ((plane * a.geometry->groups + a.group) * a.source.tiles + a.source.tile) *
                                            a.source.visits_per_tile;
  for (int64_t chunk = 0; chunk < a.source.chunks; ++chunk) {
    const ChunkVisits& visits = *reinterpret_cast<const ChunkVisits*>(at);
    // The next chunk's weights (the first one's, for the next tile) come to the L2 cache while this one's are added,
    // unless spikes are so few that most rows are not needed.
    const int64_t next = chunk + 1 < a.source.chunks ? chunk + 1 : 0;
    const int64_t next_rows = a.source.chunk_begin[next + 1] - a.source.chunk_begin[next];
    Ahead ahead = {reinterpret_cast<const char*>(a.weight + a.source.chunk_begin[next] * block),
                   next_rows * row_bytes / 64, 0};
    const bool fetches = large && 2 * static_cast<int64_t>(visits.events) > next_rows;
    const int64_t lines_a_visit = fetches ? (ahead.lines + visits.visits - 1) / visits.visits : 0;

    const VisitGroup* group = reinterpret_cast<const VisitGroup*>(at + sizeof(ChunkVisits));
    const VisitGroup* const end = group + visits.groups;
    const uint16_t* slot = reinterpret_cast<const uint16_t*>(end);
    const uint8_t* list = reinterpret_cast<const uint8_t*>(slot + visits.slots);
    const E* sweep = a.weight + a.source.chunk_begin[chunk] * block;
    for (; group != end; ++group) {
      kAddRows<E, kVectors>[group->length % 8](*group, slot, list, sweep, acc, wide, ahead,
                                               ahead.next < ahead.lines ? lines_a_visit : 0);
      slot += group->visits;
      list += group->visits * list_room(group->length) + kGroupSlack;
    }
    at += visits.bytes;
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
  const uint8_t* const bits = a.source.spikes + plane * a.source.spikes_stride + a.group * g.group_in();
  Views<kTileRows> views;
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

}  // namespace tandem::TANDEM_ISA
