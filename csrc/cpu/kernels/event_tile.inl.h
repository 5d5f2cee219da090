// Event-driven product fused with the neuron loop: rows of weights are added for the inputs that spike, nothing else.
//
// The features of a neuron (taps x channels) fall into chunks of at most 128. A tile of output pixels is swept with one
// chunk of weights at a time, which stays in the L1 cache while every pixel and step of the tile picks its rows from
// it; the accumulators [pixel, step, channel] stay in L2. Three stages:
// - a unit lists the spikes of some channels of one input pixel, for each of 8 steps;
// - a visit is one (pixel, step) of a tile that has spikes in a chunk, with the list of the rows to add. The visits of
// a
//   chunk may be sorted by the length of their lists: the loop over a list is short, its mispredicted end costs more
//   than its additions, and equal lengths in a row are predicted;
// - the sweep makes the visits, for each block of output channels anew.
#include "common/bit_planes.h"
#include "cpu/kernels/kernels.h"

namespace tandem::TANDEM_ISA {

// Spikes of n channels of one pixel -> a unit: 8 lengths, then the lists of all steps end to end. Returns its end and
// writes up to kListSlack bytes more.
TANDEM_HOST_DEVICE uint8_t* build_unit(const uint8_t* bits, int64_t n, uint8_t* unit) {
  uint8_t* out = unit + 8;
  std::memset(unit, 0, 8);
  alignas(64) uint8_t tail[kUnitRows];
  const uint8_t* in = bits;
  if (n % 64 != 0) {
    std::memset(tail, 0, sizeof(tail));
    for (int64_t c = 0; c < n; ++c) tail[c] = bits[c];
    in = tail;
  }
#if defined(__AVX512VBMI2__)
  const __m512i low = _mm512_loadu_si512(in), high = n > 64 ? _mm512_loadu_si512(in + 64) : _mm512_setzero_si512();
  const __m512i first =
      _mm512_set_epi64(0x3f3e3d3c3b3a3938, 0x3736353433323130, 0x2f2e2d2c2b2a2928, 0x2726252423222120,
                       0x1f1e1d1c1b1a1918, 0x1716151413121110, 0x0f0e0d0c0b0a0908, 0x0706050403020100);
  const __m512i second = _mm512_add_epi8(first, _mm512_set1_epi8(64));
  for (int t = 0; t < 8; ++t) {
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
  for (int t = 0; t < 8; ++t) {
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
  for (int64_t pixel = begin; pixel < end; ++pixel) {
    const uint8_t* bits = a.bits + pixel / a.pixels_in * a.bits_stride;
    bits += pixel % a.pixels_in * a.groups * a.group_channels;
    uint32_t* unit = a.units + pixel * per_pixel;
    for (int64_t group = 0; group < a.groups; ++group, bits += a.group_channels) {
      for (int64_t c = 0; c < a.group_channels; c += a.unit_channels) {
        const int64_t left = a.group_channels - c;
        *unit++ = static_cast<uint32_t>(out - a.lists);
        out = build_unit(bits + c, left < a.unit_channels ? left : a.unit_channels, out);
      }
    }
  }
}

// Joins the units of several taps of one pixel into one: the rows of tap i start at first_rows[i].
TANDEM_HOST_DEVICE uint8_t* join_units(const uint8_t* const* taps, const uint8_t* first_rows, int64_t count,
                                       uint8_t* unit) {
  typedef uint8_t Bytes __attribute__((vector_size(16), aligned(1), may_alias));
  const uint8_t* cursor[kUnitRows];
  for (int64_t i = 0; i < count; ++i) cursor[i] = taps[i] + 8;
  uint8_t* out = unit + 8;
  for (int t = 0; t < 8; ++t) {
    const uint8_t* list = out;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t n = taps[i][t];
      for (int64_t j = 0; j < n; j += 16) {
        *reinterpret_cast<Bytes*>(out + j) = *reinterpret_cast<const Bytes*>(cursor[i] + j) + first_rows[i];
      }
      out += n;
      cursor[i] += n;
    }
    unit[t] = static_cast<uint8_t>(out - list);
  }
  return out;
}

TANDEM_HOST_DEVICE bool is_silent(const uint8_t* unit) {
  uint64_t lengths;
  std::memcpy(&lengths, unit, sizeof(lengths));
  return lengths == 0;
}

// Visits of one chunk of a tile. rows_of: the unit of each row, null where it is silent. Returns the end of the visits.
TANDEM_HOST_DEVICE Visit* list_visits(const uint8_t* const* rows_of, int64_t rows, int64_t steps, const uint8_t* lists,
                                      bool sorted, Visit* out) {
  if (!sorted) {
    for (int64_t row = 0; row < rows; ++row) {
      const uint8_t* unit = rows_of[row];
      if (unit == nullptr) continue;
      const uint8_t* list = unit + 8;
      for (int64_t t = 0; t < steps; ++t) {
        *out = {static_cast<uint32_t>(list - lists), static_cast<uint16_t>(row * steps + t), unit[t]};
        out += unit[t] != 0;
        list += unit[t];
      }
    }
    return out;
  }
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
      out[place[unit[t]]++] = {static_cast<uint32_t>(list - lists), static_cast<uint16_t>(row * steps + t), unit[t]};
      list += unit[t];
    }
  }
  return out + end;
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

  int64_t top[kTileRows], side[kTileRows], image[kTileRows];
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t at = begin + row;
    image[row] = at / (g.out_height * g.out_width) * g.height;
    top[row] = at / g.out_width % g.out_height * g.stride_h - g.padding_h;
    side[row] = at % g.out_width * g.stride_w - g.padding_w;
  }
  // The units of tap `tap` of a row, or null outside the image.
  const auto find = [&](int64_t row, int64_t tap) -> const uint32_t* {
    const int64_t h = top[row] + tap / g.kernel_w * g.dilation_h, w = side[row] + tap % g.kernel_w * g.dilation_w;
    if (h < 0 || h >= g.height || w < 0 || w >= g.width) return nullptr;
    return units + (((image[row] + h) * g.width + w) * g.groups + group) * a.units_per_group;
  };

  Visit* out = first;
  const uint8_t* rows_of[kTileRows];
  if (a.taps_per_chunk == 1) {
    const uint32_t* found[kTileRows];
    for (int64_t tap = 0, chunk = 0; tap < taps; ++tap) {
      for (int64_t row = 0; row < rows; ++row) found[row] = find(row, tap);
      for (int64_t c = 0; c < a.units_per_group; ++c, ++chunk) {
        for (int64_t row = 0; row < rows; ++row) {
          const uint8_t* unit = found[row] ? a.lists + found[row][c] : nullptr;
          rows_of[row] = unit && !is_silent(unit) ? unit : nullptr;
        }
        out = list_visits(rows_of, rows, steps, lists, a.sorted, out);
        ends[chunk] = static_cast<uint32_t>(out - first);
      }
    }
    return;
  }
  for (int64_t chunk = 0; chunk < a.chunks; ++chunk) {
    const int64_t tap_begin = chunk * a.taps_per_chunk;
    const int64_t tap_end = tap_begin + a.taps_per_chunk < taps ? tap_begin + a.taps_per_chunk : taps;
    for (int64_t row = 0; row < rows; ++row) {
      const uint8_t* members[kUnitRows];
      uint8_t first_rows[kUnitRows];
      int64_t count = 0;
      for (int64_t tap = tap_begin; tap < tap_end; ++tap) {
        const uint32_t* unit = find(row, tap);
        if (unit == nullptr || is_silent(a.lists + *unit)) continue;
        members[count] = a.lists + *unit;
        first_rows[count++] = static_cast<uint8_t>((tap - tap_begin) * channels);
      }
      rows_of[row] = count ? joined : nullptr;
      if (count) joined = join_units(members, first_rows, count, joined);
    }
    out = list_visits(rows_of, rows, steps, lists, a.sorted, out);
    ends[chunk] = static_cast<uint32_t>(out - first);
  }
}

// acc[row, step, :] += weight[feature, :] for every feature that spikes. kVectors: vectors in a row of weight.
template <class T, int kVectors>
void accumulate(const EventTileArgs<T>& a, int64_t plane, T* acc) {
  constexpr int64_t block = kVectors * kLanes<T>;
  const int64_t index = (plane * a.geometry->groups + a.group) * a.tiles + a.tile;
  const Visit* visit = a.visits + index * a.visits_per_tile;
  const Visit* const first = visit;
  const uint32_t* ends = a.ends + index * a.chunks;
  for (int64_t chunk = 0; chunk < a.chunks; ++chunk) {
    const T* sweep = a.weight + chunk * a.chunk_rows * block;
    for (const Visit* const end = first + ends[chunk]; visit != end; ++visit) {
      const uint8_t* list = a.lists + visit->list;
      Vec<T>* to = reinterpret_cast<Vec<T>*>(acc + visit->slot * block);
      Vec<T> sum[kVectors];
      for (int i = 0; i < kVectors; ++i) sum[i] = to[i];
      int64_t length = visit->length;
      for (; length >= 4; length -= 4, list += 4) {
        uint32_t four;
        std::memcpy(&four, list, sizeof(four));
        for (int j = 0; j < 4; ++j, four >>= 8) {
          const Vec<T>* from = reinterpret_cast<const Vec<T>*>(sweep + (four & 255) * block);
          for (int i = 0; i < kVectors; ++i) sum[i] += from[i];
        }
      }
      for (; length > 0; --length, ++list) {
        const Vec<T>* from = reinterpret_cast<const Vec<T>*>(sweep + *list * block);
        for (int i = 0; i < kVectors; ++i) sum[i] += from[i];
      }
      for (int i = 0; i < kVectors; ++i) to[i] = sum[i];
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
  for (int64_t p = 0; p < (a.first_plane + plane) * kStepsPerPlane; ++p) scale *= 2;
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
  const int64_t rows = a.row_end - a.row_begin;
  T* acc = static_cast<T*>(a.scratch);
  T* u = acc + rows * 8 * block;
  T* sum = u + rows * block;
  const bool fires = a.bits != nullptr;

  for (int64_t row = 0; row < rows; ++row) {
    const int64_t at = (a.row_begin + row) * a.row_stride;
    for (int64_t c = 0; c < block; c += lanes) {
      const bool real = c < a.valid;
      *reinterpret_cast<Vec<T>*>(u + row * block + c) =
          real && a.initial ? load(a.initial + at + c, a.valid - c) : Vec<T>{};
      *reinterpret_cast<Vec<T>*>(sum + row * block + c) = !real              ? Vec<T>{}
                                                          : a.add_sum        ? load(a.sum + at + c, a.valid - c)
                                                          : !fires && a.bias ? load(a.bias + c, a.valid - c)
                                                                             : Vec<T>{};
    }
  }
  for (int64_t plane = 0; plane * kStepsPerPlane < a.steps; ++plane) {
    const int64_t steps = steps_in_plane(plane, a.steps);
    std::memset(acc, 0, static_cast<size_t>(rows * steps * block) * sizeof(T));
    accumulate<T, kVectors>(a, plane, acc);
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
