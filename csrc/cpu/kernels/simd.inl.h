// Vectors of the instruction set being compiled, through the compiler's vector extensions: the same expressions become
// AVX-512, AVX2, SSE2 or NEON code.
#include <cstdint>
#include <cstring>

#if defined(__AVX512BW__) || defined(__AVX2__)
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

template <class T>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));

template <class T>
struct Simd {
  using Integer = typename IntegerOf<T>::type;
  typedef T Vector __attribute__((vector_size(kVectorBytes), may_alias));
  typedef T Unaligned __attribute__((vector_size(kVectorBytes), may_alias, aligned(alignof(T))));
  typedef Integer Mask __attribute__((vector_size(kVectorBytes), may_alias));
  typedef uint8_t Bytes __attribute__((vector_size(kLanes<T>), may_alias));
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
  const auto bytes = __builtin_convertvector(word, typename Simd<T>::Bytes);
  if (n >= kLanes<T>) {
    std::memcpy(p, &bytes, kLanes<T>);
  } else {
    for (int64_t i = 0; i < n; ++i) p[i] = bytes[i];
  }
}

}  // namespace tandem::TANDEM_ISA
