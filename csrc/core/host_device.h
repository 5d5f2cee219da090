// Functions for the host, and for host and device, that are always inlined: a kernel of one instruction set must not
// call a copy that was compiled for another.
#pragma once

#define TANDEM_HOST inline __attribute__((always_inline))
#if defined(__CUDACC__)
#define TANDEM_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define TANDEM_HOST_DEVICE TANDEM_HOST
#endif
