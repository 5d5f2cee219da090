// Products of a warpgroup, four warps in a row, on the tensor cores of compute capability 9.0. What has PTX here is
// code for sm_90a. A host build brings its own (tests/cpp/cuda_host).
#pragma once

#include "cuda/device.cuh"

#if defined(__CUDACC__)

namespace tandem {

// A matrix of bytes in shared memory: 8 rows by 16 bytes of depth are 128 bytes in a row, from a multiple of 16 on. PTX
// ISA, "Asynchronous Warpgroup Level Matrix Shared Memory Layout": K-major, no swizzle.
struct SharedMatrix {
  uint64_t descriptor;

  __device__ __forceinline__ SharedMatrix ahead(unsigned bytes) const { return {descriptor + bytes / 16}; }
};

// by_depth: bytes from 16 bytes of depth to the next ones; by_rows: from 8 rows to the next ones.
__device__ __forceinline__ SharedMatrix shared_matrix(const void* at, unsigned by_depth, unsigned by_rows) {
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(at)) & 0x3ffff;
  return {static_cast<uint64_t>(by_rows / 16) << 32 | static_cast<uint64_t>(by_depth / 16) << 16 | address / 16};
}

// Part of a matrix, for products behind fence_shared_matrices() and a barrier.
__device__ __forceinline__ void store_to_matrix(unsigned* to, unsigned part) { *to = part; }

__device__ __forceinline__ void fence_shared_matrices() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// Registers are as products that follow find them.
__device__ __forceinline__ void warpgroup_fence() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}

__device__ __forceinline__ void warpgroup_commit() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}

// Waits until at most kInFlight of the warpgroup's groups of products are under way.
template <int kInFlight>
__device__ __forceinline__ void warpgroup_wait() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kInFlight) : "memory");
#endif
}

// The same value, which no code before has seen: between waiting for a product and reading its sums.
__device__ __forceinline__ int anew(int x) {
  asm volatile("" : "+r"(x));
  return x;
}

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define TANDEM_FOUR_(i) \
  "+r"(d[kFirst + (i)]), "+r"(d[kFirst + (i) + 1]), "+r"(d[kFirst + (i) + 2]), "+r"(d[kFirst + (i) + 3])
// shape: with the types of A and B; sums, factor and matrix: their operands; then the sums.
#define TANDEM_WGMMA_(shape, sums, factor, matrix, ...)                                         \
  asm volatile(                                                                                 \
      "{ .reg .pred %%added; setp.ne.b32 %%added, 1, 0; "                                       \
      "wgmma.mma_async.sync.aligned." shape " {" sums "}, {" factor "}, " matrix ", %%added; }" \
      : __VA_ARGS__                                                                             \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b.descriptor))
#define TANDEM_0_3_ "%0,%1,%2,%3"
#define TANDEM_0_7_ TANDEM_0_3_ ",%4,%5,%6,%7"
#define TANDEM_0_11_ TANDEM_0_7_ ",%8,%9,%10,%11"
#define TANDEM_0_15_ TANDEM_0_11_ ",%12,%13,%14,%15"
#endif

// Begins d += a * b modulo 2^32: a has 64 rows of 32 8-bit integers without sign, b kRows rows of 32, with a sign or
// without; kRows / 2 of d's numbers take part, from kFirst on. Fragments: PTX ISA, "Matrix Fragments for
// wgmma.mma_async.m64nNk32". Between warpgroup_fence() and warpgroup_commit(), for all threads of a warpgroup.
template <int kFirst, int kRows, bool kSigned>
__device__ __forceinline__ void wgmma_m64k32(int (&d)[16], const unsigned (&a)[4], SharedMatrix b) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  if constexpr (kSigned && kRows == 32) {
    TANDEM_WGMMA_("m64n32k32.s32.u8.s8", TANDEM_0_15_, "%16,%17,%18,%19", "%20", TANDEM_FOUR_(0), TANDEM_FOUR_(4),
                  TANDEM_FOUR_(8), TANDEM_FOUR_(12));
  } else if constexpr (kSigned && kRows == 16) {
    TANDEM_WGMMA_("m64n16k32.s32.u8.s8", TANDEM_0_7_, "%8,%9,%10,%11", "%12", TANDEM_FOUR_(0), TANDEM_FOUR_(4));
  } else if constexpr (kSigned) {
    static_assert(kRows == 8);
    TANDEM_WGMMA_("m64n8k32.s32.u8.s8", TANDEM_0_3_, "%4,%5,%6,%7", "%8", TANDEM_FOUR_(0));
  } else if constexpr (kRows == 16) {
    TANDEM_WGMMA_("m64n16k32.s32.u8.u8", TANDEM_0_7_, "%8,%9,%10,%11", "%12", TANDEM_FOUR_(0), TANDEM_FOUR_(4));
  } else {
    static_assert(kRows == 24);
    TANDEM_WGMMA_("m64n24k32.s32.u8.u8", TANDEM_0_11_, "%12,%13,%14,%15", "%16", TANDEM_FOUR_(0), TANDEM_FOUR_(4),
                  TANDEM_FOUR_(8));
  }
#else
  __trap();  // never launched there: the host asks for the device's compute capability first
#endif
}

}  // namespace tandem

#else
#include "warpgroup_host.h"
#endif
