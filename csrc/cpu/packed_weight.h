// Weights in the order in which the event-driven kernels add them.
#pragma once

#include "common/product_plan.h"

namespace tandem {

// What a packed weight consists of: float and double as they are, 8-bit integers widened to 16 bits.
template <class E>
constexpr ScalarType packed_type();
template <>
constexpr ScalarType packed_type<float>() {
  return ScalarType::Float;
}
template <>
constexpr ScalarType packed_type<double>() {
  return ScalarType::Double;
}
template <>
constexpr ScalarType packed_type<int16_t>() {
  return ScalarType::Short;
}

// Dispatch on a checked weight's dtype: calls f(E{}, T{}) with the packed elements' and the neurons' types.
template <class F>
void dispatch_packed(ScalarType weight, F&& f) {
  if (weight == ScalarType::Char) {
    f(int16_t{}, float{});
  } else if (weight == ScalarType::Float) {
    f(float{}, float{});
  } else {
    f(double{}, double{});
  }
}

// [groups, blocks, features, block]: features in the order (tap, channel), zero where a block has no output channel.
struct PackedLayout {
  int64_t block, blocks, features, groups;

  int64_t block_elements() const { return features * block; }
  int64_t elements() const { return groups * blocks * block_elements(); }
};

template <class E>
PackedLayout packed_layout(const ConvGeometry& geometry);

// Throws where `packed` is not what pack_weight makes of weights of this geometry.
template <class E>
void check_packed(const char* op, const char* argument, const Tensor& packed, const ConvGeometry& geometry);

// Weights [O, C/groups, kH, kW] with the elements that packed_type() says, in any order of memory.
struct WeightView {
  const void* data;
  int64_t stride_o, stride_c, stride_h, stride_w;
};

WeightView weight_view(const Tensor& weight);

template <class E>
void pack_weight(const WeightView& weight, const ConvGeometry& geometry, E* packed);

// A matrix [rows, n], rows row_stride and elements `stride` apart -> its transpose [n, columns], columns >= rows.
template <class W, class E>
void turn(const W* from, int64_t row_stride, int64_t stride, int64_t rows, int64_t n, E* to, int64_t columns);

}  // namespace tandem
