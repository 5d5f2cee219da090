// The current stream of a device, and the check of a launch.
#pragma once

#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <cstdint>
#include <stdexcept>
#include <string>

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
  const std::string name = op;
  if (error == cudaErrorNoKernelImageForDevice) {
    int device = 0, major = 0, minor = 0;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
    const std::string digits = std::to_string(major) + std::to_string(minor);
    const std::string dotted = std::to_string(major) + "." + std::to_string(minor);
    throw std::runtime_error(name + ": built for " TANDEM_CUDA_ARCHITECTURES "; this device is sm_" + digits +
                             ": rebuild with TORCH_CUDA_ARCH_LIST=" + dotted);
  }
  throw std::runtime_error(name + ": CUDA launch failed: " + cudaGetErrorString(error));
}

}  // namespace tandem
