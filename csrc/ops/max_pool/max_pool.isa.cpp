// The kernels of one instruction set: see cpu/kernel_table.h.
#include "ops/max_pool/max_pool_spikes.inl.h"

namespace tandem::TANDEM_ISA {

const MaxPoolKernels kMaxPoolKernels = {max_pool};

}  // namespace tandem::TANDEM_ISA
