// Uninitialised scratch memory from a cache line's boundary on.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tandem {

// Memory of at least `bytes` bytes; give_back takes what take returned and the same number. Some of what is given back
// is kept for the next call: to a kernel of a few milliseconds, fresh pages cost as much as its work.
void* take_scratch(size_t bytes);
void give_scratch_back(void* memory, size_t bytes);

template <class T>
struct AlignedBuffer {
  explicit AlignedBuffer(int64_t n)
      : bytes(static_cast<size_t>(n) * sizeof(T)), data(static_cast<T*>(take_scratch(bytes))) {}
  ~AlignedBuffer() { give_scratch_back(data, bytes); }
  AlignedBuffer(const AlignedBuffer&) = delete;
  AlignedBuffer& operator=(const AlignedBuffer&) = delete;
  AlignedBuffer(AlignedBuffer&&) = delete;
  AlignedBuffer& operator=(AlignedBuffer&&) = delete;
  size_t bytes;
  T* data;
};

}  // namespace tandem
