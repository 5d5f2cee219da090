// The first two stages of an event-driven product (event_tile.inl.h): units and visits.
#pragma once

#include "core/bit_planes.h"
#include "cpu/simd.inl.h"
#include "ops/product/cpu_event_kernels.h"
#include "ops/product/views.inl.h"
#include "ops/spike_train/bit_planes.inl.h"

namespace tandem::TANDEM_ISA {

inline void build_words(const uint8_t* bits, int64_t pixels, int64_t groups, int64_t channels, uint64_t* words,
                        int64_t stride) {
  static_assert(kWordChannels == 64);
  for (int64_t i = 0; i < pixels; ++i, words += kStepsPerPlane) {
    uint64_t* to = words;
    for (int64_t group = 0; group < groups; ++group) {
      for (int64_t c = 0; c < channels; c += kWordChannels, to += stride) {
        const int64_t left = channels - c, n = left < kWordChannels ? left : kWordChannels;
        if (n == kWordChannels) {
          transpose_64x8(bits, to);
        } else {
          uint8_t last[kWordChannels] = {};
          std::memcpy(last, bits, static_cast<size_t>(n));
          transpose_64x8(last, to);
        }
        bits += n;
      }
    }
  }
}

// Spikes of n channels -> a unit: 8 lengths, then the lists of all `steps` end to end. Returns its end and writes up to
// kListSlack bytes more. Reads whole words of 64 channels; those past the n-th must be silent.
TANDEM_HOST uint8_t* build_unit(const uint8_t* in, int64_t n, int64_t steps, uint8_t* unit) {
  uint8_t* out = unit + 8;
  std::memset(unit, 0, 8);
#if defined(__AVX512VBMI2__)
  const __m512i low = _mm512_loadu_si512(in);
  const __m512i first =
      _mm512_set_epi64(0x3f3e3d3c3b3a3938, 0x3736353433323130, 0x2f2e2d2c2b2a2928, 0x2726252423222120,
                       0x1f1e1d1c1b1a1918, 0x1716151413121110, 0x0f0e0d0c0b0a0908, 0x0706050403020100);
  if (n <= 64) {
    for (int64_t t = 0; t < steps; ++t) {
      const __mmask64 a = _mm512_test_epi8_mask(low, _mm512_set1_epi8(static_cast<char>(1 << t)));
      _mm512_storeu_si512(out, _mm512_maskz_compress_epi8(a, first));
      unit[t] = static_cast<uint8_t>(__builtin_popcountll(a));
      out += unit[t];
    }
    return out;
  }
  const __m512i high = _mm512_loadu_si512(in + 64);
  const __m512i second = _mm512_add_epi8(first, _mm512_set1_epi8(64));
  for (int64_t t = 0; t < steps; ++t) {
    const __m512i step = _mm512_set1_epi8(static_cast<char>(1 << t));
    const __mmask64 a = _mm512_test_epi8_mask(low, step), b = _mm512_test_epi8_mask(high, step);
    _mm512_storeu_si512(out, _mm512_maskz_compress_epi8(a, first));
    out += __builtin_popcountll(a);
    _mm512_storeu_si512(out, _mm512_maskz_compress_epi8(b, second));
    out += __builtin_popcountll(b);
    unit[t] = static_cast<uint8_t>(__builtin_popcountll(a) + __builtin_popcountll(b));
  }
#else
  alignas(64) uint64_t words[2][8];
  const int64_t count = words_for(n);
  for (int64_t w = 0; w < count; ++w) transpose_64x8(in + 64 * w, words[w]);
  for (int64_t t = 0; t < steps; ++t) {
    const uint8_t* list = out;
    for (int64_t w = 0; w < count; ++w) out = list_ones(words[w][t], static_cast<uint8_t>(64 * w), out);
    unit[t] = static_cast<uint8_t>(out - list);
  }
#endif
  return out;
}

// Units of the pixels begin..end-1; they stand one after the other from the place of the first one on.
inline void build_units(const UnitArgs& a, int64_t begin, int64_t end) {
  const int64_t per_pixel = a.groups * a.per_group;
  uint8_t* out = a.lists + begin * pixel_bytes(per_pixel, a.unit_channels);
  alignas(64) uint8_t tail[kUnitRows];
  for (int64_t pixel = begin; pixel < end; ++pixel) {
    const int64_t steps = steps_in_plane(pixel / a.pixels_in, a.steps);
    const uint8_t* bits = a.bits + pixel / a.pixels_in * a.bits_stride;
    bits += pixel % a.pixels_in * a.groups * a.group_channels;
    uint32_t* unit = a.units + pixel * per_pixel;
    for (int64_t group = 0; group < a.groups; ++group, bits += a.group_channels) {
      for (int64_t c = 0; c < a.group_channels; c += a.unit_channels) {
        const int64_t left = a.group_channels - c, n = left < a.unit_channels ? left : a.unit_channels;
        *unit++ = static_cast<uint32_t>(out - a.lists);
        if (n % 64 == 0) {
          out = build_unit(bits + c, n, steps, out);
        } else {
          std::memset(tail + n / 64 * 64, 0, 64);
          std::memcpy(tail, bits + c, static_cast<size_t>(n));
          out = build_unit(tail, n, steps, out);
        }
      }
    }
  }
}

// Copies n bytes, in steps of 16 where those that follow, up to `end`, can be read: writes up to 15 bytes more.
TANDEM_HOST void copy_bytes(uint8_t* to, const uint8_t* from, int64_t n, const uint8_t* end) {
  typedef uint8_t Bytes __attribute__((vector_size(16), aligned(1), may_alias));
  if (end - from < n + 15) {
    std::memcpy(to, from, static_cast<size_t>(n));
    return;
  }
  for (int64_t i = 0; i < n; i += 16) {
    *reinterpret_cast<Bytes*>(to + i) = *reinterpret_cast<const Bytes*>(from + i);
  }
}

// A list, `offset` added to its entries: writes up to 16 bytes more, and reads as many.
TANDEM_HOST void copy_list(uint8_t* to, const uint8_t* from, int64_t n, uint8_t offset) {
  typedef uint8_t Bytes __attribute__((vector_size(16), aligned(1), may_alias));
  int64_t i = 0;
  do {  // most lists are done in one turn
    *reinterpret_cast<Bytes*>(to + i) = *reinterpret_cast<const Bytes*>(from + i) + offset;
    i += 16;
  } while (i < n);
}

// The units of one output pixel's chunk.
struct ChunkUnits {
  const uint8_t* unit[kChunkUnits];
};

// The visits of one chunk of a tile, from `out` on. units: of each row; second: rows of weights that the first unit
// stands for. since: rows that each slot's 16-bit sums have added since they were last emptied, or null. Returns the
// end and adds to `widened` whether a visit widens.
inline uint8_t* write_visits(const ChunkUnits* units, int64_t rows, int64_t steps, int64_t second, uint16_t* since,
                             bool& widened, uint8_t* out) {
  // A counting sort over lengths 0..256.
  struct Place {
    uint32_t slot, list;
  };
  Place place[kChunkRows + 1];
  uint16_t count[kChunkRows + 1];
  uint16_t length[kTileRows * kStepsPerPlane];
  int64_t live[kTileRows], lives = 0, longest = 0;  // rows with a spike
  for (int64_t row = 0; row < rows; ++row) {
    uint64_t spikes[kChunkUnits];
    for (int64_t i = 0; i < kChunkUnits; ++i) std::memcpy(&spikes[i], units[row].unit[i], sizeof(spikes[i]));
    if ((spikes[0] | spikes[1]) == 0) continue;
    uint16_t* to = length + lives * steps;
    for (int64_t t = 0; t < steps; ++t) {
      const int n = units[row].unit[0][t] + units[row].unit[1][t];
      to[t] = static_cast<uint16_t>(n);
      longest = longest < n ? n : longest;
    }
    live[lives++] = row;
  }
  const int64_t slots = lives * steps;
  std::memset(count, 0, static_cast<size_t>(longest + 1) * sizeof(count[0]));
  for (int64_t i = 0; i < slots; ++i) ++count[length[i]];

  ChunkVisits header = {};
  VisitGroup* const groups = reinterpret_cast<VisitGroup*>(out + sizeof(ChunkVisits));
  uint32_t list = 0;
  for (int64_t n = 1; n <= longest; ++n) {
    if (count[n] == 0) continue;
    place[n] = {header.visits, list};
    groups[header.groups++] = {static_cast<uint16_t>(n), count[n]};
    header.visits += count[n];
    header.events += static_cast<uint32_t>(n * count[n]);
    list += static_cast<uint32_t>(list_room(n) * count[n] + kGroupSlack);
  }
  place[0] = {header.visits, list};  // behind all others, where nobody looks
  header.slots = static_cast<uint32_t>(slots);
  uint16_t* const slot_of = reinterpret_cast<uint16_t*>(groups + header.groups);
  uint8_t* const lists = reinterpret_cast<uint8_t*>(slot_of + slots);

  const uint16_t* from = length;
  for (int64_t i = 0; i < lives; ++i) {
    const int64_t row = live[i];
    const uint8_t* list_of[kChunkUnits] = {units[row].unit[0] + 8, units[row].unit[1] + 8};
    for (int64_t t = 0; t < steps; ++t) {
      const uint16_t n = *from++;
      Place& here = place[n];
      uint16_t slot = static_cast<uint16_t>(row * steps + t);
      if (since != nullptr) {  // a slot has one visit a chunk at most
        const int added = since[slot] + n;
        const bool widen = added > kChunkRows;
        since[slot] = widen ? n : static_cast<uint16_t>(added);
        if (widen) slot |= kWiden;
        widened |= widen;
      }
      slot_of[here.slot++] = slot;
      uint8_t* const entries = lists + here.list;
      const int64_t first = units[row].unit[0][t];
      copy_list(entries, list_of[0], first, 0);
      copy_list(entries + first, list_of[1], n - first, static_cast<uint8_t>(second));
      here.list += static_cast<uint32_t>(list_room(n));
      list_of[0] += first;
      list_of[1] += n - first;
    }
  }
  const int64_t bytes = lists + list - out;
  header.bytes = static_cast<uint32_t>((bytes + 7) / 8 * 8);
  std::memcpy(out, &header, sizeof(header));
  return out + header.bytes;
}

// Long, since the two ways to make a chunk share what they find of each row first.
// All visits of a tile in one plane and group, chunk by chunk.
inline void build_visits(const VisitArgs& a, int64_t plane, int64_t group, int64_t tile) {
  const ConvGeometry& g = *a.geometry;
  const int64_t begin = tile * a.tile_rows, left = g.pixels_out() - begin;
  const int64_t rows = left < a.tile_rows ? left : a.tile_rows;
  const int64_t taps = g.taps(), channels = g.group_in(), index = (plane * g.groups + group) * a.tiles + tile;
  const int64_t steps = steps_in_plane(plane, a.steps);
  uint8_t* out = a.visits + index * a.visits_per_tile;
  uint16_t since_[kTileRows * kStepsPerPlane];
  uint16_t* const since = a.narrow_sums ? since_ : nullptr;
  if (since) std::memset(since, 0, sizeof(since_));
  bool widened = false;
  alignas(16) static const uint8_t silent[8 + 16] = {};  // a unit

  Views<kTileRows> views;
  views.look(g, begin, rows);

  ChunkUnits units[kTileRows];
  if (a.taps_per_chunk == 1) {
    const uint32_t* unit_of = a.units + plane * g.pixels_in() * g.groups * a.units_per_group;
    const int64_t per_tap = a.units_per_group, all = taps * per_tap;
    int64_t found[kTileRows] = {}, found_tap = -1;
    for (int64_t first = 0; first < all; first += a.units_per_chunk) {
      for (int64_t i = 0; i < kChunkUnits; ++i) {
        const int64_t tap = (first + i) / per_tap, c = (first + i) % per_tap;
        if (i >= a.units_per_chunk || first + i >= all) {
          for (int64_t row = 0; row < rows; ++row) units[row].unit[i] = silent;
          continue;
        }
        if (tap != found_tap) {
          for (int64_t row = 0; row < rows; ++row) found[row] = views.seen(g, row, tap);
          found_tap = tap;
        }
        for (int64_t row = 0; row < rows; ++row) {
          units[row].unit[i] =
              found[row] < 0 ? silent : a.lists + unit_of[(found[row] * g.groups + group) * per_tap + c];
        }
      }
      const bool last = first % per_tap == per_tap - 1;  // of its tap
      out = write_visits(units, rows, steps, last ? channels - (per_tap - 1) * a.unit_channels : a.unit_channels, since,
                         widened, out);
    }
    a.widened[index] = widened;
    return;
  }
  const uint8_t* bits = a.bits + plane * a.bits_stride + group * channels;
  // All are filled before one is read: a load of what several stores have just written would wait for them.
  alignas(64) uint8_t windows[kTileRows][kChunkRows + 64];
  int64_t tap_h[kChunkRows], tap_w[kChunkRows];  // of a chunk, relative to a row's first tap
  const int64_t reach_h = (g.kernel_h - 1) * g.dilation_h, reach_w = (g.kernel_w - 1) * g.dilation_w;
  for (int64_t chunk = 0; chunk < a.chunks; ++chunk) {
    const int64_t tap_begin = chunk * a.taps_per_chunk;
    const int64_t tap_end = tap_begin + a.taps_per_chunk < taps ? tap_begin + a.taps_per_chunk : taps;
    const int64_t chunk_taps = tap_end - tap_begin, n = chunk_taps * channels;
    for (int64_t i = 0; i < chunk_taps; ++i) {
      tap_h[i] = (tap_begin + i) / g.kernel_w * g.dilation_h;
      tap_w[i] = (tap_begin + i) % g.kernel_w * g.dilation_w;
    }
    for (int64_t row = 0; row < rows; ++row) {
      const bool inside = views.top[row] >= 0 && views.top[row] + reach_h < g.height && views.side[row] >= 0 &&
                          views.side[row] + reach_w < g.width;
      uint8_t* to = windows[row];
      for (int64_t i = 0; i < chunk_taps; ++i, to += channels) {
        const int64_t h = views.top[row] + tap_h[i], w = views.side[row] + tap_w[i];
        if (inside || (h >= 0 && h < g.height && w >= 0 && w < g.width)) {
          copy_bytes(to, bits + (views.image[row] + h * g.width + w) * g.in_channels, channels, a.bits_end);
        } else {
          std::memset(to, 0, static_cast<size_t>(channels));
        }
      }
      std::memset(to, 0, 64);
    }
    uint8_t* unit = a.scratch;
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t i = 0; i < kChunkUnits; ++i) {
        const int64_t of_unit = n - i * kUnitRows < kUnitRows ? n - i * kUnitRows : kUnitRows;
        units[row].unit[i] = of_unit > 0 ? unit : silent;
        if (of_unit > 0) unit = build_unit(windows[row] + i * kUnitRows, of_unit, steps, unit);
      }
    }
    out = write_visits(units, rows, steps, kUnitRows, since, widened, out);
  }
  a.widened[index] = widened;
}

}  // namespace tandem::TANDEM_ISA
