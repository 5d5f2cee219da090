// Tables of CPU kernels: one for each family of loops and instruction set. Torch-free.
//
// Each loop is written once, in *.inl.h. The build compiles each *.isa.cpp once for each instruction set, with its
// flags and with TANDEM_ISA as the namespace of its own code, so that no code of a wider instruction set can leak into
// a narrower one through the linker. Some instruction sets add nothing to another one but products of bytes: for these,
// it compiles the family that multiplies bytes alone, and the other families use the other one's tables.
#pragma once

#include "cpu/isa.h"

namespace tandem {

// A kernel for several types of numbers, chosen by its arguments: function types -> a call of any of them.
template <class Function>
struct OneKernel;
template <class R, class... Arguments>
struct OneKernel<R(Arguments...)> {
  R (*function)(Arguments...);
  R operator()(Arguments... arguments) const { return function(arguments...); }
};
template <class... Functions>
struct KernelOf : OneKernel<Functions>... {
  using OneKernel<Functions>::operator()...;
};

// The kernels of a family for the instruction set in use.
template <class Family>
const Family& kernels();

#define TANDEM_DECLARE_KERNELS_(isa, base, Family) \
  namespace isa {                                  \
  extern const Family k##Family;                   \
  }
#define TANDEM_OWN_KERNELS_(isa, base, Family) &isa::k##Family,
#define TANDEM_BASE_KERNELS_(isa, base, Family) &base::k##Family,
#define TANDEM_KERNELS_(Family, ADDRESS_)                                       \
  TANDEM_ISAS(TANDEM_DECLARE_KERNELS_, Family)                                  \
  template <>                                                                   \
  inline const Family& kernels<Family>() {                                      \
    static constexpr const Family* kTables[] = {TANDEM_ISAS(ADDRESS_, Family)}; \
    return *kTables[active_isa_index()];                                        \
  }

// Declares a family's tables, each a kFamily in its instruction set's namespace.
#define TANDEM_KERNELS(Family) TANDEM_KERNELS_(Family, TANDEM_BASE_KERNELS_)
// The same of a family that multiplies bytes, which has a table for every instruction set.
#define TANDEM_BYTE_KERNELS(Family) TANDEM_KERNELS_(Family, TANDEM_OWN_KERNELS_)

}  // namespace tandem
