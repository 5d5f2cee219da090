// Products of spike counts with integer weights on instructions that multiply bytes: the dense engine of counts, for a
// neuron that waits needs one product whatever the number of time steps. 16-bit weights are two digits of 8 bits, with
// a sum each.
//
// With VNNI, an instruction multiplies four bytes and adds them to 32 bits; so does one of aarch64, where both are
// signed: a count beyond 127 takes two products. Other instructions of x86 multiply two bytes and add both products in
// 16 bits, where the sums of several of them fit: the smaller the counts, the more.
//
// The weights were rearranged when they were packed (fill_panel); the inputs of some output pixels are, once for all
// blocks of outputs (count_rows.inl.h).
#pragma once

#include "cpu/simd.inl.h"
#include "neuron/epilogue.inl.h"
#include "ops/product/count_rows.inl.h"
#include "ops/product/cpu_count_kernels.h"
#include "ops/radix_spikes/radix_spikes.inl.h"

namespace tandem::TANDEM_ISA {

#if defined(__AVX2__) || defined(TANDEM_DOT)

using Quads = Vec<int32_t>;  // lanes of four bytes, or sums
typedef int16_t Halves __attribute__((vector_size(sizeof(Quads) / 2)));

// Writes a panel. integers(row, output): the weights from this output on, in as many bits as kDigits take.
template <int kDigits, class E, class F>
TANDEM_HOST void fill_digits(const PanelArgs<E>& a, const F& integers) {
  const PanelSizes& sizes = a.sizes;
  const int64_t parts = a.block / kPartOutputs;
  for (int64_t tap = 0; tap < a.taps; ++tap) {
    for (int64_t c = 0; c < sizes.group_counts; c += 4) {
      // All parts of a row, which is a line of the cache or more.
      for (int64_t part = 0; part < parts; ++part) {
        uint8_t* const quads = a.panel + part * sizes.part_bytes() + (tap * sizes.group_counts + c) * kPartOutputs;
        for (int64_t at = 0; at < kPartOutputs; at += kLanes<int32_t>) {
          Quads four[kDigits] = {};
          for (int64_t i = 0; i < 4 && c + i < a.channels; ++i) {
            Quads rest = integers(tap * a.channels + c + i, part * kPartOutputs + at);
            unrolled<kDigits>([&](int digit) TANDEM_INLINE {
              four[digit] |= (rest & 255) << static_cast<int>(8 * i);
              rest = (rest + 128) >> 8;
            });
          }
          unrolled<kDigits>([&](int digit) TANDEM_INLINE {
            std::memcpy(quads + digit * sizes.digit_bytes(a.block) + 4 * at, &four[digit], sizeof(Quads));
          });
        }
      }
    }
  }
  const int64_t written = a.taps * sizes.group_counts;
  for (int64_t part = 0; part < parts; ++part) {
    for (int64_t digit = 0; digit < kDigits; ++digit) {
      std::memset(a.panel + part * sizes.part_bytes() + digit * sizes.digit_bytes(a.block) + written * kPartOutputs, 0,
                  static_cast<size_t>((sizes.depth - written) * kPartOutputs));
    }
  }
}

template <class E>
void fill_panel(const PanelArgs<E>& a) {
  constexpr int kDigits = kDigitsOf8<E>;
  const auto from = [&](int64_t row, int64_t output) TANDEM_INLINE {
    const int64_t outputs = a.holds.paired_outputs ? 2 : 1;
    return a.weight + (a.holds.paired_inputs ? 2 : 1) * row * outputs * a.block + outputs * output;
  };
  if (a.holds.paired_outputs) {
    using Pair = std::conditional_t<sizeof(E) == 1, int16_t, int32_t>;
    typedef Pair Pairs __attribute__((vector_size(kLanes<int32_t> * sizeof(Pair))));
    fill_digits<kDigits>(a, [&](int64_t row, int64_t output) TANDEM_INLINE {
      constexpr int kBits = 8 * sizeof(E);
      Pairs pairs;
      std::memcpy(&pairs, from(row, output), sizeof(pairs));
      return __builtin_convertvector(pairs << kBits >> kBits, Quads);
    });
    return;
  }
  typedef E Few __attribute__((vector_size(kLanes<int32_t> * sizeof(E))));
  fill_digits<kDigits>(a, [&](int64_t row, int64_t output) TANDEM_INLINE {
    Few few;
    std::memcpy(&few, from(row, output), sizeof(few));
    // GCC would convert bytes to 32 bits one by one.
    const Halves half = __builtin_convertvector(few, Halves);
    return __builtin_convertvector(half, Quads);
  });
}

// Four counts in every lane.
TANDEM_HOST Quads broadcast_quad(const uint8_t* counts) {
#if defined(__AVX512BW__)
  int32_t four;
  std::memcpy(&four, counts, sizeof(four));
  return reinterpret_cast<Quads>(_mm512_set1_epi32(four));
#elif defined(TANDEM_DOT)
  int32_t four;
  std::memcpy(&four, counts, sizeof(four));
  return reinterpret_cast<Quads>(vdupq_n_s32(four));
#else
  float four;  // GCC would load an integer by way of a register
  std::memcpy(&four, counts, sizeof(four));
  return reinterpret_cast<Quads>(_mm256_set1_ps(four));
#endif
}

// Weights of a block as instructions take them, and what stands beside them in the tile.
struct BlockOfWeights {
  const uint8_t* panel;
  int64_t part_bytes;
  int64_t outputs;  // of the block

  template <int kVectors>
  TANDEM_HOST void load(int64_t quad, Quads (&weights)[kVectors]) const {
    constexpr int64_t lanes = kLanes<int32_t>;
    unrolled<kVectors>([&](int v) TANDEM_INLINE {
      const uint8_t* const part = panel + v * lanes / kPartOutputs * part_bytes + v * lanes % kPartOutputs * 4;
      std::memcpy(&weights[v], part + quad * kQuadBytes, sizeof(Quads));
    });
  }
  // The same from a later output on.
  TANDEM_HOST BlockOfWeights from(int64_t output) const {
    return {panel + output / kPartOutputs * part_bytes + output % kPartOutputs * 4, part_bytes, outputs};
  }
};

// The inputs of output pixels, one after the other.
struct Rows {
  const uint8_t* first;
  int64_t stride;

  TANDEM_HOST Rows from(int64_t row) const { return {first + row * stride, stride}; }
};

// Which bits of a count are multiplied.
enum class Bits { kAll, kLow, kHigh };

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__) || defined(TANDEM_DOT)

#if defined(TANDEM_DOT)
constexpr int64_t kLargestFactor = 127;
#else
constexpr int64_t kLargestFactor = 255;
#endif

// sums += the products of each four bytes, counts up to kLargestFactor. GCC would copy every sum of an intrinsic of x86
// to another register and back.
TANDEM_HOST void add_products(Quads& sums, Quads counts, Quads weights) {
#if defined(__AVX512VNNI__)
  asm("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(counts), "v"(weights));
#elif defined(__AVXVNNI__)
  asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sums) : "x"(counts), "x"(weights));
#else
  sums = reinterpret_cast<Quads>(vdotq_s32(reinterpret_cast<int32x4_t>(sums), reinterpret_cast<int8x16_t>(counts),
                                           reinterpret_cast<int8x16_t>(weights)));
#endif
}

// sum[pixel, output] += counts * weights for kPixels pixels, kVectors vectors of outputs and `quads` quads of features.
// begins: sum is 0, whatever it holds.
template <int kVectors, int kPixels, Bits kBits>
TANDEM_HOST void multiply_bits(const Rows& counts, const BlockOfWeights& block, int64_t quads, bool begins,
                               int32_t* sum) {
  Quads total[kPixels][kVectors];
  const auto sums = [&](int p, int v) TANDEM_INLINE {
    return reinterpret_cast<Quads*>(sum + p * block.outputs + int64_t{v} * kLanes<int32_t>);
  };
  unrolled<kPixels>([&](int p) TANDEM_INLINE {
    unrolled<kVectors>([&](int v)
                           TANDEM_INLINE { total[p][v] = begins || kBits == Bits::kHigh ? Quads{} : *sums(p, v); });
  });
  for (int64_t q = 0; q < quads; ++q) {
    Quads weights[kVectors];
    block.load(q, weights);
    unrolled<kPixels>([&](int p) TANDEM_INLINE {
      Quads input = broadcast_quad(counts.first + p * counts.stride + 4 * q);
      if constexpr (kBits == Bits::kLow) input &= 0x7F7F7F7F;
      if constexpr (kBits == Bits::kHigh) input = input >> 7 & 0x01010101;
      unrolled<kVectors>([&](int v) TANDEM_INLINE { add_products(total[p][v], input, weights[v]); });
    });
  }
  unrolled<kPixels>([&](int p) TANDEM_INLINE {
    unrolled<kVectors>([&](int v) TANDEM_INLINE {
      *sums(p, v) = kBits == Bits::kHigh ? *sums(p, v) + 128 * total[p][v] : total[p][v];
    });
  });
}

template <int kVectors, int kPixels>
TANDEM_HOST void multiply(const Rows& counts, const BlockOfWeights& block, int64_t quads, int64_t largest, bool begins,
                          int32_t* sum) {
  if constexpr (kLargestFactor < 255) {
    if (largest > kLargestFactor) {
      multiply_bits<kVectors, kPixels, Bits::kLow>(counts, block, quads, begins, sum);
      multiply_bits<kVectors, kPixels, Bits::kHigh>(counts, block, quads, false, sum);
      return;
    }
  }
  multiply_bits<kVectors, kPixels, Bits::kAll>(counts, block, quads, begins, sum);
}

#else

TANDEM_HOST Vec<int16_t> pair_products(Quads counts, Quads weights) {
#if defined(__AVX512BW__)
  return reinterpret_cast<Vec<int16_t> >(
      _mm512_maddubs_epi16(reinterpret_cast<__m512i>(counts), reinterpret_cast<__m512i>(weights)));
#else
  return reinterpret_cast<Vec<int16_t> >(
      _mm256_maddubs_epi16(reinterpret_cast<__m256i>(counts), reinterpret_cast<__m256i>(weights)));
#endif
}

// factor * the sums of each two neighbours.
TANDEM_HOST Quads pair_sums(Vec<int16_t> pairs, int16_t factor) {
#if defined(__AVX512BW__)
  return reinterpret_cast<Quads>(_mm512_madd_epi16(reinterpret_cast<__m512i>(pairs), _mm512_set1_epi16(factor)));
#else
  return reinterpret_cast<Quads>(_mm256_madd_epi16(reinterpret_cast<__m256i>(pairs), _mm256_set1_epi16(factor)));
#endif
}

// Quads of features whose products, two of a quad in a sum, fit 16 bits: counts up to `largest` times -128 to 127.
constexpr int64_t quads_in_16_bits(int64_t largest) { return 128 / largest; }

// sum[pixel, output] += counts * weights for kPixels pixels, kVectors vectors of outputs and `quads` quads of features.
// begins: sum is 0, whatever it holds.
template <int kVectors, int kPixels, Bits kBits>
TANDEM_HOST void multiply_bits(const Rows& counts, const BlockOfWeights& block, int64_t quads, int64_t largest,
                               bool begins, int32_t* sum) {
  const int64_t most = quads_in_16_bits(largest);
  for (int64_t first = 0; first < quads; first += most) {
    const int64_t last = first + most < quads ? first + most : quads;
    Vec<int16_t> total[kPixels][kVectors];
    const auto add = [&](int64_t q, auto is_first) TANDEM_INLINE {
      Quads weights[kVectors];
      block.load(q, weights);
      unrolled<kPixels>([&](int p) TANDEM_INLINE {
        Quads input = broadcast_quad(counts.first + p * counts.stride + 4 * q);
        if constexpr (kBits == Bits::kHigh) input >>= 4;
        if constexpr (kBits != Bits::kAll) input &= 0x0F0F0F0F;
        unrolled<kVectors>([&](int v) TANDEM_INLINE {
          const Vec<int16_t> products = pair_products(input, weights[v]);
          total[p][v] = is_first ? products : total[p][v] + products;
        });
      });
    };
    add(first, std::true_type{});
    for (int64_t q = first + 1; q < last; ++q) add(q, std::false_type{});
    unrolled<kPixels>([&](int p) TANDEM_INLINE {
      unrolled<kVectors>([&](int v) TANDEM_INLINE {
        auto* const to = reinterpret_cast<Quads*>(sum + p * block.outputs + int64_t{v} * kLanes<int32_t>);
        const Quads sums = pair_sums(total[p][v], kBits == Bits::kHigh ? 16 : 1);
        *to = begins ? sums : *to + sums;
      });
    });
    begins = false;
  }
}

template <int kVectors, int kPixels>
TANDEM_HOST void multiply(const Rows& counts, const BlockOfWeights& block, int64_t quads, int64_t largest, bool begins,
                          int32_t* sum) {
  if (largest <= 128) {
    multiply_bits<kVectors, kPixels, Bits::kAll>(counts, block, quads, largest, begins, sum);
  } else {
    multiply_bits<kVectors, kPixels, Bits::kLow>(counts, block, quads, 15, begins, sum);
    multiply_bits<kVectors, kPixels, Bits::kHigh>(counts, block, quads, 15, false, sum);
  }
}

#endif

// Measured: docs/performance_notes.md; but on aarch64 the slope is that of AVX-VNNI, or half of it for two products.
inline double byte_slope(int64_t largest) {
#if defined(__AVX512VNNI__)
  static_cast<void>(largest);
  return 5;
#elif defined(__AVXVNNI__) || defined(TANDEM_DOT)
  return largest <= kLargestFactor ? 2.5 : 1.25;
#else
  return largest <= 128 ? 1.6 : 0.8;
#endif
}

// Of all pixels, of some outputs of the block.
template <int kVectors>
TANDEM_HOST void multiply_rows(const Rows& counts, int64_t rows, const BlockOfWeights& block, int64_t quads,
                               int64_t largest, bool begins, int32_t* sum) {
  constexpr int kMost = kVectorBytes == 32 ? 12 / kVectors : 6;  // as many sums as there are registers for
  int64_t row = 0;
  for (; row + kMost <= rows; row += kMost) {
    multiply<kVectors, kMost>(counts.from(row), block, quads, largest, begins, sum + row * block.outputs);
  }
  if constexpr (kMost == 6) {
    for (; row + 3 <= rows; row += 3) {
      multiply<kVectors, 3>(counts.from(row), block, quads, largest, begins, sum + row * block.outputs);
    }
  }
  for (; row < rows; ++row)
    multiply<kVectors, 1>(counts.from(row), block, quads, largest, begins, sum + row * block.outputs);
}

// Vectors of outputs whose products share the inputs in registers. With AVX-VNNI, 12 sums, 2 vectors of weights and an
// input fit into its 16 registers; beside 4 vectors of weights, sums would go to memory. Without VNNI, weights are
// operands in memory.
#if defined(__AVXVNNI__)
constexpr int kMostVectors = 2;
#else
constexpr int kMostVectors = 4;
#endif

// Of all outputs of the block.
TANDEM_HOST void multiply_block(const Rows& counts, int64_t rows, const BlockOfWeights& block, int64_t quads,
                                int64_t largest, bool begins, int32_t* sum) {
  constexpr int64_t kVector = kLanes<int32_t>;
  if (block.outputs < 2 * kVector) {
    multiply_rows<1>(counts, rows, block, quads, largest, begins, sum);
  } else if (block.outputs < kMostVectors * kVector) {
    multiply_rows<2>(counts, rows, block, quads, largest, begins, sum);
  } else {
    for (int64_t at = 0; at < block.outputs; at += kMostVectors * kVector) {
      multiply_rows<kMostVectors>(counts, rows, block.from(at), quads, largest, begins, sum + at);
    }
  }
}

// The sums of a vector of outputs, from `sum` on. With kPaired each has two outputs, the second with the other sign.
template <bool kPaired>
TANDEM_HOST Simd<float>::Int32 sums_of_outputs(const int32_t* sum) {
  using Exact = Simd<float>::Int32;
  if constexpr (!kPaired) return *reinterpret_cast<const Exact*>(sum);
  typedef uint32_t Half __attribute__((vector_size(sizeof(Exact) / 2)));
  typedef uint64_t Twice __attribute__((vector_size(sizeof(Exact))));
  Half half;
  std::memcpy(&half, sum, sizeof(half));
  const Twice low = __builtin_convertvector(half, Twice);
  const Exact every_second = reinterpret_cast<Exact>(Twice{} + (uint64_t{0xFFFFFFFF} << 32));
  return (reinterpret_cast<Exact>(low | low << 32) ^ every_second) - every_second;
}

// Sums of a tile in 32 bits.
struct TileSums {
  const int32_t* first;   // of the first row and output
  const int32_t* behind;  // of the row that is subtracted from the first one, or null
  int64_t row_stride, digit_stride;
  int64_t behind_stride;  // from the row that is subtracted from a row to that of the next row
};

// A vector of the sums of a row, from an output on. unit: of floats.
template <class E, bool kPaired, bool kSubtracts>
TANDEM_HOST Vec<float> sum_of(const TileSums& s, int64_t row, int64_t output, const float* unit, int64_t left) {
  using Wide = LanesOf<float, double>::type;
  const auto digit = [&](int64_t i) TANDEM_INLINE {
    const int64_t place = i * s.digit_stride + output / (kPaired ? 2 : 1);
    const auto found = sums_of_outputs<kPaired>(s.first + row * s.row_stride + place);
    if constexpr (!kSubtracts) return found;
    return found - sums_of_outputs<kPaired>(s.behind + row * s.behind_stride + place);
  };
  if constexpr (kDigitsOf8<E> == 1) return __builtin_convertvector(digit(0), Vec<float>);
  Wide all = 256 * __builtin_convertvector(digit(1), Wide) + __builtin_convertvector(digit(0), Wide);
  if constexpr (kDigitsOf8<E> == 3) all += 65536 * __builtin_convertvector(digit(2), Wide);
  const Vec<float> v = __builtin_convertvector(all, Vec<float>);
  if constexpr (std::is_same_v<E, float>) return v * load(unit + output, left);
  return v;
}

template <class E, bool kPaired, bool kSubtracts>
void write_rows(const CountTileArgs<E>& args, int64_t first, int64_t rows, int64_t outputs, const TileSums& sums,
                int64_t channel, const float* unit) {
  const CountTileArgs<E> a = args;  // a copy, which the stores cannot change
  const TileSums s = sums;
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t place = (first + row) * a.joined_stride + channel, to = (first + row) * a.row_stride + channel;
    for (int64_t c = 0; c < outputs; c += kLanes<float>) {
      const int64_t left = outputs - c, at = channel + c;
      Vec<float> v = sum_of<E, kPaired, kSubtracts>(s, row, c, unit + channel, left);
      if (a.scale) v *= load(a.scale + at, left);
      if (a.bias) v += load(a.bias + at, left);
      if (a.joined) v = add_joined_values(a.joined, place + c, load_amplitude(a.joined, at, left), left, v);
      store(a.sum + to + c, v, left);
    }
  }
}

// What joins the sums: see Joined.
enum class Joins { kNothing, kCurrent, kValues };

// The spikes that sums drive. Whatever belongs to an output stays in registers for all rows.
template <class E, bool kPaired, bool kSubtracts>
void fire_rows(const CountTileArgs<E>& a, int64_t first, int64_t rows, int64_t outputs, const TileSums& sums,
               int64_t channel, const float* unit) {
  const TileSums s = sums;
  const int64_t stride = a.row_stride, joined_stride = a.joined_stride;
  const RadixFiring by = a.firing;
  const auto fire = [&](auto joins, int64_t c, int64_t left) TANDEM_INLINE {
    constexpr Joins kJoins = joins;
    const Joined<float> joined = a.joined.at(0, first * joined_stride + channel + c);
    uint8_t* bits = a.bits + first * stride + channel + c;
    Vec<float> scale[kSpikeVectors], bias[kSpikeVectors], amplitude[kSpikeVectors];
    unrolled<kSpikeVectors>([&](int j) TANDEM_INLINE {
      const int64_t from = int64_t{j} * kLanes<float>, at = channel + c + from, n = left - from;
      scale[j] = a.scale ? load(a.scale + at, n) : broadcast(1.0F);
      bias[j] = a.bias ? load(a.bias + at, n) : Vec<float>{};
      if constexpr (kJoins == Joins::kValues) amplitude[j] = load_amplitude(a.joined, at, n);
    });
    for (int64_t row = 0; row < rows; ++row, bits += stride) {
      Vec<float> u[kSpikeVectors] = {};
      unrolled<kSpikeVectors>([&](int j) TANDEM_INLINE {
        const int64_t at = int64_t{j} * kLanes<float>, n = left - at;
        if (n <= 0) return;
        Vec<float> v = sum_of<E, kPaired, kSubtracts>(s, row, c + at, unit + channel, n) * scale[j] + bias[j];
        const int64_t place = row * joined_stride + at;
        if constexpr (kJoins == Joins::kCurrent) v += load(joined.current + place, n);
        if constexpr (kJoins == Joins::kValues) v = add_joined_values(joined, place, amplitude[j], n, v);
        u[j] = quotient_of(v, by);
      });
      store_floors(u, by.most, bits, left);
    }
  };
  for (int64_t c = 0; c < outputs; c += int64_t{kSpikeVectors} * kLanes<float>) {
    if (a.joined.current) {
      fire(std::integral_constant<Joins, Joins::kCurrent>{}, c, outputs - c);
    } else if (a.joined.bits) {
      fire(std::integral_constant<Joins, Joins::kValues>{}, c, outputs - c);
    } else {
      fire(std::integral_constant<Joins, Joins::kNothing>{}, c, outputs - c);
    }
  }
}

// Writes scale * sum + bias of output pixels from `first` on for `outputs` channels from `channel` of the block on, or
// the spikes that these drive. unit: of floats.
template <class E>
TANDEM_HOST void write_sums(const CountTileArgs<E>& a, int64_t first, int64_t rows, int64_t outputs,
                            const TileSums& sums, int64_t channel, const float* unit) {
  const auto chosen = [&](auto paired, auto subtracts) {
    return a.bits ? fire_rows<E, paired, subtracts> : write_rows<E, paired, subtracts>;
  };
  constexpr auto kYes = std::true_type{};
  constexpr auto kNo = std::false_type{};
  const auto write = sums.behind        ? a.paired_outputs ? chosen(kYes, kYes) : chosen(kNo, kYes)
                     : a.paired_outputs ? chosen(kYes, kNo)
                                        : chosen(kNo, kNo);
  write(a, first, rows, outputs, sums, channel, unit);
}

template <class E>
void byte_tile(const CountTileArgs<E>& a) {
  constexpr int64_t kDigits = sizeof(E);
  const int64_t rows = a.pixels + a.subtracted, digit_sums = rows * a.block;
  int32_t* const sum = static_cast<int32_t*>(a.scratch);  // [kDigits, rows, block]
  for (int64_t at = 0; at < a.sizes.used; at += kCacheDepth) {
    const int64_t n = a.sizes.used - at < kCacheDepth ? a.sizes.used - at : kCacheDepth;
    for (int64_t digit = 0; digit < kDigits; ++digit) {
      const uint8_t* const panel = a.panel + digit * a.sizes.digit_bytes(a.block) + at * kPartOutputs;
      multiply_block({a.rows + at, a.sizes.row_bytes()}, rows, {panel, a.sizes.part_bytes(), a.block}, n / 4, a.largest,
                     at == 0, sum + digit * digit_sums);
    }
  }
  const int32_t* const behind = a.subtracted > 0 ? sum + a.pixels * a.block : nullptr;
  write_sums<E>(a, 0, a.pixels, a.valid, {sum, behind, a.block, digit_sums, a.subtracted > 1 ? a.block : 0}, 0,
                nullptr);
}

constexpr bool kMultipliesBytes = true;
constexpr auto kFillRows = fill_rows;
constexpr auto kFillLines = fill_lines;
template <class E>
constexpr auto kByteTile = byte_tile<E>;
template <class E>
constexpr auto kFillPanel = fill_panel<E>;

#else

constexpr bool kMultipliesBytes = false;
constexpr double (*byte_slope)(int64_t) = nullptr;
constexpr FillRows* kFillRows = nullptr;
constexpr FillLines* kFillLines = nullptr;
template <class E>
constexpr CountTile<E>* kByteTile = nullptr;
template <class E>
constexpr FillPanel<E>* kFillPanel = nullptr;

#endif

}  // namespace tandem::TANDEM_ISA
