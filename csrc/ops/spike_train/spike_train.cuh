// Trains, counts and the gradient of the tandem coupling on the device: plain pointers and a stream. Torch-free.
//
// A step of a dense train and a plane of bits are rows of `neurons` elements. Pointers need no alignment beyond that of
// their type; rows that have more are read and written faster.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace tandem {

// D: uint8_t, float or double
template <class D>
struct CudaPackSpikesArgs {
  const D* dense;  // [T, neurons]
  uint8_t* bits;   // [P, neurons]
  int64_t time_steps, neurons;
};

template <class D>
struct CudaUnpackSpikesArgs {
  const uint8_t* bits;  // [P, neurons]
  D* dense;             // [T, neurons]
  int64_t time_steps, neurons;
};

// T: float or double
template <class T>
struct CudaSpikeCountArgs {
  const uint8_t* bits;  // [P, neurons]
  T* count;             // [neurons]
  int64_t planes, neurons;
  uint8_t past;  // bits of the last plane that do not count: those past T
  bool radix;    // bytes are values of radix spikes, in place of which there is nothing to count
};

template <class T>
struct CudaTandemCountBackwardArgs {
  const T* grad;  // [neurons], may be out
  const T* pre_activation;
  T* out;
  int64_t neurons;
  T threshold, upper;
};

// Each launches on the current device and returns what cudaGetLastError says of the launch.

// A value that is neither 0 nor 1 ends the context: the kernel prints it and traps.
template <class D>
cudaError_t launch_pack_spikes(const CudaPackSpikesArgs<D>& args, cudaStream_t stream);
template <class D>
cudaError_t launch_unpack_spikes(const CudaUnpackSpikesArgs<D>& args, cudaStream_t stream);
template <class T>
cudaError_t launch_spike_count(const CudaSpikeCountArgs<T>& args, cudaStream_t stream);
template <class T>
cudaError_t launch_tandem_count_backward(const CudaTandemCountBackwardArgs<T>& args, cudaStream_t stream);

}  // namespace tandem
