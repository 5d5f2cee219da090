// Every function of device.cuh that consists of PTX, in a kernel of its own: test_cuda_resources.py has each assembled
// for every architecture and looks for the machine's instruction.
#include "cuda/device.cuh"

namespace tandem {

template <bool kSigned>
__global__ void mma_m16n8k32_kernel(int* d, const uint4* a) {
  int sums[4] = {d[0], d[1], d[2], d[3]};
  mma_m16n8k32<kSigned>(sums, a[threadIdx.x], a[32].x, a[32].y);
  for (int i = 0; i < 4; ++i) d[threadIdx.x * 4 + i] = sums[i];
}
template __global__ void mma_m16n8k32_kernel<true>(int*, const uint4*);
template __global__ void mma_m16n8k32_kernel<false>(int*, const uint4*);

__global__ void cp_async_16_kernel(uint4* out, const uint4* in, bool valid) {
  __shared__ uint4 staged[32];
  cp_async_16(staged + threadIdx.x, in + threadIdx.x, valid);
  cp_async_commit();
  cp_async_wait<0>();
  out[threadIdx.x] = staged[threadIdx.x];
}

__global__ void cp_async_commit_kernel() { cp_async_commit(); }

__global__ void cp_async_wait_kernel() { cp_async_wait<1>(); }

__global__ void anew_kernel(unsigned* out) { *out = anew(threadIdx.x); }

}  // namespace tandem
