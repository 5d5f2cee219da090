// Weights in the order in which the event-driven kernels add them, made on the CPU.
#pragma once

#include "common/packed_layout.h"

namespace tandem {

// Weights [O, C/groups, kH, kW] in any order of memory.
struct WeightView {
  const void* data;
  ScalarType type;
  int64_t stride_o, stride_c, stride_h, stride_w;
};

WeightView weight_view(const Tensor& weight);

template <class E>
void pack_weight(const WeightView& weight, const ConvGeometry& geometry, E* packed);

// A matrix [rows, n], rows row_stride and elements `stride` apart -> its transpose [n, columns], columns >= rows.
template <class W, class E>
void turn(const W* from, int64_t row_stride, int64_t stride, int64_t rows, int64_t n, E* to, int64_t columns);

}  // namespace tandem
