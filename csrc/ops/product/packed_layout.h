// The layout of packed weights: the same rows on every device; also what instructions of a CPU read that multiply
// bytes, or the tensor cores of a CUDA device.
#pragma once

#include <type_traits>

#include "core/narrow_float.h"
#include "cpu/isa.h"
#include "ops/product/block_size.h"
#include "ops/product/cpu_count_kernels.h"
#include "ops/product/fragment_layout.h"
#include "ops/product/panel_layout.h"
#include "ops/product/plan.h"
#include "ops/product/term_layout.h"

namespace tandem {

// What a packed weight consists of: the weight's own type, but for 16-bit floats, which are widened to 32 bits.
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
constexpr ScalarType packed_type<int8_t>() {
  return ScalarType::Char;
}
template <>
constexpr ScalarType packed_type<int16_t>() {
  return ScalarType::Short;
}

// Dispatch on a checked weight's dtype: calls f(E{}, T{}) with the packed elements' and the neurons' types.
template <class F>
void dispatch_packed(ScalarType weight, F&& f) {
  if (weight == ScalarType::Char) {
    f(int8_t{}, float{});
  } else if (weight == ScalarType::Short) {
    f(int16_t{}, float{});
  } else if (weight == ScalarType::Double) {
    f(double{}, double{});
  } else {
    f(float{}, float{});
  }
}

// Dispatch on a checked weight's dtype, int8 or int16: calls f(E{}).
template <class F>
void dispatch_integers(ScalarType weight, F&& f) {
  if (weight == ScalarType::Char) {
    f(int8_t{});
  } else {
    f(int16_t{});
  }
}

// Dispatch on the dtype of a weight that is packed as E: calls f(W{}) with what the weight itself consists of.
template <class E, class F>
void dispatch_unpacked(ScalarType weight, F&& f) {
  if constexpr (!std::is_same_v<E, float>) {
    f(E{});
  } else if (weight == ScalarType::Half) {
    f(Float16{});
  } else if (weight == ScalarType::BFloat16) {
    f(BFloat16{});
  } else {
    f(float{});
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

// Whether packed weights of this geometry hold fragments behind the rows, on a CUDA device.
template <class E>
constexpr bool has_fragments(const ConvGeometry& g) {
  return !std::is_same_v<E, double> && is_wide(g);
}

// Terms that are stored of floating-point weights.
inline int stored_terms(ScalarType weight) {
  int stored = 0;
  dispatch_unpacked<float>(weight, [&](auto unpacked) { stored = kStoredTerms<decltype(unpacked)>; });
  return stored;
}

// Of weights that are packed as E: digits of integers, or terms of floats.
template <class E>
int64_t fragment_bytes(const ConvGeometry& g, ScalarType weight) {
  if constexpr (std::is_integral_v<E>) {
    return fragment_layout(g, kDigitsOf<E>).bytes();
  } else {
    return term_layout(g, stored_terms(weight)).bytes();
  }
}

// Whether weights that are packed as E have panels behind the rows on some CPU.
template <class E>
constexpr bool has_panels(const ConvGeometry& g) {
  return !std::is_same_v<E, double> && fills_panels(g);
}

// Bytes of the panel of a group and block of weights.
template <class E>
int64_t panel_bytes(const ConvGeometry& g) {
  return PanelSizes(g).panel_bytes<E>(packed_layout<E>(g).block);
}

// What the panel of a group and block holds.
template <class E>
PanelHolds* holds_of(const ConvGeometry& g, uint8_t* panel) {
  return reinterpret_cast<PanelHolds*>(panel + panel_bytes<E>(g) - kLineBytes);
}
template <class E>
const PanelHolds& holds_of(const ConvGeometry& g, const uint8_t* panel) {
  return *reinterpret_cast<const PanelHolds*>(panel + panel_bytes<E>(g) - kLineBytes);
}

// Where panels begin, in elements: at a line of the cache.
template <class E>
int64_t elements_before_panels(const ConvGeometry& g) {
  constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(E));
  return (packed_layout<E>(g).elements() + kLine - 1) / kLine * kLine;
}

// Elements of packed weights on the CPU with panels.
template <class E>
int64_t elements_with_panels(const ConvGeometry& g) {
  const PackedLayout layout = packed_layout<E>(g);
  const int64_t bytes = layout.groups * layout.blocks * panel_bytes<E>(g);
  return elements_before_panels<E>(g) + bytes / static_cast<int64_t>(sizeof(E));
}

// Whether this CPU has instructions that read them.
template <class E>
bool reads_panels() {
  return std::is_integral_v<E> ? kernels<CountKernels>().multiplies_bytes : has_matrix_tiles();
}

// All elements of packed weights, as pack_weight makes them now.
template <class E>
int64_t packed_elements(const Tensor& weight, const ConvGeometry& g) {
  const int64_t rows = packed_layout<E>(g).elements();
  if (weight.is_cpu()) return has_panels<E>(g) && reads_panels<E>() ? elements_with_panels<E>(g) : rows;
  if (!has_fragments<E>(g)) return rows;
  return rows + fragment_bytes<E>(g, weight.scalar_type()) / static_cast<int64_t>(sizeof(E));
}

// Throws where `packed` is not what pack_weight makes of this weight.
template <class E>
void check_packed(const char* op, const char* argument, const Tensor& packed, const Tensor& weight,
                  const ConvGeometry& geometry);

// Memory for packed weights of this geometry, uninitialised.
Tensor empty_packed(const char* op, const Tensor& weight, const ConvGeometry& geometry);

}  // namespace tandem
