// Vectors of the instruction set being compiled, through the compiler's vector extensions: the same expressions become
// AVX-512, AVX2, SSE2 or NEON code. Intrinsics stand only where compilers make poor code of the expressions.
//
// TANDEM_NEON: of the instruction set neon. Every compiler for aarch64 has its intrinsics, but scalar does without.
// TANDEM_DOT: of neondot, beside TANDEM_NEON.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(TANDEM_NEON)
#include <arm_neon.h>
#endif

#include "core/host_device.h"

namespace tandem::TANDEM_ISA {

#if defined(__AVX512BW__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <class T>
struct IntegerOf;
template <>
struct IntegerOf<float> {
  using type = int32_t;
};
template <>
struct IntegerOf<double> {
  using type = int64_t;
};
template <>
struct IntegerOf<int16_t> {
  using type = int16_t;
};
template <>
struct IntegerOf<int32_t> {
  using type = int32_t;
};

template <class T>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));

template <class T>
struct Simd {
  using Integer = typename IntegerOf<T>::type;
  typedef T Vector __attribute__((vector_size(kVectorBytes), may_alias));
  TANDEM_HOST static Vector of(double x) { return Vector{} + static_cast<T>(x); }
  // The reset: held - threshold where u >= threshold, else held.
  TANDEM_HOST static Vector subtract_spiked(Vector held, Vector u, Vector threshold) {
#if defined(__AVX512BW__)
    // One masked subtraction, by the very comparison of SpikeWord::add, which GCC then makes once for both.
    if constexpr (sizeof(T) == 4) {
      return _mm512_mask_sub_ps(held, _mm512_cmp_ps_mask(threshold, u, _CMP_LE_OS), held, threshold);
    } else {
      return _mm512_mask_sub_pd(held, _mm512_cmp_pd_mask(threshold, u, _CMP_LE_OS), held, threshold);
    }
#else
    return held - (u >= threshold ? threshold : Vector{});
#endif
  }
  typedef T Unaligned __attribute__((vector_size(kVectorBytes), may_alias, aligned(alignof(T))));
  typedef Integer Mask __attribute__((vector_size(kVectorBytes), may_alias));
  // As many integers as there are lanes.
  typedef uint8_t Bytes __attribute__((vector_size(kLanes<T>), may_alias));
  typedef int32_t Int32 __attribute__((vector_size(4 * kLanes<T>), may_alias));
  // A quarter of a lane: a byte (float) or two (double).
  using Narrow = std::conditional_t<sizeof(T) == 4, int8_t, int16_t>;
  typedef Narrow Word __attribute__((vector_size(kVectorBytes), may_alias));
  typedef uint8_t WordBytes __attribute__((vector_size(4 * kLanes<T>), may_alias));
};

template <class T>
using Vec = typename Simd<T>::Vector;

template <class T>
TANDEM_HOST Vec<T> broadcast(T x) {
  return x - Vec<T>{};  // zero plus x is not x where that is -0, so that GCC would add
}

#if defined(__AVX512BW__)
// The first n of so many lanes; n may be negative.
TANDEM_HOST uint64_t first_lanes(int64_t n) { return n > 0 ? (uint64_t{1} << n) - 1 : 0; }
#endif

// n of the vector's lanes, the rest zero; n may exceed the lanes.
template <class T>
TANDEM_HOST Vec<T> load(const T* p, int64_t n) {
  if (n >= kLanes<T>) return *reinterpret_cast<const typename Simd<T>::Unaligned*>(p);
#if defined(__AVX512BW__)
  const uint64_t lanes = first_lanes(n);
  if constexpr (sizeof(T) == 4) return reinterpret_cast<Vec<T>>(_mm512_maskz_loadu_epi32(lanes, p));
  if constexpr (sizeof(T) == 8) return reinterpret_cast<Vec<T>>(_mm512_maskz_loadu_epi64(lanes, p));
#endif
  Vec<T> v = {};
  for (int64_t i = 0; i < n; ++i) v[i] = p[i];
  return v;
}

template <class T>
TANDEM_HOST void store(T* p, Vec<T> v, int64_t n) {
  if (n >= kLanes<T>) {
    *reinterpret_cast<typename Simd<T>::Unaligned*>(p) = v;
#if defined(__AVX512BW__)
  } else if constexpr (sizeof(T) == 4) {
    _mm512_mask_storeu_epi32(p, first_lanes(n), reinterpret_cast<__m512i>(v));
  } else if constexpr (sizeof(T) == 8) {
    _mm512_mask_storeu_epi64(p, first_lanes(n), reinterpret_cast<__m512i>(v));
#endif
  } else {
    const int64_t some = n < 0 ? 0 : n;  // GCC takes the loop for a memcpy, and warns of negative sizes
    for (int64_t i = 0; i < some; ++i) p[i] = v[i];
  }
}

// The low byte of every lane.
template <class T>
TANDEM_HOST void store_bytes(uint8_t* p, typename Simd<T>::Mask word, int64_t n) {
#if defined(__AVX2__) && !defined(__AVX512BW__)
  // GCC would convert lane by lane.
  const __m128i low_bytes = sizeof(T) == 4 ? _mm_set1_epi32(0x0C080400) : _mm_set1_epi16(0x0800);
  const __m256i halves = _mm256_shuffle_epi8(reinterpret_cast<__m256i>(word), _mm256_broadcastsi128_si256(low_bytes));
  const __m128i low = _mm256_castsi256_si128(halves), high = _mm256_extracti128_si256(halves, 1);
  const __m128i joined = sizeof(T) == 4 ? _mm_unpacklo_epi32(low, high) : _mm_unpacklo_epi16(low, high);
  typename Simd<T>::Bytes bytes;
  std::memcpy(&bytes, &joined, sizeof(bytes));
#elif defined(TANDEM_NEON)
  auto low = reinterpret_cast<uint8x16_t>(word);  // the even bytes, again and again
  for (size_t width = sizeof(T); width > 1; width /= 2) low = vuzp1q_u8(low, low);
  typename Simd<T>::Bytes bytes;
  std::memcpy(&bytes, &low, sizeof(bytes));
#else
  const auto bytes = __builtin_convertvector(word, typename Simd<T>::Bytes);
#endif
  if (n >= kLanes<T>) {
    std::memcpy(p, &bytes, kLanes<T>);
  } else {
    for (int64_t i = 0; i < n; ++i) p[i] = bytes[i];
  }
}

// For lambdas that index arrays of vectors: these live in registers only if all of it becomes one function.
#define TANDEM_INLINE __attribute__((always_inline))

// f(0) to f(n - 1).
template <class F, int... i>
TANDEM_HOST void unrolled(const F& f, std::integer_sequence<int, i...>) {
  (f(std::integral_constant<int, i>{}), ...);
}
template <int n, class F>
TANDEM_HOST void unrolled(const F& f) {
  unrolled(f, std::make_integer_sequence<int, n>{});
}

// Vectors whose spikes are collected together: their comparisons, narrowed to a quarter, fill one vector.
constexpr int kSpikeVectors = 4;

// The spikes of some vectors, up to 8 steps in a byte.
template <class T, int kVectors = kSpikeVectors>
class SpikeWord;

template <class T>
class SpikeWord<T, 1> {
  typename Simd<T>::Mask word_ = {};

 public:
  static constexpr int kVectors = 1;
  // The spikes of one step: bit `s` where u >= threshold.
  TANDEM_HOST void add(const Vec<T> (&u)[1], Vec<T> threshold, int s) {
    word_ |= (u[0] >= threshold) & (typename IntegerOf<T>::type{1} << s);
  }
  TANDEM_HOST void store(uint8_t* p, int64_t n) const { store_bytes<T>(p, word_, n); }
};

// The sign bits of four vectors, in order but for unpermute: the sign of a lane of Word is that of a number.
template <class T>
TANDEM_HOST typename Simd<T>::Word narrow_signs(const Vec<T> (&v)[kSpikeVectors]) {
  // Saturation keeps the sign of a number's upper half.
#if defined(__AVX512BW__)
  const auto bits = [&](int j) { return reinterpret_cast<__m512i>(v[j]); };
  const __m512i all = _mm512_packs_epi16(_mm512_packs_epi32(bits(0), bits(1)), _mm512_packs_epi32(bits(2), bits(3)));
#elif defined(__AVX2__)
  const auto bits = [&](int j) { return reinterpret_cast<__m256i>(v[j]); };
  const __m256i all = _mm256_packs_epi16(_mm256_packs_epi32(bits(0), bits(1)), _mm256_packs_epi32(bits(2), bits(3)));
#elif defined(__SSE2__)
  const auto bits = [&](int j) { return reinterpret_cast<__m128i>(v[j]); };
  const __m128i all = _mm_packs_epi16(_mm_packs_epi32(bits(0), bits(1)), _mm_packs_epi32(bits(2), bits(3)));
#elif defined(TANDEM_NEON)
  // Odd lanes of half the size are upper halves.
  const auto upper = [](auto a, auto b) TANDEM_INLINE {
    if constexpr (sizeof(T) == 4) return vuzp2q_s16(reinterpret_cast<int16x8_t>(a), reinterpret_cast<int16x8_t>(b));
    if constexpr (sizeof(T) == 8) return vuzp2q_s32(reinterpret_cast<int32x4_t>(a), reinterpret_cast<int32x4_t>(b));
  };
  const auto quarter = [](auto a, auto b) TANDEM_INLINE {
    if constexpr (sizeof(T) == 4) return vuzp2q_s8(reinterpret_cast<int8x16_t>(a), reinterpret_cast<int8x16_t>(b));
    if constexpr (sizeof(T) == 8) return vuzp2q_s16(reinterpret_cast<int16x8_t>(a), reinterpret_cast<int16x8_t>(b));
  };
  const auto all = quarter(upper(v[0], v[1]), upper(v[2], v[3]));
#else
  static_assert(sizeof(T) == 0, "the portable body does without");
  const Vec<T> all = v[0];
#endif
  return reinterpret_cast<typename Simd<T>::Word>(all);
}

// Wide vectors are packed 16 bytes at a time: puts these in order.
template <class T>
TANDEM_HOST typename Simd<T>::Word unpermute(typename Simd<T>::Word word) {
#if defined(__AVX512BW__)
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return reinterpret_cast<decltype(word)>(_mm512_permutexvar_epi32(order, reinterpret_cast<__m512i>(word)));
#elif defined(__AVX2__)
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  return reinterpret_cast<decltype(word)>(_mm256_permutevar8x32_epi32(reinterpret_cast<__m256i>(word), order));
#else
  return word;
#endif
}

// The low byte of every lane of a word.
template <class T>
TANDEM_HOST void store_word(uint8_t* p, typename Simd<T>::Word word, int64_t n) {
  constexpr int64_t kAll = kSpikeVectors * kLanes<T>;
  const auto bytes = __builtin_convertvector(word, typename Simd<T>::WordBytes);
  if (n >= kAll) {
    std::memcpy(p, &bytes, kAll);
#if defined(__AVX512BW__)
  } else if constexpr (kAll == 64) {
    _mm512_mask_storeu_epi8(p, first_lanes(n), reinterpret_cast<__m512i>(bytes));
  } else if constexpr (kAll == 32) {
    _mm256_mask_storeu_epi8(p, first_lanes(n), reinterpret_cast<__m256i>(bytes));
#endif
  } else {
    for (int64_t i = 0; i < kAll && i < n; ++i) p[i] = bytes[i];  // GCC warns of iterations past either
  }
}

// A step's comparisons are narrowed first, and then need two operations where four vectors of words would need eight.
template <class T>
class SpikeWord<T, kSpikeVectors> {
#if defined(__SSE2__) || defined(TANDEM_NEON)
  // Lanes of a byte (float) or two (double).
  using Word = typename Simd<T>::Word;
  using Narrow = typename Simd<T>::Narrow;
  Word word_ = {};
#else
  typename Simd<T>::Mask words_[kSpikeVectors] = {};
#endif

 public:
  static constexpr int kVectors = kSpikeVectors;
  // The spikes of one step: bit `s` where u >= threshold.
  TANDEM_HOST void add(const Vec<T> (&u)[kSpikeVectors], Vec<T> threshold, int s) {
#if defined(__AVX512BW__)
    const auto word = reinterpret_cast<__m512i>(word_);
    if constexpr (sizeof(T) == 4) {
      const auto spikes = [&](int j) { return _mm512_cmp_ps_mask(threshold, u[j], _CMP_LE_OS); };
      const __mmask64 all =
          _mm512_kunpackd(_mm512_kunpackw(spikes(3), spikes(2)), _mm512_kunpackw(spikes(1), spikes(0)));
      word_ =
          reinterpret_cast<Word>(_mm512_mask_add_epi8(word, all, word, _mm512_set1_epi8(static_cast<char>(1 << s))));
    } else {
      const auto spikes = [&](int j) { return _mm512_cmp_pd_mask(threshold, u[j], _CMP_LE_OS); };
      const __mmask32 all =
          _mm512_kunpackw(_mm512_kunpackb(spikes(3), spikes(2)), _mm512_kunpackb(spikes(1), spikes(0)));
      word_ = reinterpret_cast<Word>(
          _mm512_mask_add_epi16(word, all, word, _mm512_set1_epi16(static_cast<int16_t>(1 << s))));
    }
#elif defined(__SSE2__) || defined(TANDEM_NEON)
    Vec<T> spikes[kSpikeVectors];
    for (int j = 0; j < kSpikeVectors; ++j) spikes[j] = reinterpret_cast<Vec<T>>(u[j] >= threshold);
    const auto bit = static_cast<Narrow>(1 << s);  // named: under sanitizers GCC takes the expression for an int
    word_ |= narrow_signs<T>(spikes) & bit;
#else
    for (int64_t j = 0; j < kSpikeVectors; ++j)
      words_[j] |= (u[j] >= threshold) & (typename IntegerOf<T>::type{1} << s);
#endif
  }

  TANDEM_HOST void store(uint8_t* p, int64_t n) const {
#if defined(__SSE2__) || defined(TANDEM_NEON)
#if defined(__AVX512BW__)
    store_word<T>(p, word_, n);
#else
    store_word<T>(p, unpermute<T>(word_), n);
#endif
#else
    for (int64_t j = 0; j < kSpikeVectors; ++j) store_bytes<T>(p + j * kLanes<T>, words_[j], n - j * kLanes<T>);
#endif
  }
};

// Whether inf - inf is a NaN with a negative sign, which SpikeSigns relies on. ARM's is positive.
#if defined(__SSE2__)
constexpr bool kInvalidIsNegative = true;
#else
constexpr bool kInvalidIsNegative = false;
#endif

// The spikes of four vectors of neurons of a subtractive model, from the signs of u - threshold: that difference is the
// potential after a spike as well, so that a step needs neither comparisons nor masks. NaNs must be negative, to be
// silent.
template <class T>
class SpikeSigns {
  using Word = typename Simd<T>::Word;
  using Narrow = typename Simd<T>::Narrow;
  Word word_ = {};

 public:
  static constexpr int kVectors = kSpikeVectors;
  // The spikes of one step: bit `s` where `reduced`, which is u - threshold, is not negative.
  TANDEM_HOST void add(const Vec<T> (&reduced)[kSpikeVectors], int s) {
    typedef uint16_t Shifted __attribute__((vector_size(kVectorBytes), may_alias));
    constexpr int kSign = 8 * sizeof(Narrow) - 1;
    // Lanes of 16 bits are shifted even where they are two of a byte each: the foreign bits do not reach bit `s`.
    const Shifted silent = reinterpret_cast<Shifted>(narrow_signs<T>(reduced)) >> (kSign - s);
    const auto narrow_bit = static_cast<Narrow>(1 << s);
    const Word bit = Word{} + narrow_bit;
#if defined(__AVX512BW__)
    // GCC would keep the signs of all steps to join them in the end, for which there are no registers.
    word_ = reinterpret_cast<Word>(_mm512_ternarylogic_epi32(
        reinterpret_cast<__m512i>(word_), reinterpret_cast<__m512i>(silent), reinterpret_cast<__m512i>(bit), 0xF2));
#else
    word_ |= ~reinterpret_cast<Word>(silent) & bit;
#endif
  }
  TANDEM_HOST void store(uint8_t* p, int64_t n) const { store_word<T>(p, unpermute<T>(word_), n); }
};

// The potential after a step's spikes: `reduced`, which is u - threshold, where that is not negative.
template <class T>
TANDEM_HOST Vec<T> reset(Vec<T> u, Vec<T> reduced) {
#if defined(__AVX512BW__)
  // The lesser pattern of bits is the positive number of two, or the one nearer to zero.
  const auto a = reinterpret_cast<__m512i>(u), b = reinterpret_cast<__m512i>(reduced);
  return reinterpret_cast<Vec<T>>(sizeof(T) == 4 ? _mm512_min_epu32(a, b) : _mm512_min_epu64(a, b));
#else
#if defined(__AVX2__)
  if constexpr (sizeof(T) == 4) {
    const auto a = reinterpret_cast<__m256i>(u), b = reinterpret_cast<__m256i>(reduced);
    return reinterpret_cast<Vec<T>>(_mm256_min_epu32(a, b));
  }
#endif
  return reinterpret_cast<typename Simd<T>::Mask>(reduced) < 0 ? u : reduced;
#endif
}

// A NaN that operations hand on as a negative one.
template <class T>
TANDEM_HOST Vec<T> negative_nan(Vec<T> v) {
#if defined(__AVX512BW__)
  // The digits of the table say what becomes of a class of numbers: 3, of quiet and signalling NaNs, is the negative
  // NaN.
  if constexpr (sizeof(T) == 4) return _mm512_fixupimm_ps(v, v, _mm512_set1_epi32(0x33), 0);
  if constexpr (sizeof(T) == 8) return _mm512_fixupimm_pd(v, v, _mm512_set1_epi64(0x33), 0);
#else
  return reinterpret_cast<Vec<T>>(reinterpret_cast<typename Simd<T>::Mask>(v) | (v != v));
#endif
}

// kLanes<T> numbers of type C.
template <class T, class C>
struct LanesOf {
  typedef C type __attribute__((vector_size(kLanes<T> * sizeof(C)), may_alias));
};

}  // namespace tandem::TANDEM_ISA
