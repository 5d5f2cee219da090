// Packed weights on a CUDA device, for the products that read them.
#pragma once

#include <cstdint>
#include <optional>
#include <type_traits>

#include "cuda/stream.h"
#include "ops/product/integer_product.cuh"
#include "ops/product/packed_layout.h"
#include "ops/product/spiking_product.cuh"

namespace tandem {

// A kernel's arguments, with weights of type W as they are and no outputs yet.
template <class Args, class W>
Args weight_args(const Tensor& weight, const ConvGeometry& g, const uint64_t* watched) {
  const bool linear = weight.dim() == 2;
  Args args = {};
  args.geometry = g;
  args.weight = static_cast<const W*>(weight.const_data_ptr());
  args.stride_o = weight.stride(0), args.stride_c = weight.stride(1);
  args.stride_h = linear ? 1 : weight.stride(2), args.stride_w = linear ? 1 : weight.stride(3);
  args.watched = watched;
  return args;
}

// Where parts of packed weights are: behind the rows, a multiple of 32 bytes, what tensor cores read; then the units,
// of float weights alone.
template <class E>
const void* fragments_in(const Tensor& packed, const ConvGeometry& g) {
  return static_cast<const E*>(packed.const_data_ptr()) + packed_layout<E>(g).elements();
}
template <class E>
const float* units_in(const Tensor& packed, const ConvGeometry& g) {
  if constexpr (!std::is_same_v<E, int32_t>) return nullptr;
  return static_cast<const float*>(packed.const_data_ptr()) + (packed.numel() - unit_count<E>(g));
}

// Digits of weights that are packed as E, as tensor cores read them. unit: from launch_pack_weight, of floats. watched:
// null, or the state of launch_watch_weight, if what it finds unchanged is packed already.
template <class E>
void pack_fragments(const char* op, const Tensor& weight, const ConvGeometry& g, const float* unit, void* fragments,
                    const uint64_t* watched = nullptr) {
  const cudaStream_t stream = current_stream(op, weight.get_device_index());
  dispatch_unpacked<E>(weight.scalar_type(), [&](auto unpacked) {
    using W = decltype(unpacked);
    auto args = weight_args<CudaFragmentArgs<W>, W>(weight, g, watched);
    args.unit = unit, args.fragments = fragments;
    check_launch(op, launch_pack_fragments(args, stream));
  });
}

inline void pack_on_device(const char* op, const Tensor& weight, const ConvGeometry& g, const Tensor& packed,
                           const uint64_t* watched = nullptr) {
  const cudaStream_t stream = current_stream(op, weight.get_device_index());
  dispatch_device_packed(weight.scalar_type(), [&](auto element, auto) {
    using E = decltype(element);
    const PackedLayout layout = packed_layout<E>(g);
    auto* const rows = static_cast<E*>(packed.mutable_data_ptr());
    void* const fragments = rows + layout.elements();
    auto* const unit =
        unit_count<E>(g) ? reinterpret_cast<float*>(rows + (packed.numel() - unit_count<E>(g))) : nullptr;
    dispatch_unpacked<E>(weight.scalar_type(), [&](auto unpacked) {
      using W = decltype(unpacked);
      auto args = weight_args<CudaPackArgs<W>, W>(weight, g, watched);
      args.packed = rows, args.unit = unit;
      args.block = layout.block, args.blocks = layout.blocks;
      check_launch(op, launch_pack_weight(args, stream));
    });
    if constexpr (!std::is_same_v<E, double>) {
      if (has_fragments<E>(g)) pack_fragments<E>(op, weight, g, unit, fragments, watched);
    }
  });
}

inline Tensor new_packed(const char* op, const Tensor& weight, const ConvGeometry& g) {
  Tensor packed;
  dispatch_device_packed(weight.scalar_type(),
                         [&](auto element, auto) { packed = empty_packed<decltype(element)>(op, weight, g); });
  pack_on_device(op, weight, g, packed);
  return packed;
}

// The packed weights that a call brought, or else new ones; from an address that 16 divides, since tensor-core
// engines read 16 bytes at a time.
template <class E>
Tensor packed_on_device(const char* op, const Tensor& weight, const std::optional<Tensor>& given,
                        const ConvGeometry& g) {
  if (!given) return new_packed(op, weight, g);
  check_packed<E>(op, "packed", *given, weight, g);
  if (reinterpret_cast<uintptr_t>(given->const_data_ptr()) % 16 == 0) return *given;
  Tensor copy = empty_channels_last(op, *given, sizes_of(*given), given->scalar_type(), 0);
  torch::stable::copy_(copy, *given);
  return copy;
}

}  // namespace tandem
