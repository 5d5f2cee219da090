// What is said of a launch that failed, of a device that the library was not compiled for above all.
#include "cuda/launch_error.h"

#include <cstdio>

namespace {

int failures = 0;

void expect(cudaError_t error, const tandem::DeviceFacts& device, const std::string& expected) {
  const std::string got = tandem::launch_error("spiking_conv2d", error, "out of resources", device);
  if (got == expected) return;
  ++failures;
  std::printf("FAIL\n  got      %s\n  expected %s\n", got.c_str(), expected.c_str());
}

}  // namespace

int main() {
  expect(cudaErrorNoKernelImageForDevice, {7, 5, "sm_80, sm_90", 13000, 12080},
         "spiking_conv2d: built for sm_80, sm_90; this device is sm_75: rebuild with TORCH_CUDA_ARCH_LIST=7.5");
  expect(cudaErrorNoKernelImageForDevice, {12, 1, "sm_90, compute_120", 13000, 13010},
         "spiking_conv2d: built for sm_90, compute_120; this device is sm_121: rebuild with TORCH_CUDA_ARCH_LIST=12.1");
  expect(cudaErrorLaunchOutOfResources, {8, 0, "sm_80", 12040, 12080},
         "spiking_conv2d: CUDA launch failed: out of resources");
  // Nothing else is known of the device then, whatever the error.
  for (const cudaError_t error : {cudaErrorInsufficientDriver, cudaErrorInitializationError, cudaErrorUnknown}) {
    expect(error, {0, 0, "sm_80", 12090, 13000},
           "spiking_conv2d: compiled by CUDA 13.0; the driver supports CUDA up to 12.9: update the driver, or rebuild "
           "with a toolkit that it supports");
  }
  expect(cudaErrorNoDevice, {0, 0, "sm_80", 0, 12080},
         "spiking_conv2d: compiled by CUDA 12.8; there is no CUDA driver: update the driver, or rebuild with a toolkit "
         "that it supports");
  expect(cudaErrorUnsupportedPtxVersion, {12, 0, "sm_80, compute_90", 12040, 12080},
         "spiking_conv2d: has for this device PTX of CUDA 12.8 alone; the driver supports CUDA up to 12.4: update the "
         "driver, or rebuild with TORCH_CUDA_ARCH_LIST=12.0");
  std::printf("launch_error_test: %d failures\n", failures);
  return failures != 0;
}
