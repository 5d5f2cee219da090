#include "cpu/isa.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

#if defined(TANDEM_X86_KERNELS)
#include <cpuid.h>
#endif
#if defined(TANDEM_NEON_KERNELS) && defined(__linux__)
#include <sys/auxv.h>
#endif
#if defined(TANDEM_AVX512VBMI2_KERNELS) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#define TANDEM_MATRIX_TILES_
#endif

namespace tandem {

namespace {

// Ascending: the last one that runs is the default.
#define TANDEM_NAME_(isa, base, of) #isa,
constexpr const char* kNames[] = {
    TANDEM_ISAS(TANDEM_NAME_, )
#if defined(TANDEM_MATRIX_TILES_)
        "amx",
#endif
};
constexpr int kIsas = sizeof(kNames) / sizeof(kNames[0]);

#if defined(TANDEM_MATRIX_TILES_)
// Whether the processor has tiles of bytes and the system lets this process use them, which it must ask for.
bool may_use_tiles() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  constexpr unsigned kTiles = 1U << 24 | 1U << 25;  // AMX-TILE, AMX-INT8
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0 || (d & kTiles) != kTiles) return false;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#endif

#if defined(TANDEM_X86_KERNELS)
// Compilers older than the instruction set do not know its name, but the build may.
bool has_avx_vnni() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a & 1U << 4) != 0;
}
#endif

bool processor_has(const std::string& isa) {
#if defined(TANDEM_X86_KERNELS)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") &&
                    __builtin_cpu_supports("popcnt");
  if (isa == "avx2") return avx2;
  if (isa == "avxvnni") return avx2 && has_avx_vnni();
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (isa == "avx512") return avx512;
  const bool avx512vnni = avx512 && __builtin_cpu_supports("avx512vnni");
  if (isa == "avx512vnni") return avx512vnni;
  if (isa == "avx512vbmi2") {
    return avx512vnni && __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vbmi2");
  }
#if defined(TANDEM_MATRIX_TILES_)
  if (isa == "amx") return processor_has("avx512vbmi2") && may_use_tiles();
#endif
#elif defined(TANDEM_NEON_KERNELS)
  if (isa == "neon") return true;  // every aarch64 processor has it
#if defined(__linux__)
  constexpr unsigned long kDotProducts = 1UL << 20;  // HWCAP_ASIMDDP
  if (isa == "neondot") return (getauxval(AT_HWCAP) & kDotProducts) != 0;
#endif
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

std::string active_isa() { return kNames[active().load(std::memory_order_relaxed)]; }
int active_isa_index() { return active().load(std::memory_order_relaxed) - (has_matrix_tiles() ? 1 : 0); }

bool has_matrix_tiles() {
#if defined(TANDEM_MATRIX_TILES_)
  return active().load(std::memory_order_relaxed) == kIsas - 1;
#else
  return false;
#endif
}

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
