#include "interface.h"

#include <exception>
#include <stdexcept>
#include <string>
#include <vector>

#if defined(USE_CUDA)
#include <cuda_runtime_api.h>

#include "cuda/launch_error.h"
#endif

#include "cpu/fingerprint.h"
#include "cpu/huge_pages.h"
#include "cpu/isa.h"

namespace tandem {

namespace {

thread_local std::string last_error;

void remember(const char* error) noexcept {
  try {
    last_error = error;
  } catch (...) {
    last_error = "out of memory";  // so short that it needs none
  }
}

// f(), or null or false: no exception leaves a library that programs of other compilers call.
template <class F>
auto guarded(const F& f) noexcept -> decltype(f()) {
  try {
    return f();
  } catch (const std::exception& error) {
    remember(error.what());
  } catch (...) {
    remember("unknown exception");
  }
  return {};
}

const char* listed(std::string& text, const std::vector<std::string>& names) {
  text.clear();
  for (const std::string& name : names) text += (text.empty() ? "" : " ") + name;
  return text.c_str();
}

const char* compiled() noexcept {
  thread_local std::string text;
  return guarded([] { return listed(text, compiled_isas()); });
}

const char* runnable() noexcept {
  thread_local std::string text;
  return guarded([] { return listed(text, runnable_isas()); });
}

const char* active() noexcept {
  thread_local std::string text;
  return guarded([] { return listed(text, {active_isa()}); });
}

bool set_active(const char* name) noexcept {
  return guarded([&] {
    if (!name) throw std::invalid_argument("set_cpu_isa: name must be a text, got null");
    set_active_isa(name);
    return true;
  });
}

const char* cuda_driver() noexcept {
#if defined(USE_CUDA)
  thread_local std::string text;
  return guarded([]() -> const char* {
    int version = 0;
    if (cudaDriverGetVersion(&version) != cudaSuccess || version <= 0) return nullptr;
    text = cuda_version(version);
    return text.c_str();
  });
#else
  return nullptr;
#endif
}

const TandemCuda interface = {
    TANDEM_VERSION,
    sizeof(TandemCuda),
    TANDEM_TORCH_BUILT_AGAINST,
    TANDEM_TORCH_STABLE_ABI,
#if defined(__clang__)
    "clang " __clang_version__,
#elif defined(__GNUC__)
    "gcc " __VERSION__,
#else
    "unknown",
#endif
#if defined(USE_CUDA)
    TANDEM_CUDA_TOOLKIT,
    TANDEM_CUDA_ARCHITECTURE_LIST,
    nullptr,
#else
    nullptr,
    "",
    TANDEM_CUDA_NOT_BUILT,
#endif
    cuda_driver,
    compiled,
    runnable,
    active,
    set_active,
    fingerprint,
    prefer_huge_pages,
    []() noexcept { return last_error.c_str(); },
};

}  // namespace

}  // namespace tandem

const TandemCuda* tandem_cuda_interface() noexcept { return &tandem::interface; }
