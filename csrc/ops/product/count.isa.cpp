// The kernels of one instruction set: see cpu/kernel_table.h.
#include "ops/product/count_lists.inl.h"
#include "ops/product/count_matrix.inl.h"
#include "ops/product/count_tile.inl.h"

namespace tandem::TANDEM_ISA {

const CountKernels kCountKernels = {
    list_tile,
    {{sweep_counts<float>}, {sweep_counts<double>}},
    kMultipliesBytes,
    byte_slope,
    {{kFillPanel<int8_t>}, {kFillPanel<int16_t>}, {kFillFloatPanel}},
    kFillRows,
    kFillLines,
    {{kByteTile<int8_t>}, {kByteTile<int16_t>}},
    {{kMatrixTile<int8_t>}, {kMatrixTile<int16_t>}, {kMatrixTile<float>}},
};

}  // namespace tandem::TANDEM_ISA
