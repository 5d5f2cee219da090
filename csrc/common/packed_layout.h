// The layout of packed weights, the same on every device.
#pragma once

#include "common/block_size.h"
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
PackedLayout packed_layout(const ConvGeometry& g) {
  const int64_t block = block_size<E>(g.group_out());
  return {block, (g.group_out() + block - 1) / block, g.features(), g.groups};
}

// Throws where `packed` is not what pack_weight makes of weights of this geometry.
template <class E>
void check_packed(const char* op, const char* argument, const Tensor& packed, const ConvGeometry& geometry);

// Memory for packed weights of this geometry, uninitialised.
Tensor empty_packed(const Tensor& weight, const ConvGeometry& geometry);

}  // namespace tandem
