// Instructions in software, in the place of the compiler's header, for kernels that multiply bytes: those of AVX-512,
// VNNI and AMX, on processors without. AVX2, which the processor must have, comes from the compiler. What a kernel only
// names, for code that is not called, is declared at the end.
#pragma once

#if !defined(__AVX512BW__)
#if defined(__AVXVNNI__)  // which the compiler has not been told of
#undef __AVXVNNI__
#include_next <immintrin.h>
#define __AVXVNNI__
#else
#include_next <immintrin.h>
#endif
#endif

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>

// vpdpbusd
template <class Vector>
Vector multiply_bytes(Vector sums, Vector bytes, Vector signed_bytes) {
  for (size_t i = 0; i < sizeof(Vector) / 4; ++i) {
    for (int j = 0; j < 4; ++j) {
      sums[i] += static_cast<uint8_t>(bytes[i] >> 8 * j) * static_cast<int8_t>(signed_bytes[i] >> 8 * j);
    }
  }
  return sums;
}

#if defined(__AVX512BW__)

typedef long long __m512i __attribute__((vector_size(64), may_alias));
typedef long long __m256i __attribute__((vector_size(32), may_alias));
typedef long long __m128i __attribute__((vector_size(16), may_alias));
typedef float __m512 __attribute__((vector_size(64), may_alias));
using __mmask64 = uint64_t;
using __mmask32 = uint32_t;
using __mmask16 = uint16_t;
using __mmask8 = uint8_t;

namespace software {

typedef int32_t Ints __attribute__((vector_size(64), may_alias));
typedef int16_t Shorts __attribute__((vector_size(64), may_alias));
typedef uint8_t Bytes __attribute__((vector_size(64), may_alias));
typedef int8_t SignedBytes __attribute__((vector_size(64), may_alias));

inline void require(bool holds) {
  if (!holds) std::abort();
}

}  // namespace software

inline __m512i _mm512_set1_epi32(int x) { return (__m512i)(software::Ints{} + x); }
inline __m512i _mm512_set1_epi16(int16_t x) { return (__m512i)(software::Shorts{} + x); }

// The kernels' sums must never saturate.
inline __m512i _mm512_maddubs_epi16(__m512i a, __m512i b) {
  const auto x = (software::Bytes)a;
  const auto y = (software::SignedBytes)b;
  software::Shorts sums;
  for (int i = 0; i < 32; ++i) {
    const int sum = x[2 * i] * y[2 * i] + x[2 * i + 1] * y[2 * i + 1];
    software::require(sum == static_cast<int16_t>(sum));
    sums[i] = static_cast<int16_t>(sum);
  }
  return (__m512i)sums;
}

inline __m512i _mm512_madd_epi16(__m512i a, __m512i b) {
  const auto x = (software::Shorts)a, y = (software::Shorts)b;
  software::Ints sums;
  for (int i = 0; i < 16; ++i) sums[i] = x[2 * i] * y[2 * i] + x[2 * i + 1] * y[2 * i + 1];
  return (__m512i)sums;
}

inline __m512 _mm512_setzero_ps() { return __m512{}; }
inline __m512 _mm512_loadu_ps(const float* from) {
  __m512 v;
  std::memcpy(&v, from, sizeof(v));
  return v;
}
inline __m512 _mm512_load_ps(const float* from) {
  software::require(reinterpret_cast<uintptr_t>(from) % 64 == 0);
  return _mm512_loadu_ps(from);
}
inline void _mm512_store_ps(float* to, __m512 v) {
  software::require(reinterpret_cast<uintptr_t>(to) % 64 == 0);
  std::memcpy(to, &v, sizeof(v));
}
inline __m512 _mm512_mul_ps(__m512 a, __m512 b) { return a * b; }
inline __m512 _mm512_abs_ps(__m512 a) { return a < 0 ? -a : a; }
inline __m512 _mm512_max_ps(__m512 a, __m512 b) { return a > b ? a : b; }
inline __m512i _mm512_cvtps_epi32(__m512 a) {
  software::Ints rounded;
  for (int i = 0; i < 16; ++i) rounded[i] = static_cast<int>(std::nearbyint(a[i]));
  return (__m512i)rounded;
}

// The second number where one of them is none.
inline __m512 _mm512_min_ps(__m512 a, __m512 b) {
  for (int i = 0; i < 16; ++i) a[i] = a[i] < b[i] ? a[i] : b[i];
  return a;
}
// The least integer for what none stands for.
inline __m512i _mm512_cvttps_epi32(__m512 a) {
  software::Ints whole;
  for (int i = 0; i < 16; ++i) {
    whole[i] = std::fabs(a[i]) < 2147483648.0F ? static_cast<int>(a[i]) : std::numeric_limits<int>::min();
  }
  return (__m512i)whole;
}

// Two vectors in one of narrower numbers, each 16 bytes for themselves.
template <class From, class To>
__m512i packed(__m512i a, __m512i b) {
  constexpr int n = 16 / sizeof(From), least = std::numeric_limits<To>::min(), most = std::numeric_limits<To>::max();
  From from[2][4 * n];
  To to[8 * n];
  std::memcpy(from[0], &a, sizeof(a));
  std::memcpy(from[1], &b, sizeof(b));
  for (int i = 0; i < 8 * n; ++i) {
    const int value = from[i / n % 2][i / (2 * n) * n + i % n];
    to[i] = static_cast<To>(value < least ? least : value > most ? most : value);
  }
  std::memcpy(&a, to, sizeof(a));
  return a;
}
inline __m512i _mm512_packs_epi32(__m512i a, __m512i b) { return packed<int32_t, int16_t>(a, b); }
inline __m512i _mm512_packus_epi16(__m512i a, __m512i b) { return packed<int16_t, uint8_t>(a, b); }

template <class... Numbers>
__m512i _mm512_setr_epi32(Numbers... numbers) {
  return (__m512i)software::Ints{numbers...};
}
inline __m512i _mm512_permutexvar_epi32(__m512i order, __m512i a) {
  software::Ints moved;
  for (int i = 0; i < 16; ++i) moved[i] = ((software::Ints)a)[((software::Ints)order)[i] & 15];
  return (__m512i)moved;
}

// The first lanes, of which a mask has bits.
inline __m512i _mm512_maskz_loadu_epi32(__mmask16 lanes, const void* from) {
  software::Ints v = {};
  for (int i = 0; i < 16; ++i) {
    if (lanes >> i & 1) std::memcpy(reinterpret_cast<char*>(&v) + 4 * i, static_cast<const char*>(from) + 4 * i, 4);
  }
  return (__m512i)v;
}
inline void _mm512_mask_storeu_epi32(void* to, __mmask16 lanes, __m512i v) {
  for (int i = 0; i < 16; ++i) {
    if (lanes >> i & 1) std::memcpy(static_cast<char*>(to) + 4 * i, reinterpret_cast<const char*>(&v) + 4 * i, 4);
  }
}
inline void _mm512_mask_storeu_epi8(void* to, __mmask64 lanes, __m512i v) {
  for (int i = 0; i < 64; ++i) {
    if (lanes >> i & 1) std::memcpy(static_cast<char*>(to) + i, reinterpret_cast<const char*>(&v) + i, 1);
  }
}
inline __m512i _mm512_cvtepu8_epi32(__m128i bytes) {
  uint8_t from[16];
  std::memcpy(from, &bytes, sizeof(from));
  software::Ints wide;
  for (int i = 0; i < 16; ++i) wide[i] = from[i];
  return (__m512i)wide;
}

// Matrix tiles of 16 rows of 64 bytes.
inline uint8_t tiles[8][16][64];
inline void _tile_loadconfig(const void*) {}
inline void _tile_release() {}
inline void _tile_zero(int tile) { std::memset(tiles[tile], 0, sizeof(tiles[tile])); }
inline void _tile_loadd(int tile, const void* from, int64_t stride) {
  for (int i = 0; i < 16; ++i) std::memcpy(tiles[tile][i], static_cast<const char*>(from) + i * stride, 64);
}
inline void _tile_stored(int tile, void* to, int64_t stride) {
  for (int i = 0; i < 16; ++i) std::memcpy(static_cast<char*>(to) + i * stride, tiles[tile][i], 64);
}
inline void _tile_dpbusd(int sums, int bytes, int signed_bytes) {
  for (int row = 0; row < 16; ++row) {
    auto* const sum = reinterpret_cast<software::Ints*>(tiles[sums][row]);
    for (int k = 0; k < 16; ++k) {
      int32_t four;
      std::memcpy(&four, tiles[bytes][row] + 4 * k, sizeof(four));
      software::Ints weights;
      std::memcpy(&weights, tiles[signed_bytes][k], sizeof(weights));
      software::Ints total;
      std::memcpy(&total, sum, sizeof(total));
      total = multiply_bytes(total, software::Ints{} + four, weights);
      std::memcpy(sum, &total, sizeof(total));
    }
  }
}

constexpr int _CMP_LE_OS = 2;
#define NAMED_ONLY(name)        \
  template <class... Arguments> \
  __m512i name(Arguments...);
NAMED_ONLY(_mm512_set1_epi8)
NAMED_ONLY(_mm512_maskz_loadu_epi64)
NAMED_ONLY(_mm512_mask_storeu_epi64)
NAMED_ONLY(_mm256_mask_storeu_epi8)
NAMED_ONLY(_mm512_cvtepu8_epi64)
NAMED_ONLY(_mm512_mask_add_epi8)
NAMED_ONLY(_mm512_mask_add_epi16)
NAMED_ONLY(_mm512_ternarylogic_epi32)
NAMED_ONLY(_mm512_min_epu32)
NAMED_ONLY(_mm512_min_epu64)
NAMED_ONLY(_mm512_set1_epi64)
NAMED_ONLY(_mm512_kunpackd)
NAMED_ONLY(_mm512_kunpackw)
NAMED_ONLY(_mm512_kunpackb)

#endif
