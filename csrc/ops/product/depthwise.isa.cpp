// The kernels of one instruction set: see cpu/kernel_table.h.
#include "ops/product/depthwise.inl.h"

namespace tandem::TANDEM_ISA {

const DepthwiseKernels kDepthwiseKernels = {{{depthwise<float>}, {depthwise<double>}}};

}  // namespace tandem::TANDEM_ISA
