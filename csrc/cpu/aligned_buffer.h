// Uninitialised memory from a cache line's boundary on.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>

namespace tandem {

template <class T>
struct AlignedBuffer {
  explicit AlignedBuffer(int64_t n)
      : data(static_cast<T*>(::operator new(static_cast<size_t>(n) * sizeof(T), std::align_val_t{64}))) {}
  ~AlignedBuffer() { ::operator delete(data, std::align_val_t{64}); }
  AlignedBuffer(const AlignedBuffer&) = delete;
  AlignedBuffer& operator=(const AlignedBuffer&) = delete;
  AlignedBuffer(AlignedBuffer&&) = delete;
  AlignedBuffer& operator=(AlignedBuffer&&) = delete;
  T* data;
};

}  // namespace tandem
