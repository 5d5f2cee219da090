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

// Weights as tensor cores read them: digits of integers, or terms of floats. watched: null, or the state of
// launch_watch_weight, if what it finds unchanged is packed already.
template <class E>
void pack_fragments(const char* op, const Tensor& weight, const ConvGeometry& g, void* fragments,
                    const uint64_t* watched = nullptr) {
  const cudaStream_t stream = current_stream(op, weight.get_device_index());
  const bool linear = weight.dim() == 2;
  const auto give = [&](auto args, auto element) {
    args.geometry = g;
    args.weight = static_cast<const decltype(element)*>(weight.const_data_ptr());
    args.stride_o = weight.stride(0), args.stride_c = weight.stride(1);
    args.stride_h = linear ? 1 : weight.stride(2), args.stride_w = linear ? 1 : weight.stride(3);
    args.fragments = fragments, args.watched = watched;
    return args;
  };
  if constexpr (std::is_integral_v<E>) {
    check_launch(op, launch_pack_fragments(give(CudaFragmentArgs<E>{}, E{}), stream));
  } else {
    dispatch_unpacked<float>(weight.scalar_type(), [&](auto unpacked) {
      check_launch(op, launch_pack_terms(give(CudaTermArgs<decltype(unpacked)>{}, unpacked), stream));
    });
  }
}

// Where they are in packed weights: behind the rows, a multiple of 32 bytes.
template <class E>
const void* fragments_in(const Tensor& packed, const ConvGeometry& g) {
  return static_cast<const E*>(packed.const_data_ptr()) + packed_layout<E>(g).elements();
}

inline void pack_on_device(const char* op, const Tensor& weight, const ConvGeometry& g, const Tensor& packed,
                           const uint64_t* watched = nullptr) {
  const cudaStream_t stream = current_stream(op, weight.get_device_index());
  const bool linear = weight.dim() == 2;
  dispatch_packed(weight.scalar_type(), [&](auto element, auto) {
    using E = decltype(element);
    dispatch_unpacked<E>(weight.scalar_type(), [&](auto unpacked) {
      using W = decltype(unpacked);
      const PackedLayout layout = packed_layout<E>(g);
      CudaPackArgs<W, E> args = {};
      args.geometry = g;
      args.weight = static_cast<const W*>(weight.const_data_ptr());
      args.stride_o = weight.stride(0), args.stride_c = weight.stride(1);
      args.stride_h = linear ? 1 : weight.stride(2), args.stride_w = linear ? 1 : weight.stride(3);
      args.packed = static_cast<E*>(packed.mutable_data_ptr());
      args.block = layout.block, args.blocks = layout.blocks;
      args.watched = watched;
      check_launch(op, launch_pack_weight(args, stream));
      if constexpr (!std::is_same_v<E, double>) {
        if (has_fragments<E>(g)) pack_fragments<E>(op, weight, g, args.packed + layout.elements(), watched);
      }
    });
  });
}

// The packed weights that a call brought, or else new ones; from an address that 16 divides, since tensor-core
// engines read 16 bytes at a time.
template <class E>
Tensor packed_on_device(const char* op, const Tensor& weight, const std::optional<Tensor>& given,
                        const ConvGeometry& g) {
  if (!given) {
    const Tensor packed = empty_packed(op, weight, g);
    pack_on_device(op, weight, g, packed);
    return packed;
  }
  check_packed<E>(op, "packed", *given, weight, g);
  if (reinterpret_cast<uintptr_t>(given->const_data_ptr()) % 16 == 0) return *given;
  Tensor copy = empty_channels_last(op, *given, sizes_of(*given), given->scalar_type(), 0);
  torch::stable::copy_(copy, *given);
  return copy;
}

}  // namespace tandem
