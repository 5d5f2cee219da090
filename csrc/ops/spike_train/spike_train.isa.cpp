// The kernels of one instruction set: see cpu/kernel_table.h.
#include "ops/spike_train/bit_planes.inl.h"

namespace tandem::TANDEM_ISA {

const SpikeTrainKernels kSpikeTrainKernels = {
    {{pack<float>}, {pack<double>}, {pack<uint8_t>}},
    {{unpack<float>}, {unpack<double>}, {unpack<uint8_t>}},
    {{spike_count<float>}, {spike_count<double>}},
    {{whole_bytes<float>}, {whole_bytes<double>}},
    count_spikes,
    count_bytes,
    add_counts,
};

}  // namespace tandem::TANDEM_ISA
