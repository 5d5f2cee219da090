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

namespace tandem {

// What a packed weight consists of: the weight's own type, but on a CPU float32 for 16-bit floats, and on a CUDA device
// 32-bit integers for all floats but float64.
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
template <>
constexpr ScalarType packed_type<int32_t>() {
  return ScalarType::Int;
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

// The same of weights on a CUDA device.
template <class F>
void dispatch_device_packed(ScalarType weight, F&& f) {
  dispatch_packed(weight, [&](auto element, auto type) {
    if constexpr (std::is_same_v<decltype(element), float>) {
      f(int32_t{}, type);
    } else {
      f(element, type);
    }
  });
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
  if constexpr (!std::is_same_v<E, float> && !std::is_same_v<E, int32_t>) {
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

// Units behind all else, on a CUDA device: one for each output channel.
template <class E>
constexpr int64_t unit_count(const ConvGeometry& g) {
  return std::is_same_v<E, int32_t> ? g.out_channels : 0;
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
  const int64_t bytes = has_fragments<E>(g) ? fragment_layout(g, kDigitsOf<E>).bytes() : 0;
  return rows + bytes / static_cast<int64_t>(sizeof(E)) + unit_count<E>(g);
}

// Throws where `packed` is not what pack_weight makes of this weight.
template <class E>
void check_packed(const char* op, const char* argument, const Tensor& packed, const Tensor& weight,
                  const ConvGeometry& geometry);

// Memory for packed weights of this geometry, uninitialised.
template <class E>
Tensor empty_packed(const char* op, const Tensor& weight, const ConvGeometry& geometry) {
  return empty_channels_last(op, weight, {packed_elements<E>(weight, geometry)}, packed_type<E>(), 0);
}

}  // namespace tandem
