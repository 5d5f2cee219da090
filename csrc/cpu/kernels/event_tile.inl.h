// Event-driven product fused with the neuron loop: rows of weights are added for the inputs that spike, nothing else.
//
// The features of a neuron (taps x channels) fall into chunks of at most 128. A tile of output pixels is swept with one
// chunk of weights at a time, which stays in the L1 cache while every pixel and step of the tile picks its rows from
// it; the accumulators [pixel, step, channel] stay in L2. Three stages:
// - a unit lists the spikes of some channels of one input pixel, for each of 8 steps;
// - a visit is one (pixel, step) of a tile that has spikes in a chunk, with the list of the rows to add. The visits of
//   a chunk are sorted by the length of their lists: the loop over a list is short, its mispredicted end costs more
//   than its additions, and equal lengths in a row are predicted;
// - the sweep makes the visits, for each block of output channels anew.
//
// 8-bit weights are summed in 16 bits, twice the lanes of a float. A visit that could overflow the sums of its slot
// first moves them to 32 bits, so that the sums are exact whatever the weights, the fan-in and the rate.
#include "common/bit_planes.h"
#include "cpu/kernels/kernels.h"

namespace tandem::TANDEM_ISA {

// Spikes of n channels -> a unit: 8 lengths, then the lists of all `steps` end to end. Returns its end and writes up to
// kListSlack bytes more. Reads whole words of 64 channels; those past the n-th must be silent.
TANDEM_HOST_DEVICE uint8_t* build_unit(const uint8_t* in, int64_t n, int64_t steps, uint8_t* unit) {
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
    for (int64_t w = 0; w < count; ++w) {
      uint64_t word = words[w][t];
      const int64_t spikes = __builtin_popcountll(word);
      // Four entries a turn, whether they exist or not: most lists are short, and this way their loop does not branch.
      for (int64_t i = 0; i < spikes; i += 4) {
        for (int j = 0; j < 4; ++j) {
          out[i + j] = static_cast<uint8_t>(64 * w + (word ? __builtin_ctzll(word) : 0));
          word &= word - 1;
        }
      }
      out += spikes;
    }
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
TANDEM_HOST_DEVICE void copy_bytes(uint8_t* to, const uint8_t* from, int64_t n, const uint8_t* end) {
  typedef uint8_t Bytes __attribute__((vector_size(16), aligned(1), may_alias));
  if (end - from < n + 15) {
    std::memcpy(to, from, static_cast<size_t>(n));
    return;
  }
  for (int64_t i = 0; i < n; i += 16) {
    *reinterpret_cast<Bytes*>(to + i) = *reinterpret_cast<const Bytes*>(from + i);
  }
}

TANDEM_HOST_DEVICE bool is_silent(const uint8_t* unit) {
  uint64_t lengths;
  std::memcpy(&lengths, unit, sizeof(lengths));
  return lengths == 0;
}

// Visits of one chunk of a tile. rows_of: the unit of each row, null where it is silent. Returns the end of the visits.
TANDEM_HOST_DEVICE Visit* list_visits(const uint8_t* const* rows_of, int64_t rows, int64_t steps, const uint8_t* lists,
                                      Visit* out) {
  // A counting sort over lengths 1..128.
  uint32_t place[kUnitRows + 2] = {};
  for (int64_t row = 0; row < rows; ++row) {
    if (rows_of[row] == nullptr) continue;
    for (int64_t t = 0; t < steps; ++t) ++place[rows_of[row][t] + 1];
  }
  place[1] = 0;
  for (int64_t n = 1; n <= kUnitRows; ++n) place[n + 1] += place[n];
  const uint32_t end = place[kUnitRows + 1];
  place[0] = end;  // length 0: behind all others, where nobody looks
  for (int64_t row = 0; row < rows; ++row) {
    const uint8_t* unit = rows_of[row];
    if (unit == nullptr) continue;
    const uint8_t* list = unit + 8;
    for (int64_t t = 0; t < steps; ++t) {
      out[place[unit[t]]++] = {static_cast<uint32_t>(list - lists), static_cast<uint16_t>(row * steps + t), unit[t], 0};
      list += unit[t];
    }
  }
  return out + end;
}

// Marks the visits whose rows of 8-bit weights could overflow the 16-bit sums of their slot. since: rows that each slot
// has added since it was last emptied. Returns whether there are any.
TANDEM_HOST_DEVICE bool mark_widening(Visit* visit, const Visit* end, uint16_t* since) {
  bool any = false;
  for (; visit != end; ++visit) {
    const int rows = since[visit->slot] + visit->length;
    const bool widen = rows > kNarrowRows;
    visit->widen = widen;
    since[visit->slot] = static_cast<uint16_t>(widen ? visit->length : rows);
    any |= widen;
  }
  return any;
}

// All visits of a tile in one plane and group, chunk by chunk; ends[chunk] is the end of each chunk's.
inline void build_visits(const VisitArgs& a, int64_t plane, int64_t group, int64_t tile) {
  const ConvGeometry& g = *a.geometry;
  const int64_t begin = tile * a.tile_rows, left = g.pixels_out() - begin;
  const int64_t rows = left < a.tile_rows ? left : a.tile_rows;
  const int64_t taps = g.taps(), channels = g.group_in(), index = (plane * g.groups + group) * a.tiles + tile;
  const uint32_t* units = a.units + plane * g.pixels_in() * g.groups * a.units_per_group;
  Visit* const first = a.visits + index * a.visits_per_tile;
  uint32_t* ends = a.ends + index * a.chunks;
  uint8_t* joined = a.joined + index * a.joined_per_tile;
  const uint8_t* lists = a.taps_per_chunk > 1 ? a.joined : a.lists;
  const int64_t steps = steps_in_plane(plane, a.steps);
  uint16_t since[kTileRows * kStepsPerPlane];
  if (a.narrow_sums) std::memset(since, 0, sizeof(since));
  bool widened = false;

  int64_t top[kTileRows], side[kTileRows], image[kTileRows];
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t at = begin + row;
    image[row] = at / (g.out_height * g.out_width) * g.height;
    top[row] = at / g.out_width % g.out_height * g.stride_h - g.padding_h;
    side[row] = at % g.out_width * g.stride_w - g.padding_w;
  }
  // The input pixel of tap `tap` of a row, or -1 outside the image.
  const auto find = [&](int64_t row, int64_t tap) -> int64_t {
    const int64_t h = top[row] + tap / g.kernel_w * g.dilation_h, w = side[row] + tap % g.kernel_w * g.dilation_w;
    if (h < 0 || h >= g.height || w < 0 || w >= g.width) return -1;
    return (image[row] + h) * g.width + w;
  };

  Visit* out = first;
  const uint8_t* rows_of[kTileRows];
  const auto finish_chunk = [&](int64_t chunk) {
    Visit* const begin_of_chunk = out;
    out = list_visits(rows_of, rows, steps, lists, out);
    ends[chunk] = static_cast<uint32_t>(out - first);
    if (a.narrow_sums) widened |= mark_widening(begin_of_chunk, out, since);
    a.widened[index] = widened;
  };
  if (a.taps_per_chunk == 1) {
    int64_t found[kTileRows];
    for (int64_t tap = 0, chunk = 0; tap < taps; ++tap) {
      for (int64_t row = 0; row < rows; ++row) found[row] = find(row, tap);
      for (int64_t c = 0; c < a.units_per_group; ++c, ++chunk) {
        for (int64_t row = 0; row < rows; ++row) {
          const uint8_t* unit =
              found[row] < 0 ? nullptr : a.lists + units[(found[row] * g.groups + group) * a.units_per_group + c];
          rows_of[row] = unit && !is_silent(unit) ? unit : nullptr;
        }
        finish_chunk(chunk);
      }
    }
    return;
  }
  const uint8_t* bits = a.bits + plane * a.bits_stride + group * channels;
  // All are filled before one is read: a load of what several stores have just written would wait for them.
  alignas(64) uint8_t windows[kTileRows][kUnitRows + 64];
  int64_t tap_h[kUnitRows], tap_w[kUnitRows];  // of a chunk, relative to a row's first tap
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
      const bool inside =
          top[row] >= 0 && top[row] + reach_h < g.height && side[row] >= 0 && side[row] + reach_w < g.width;
      uint8_t* to = windows[row];
      for (int64_t i = 0; i < chunk_taps; ++i, to += channels) {
        const int64_t h = top[row] + tap_h[i], w = side[row] + tap_w[i];
        if (inside || (h >= 0 && h < g.height && w >= 0 && w < g.width)) {
          copy_bytes(to, bits + ((image[row] + h) * g.width + w) * g.in_channels, channels, a.bits_end);
        } else {
          std::memset(to, 0, static_cast<size_t>(channels));
        }
      }
      std::memset(to, 0, 64);
    }
    for (int64_t row = 0; row < rows; ++row) {
      uint8_t* const end = build_unit(windows[row], n, steps, joined);
      rows_of[row] = end == joined + 8 ? nullptr : joined;
      if (rows_of[row]) joined = end;
    }
    finish_chunk(chunk);
  }
}

// Sums of 16 bits -> 32 bits, for all lanes of a slot: wide += narrow, narrow = 0.
template <int kVectors>
TANDEM_HOST_DEVICE void empty_slot(int16_t* narrow, int32_t* wide) {
  using Wide = Simd<float>::Int32;
  using Narrow = Simd<float>::Int16;
  for (int i = 0; i < 2 * kVectors; ++i) {
    Wide* to = reinterpret_cast<Wide*>(wide) + i;
    Narrow* from = reinterpret_cast<Narrow*>(narrow) + i;
    const Narrow sum = *from;
    *to += __builtin_convertvector(sum, Wide);
    *from = Narrow{};
  }
}

// acc[slot, :] += sweep[row, :] for the rows of the lists of all visits, from `visit` on, that are as long as its own.
// kRest: their length modulo 8. Returns the visit that follows.
template <class E, int kVectors, int kRest>
const Visit* add_rows(const uint8_t* lists, const E* sweep, E* acc, int32_t* wide, const Visit* visit, const Visit* end,
                      const char** ahead, int64_t lines_a_visit) {
  constexpr int64_t block = kVectors * kLanes<E>;
  const int length = visit->length, eights = length / 8;
  const char* fetch = *ahead;
  do {
    for (int64_t i = 0; i < lines_a_visit; ++i, fetch += 64) __builtin_prefetch(fetch, 0, 2);
    const uint8_t* list = lists + visit->list;
    Vec<E>* to = reinterpret_cast<Vec<E>*>(acc + visit->slot * block);
    if (sizeof(E) == 2 && visit->widen) {
      empty_slot<kVectors>(reinterpret_cast<int16_t*>(to), wide + visit->slot * block);
    }
    Vec<E> sum[kVectors];
    for (int i = 0; i < kVectors; ++i) sum[i] = to[i];
    const auto add = [&](int j) TANDEM_INLINE {
      const Vec<E>* from = reinterpret_cast<const Vec<E>*>(sweep + list[j] * block);
      for (int i = 0; i < kVectors; ++i) sum[i] += from[i];
    };
    for (int i = 0; i < eights; ++i, list += 8) unrolled<8>(add);
    unrolled<kRest>(add);
    for (int i = 0; i < kVectors; ++i) to[i] = sum[i];
    ++visit;
  } while (visit != end && visit->length == length);
  *ahead = fetch;
  return visit;
}

template <class E, int kVectors>
constexpr decltype(&add_rows<E, kVectors, 0>) kAddRows[8] = {
    add_rows<E, kVectors, 0>, add_rows<E, kVectors, 1>, add_rows<E, kVectors, 2>, add_rows<E, kVectors, 3>,
    add_rows<E, kVectors, 4>, add_rows<E, kVectors, 5>, add_rows<E, kVectors, 6>, add_rows<E, kVectors, 7>};

// Weights of a block beyond this many bytes do not stay in the L2 cache from tile to tile.
constexpr int64_t kResidentBytes = int64_t{256} << 10;

// acc[row, step, :] += weight[feature, :] for every feature that spikes. kVectors: vectors in a row of weight.
template <class E, class T, int kVectors>
void accumulate(const EventTileArgs<E, T>& a, int64_t plane, E* acc, int32_t* wide) {
  constexpr int64_t block = kVectors * kLanes<E>;
  const int64_t index = (plane * a.geometry->groups + a.group) * a.tiles + a.tile;
  const Visit* visit = a.visits + index * a.visits_per_tile;
  const Visit* const first = visit;
  const uint32_t* ends = a.ends + index * a.chunks;
  const auto start_of = [&](int64_t chunk) {
    return a.weight + (chunk / a.units_per_tap * a.tap_rows + chunk % a.units_per_tap * a.unit_rows) * block;
  };
  constexpr int64_t row_bytes = block * static_cast<int64_t>(sizeof(E));
  const bool prefetches = a.geometry->features() * row_bytes > kResidentBytes;
  for (int64_t chunk = 0; chunk < a.chunks; ++chunk) {
    const E* sweep = start_of(chunk);
    const Visit* const end = first + ends[chunk];
    // The next chunk's weights (the first one's, for the next tile) come to the L2 cache while this one's are added.
    const char* ahead = reinterpret_cast<const char*>(start_of(chunk + 1 < a.chunks ? chunk + 1 : 0));
    const int64_t lines = (a.units_per_tap == 1 ? a.tap_rows : a.unit_rows) * row_bytes / 64;
    const int64_t lines_a_visit = prefetches && visit != end ? (lines + (end - visit) - 1) / (end - visit) : 0;
    while (visit != end) {  // those of equal length together
      visit = kAddRows<E, kVectors>[visit->length % 8](a.lists, sweep, acc, wide, visit, end, & ahead, lines_a_visit);
    }
  }
}

// The sums of one plane, [rows, steps, block].
template <class E>
struct Sums {
  const E* narrow;
  const int32_t* wide;  // what was moved out of 16-bit sums; null where nothing was

  // One vector of the neurons' type, from element `at` on.
  template <class T>
  TANDEM_HOST_DEVICE Vec<T> operator()(int64_t at) const {
    if constexpr (sizeof(E) == 2) {
      using Wide = typename Simd<T>::Int32;
      using Narrow = typename Simd<T>::Int16;
      const Narrow low = *reinterpret_cast<const Narrow*>(narrow + at);
      Wide sum = __builtin_convertvector(low, Wide);
      if (wide) sum += *reinterpret_cast<const Wide*>(wide + at);
      return __builtin_convertvector(sum, Vec<T>);
    } else {
      return *reinterpret_cast<const Vec<T>*>(narrow + at);
    }
  }
};

// The neuron loop over the steps of one plane; potential and sum are carried from plane to plane in [rows, block].
// kVectors of a row step together, since each of them waits for itself from step to step.
template <class E, class T, int kVectors, class Leak>
void fire(const EventTileArgs<E, T>& args, int64_t plane, int64_t steps, const Sums<E>& sums, T* carried_u,
          T* carried_sum, Leak leak) {
  const EventTileArgs<E, T> a = args;  // a copy, which the stores cannot change
  constexpr int64_t lanes = kLanes<T>;
  const Vec<T> threshold = broadcast(a.neuron.threshold);
  for (int64_t row = 0; row < a.row_end - a.row_begin; ++row) {
    uint8_t* bits = a.bits + plane * a.bits_stride + (a.row_begin + row) * a.row_stride;
    for (int64_t c = 0; c < a.valid; c += kVectors * lanes) {
      Vec<T>* const u_place = reinterpret_cast<Vec<T>*>(carried_u + row * a.block + c);
      Vec<T>* const sum_place = reinterpret_cast<Vec<T>*>(carried_sum + row * a.block + c);
      Vec<T> u[kVectors], sum[kVectors], scale[kVectors], bias[kVectors];
      unrolled<kVectors>([&](int j) TANDEM_INLINE {
        const int64_t left = a.valid - c - j * lanes;
        u[j] = u_place[j];
        sum[j] = sum_place[j];
        scale[j] = a.scale && left > 0 ? load(a.scale + c + j * lanes, left) : Vec<T>{};
        bias[j] = a.bias && left > 0 ? load(a.bias + c + j * lanes, left) : Vec<T>{};
      });
      SpikeWord<T, kVectors> word;
      const auto step = [&](int t) TANDEM_INLINE {
        unrolled<kVectors>([&](int j) TANDEM_INLINE {
          Vec<T> x = sums.template operator()<T>((row * steps + t) * a.block + c + j * lanes);
          if (a.scale) x *= scale[j];
          if (a.bias) x += bias[j];
          u[j] = membrane_update(u[j], x, threshold, leak);
          sum[j] += x;
        });
        word.add(u, threshold, t);
      };
      if (steps == kStepsPerPlane) {
        unrolled<kStepsPerPlane>(step);
      } else {
        for (int t = 0; t < steps; ++t) step(t);
      }
      word.store(bits + c, a.valid - c);
      unrolled<kVectors>([&](int j) TANDEM_INLINE {
        u_place[j] = u[j];
        sum_place[j] = sum[j];
      });
    }
  }
}

// A count product: the sums belong to the binary digits of the counts.
template <class E, class T>
void weigh_digits(const EventTileArgs<E, T>& a, int64_t plane, int64_t steps, const Sums<E>& sums, T* carried_sum) {
  constexpr int64_t lanes = kLanes<T>;
  T first = 1;
  for (int64_t p = 0; p < (a.first_plane + plane) * kStepsPerPlane; ++p) first *= 2;
  for (int64_t row = 0; row < a.row_end - a.row_begin; ++row) {
    for (int64_t c = 0; c < a.valid; c += lanes) {
      Vec<T>& place = *reinterpret_cast<Vec<T>*>(carried_sum + row * a.block + c);
      Vec<T> sum = place, factor = broadcast(first);
      for (int64_t t = 0; t < steps; ++t) {
        sum += factor * sums.template operator()<T>((row * steps + t) * a.block + c);
        factor += factor;
      }
      place = sum;
    }
  }
}

template <class E, class T, int kVectors>
void event_tile_of(const EventTileArgs<E, T>& a) {
  constexpr int64_t lanes = kLanes<T>, block = kVectors * kLanes<E>;
  const int64_t rows = a.row_end - a.row_begin;
  const bool fires = a.bits != nullptr;
  T* u = static_cast<T*>(a.scratch);
  T* sum = u + rows * block;
  E* acc = reinterpret_cast<E*>(sum + rows * block);
  int32_t* wide = reinterpret_cast<int32_t*>(acc + rows * kStepsPerPlane * block);  // of 16-bit sums alone

  for (int64_t row = 0; row < rows; ++row) {
    const int64_t at = (a.row_begin + row) * a.row_stride;
    for (int64_t c = 0; c < block; c += lanes) {
      const bool real = c < a.valid;
      *reinterpret_cast<Vec<T>*>(u + row * block + c) =
          real && a.initial ? load(a.initial + at + c, a.valid - c) : Vec<T>{};
      *reinterpret_cast<Vec<T>*>(sum + row * block + c) =
          real && a.add_sum ? load(a.sum + at + c, a.valid - c) : Vec<T>{};
    }
  }
  for (int64_t plane = 0; plane * kStepsPerPlane < a.steps; ++plane) {
    const int64_t steps = steps_in_plane(plane, a.steps);
    const bool widened = sizeof(E) == 2 && a.widened[(plane * a.geometry->groups + a.group) * a.tiles + a.tile];
    std::memset(acc, 0, static_cast<size_t>(rows * steps * block) * sizeof(E));
    if (widened) std::memset(wide, 0, static_cast<size_t>(rows * steps * block) * sizeof(int32_t));
    accumulate<E, T, kVectors>(a, plane, acc, wide);
    const Sums<E> sums = {acc, widened ? wide : nullptr};
    if (fires) {
      constexpr int64_t kAll = block / lanes;
      constexpr int kTogether = kAll < kSpikeVectors ? 1 : kSpikeVectors;
      if (a.neuron.leak == 1) {
        fire<E, T, kTogether>(a, plane, steps, sums, u, sum, NoLeak{});
      } else {
        fire<E, T, kTogether>(a, plane, steps, sums, u, sum, broadcast(a.neuron.leak));
      }
    } else {
      weigh_digits<E, T>(a, plane, steps, sums, sum);
    }
  }
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t at = (a.row_begin + row) * a.row_stride;
    for (int64_t c = 0; c < a.valid; c += lanes) {
      const int64_t left = a.valid - c;
      Vec<T> total = *reinterpret_cast<Vec<T>*>(sum + row * block + c);
      if (!fires && a.last) {
        if (a.scale) total *= load(a.scale + c, left);
        if (a.bias) total += load(a.bias + c, left);
      }
      if (a.sum) store(a.sum + at + c, total, left);
      if (a.potential) store(a.potential + at + c, *reinterpret_cast<Vec<T>*>(u + row * block + c), left);
    }
  }
}

template <class E, class T>
void event_tile(const EventTileArgs<E, T>& a) {
  const int64_t row_bytes = a.block * static_cast<int64_t>(sizeof(E));
  if (row_bytes == 256) {
    event_tile_of<E, T, 256 / kVectorBytes>(a);
  } else if (row_bytes == 128) {
    event_tile_of<E, T, 128 / kVectorBytes>(a);
  } else {
    event_tile_of<E, T, 64 / kVectorBytes>(a);
  }
}

}  // namespace tandem::TANDEM_ISA
