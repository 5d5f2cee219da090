#include "cpu/isa.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

#include "cpu/kernels.h"

namespace tandem {

namespace {

// Ascending: the last one that runs is the default.
std::vector<const Kernels*> compiled() {
  std::vector<const Kernels*> all = {&scalar::kernels};
#if defined(TANDEM_AVX2_KERNELS)
  all.push_back(&avx2::kernels);
#endif
#if defined(TANDEM_AVX512_KERNELS)
  all.push_back(&avx512::kernels);
#endif
#if defined(TANDEM_AVX512VBMI2_KERNELS)
  all.push_back(&avx512vbmi2::kernels);
#endif
#if defined(TANDEM_NEON_KERNELS)
  all.push_back(&neon::kernels);
#endif
  return all;
}

bool processor_has(const std::string& isa) {
#if defined(TANDEM_X86_KERNELS)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") &&
                    __builtin_cpu_supports("popcnt");
  if (isa == "avx2") return avx2;
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (isa == "avx512") return avx512;
  if (isa == "avx512vbmi2") {
    return avx512 && __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vbmi2") &&
           __builtin_cpu_supports("avx512vnni");
  }
#elif defined(TANDEM_NEON_KERNELS)
  if (isa == "neon") return true;  // every aarch64 processor has it
#endif
  return isa == "scalar";
}

std::vector<const Kernels*> runnable() {
  const char* text = std::getenv("TANDEM_CPU_ISA");
  const std::string cap = text ? text : "";
  std::vector<const Kernels*> out;
  bool known = cap.empty();
  for (const Kernels* k : compiled()) {
    if (processor_has(k->isa)) out.push_back(k);
    if (cap == k->isa) {
      known = true;
      break;
    }
  }
  if (!known) {
    std::string message = "TANDEM_CPU_ISA must be one of";
    for (const Kernels* k : compiled()) message += std::string(" ") + k->isa;
    throw std::invalid_argument(message + ", got " + cap);
  }
  return out;
}

std::atomic<const Kernels*>& active() {
  static std::atomic<const Kernels*> current{runnable().back()};
  return current;
}

std::vector<std::string> names(const std::vector<const Kernels*>& all) {
  std::vector<std::string> out;
  for (const Kernels* k : all) out.emplace_back(k->isa);
  return out;
}

}  // namespace

std::vector<std::string> compiled_isas() { return names(compiled()); }
std::vector<std::string> runnable_isas() { return names(runnable()); }
std::string active_isa() { return kernels().isa; }
const Kernels& kernels() { return *active().load(std::memory_order_relaxed); }

void set_active_isa(const std::string& name) {
  for (const Kernels* k : runnable()) {
    if (name == k->isa) {
      active().store(k, std::memory_order_relaxed);
      return;
    }
  }
  std::string message = "set_cpu_isa: instruction set must be one of";
  for (const std::string& isa : runnable_isas()) message += " " + isa;
  throw std::invalid_argument(message + ", got " + name);
}

}  // namespace tandem
