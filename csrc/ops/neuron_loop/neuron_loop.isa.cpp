// The kernels of one instruction set: see cpu/kernel_table.h.
#include "ops/neuron_loop/integrate_and_fire.inl.h"

namespace tandem::TANDEM_ISA {

const NeuronLoopKernels kNeuronLoopKernels = {{{integrate_and_fire<float>}, {integrate_and_fire<double>}}};

}  // namespace tandem::TANDEM_ISA
