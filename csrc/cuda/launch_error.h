// What a failed launch tells the user. Torch-free, and free of the runtime library: a test calls it without a device.
#pragma once

#include <driver_types.h>

#include <string>

namespace tandem {

// The device's compute capability, what the library was compiled for ("sm_80, sm_90"), and the newest CUDA that the
// driver supports and the one that compiled the library, as CUDA writes them: 12040 is 12.4.
struct DeviceFacts {
  int major, minor;
  const char* compiled_for;
  int driver, toolkit;
};

inline std::string cuda_version(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

// reason: what cudaGetErrorString says of the error.
inline std::string launch_error(const std::string& op, cudaError_t error, const std::string& reason,
                                const DeviceFacts& device) {
  const std::string driver = device.driver > 0 ? "the driver supports CUDA up to " + cuda_version(device.driver)
                                               : std::string("there is no CUDA driver");
  // Every call fails then, each with an error of its own. Drivers serve all toolkits of their major version.
  if (device.driver / 1000 < device.toolkit / 1000) {
    return op + ": compiled by CUDA " + cuda_version(device.toolkit) + "; " + driver +
           ": update the driver, or rebuild with a toolkit that it supports";
  }
  const std::string capability = std::to_string(device.major) + "." + std::to_string(device.minor);
  if (error == cudaErrorUnsupportedPtxVersion) {
    return op + ": has for this device PTX of CUDA " + cuda_version(device.toolkit) + " alone; " + driver +
           ": update the driver, or rebuild with TORCH_CUDA_ARCH_LIST=" + capability;
  }
  if (error != cudaErrorNoKernelImageForDevice) return op + ": CUDA launch failed: " + reason;
  return op + ": built for " + device.compiled_for + "; this device is sm_" + std::to_string(device.major) +
         std::to_string(device.minor) + ": rebuild with TORCH_CUDA_ARCH_LIST=" + capability;
}

}  // namespace tandem
