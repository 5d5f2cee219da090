// The kernels of one instruction set: see cpu/kernel_table.h.
#include "ops/ordered_product/ordered_product.inl.h"

namespace tandem::TANDEM_ISA {

const OrderedProductKernels kOrderedProductKernels = {{{ordered_tile<int8_t>}, {ordered_tile<int16_t>}}};

}  // namespace tandem::TANDEM_ISA
