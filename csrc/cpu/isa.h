// Instruction sets: what was compiled, what this processor runs, what is in use. Torch-free.
#pragma once

#include <string>
#include <vector>

// X(isa, base, of) for each instruction set that the build compiles kernels for, in ascending order. base: the one
// whose kernels it uses but for those that multiply bytes, and itself where it has kernels of all families.
#if defined(TANDEM_AVX2_KERNELS)
#define TANDEM_AVX2_(X, of) X(avx2, avx2, of)
#else
#define TANDEM_AVX2_(X, of)
#endif
#if defined(TANDEM_AVXVNNI_KERNELS)  // of Alder Lake and later, without AVX-512
#define TANDEM_AVXVNNI_(X, of) X(avxvnni, avx2, of)
#else
#define TANDEM_AVXVNNI_(X, of)
#endif
#if defined(TANDEM_AVX512_KERNELS)
#define TANDEM_AVX512_(X, of) X(avx512, avx512, of)
#else
#define TANDEM_AVX512_(X, of)
#endif
#if defined(TANDEM_AVX512VNNI_KERNELS)  // of Cascade Lake
#define TANDEM_AVX512VNNI_(X, of) X(avx512vnni, avx512, of)
#else
#define TANDEM_AVX512VNNI_(X, of)
#endif
#if defined(TANDEM_AVX512VBMI2_KERNELS)  // of Ice Lake, Zen 4 and later
#define TANDEM_AVX512VBMI2_(X, of) X(avx512vbmi2, avx512vbmi2, of)
#else
#define TANDEM_AVX512VBMI2_(X, of)
#endif
#if defined(TANDEM_NEON_KERNELS)  // of aarch64
#define TANDEM_NEON_(X, of) X(neon, neon, of)
#else
#define TANDEM_NEON_(X, of)
#endif
#if defined(TANDEM_NEONDOT_KERNELS)  // of Neoverse N1, Cortex-A75 and later
#define TANDEM_NEONDOT_(X, of) X(neondot, neon, of)
#else
#define TANDEM_NEONDOT_(X, of)
#endif
#define TANDEM_ISAS(X, of) \
  X(scalar, scalar, of)    \
  TANDEM_AVX2_(X, of)      \
  TANDEM_AVXVNNI_(X, of)   \
  TANDEM_AVX512_(X, of) TANDEM_AVX512VNNI_(X, of) TANDEM_AVX512VBMI2_(X, of) TANDEM_NEON_(X, of) TANDEM_NEONDOT_(X, of)

namespace tandem {

// In ascending order: TANDEM_ISAS, and behind them "amx", the last of them with matrix tiles of bytes
// (count_matrix.inl.h).
std::vector<std::string> compiled_isas();
// The compiled instruction sets that this processor has, in ascending order, capped by TANDEM_CPU_ISA.
std::vector<std::string> runnable_isas();
std::string active_isa();
// Where the instruction set in use stands in TANDEM_ISAS, without its matrix tiles.
int active_isa_index();
bool has_matrix_tiles();
// Throws std::invalid_argument for a name that is not runnable.
void set_active_isa(const std::string& name);

}  // namespace tandem
