// The kernels of one instruction set: see cpu/kernel_table.h.
#include "ops/radix_spikes/radix_spikes.inl.h"

namespace tandem::TANDEM_ISA {

const RadixSpikesKernels kRadixSpikesKernels = {{{radix_spikes<float>}, {radix_spikes<double>}}};

}  // namespace tandem::TANDEM_ISA
