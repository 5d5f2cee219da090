// What a failed launch tells the user. Torch-free, and free of the runtime library: a test calls it without a device.
#pragma once

#include <driver_types.h>

#include <string>

namespace tandem {

// The device's compute capability, and what the library was compiled for ("sm_80, sm_90").
struct DeviceFacts {
  int major, minor;
  const char* compiled_for;
};

// reason: what cudaGetErrorString says of the error.
inline std::string launch_error(const std::string& op, cudaError_t error, const std::string& reason,
                                const DeviceFacts& device) {
  if (error != cudaErrorNoKernelImageForDevice) return op + ": CUDA launch failed: " + reason;
  const std::string major = std::to_string(device.major), minor = std::to_string(device.minor);
  return op + ": built for " + device.compiled_for + "; this device is sm_" + major + minor +
         ": rebuild with TORCH_CUDA_ARCH_LIST=" + major + "." + minor;
}

}  // namespace tandem
