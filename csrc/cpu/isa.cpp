#include "cpu/isa.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace tandem {

namespace {

// Ascending: the last one that runs is the default.
#define TANDEM_NAME_(isa, of) #isa,
constexpr const char* kNames[] = {TANDEM_ISAS(TANDEM_NAME_, )};
constexpr int kIsas = sizeof(kNames) / sizeof(kNames[0]);

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

// Indices of kNames.
std::vector<int> runnable() {
  const char* text = std::getenv("TANDEM_CPU_ISA");
  const std::string cap = text ? text : "";
  std::vector<int> out;
  bool known = cap.empty();
  for (int i = 0; i < kIsas && (!known || cap.empty()); ++i) {
    if (processor_has(kNames[i])) out.push_back(i);
    known = known || cap == kNames[i];
  }
  if (!known) {
    std::string message = "TANDEM_CPU_ISA must be one of";
    for (const char* name : kNames) message += std::string(" ") + name;
    throw std::invalid_argument(message + ", got " + cap);
  }
  return out;
}

std::atomic<int>& active() {
  static std::atomic<int> current{runnable().back()};
  return current;
}

}  // namespace

std::vector<std::string> compiled_isas() { return {kNames, kNames + kIsas}; }

std::vector<std::string> runnable_isas() {
  std::vector<std::string> out;
  for (const int i : runnable()) out.emplace_back(kNames[i]);
  return out;
}

std::string active_isa() { return kNames[active_isa_index()]; }
int active_isa_index() { return active().load(std::memory_order_relaxed); }

void set_active_isa(const std::string& name) {
  for (const int i : runnable()) {
    if (name == kNames[i]) {
      active().store(i, std::memory_order_relaxed);
      return;
    }
  }
  std::string message = "set_cpu_isa: instruction set must be one of";
  for (const std::string& isa : runnable_isas()) message += " " + isa;
  throw std::invalid_argument(message + ", got " + name);
}

}  // namespace tandem
