// The kernels of one instruction set: see cpu/kernel_table.h.
#include "ops/quantise_weight/quantise_weight.inl.h"

namespace tandem::TANDEM_ISA {

const QuantiseKernels kQuantiseKernels = {{{quantise_channel<int8_t>}, {quantise_channel<int16_t>}}};

}  // namespace tandem::TANDEM_ISA
