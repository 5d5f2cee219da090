#include "cpu/fingerprint.h"

#include <array>
#include <cstring>

namespace tandem {

namespace {

constexpr size_t kLine = 64, kLanes = kLine / sizeof(uint64_t);
constexpr uint64_t kFactor = 0x9e3779b97f4a7c15;  // odd, so that multiplying by it loses nothing

// Independent lanes, so that one multiplication does not wait for another.
struct Hash {
  std::array<uint64_t, kLanes> lanes;

  explicit Hash(uint64_t seed) {
    for (size_t i = 0; i < kLanes; ++i) lanes[i] = seed + i * kFactor;
  }

  void add(const unsigned char* line) {
    std::array<uint64_t, kLanes> words;
    std::memcpy(words.data(), line, kLine);
    for (size_t i = 0; i < kLanes; ++i) {
      const uint64_t mixed = (lanes[i] ^ words[i]) * kFactor;
      lanes[i] = mixed ^ mixed >> 29;
    }
  }

  uint64_t value() const {
    uint64_t hash = 0;
    for (const uint64_t lane : lanes) {
      hash = (hash ^ lane) * kFactor;
      hash ^= hash >> 32;
    }
    return hash;
  }
};

}  // namespace

uint64_t fingerprint(const void* memory, size_t bytes, uint64_t seed) noexcept {
  const auto* from = static_cast<const unsigned char*>(memory);
  Hash hash(seed + bytes);
  if (bytes < kLine) {
    std::array<unsigned char, kLine> line = {};
    if (bytes > 0) std::memcpy(line.data(), from, bytes);
    hash.add(line.data());
    return hash.value();
  }
  const size_t last = bytes - kLine;  // where the last line begins
  if (bytes <= kWholeFingerprint) {
    for (size_t at = 0; at < last; at += kLine) hash.add(from + at);
  } else {
    constexpr size_t kSamples = 256;
    const size_t step = last / kSamples;
    for (size_t i = 0; i < kSamples; ++i) hash.add(from + i * step);
  }
  hash.add(from + last);
  return hash.value();
}

}  // namespace tandem
