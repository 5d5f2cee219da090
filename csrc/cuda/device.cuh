// What kernels take from CUDA beyond the language: launches, dynamic shared memory, and the instructions that need PTX.
// A host build, which runs the same kernels without a device, brings its own (tests/cpp/cuda_host).
#pragma once

#if defined(__CUDACC__)

#include <cuda_runtime.h>

#include <cstdint>

#define TANDEM_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  kernel<<<(grid), (block), (shared_bytes), (stream)>>>(__VA_ARGS__)
// Lets a kernel have so much dynamic shared memory where that and the static one are more than 48 KiB.
#define TANDEM_ALLOW_SHARED(kernel, bytes) \
  cudaFuncSetAttribute((kernel), cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes))
#define TANDEM_DYNAMIC_SHARED(T, name)                                   \
  extern __shared__ __align__(16) unsigned char tandem_dynamic_shared[]; \
  T* const name = reinterpret_cast<T*>(tandem_dynamic_shared)

namespace tandem {

// d += a * b modulo 2^32 for a of 16 x 32, 8-bit integers with a sign or without, b of 32 x 8, 8-bit integers without.
// Fragments: PTX ISA, "Matrix Fragments for mma.m16n8k32".
template <bool kSigned>
__device__ __forceinline__ void mma_m16n8k32(int (&d)[4], const uint4& a, unsigned b0, unsigned b1) {
#if __CUDA_ARCH__ >= 800
  if constexpr (kSigned) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.u8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
  } else {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.u8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
  }
#else
  __trap();  // never launched there: the host asks for the device's compute capability first
#endif
}

// The same value, of which the compiler no longer knows where it comes from: what follows from it is computed anew
// instead of being kept in registers, or spilt, through a loop.
__device__ __forceinline__ unsigned anew(unsigned x) {
  asm volatile("" : "+r"(x));
  return x;
}

// 16 bytes to shared memory while the thread goes on; zeros, and nothing is read, where they are not valid.
__device__ __forceinline__ void cp_async_16(void* shared, const void* global, bool valid) {
#if __CUDA_ARCH__ >= 800
  const auto to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  const unsigned bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(bytes) : "memory");
#else
  *static_cast<uint4*>(shared) = valid ? *static_cast<const uint4*>(global) : uint4{};
#endif
}

__device__ __forceinline__ void cp_async_commit() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most kInFlight of the thread's groups of copies are under way.
template <int kInFlight>
__device__ __forceinline__ void cp_async_wait() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(kInFlight) : "memory");
#endif
}

}  // namespace tandem

#elif defined(TANDEM_CUDA_HOST)
#include "cuda_host.h"
#else
#error "kernels are compiled by nvcc, or for the host with TANDEM_CUDA_HOST"
#endif
