// The kernels of one instruction set: see cpu/kernel_table.h.
#include "ops/product/count_lists.inl.h"
#include "ops/product/count_matrix.inl.h"
#include "ops/product/count_tile.inl.h"

namespace tandem::TANDEM_ISA {

const CountKernels kCountKernels = {
    list_tile,
    {{sweep_counts<float>}, {sweep_counts<double>}},
    kMultipliesBytes,
    {{kCountTile<int8_t>}, {kCountTile<int16_t>}},
    {{kFillMatrixPanel<int8_t>}, {kFillMatrixPanel<int16_t>}, {kFillMatrixPanel<float>}},
    kFillMatrixRows,
    {{kMatrixTile<int8_t>}, {kMatrixTile<int16_t>}, {kMatrixTile<float>}},
};

}  // namespace tandem::TANDEM_ISA
