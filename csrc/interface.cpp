#include "interface.h"

#include <exception>
#include <string>
#include <vector>

#if defined(USE_CUDA)
#include <cuda_runtime_api.h>

#include "cuda/launch_error.h"
#endif

#include "cpu/fingerprint.h"
#include "cpu/isa.h"

namespace tandem {

namespace {

thread_local std::string last_error;

// f(), or null or false: no exception leaves a library that programs of other compilers call.
template <class F>
auto guarded(const F& f) -> decltype(f()) {
  try {
    return f();
  } catch (const std::exception& error) {
    last_error = error.what();
    return {};
  }
}

const char* listed(std::string& text, const std::vector<std::string>& names) {
  text.clear();
  for (const std::string& name : names) text += (text.empty() ? "" : " ") + name;
  return text.c_str();
}

const char* compiled() {
  thread_local std::string text;
  return guarded([] { return listed(text, compiled_isas()); });
}

const char* runnable() {
  thread_local std::string text;
  return guarded([] { return listed(text, runnable_isas()); });
}

const char* active() {
  thread_local std::string text;
  return guarded([] { return listed(text, {active_isa()}); });
}

bool set_active(const char* name) {
  return guarded([&] {
    set_active_isa(name);
    return true;
  });
}

const char* cuda_driver() {
#if defined(USE_CUDA)
  thread_local std::string text;
  int version = 0;
  if (cudaDriverGetVersion(&version) == cudaSuccess && version > 0) {
    text = cuda_version(version);
    return text.c_str();
  }
#endif
  return nullptr;
}

const TandemCuda interface = {
    TANDEM_VERSION,
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
    [] { return last_error.c_str(); },
};

}  // namespace

}  // namespace tandem

const TandemCuda* tandem_cuda_interface() { return &tandem::interface; }
