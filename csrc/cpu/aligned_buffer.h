// Uninitialised scratch memory from a cache line's boundary on.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tandem {

// Memory for `count` elements of `size` bytes each, at least; throws what names the operator and the bytes where there
// is not so much. give_back takes what take returned, and the bytes. Some of what is given back is kept for the next
// call: to a kernel of a few milliseconds, fresh pages cost as much as its work.
void* take_scratch(const char* op, int64_t count, size_t size);
void give_scratch_back(void* memory, size_t bytes);

template <class T>
struct AlignedBuffer {
  AlignedBuffer(const char* op, int64_t n)
      : bytes(static_cast<size_t>(n) * sizeof(T)), data(static_cast<T*>(take_scratch(op, n, sizeof(T)))) {}
  ~AlignedBuffer() { give_scratch_back(data, bytes); }
  AlignedBuffer(const AlignedBuffer&) = delete;
  AlignedBuffer& operator=(const AlignedBuffer&) = delete;
  AlignedBuffer(AlignedBuffer&&) = delete;
  AlignedBuffer& operator=(AlignedBuffer&&) = delete;
  size_t bytes;
  T* data;
};

}  // namespace tandem
