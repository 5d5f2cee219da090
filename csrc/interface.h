// What the operator library offers beside its operators: one C function, so that whoever calls it, the Python module or
// a C++ program, need not have been compiled by the same compiler, nor for any Python or torch.
#pragma once

#include <cstddef>
#include <cstdint>

extern "C" {

// Texts live as long as the library. Those that a function returns live until the same thread calls it again or ends,
// that of error() until another call in the thread fails. Lists are separated by spaces. A function that fails returns
// null or false, and error() says why.
struct TandemCuda {
  // These two stay first: whoever was compiled with another version or size must read no more than them.
  const char* version;
  size_t size;  // of this struct, in bytes
  const char* torch_built_against;
  const char* torch_stable_abi;  // the oldest torch that the library loads under, "2.11"
  const char* compiler;
  const char* cuda_toolkit;               // null without CUDA kernels
  const char* cuda_architectures;         // "sm_80 sm_90 compute_90", empty without CUDA kernels
  const char* cuda_not_built_because;     // null with CUDA kernels
  const char* (*cuda_driver)() noexcept;  // the newest CUDA that the driver supports, "13.0"; null without a driver
  // Instruction sets of the CPU kernels, in ascending order: compiled, runnable here, in use
  const char* (*cpu_isas_compiled)() noexcept;
  const char* (*cpu_isas_runnable)() noexcept;
  const char* (*cpu_isa)() noexcept;
  bool (*set_cpu_isa)(const char* name) noexcept;
  uint64_t (*fingerprint)(const void* memory, size_t bytes, uint64_t seed) noexcept;  // cpu/fingerprint.h
  void (*prefer_huge_pages)(void* memory, size_t bytes) noexcept;                     // cpu/huge_pages.h
  const char* (*error)() noexcept;  // of the last call in this thread that failed
};

__attribute__((visibility("default"))) const TandemCuda* tandem_cuda_interface() noexcept;
}
