// Weights in the order in which the event-driven kernels add them, made on the CPU.
#pragma once

#include "cpu/aligned_buffer.h"
#include "ops/product/packed_layout.h"

namespace tandem {

// Weights [O, C/groups, kH, kW] in any order of memory.
struct WeightView {
  const void* data;
  ScalarType type;
  int64_t stride_o, stride_c, stride_h, stride_w;
};

WeightView weight_view(const Tensor& weight);

// Returns false where a weight is not finite; or where only sums of them are not.
template <class E>
bool pack_if_finite(const WeightView& weight, const ConvGeometry& geometry, E* packed);
// Throws where they are not: neurons would not fire for a current of NaN, and nobody would notice.
template <class E>
void pack_weight(const char* op, const Tensor& weight, const ConvGeometry& geometry, E* packed);
// f(packed) with the weights as E, arranged here where the call brings none.
template <class E, class F>
void with_packed(const char* op, const ProductPlan& plan, const F& f) {
  if (plan.packed) {
    check_packed<E>(op, "packed", *plan.packed, plan.weight, plan.geometry);
    f(static_cast<const E*>(plan.packed->const_data_ptr()));
  } else {
    const AlignedBuffer<E> packed(op, packed_layout<E>(plan.geometry).elements());
    pack_weight(op, plan.weight, plan.geometry, packed.data);
    f(packed.data);
  }
}

Tensor packed_weight(const char* op, const Tensor& weight, const ConvGeometry& geometry);

// Writes the panels [groups, blocks] of packed rows.
template <class E>
void fill_panels(const ConvGeometry& geometry, const E* packed, uint8_t* panels);
// f(panels), arranged here where the packed weights that the call brings lack it.
template <class E, class F>
void with_panels(const char* op, const ProductPlan& plan, const F& f) {
  with_packed<E>(op, plan, [&](const E* packed) {
    const PackedLayout layout = packed_layout<E>(plan.geometry);
    const bool has_room = plan.packed && plan.packed->numel() > layout.elements();
    const E* const behind = has_room ? packed + elements_before_panels<E>(plan.geometry) : nullptr;
    const auto* const stored = reinterpret_cast<const uint8_t*>(behind);
    if (stored && holds_of<E>(plan.geometry, stored).weights) {
      f(stored);
    } else {
      const AlignedBuffer<uint8_t> panels(op, layout.groups * layout.blocks * panel_bytes<E>(plan.geometry));
      fill_panels(plan.geometry, packed, panels.data);
      f(static_cast<const uint8_t*>(panels.data));
    }
  });
}

// Throws, naming the first weight that is not finite, if there is one. One by one.
void report_odd_weight(const char* op, const Tensor& weight);
// Throws where a weight of this dtype, float32 or float64, is not finite.
void check_finite_weight(const char* op, const Tensor& weight);

// A matrix [rows, n], rows row_stride and elements `stride` apart -> its transpose [n, columns], columns >= rows.
// Returns false where one is not finite; or where only their sums are not, of float32.
template <class W, class E>
bool turn(const W* from, int64_t row_stride, int64_t stride, int64_t rows, int64_t n, E* to, int64_t columns);

}  // namespace tandem
