// Counting and transposing bit planes.
#pragma once

#include "core/bit_planes.h"
#include "cpu/simd.inl.h"
#include "ops/spike_train/cpu_kernels.h"

namespace tandem::TANDEM_ISA {

// Spikes per neuron of up to kChunk neurons, summed over the planes.
constexpr int64_t kCountChunk = 256;

TANDEM_HOST void count_chunk(const uint8_t* bits, int64_t planes, int64_t stride, int64_t n, uint32_t* count) {
  std::memset(count, 0, sizeof(uint32_t) * kCountChunk);
  for (int64_t p = 0; p < planes; ++p) {
    const uint8_t* b = bits + p * stride;
    for (int64_t i = 0; i < n; ++i) {
      uint8_t v = b[i];
      v = static_cast<uint8_t>(v - ((v >> 1) & 0x55));
      v = static_cast<uint8_t>((v & 0x33) + ((v >> 2) & 0x33));
      count[i] += static_cast<uint8_t>((v + (v >> 4)) & 0x0F);
    }
  }
}

// Spikes among the bytes begin..end-1.
inline int64_t count_spikes(const uint8_t* bits, int64_t begin, int64_t end) {
  int64_t spikes = 0, i = begin;
  for (; i + 8 <= end; i += 8) {
    uint64_t word;
    std::memcpy(&word, bits + i, sizeof(word));
    spikes += __builtin_popcountll(word);
  }
  for (; i < end; ++i) spikes += __builtin_popcount(bits[i]);
  return spikes;
}

// Whole numbers from 0 to 255 -> bytes. Returns whether all are such numbers, and adds their binary ones to `ones`.
template <class T>
bool whole_bytes(const T* values, int64_t begin, int64_t end, uint8_t* bytes, int64_t* ones) {
  unsigned odd = 0;
  for (int64_t i = begin; i < end; ++i) {
    const T value = values[i] >= 0 && values[i] <= 255 ? values[i] : T(0);
    bytes[i] = static_cast<uint8_t>(static_cast<int32_t>(value));
    odd |= !(static_cast<T>(static_cast<int32_t>(value)) == values[i]);
  }
  *ones += count_spikes(bytes, begin, end);
  return odd == 0;
}

template <class T>
void spike_count(const uint8_t* bits, int64_t planes, int64_t stride, int64_t begin, int64_t end, T* out) {
  alignas(64) uint32_t count[kCountChunk];
  for (int64_t i = begin; i < end; i += kCountChunk) {
    const int64_t n = end - i < kCountChunk ? end - i : kCountChunk;
    count_chunk(bits + i, planes, stride, n, count);
    for (int64_t j = 0; j < n; ++j) out[i + j] = static_cast<T>(static_cast<int32_t>(count[j]));
  }
}

inline void add_counts(const uint8_t* bits, int64_t planes, int64_t stride, int64_t begin, int64_t end,
                       const int32_t* initial, int32_t* out) {
  alignas(64) uint32_t count[kCountChunk];
  for (int64_t i = begin; i < end; i += kCountChunk) {
    const int64_t n = end - i < kCountChunk ? end - i : kCountChunk;
    count_chunk(bits + i, planes, stride, n, count);
    if (initial) {
      for (int64_t j = 0; j < n; ++j) count[j] += static_cast<uint32_t>(initial[i + j]);
    }
    std::memcpy(out + i, count, sizeof(int32_t) * static_cast<size_t>(n));
  }
}

inline void count_bytes(const uint8_t* bits, int64_t planes, int64_t stride, int64_t begin, int64_t end, uint8_t* bytes,
                        int64_t byte_planes) {
  alignas(64) uint32_t count[kCountChunk];
  for (int64_t i = begin; i < end; i += kCountChunk) {
    const int64_t n = end - i < kCountChunk ? end - i : kCountChunk;
    count_chunk(bits + i, planes, stride, n, count);
    for (int64_t p = 0; p < byte_planes; ++p) {
      uint8_t* out = bytes + p * stride + i;
      for (int64_t j = 0; j < n; ++j) out[j] = static_cast<uint8_t>(count[j] >> (8 * p));
    }
  }
}

// Neurons begin..end-1 of a dense train to bit planes, in chunks that stay in L1. Returns whether all were 0 or 1.
template <class D>
bool pack(const D* dense, int64_t time_steps, int64_t neurons, int64_t begin, int64_t end, uint8_t* bits) {
  unsigned odd = 0;
  for (int64_t i = begin; i < end; i += kCountChunk) {
    const int64_t n = end - i < kCountChunk ? end - i : kCountChunk;
    for (int64_t p = 0; p * kStepsPerPlane < time_steps; ++p) {
      uint8_t word[kCountChunk] = {};
      const int64_t steps = steps_in_plane(p, time_steps);
      for (int64_t s = 0; s < steps; ++s) {
        const D* in = dense + (p * kStepsPerPlane + s) * neurons + i;
        for (int64_t j = 0; j < n; ++j) {
          const bool spike = in[j] == D(1);
          odd |= !(spike | (in[j] == D(0)));
          word[j] = static_cast<uint8_t>(word[j] | static_cast<unsigned>(spike) << s);
        }
      }
      std::memcpy(bits + p * neurons + i, word, static_cast<size_t>(n));
    }
  }
  return odd == 0;
}

template <class D>
void unpack(const uint8_t* bits, int64_t stride, int64_t time_steps, int64_t neurons, int64_t begin, int64_t end,
            D* dense) {
  for (int64_t i = begin; i < end; i += kCountChunk) {
    const int64_t n = end - i < kCountChunk ? end - i : kCountChunk;
    for (int64_t t = 0; t < time_steps; ++t) {
      const uint8_t* in = bits + t / kStepsPerPlane * stride + i;
      const auto mask = static_cast<uint8_t>(1 << (t % kStepsPerPlane));
      D* out = dense + t * neurons + i;
      for (int64_t j = 0; j < n; ++j) out[j] = (in[j] & mask) ? D(1) : D(0);
    }
  }
}

#if defined(TANDEM_NEON)
// The highest bits of 64 bytes, as vld4q_u8 loads them: bit c is that of byte c.
TANDEM_HOST uint64_t high_bits(uint8x16x4_t bytes) {
  // Lane i of the four vectors has the bytes 4 i to 4 i + 3, whose bits become its upper half, then its lower one, too.
  const uint8x16_t low = vsriq_n_u8(bytes.val[1], bytes.val[0], 1), high = vsriq_n_u8(bytes.val[3], bytes.val[2], 1);
  const uint8x16_t four = vsriq_n_u8(high, low, 2), twice = vsriq_n_u8(four, four, 4);
  // Of two lanes the middle eight bits.
  return vget_lane_u64(vreinterpret_u64_u8(vshrn_n_u16(vreinterpretq_u16_u8(twice), 4)), 0);
}
#endif

// The places of the ones in a byte, in order, a byte each; what follows them are zeros.
struct PlacesOfOnes {
  uint64_t of[256] = {};

  constexpr PlacesOfOnes() {
    for (uint64_t byte = 0; byte < 256; ++byte) {
      int ones = 0;
      for (uint64_t i = 0; i < 8; ++i) {
        if (byte >> i & 1) of[byte] |= i << (8 * ones++);
      }
    }
  }
};
constexpr PlacesOfOnes kPlacesOfOnes;

// Lists the ones of a word, `first` added to their places. Returns the list's end and writes up to 8 entries more. Of
// instruction sets without a compression: no branch depends on the word, as a loop over its ones would.
template <class Entry>
TANDEM_HOST Entry* list_ones(uint64_t word, Entry first, Entry* out) {
  typedef uint8_t Bytes __attribute__((vector_size(8)));
  typedef Entry Entries __attribute__((vector_size(8 * sizeof(Entry))));
  for (int i = 0; i < 8; ++i, word >>= 8) {
    const uint64_t byte = word & 255;
    Bytes places;
    std::memcpy(&places, &kPlacesOfOnes.of[byte], sizeof(places));
    const Entries entries = __builtin_convertvector(places, Entries) + static_cast<Entry>(first + 8 * i);
    std::memcpy(out, &entries, sizeof(entries));
    out += __builtin_popcountll(byte);
  }
  return out;
}

// 64 channels' bytes to 8 words: bit c of out[t] is bit t of in[c].
TANDEM_HOST void transpose_64x8(const uint8_t* in, uint64_t* out) {
#if defined(__AVX512BW__)
  const __m512i v = _mm512_loadu_si512(in);
  for (int t = 0; t < 8; ++t) out[t] = _mm512_test_epi8_mask(v, _mm512_set1_epi8(static_cast<char>(1 << t)));
#elif defined(__AVX2__)
  const __m256i lo = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(in));
  const __m256i hi = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(in + 32));
  for (int t = 0; t < 8; ++t) {
    const uint32_t l = static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_slli_epi16(lo, 7 - t)));
    const uint32_t h = static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_slli_epi16(hi, 7 - t)));
    out[t] = l | static_cast<uint64_t>(h) << 32;
  }
#elif defined(TANDEM_NEON)
  const uint8x16x4_t all = vld4q_u8(in);
  unrolled<8>([&](auto t) TANDEM_INLINE {
    uint8x16x4_t shifted;
    for (int i = 0; i < 4; ++i) shifted.val[i] = all.val[i] << (7 - t);
    out[t] = high_bits(shifted);
  });
#else
  for (int t = 0; t < 8; ++t) out[t] = 0;
  for (int g = 0; g < 8; ++g) {
    uint64_t x = 0;
    for (int c = 0; c < 8; ++c) x |= static_cast<uint64_t>(in[8 * g + c]) << (8 * c);
    if (x == 0) continue;
    // 8 x 8 bit transpose by swapping ever larger blocks (Hacker's Delight, section 7-3)
    uint64_t swap = (x ^ (x >> 7)) & 0x00AA00AA00AA00AAULL;
    x ^= swap ^ (swap << 7);
    swap = (x ^ (x >> 14)) & 0x0000CCCC0000CCCCULL;
    x ^= swap ^ (swap << 14);
    swap = (x ^ (x >> 28)) & 0x00000000F0F0F0F0ULL;
    x ^= swap ^ (swap << 28);
    for (int t = 0; t < 8; ++t) out[t] |= (x >> (8 * t) & 0xFF) << (8 * g);
  }
#endif
}

}  // namespace tandem::TANDEM_ISA
