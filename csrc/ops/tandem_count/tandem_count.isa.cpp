// The kernels of one instruction set: see cpu/kernel_table.h.
#include "ops/tandem_count/tandem_count_backward.inl.h"
#include "ops/tandem_count/tandem_norm_count.inl.h"

namespace tandem::TANDEM_ISA {

const TandemCountKernels kTandemCountKernels = {
    {{tandem_count_backward<float>}, {tandem_count_backward<double>}},
    {{norm_sums<float>}, {norm_sums<double>}},
    {{norm_gradient<float>}, {norm_gradient<double>}},
};

}  // namespace tandem::TANDEM_ISA
