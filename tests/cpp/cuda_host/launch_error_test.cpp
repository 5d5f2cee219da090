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
  expect(cudaErrorNoKernelImageForDevice, {7, 5, "sm_80, sm_90"},
         "spiking_conv2d: built for sm_80, sm_90; this device is sm_75: rebuild with TORCH_CUDA_ARCH_LIST=7.5");
  expect(cudaErrorNoKernelImageForDevice, {12, 1, "sm_90, compute_120"},
         "spiking_conv2d: built for sm_90, compute_120; this device is sm_121: rebuild with TORCH_CUDA_ARCH_LIST=12.1");
  expect(cudaErrorLaunchOutOfResources, {8, 0, "sm_80"}, "spiking_conv2d: CUDA launch failed: out of resources");
  std::printf("launch_error_test: %d failures\n", failures);
  return failures != 0;
}
