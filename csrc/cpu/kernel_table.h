// Tables of CPU kernels: one for each family of loops and instruction set. Torch-free.
//
// Each loop is written once, in *.inl.h. The build compiles each *.isa.cpp once for each instruction set, with its
// flags and with TANDEM_ISA as the namespace of its own code, so that no code of a wider instruction set can leak into
// a narrower one through the linker.
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

#define TANDEM_DECLARE_KERNELS_(isa, Family) \
  namespace isa {                            \
  extern const Family k##Family;             \
  }
#define TANDEM_ADDRESS_KERNELS_(isa, Family) &isa::k##Family,

// Declares a family's tables, each a kFamily in its instruction set's namespace.
#define TANDEM_KERNELS(Family)                                                                 \
  TANDEM_ISAS(TANDEM_DECLARE_KERNELS_, Family)                                                 \
  template <>                                                                                  \
  inline const Family& kernels<Family>() {                                                     \
    static constexpr const Family* kTables[] = {TANDEM_ISAS(TANDEM_ADDRESS_KERNELS_, Family)}; \
    return *kTables[active_isa_index()];                                                       \
  }

}  // namespace tandem
