// The same of warpgroup.cuh, for sm_90a.
#include "cuda/warpgroup.cuh"

namespace tandem {

template <int kFirst, int kRows, bool kSigned>
__global__ void wgmma_m64k32_kernel(int* out, const uint4* in) {
  __shared__ __align__(16) uint4 matrix[64];
  int d[16] = {};
  const unsigned a[] = {in[threadIdx.x].x, in[threadIdx.x].y, in[threadIdx.x].z, in[threadIdx.x].w};
  if (threadIdx.x < 64) matrix[threadIdx.x] = in[threadIdx.x];
  fence_shared_matrices();
  __syncthreads();
  warpgroup_fence();
  wgmma_m64k32<kFirst, kRows, kSigned>(d, a, shared_matrix(matrix, 128, 256));
  warpgroup_commit();
  warpgroup_wait<0>();
  for (int i = 0; i < 16; ++i) out[threadIdx.x * 16 + i] = anew(d[i]);
}
template __global__ void wgmma_m64k32_kernel<0, 32, true>(int*, const uint4*);
template __global__ void wgmma_m64k32_kernel<0, 16, true>(int*, const uint4*);
template __global__ void wgmma_m64k32_kernel<0, 8, true>(int*, const uint4*);
template __global__ void wgmma_m64k32_kernel<8, 16, false>(int*, const uint4*);
template __global__ void wgmma_m64k32_kernel<4, 24, false>(int*, const uint4*);

__global__ void fence_shared_matrices_kernel() { fence_shared_matrices(); }

__global__ void warpgroup_fence_kernel() { warpgroup_fence(); }

__global__ void warpgroup_commit_kernel() { warpgroup_commit(); }

__global__ void warpgroup_wait_kernel() { warpgroup_wait<1>(); }

__global__ void anew_kernel(int* out) { *out = anew(static_cast<int>(threadIdx.x)); }

}  // namespace tandem
