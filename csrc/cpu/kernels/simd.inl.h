// Vectors of the instruction set being compiled, through the compiler's vector extensions: the same expressions become
// AVX-512, AVX2, SSE2 or NEON code.
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "common/neuron.h"

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

template <class T>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));

template <class T>
struct Simd {
  using Integer = typename IntegerOf<T>::type;
  typedef T Vector __attribute__((vector_size(kVectorBytes), may_alias));
  typedef T Unaligned __attribute__((vector_size(kVectorBytes), may_alias, aligned(alignof(T))));
  typedef Integer Mask __attribute__((vector_size(kVectorBytes), may_alias));
  // As many integers as there are lanes.
  typedef uint8_t Bytes __attribute__((vector_size(kLanes<T>), may_alias));
  typedef int16_t Int16 __attribute__((vector_size(2 * kLanes<T>), may_alias));
  typedef int32_t Int32 __attribute__((vector_size(4 * kLanes<T>), may_alias));
  // A quarter of a lane: a byte (float) or two (double).
  using Narrow = std::conditional_t<sizeof(T) == 4, int8_t, int16_t>;
  typedef Narrow Word __attribute__((vector_size(kVectorBytes), may_alias));
  typedef uint8_t WordBytes __attribute__((vector_size(4 * kLanes<T>), may_alias));
};

template <class T>
using Vec = typename Simd<T>::Vector;

template <class T>
TANDEM_HOST_DEVICE Vec<T> broadcast(T x) {
  return Vec<T>{} + x;
}

// n of the vector's lanes, the rest zero; n may exceed the lanes.
template <class T>
TANDEM_HOST_DEVICE Vec<T> load(const T* p, int64_t n) {
  if (n >= kLanes<T>) return *reinterpret_cast<const typename Simd<T>::Unaligned*>(p);
  Vec<T> v = {};
  for (int64_t i = 0; i < n; ++i) v[i] = p[i];
  return v;
}

template <class T>
TANDEM_HOST_DEVICE void store(T* p, Vec<T> v, int64_t n) {
  if (n >= kLanes<T>) {
    *reinterpret_cast<typename Simd<T>::Unaligned*>(p) = v;
  } else {
    for (int64_t i = 0; i < n; ++i) p[i] = v[i];
  }
}

// The low byte of every lane.
template <class T>
TANDEM_HOST_DEVICE void store_bytes(uint8_t* p, typename Simd<T>::Mask word, int64_t n) {
#if defined(__AVX2__) && !defined(__AVX512BW__)
  // GCC would convert lane by lane.
  const __m128i low_bytes = sizeof(T) == 4 ? _mm_set1_epi32(0x0C080400) : _mm_set1_epi16(0x0800);
  const __m256i halves = _mm256_shuffle_epi8(reinterpret_cast<__m256i>(word), _mm256_broadcastsi128_si256(low_bytes));
  const __m128i low = _mm256_castsi256_si128(halves), high = _mm256_extracti128_si256(halves, 1);
  const __m128i joined = sizeof(T) == 4 ? _mm_unpacklo_epi32(low, high) : _mm_unpacklo_epi16(low, high);
  typename Simd<T>::Bytes bytes;
  std::memcpy(&bytes, &joined, sizeof(bytes));
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
TANDEM_HOST_DEVICE void unrolled(const F& f, std::integer_sequence<int, i...>) {
  (f(std::integral_constant<int, i>{}), ...);
}
template <int n, class F>
TANDEM_HOST_DEVICE void unrolled(const F& f) {
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
  // The spikes of one step: bit `s` where u >= threshold.
  TANDEM_HOST_DEVICE void add(const Vec<T> (&u)[1], Vec<T> threshold, int s) {
    word_ |= (u[0] >= threshold) & (typename IntegerOf<T>::type{1} << s);
  }
  TANDEM_HOST_DEVICE void store(uint8_t* p, int64_t n) const { store_bytes<T>(p, word_, n); }
};

// A step's comparisons are narrowed first, and then need two operations where four vectors of words would need eight.
template <class T>
class SpikeWord<T, kSpikeVectors> {
  static constexpr int64_t kAll = kSpikeVectors * kLanes<T>;
#if defined(__SSE2__)
  // Lanes of a byte (float) or two (double).
  using Word = typename Simd<T>::Word;
  using Narrow = typename Simd<T>::Narrow;
  Word word_ = {};
#else
  typename Simd<T>::Mask words_[kSpikeVectors] = {};
#endif

 public:
  // The spikes of one step: bit `s` where u >= threshold.
  TANDEM_HOST_DEVICE void add(const Vec<T> (&u)[kSpikeVectors], Vec<T> threshold, int s) {
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
#elif defined(__AVX2__)
    const auto spikes = [&](int j) { return reinterpret_cast<__m256i>(u[j] >= threshold); };
    const __m256i all =
        _mm256_packs_epi16(_mm256_packs_epi32(spikes(0), spikes(1)), _mm256_packs_epi32(spikes(2), spikes(3)));
    word_ |= reinterpret_cast<Word>(all) & static_cast<Narrow>(1 << s);
#elif defined(__SSE2__)
    const auto spikes = [&](int j) { return reinterpret_cast<__m128i>(u[j] >= threshold); };
    const __m128i all = _mm_packs_epi16(_mm_packs_epi32(spikes(0), spikes(1)), _mm_packs_epi32(spikes(2), spikes(3)));
    word_ |= reinterpret_cast<Word>(all) & static_cast<Narrow>(1 << s);
#else
    for (int64_t j = 0; j < kSpikeVectors; ++j)
      words_[j] |= (u[j] >= threshold) & (typename IntegerOf<T>::type{1} << s);
#endif
  }

  TANDEM_HOST_DEVICE void store(uint8_t* p, int64_t n) const {
#if defined(__SSE2__)
#if defined(__AVX2__) && !defined(__AVX512BW__)
    // AVX2 packs its halves one by one.
    const Word word = reinterpret_cast<Word>(
        _mm256_permutevar8x32_epi32(reinterpret_cast<__m256i>(word_), _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)));
#else
    const Word word = word_;
#endif
    const auto bytes = __builtin_convertvector(word, typename Simd<T>::WordBytes);
    if (n >= kAll) {
      std::memcpy(p, &bytes, kAll);
    } else {
      for (int64_t i = 0; i < n; ++i) p[i] = bytes[i];
    }
#else
    for (int64_t j = 0; j < kSpikeVectors; ++j) store_bytes<T>(p + j * kLanes<T>, words_[j], n - j * kLanes<T>);
#endif
  }
};

}  // namespace tandem::TANDEM_ISA
