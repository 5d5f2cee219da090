// Fingerprints of memory, to notice that weights have changed behind autograd's version counter.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tandem {

// A hash of `bytes` bytes, mixed into `seed`. Up to kWholeFingerprint bytes are read whole: any change changes the
// hash. Of more, 256 cache lines are read, spread evenly from the first byte to the last.
constexpr size_t kWholeFingerprint = size_t{4} << 20;
uint64_t fingerprint(const void* memory, size_t bytes, uint64_t seed) noexcept;

}  // namespace tandem
