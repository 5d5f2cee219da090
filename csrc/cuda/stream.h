// The current stream of a device, and the check of a launch.
#pragma once

#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <cstdint>
#include <stdexcept>

#include "cuda/launch_error.h"

// CPU builds of torch do not have this function: weak, so that the library loads there and finds null.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index,
                                                                                   void** ret_stream);

namespace tandem {

inline cudaStream_t current_stream(const char* op, int32_t device_index) {
  if (aoti_torch_get_current_cuda_stream == nullptr) {
    throw std::runtime_error(std::string(op) + ": this build of torch has no CUDA");
  }
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device_index, &stream));
  return static_cast<cudaStream_t>(stream);
}

// Throws where a launch, or another call of the runtime, failed.
inline void check_launch(const char* op, cudaError_t error) {
  if (error == cudaSuccess) return;
  int device = 0;
  DeviceFacts facts = {0, 0, TANDEM_CUDA_ARCHITECTURES, 0, CUDART_VERSION};
  cudaDriverGetVersion(&facts.driver);
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&facts.major, cudaDevAttrComputeCapabilityMajor, device);
  cudaDeviceGetAttribute(&facts.minor, cudaDevAttrComputeCapabilityMinor, device);
  throw std::runtime_error(launch_error(op, error, cudaGetErrorString(error), facts));
}

}  // namespace tandem
