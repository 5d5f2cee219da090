// pack_weight, spiking_product and count_product on a CUDA device: the choice of the engine. Allocates through torch
// alone and never synchronises, so that it can be captured in a CUDA graph.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <mutex>
#include <tuple>
#include <type_traits>

#include "cuda/stream.h"
#include "ops/product/cuda_pack_weight.h"
#include "ops/product/depthwise_product.cuh"
#include "ops/product/integer_product.cuh"
#include "ops/product/operators.h"
#include "ops/product/watch_weight.cuh"

namespace tandem {

namespace {

using torch::stable::accelerator::DeviceGuard;

Tensor pack_weight(const Tensor& weight, int64_t groups) {
  const char* op = "pack_weight";
  const DeviceGuard guard(weight.get_device_index());
  return new_packed(op, weight, weight_geometry(op, weight, groups));
}

// Tensor-core fragments are written 16 bytes at a time.
bool is_aligned(const Tensor& out) { return reinterpret_cast<uintptr_t>(out.const_data_ptr()) % 16 == 0; }

void check_out(const char* op, const Tensor& weight, const ConvGeometry& g, const Tensor& out) {
  check_same_device(op, "out", out, weight, "weight");
  dispatch_device_packed(weight.scalar_type(),
                         [&](auto element, auto) { check_packed<decltype(element)>(op, "out", out, weight, g); });
}

void pack_weight_out(const Tensor& weight, int64_t groups, Tensor out) {
  const char* op = "pack_weight";
  const DeviceGuard guard(weight.get_device_index());
  const ConvGeometry g = weight_geometry(op, weight, groups);
  check_out(op, weight, g, out);
  if (is_aligned(out)) return pack_on_device(op, weight, g, out);
  torch::stable::copy_(out, new_packed(op, weight, g));
}

// The memory from the first weight to the last, including gaps.
WatchArgs watched_memory(const Tensor& weight, const Tensor& state) {
  int64_t last = 0;
  for (int64_t i = 0; i < weight.dim(); ++i) last += (weight.size(i) - 1) * weight.stride(i);
  return {weight.const_data_ptr(), (last + 1) * static_cast<int64_t>(weight.element_size()),
          static_cast<uint64_t*>(state.mutable_data_ptr())};
}

void pack_weight_if_changed(const Tensor& weight, int64_t groups, const Tensor& out, const Tensor& state) {
  const char* op = "pack_weight";
  const DeviceGuard guard(weight.get_device_index());
  const ConvGeometry g = weight_geometry(op, weight, groups);
  check_out(op, weight, g, out);
  check_same_device(op, "state", state, weight, "weight");
  TANDEM_CHECK(state.scalar_type() == ScalarType::Long && state.dim() == 1 && state.numel() == kWatchWords &&
                   state.is_contiguous() && is_aligned(out),
               op, "state must be int64 [", kWatchWords, "], contiguous, and out aligned to 16 bytes");
  // What one call launches may not come between the launches of another one: the weights that the first part of this
  // call finds unchanged have been packed by then.
  static std::mutex launching;
  const std::lock_guard<std::mutex> lock(launching);
  const WatchArgs args = watched_memory(weight, state);
  check_launch(op, launch_watch_weight(args, current_stream(op, weight.get_device_index())));
  pack_on_device(op, weight, g, out, args.state);
}

int attribute(const char* op, cudaDeviceAttr which) {
  int device = 0, value = 0;
  check_launch(op, cudaGetDevice(&device));
  check_launch(op, cudaDeviceGetAttribute(&value, which, device));
  return value;
}

// What "dense" needs and "auto" asks for: nothing of the data, so that nothing waits for the device.
bool takes_tensor_cores(const char* op, const ProductPlan& plan) {
  const bool can = attribute(op, cudaDevAttrComputeCapabilityMajor) >= 8;
  TANDEM_CHECK(can || plan.engine != Engine::kDense, op,
               "engine 'dense' requires a device of compute capability 8.0 or newer; use 'event' or 'auto'");
  return plan.engine == Engine::kDense || (plan.engine == Engine::kAuto && can && is_wide(plan.geometry));
}

Tensor device_memory(const char* op, const ProductPlan& plan, int64_t bytes) {
  return empty_channels_last(op, plan.bits, {bytes}, ScalarType::Byte, 0);
}

// f(fragments), with those in `packed` or, of narrow layers, new ones: whoever packed these weights did not expect
// tensor cores.
template <class E, class F>
void with_fragments(const char* op, const ProductPlan& plan, const Tensor& packed, const F& f) {
  const ConvGeometry& g = plan.geometry;
  if (has_fragments<E>(g)) return f(fragments_in<E>(packed, g));
  const Tensor own = device_memory(op, plan, fragment_layout(g, kDigitsOf<E>).bytes());
  pack_fragments<E>(op, plan.weight, g, units_in<E>(packed, g), own.mutable_data_ptr());
  f(own.const_data_ptr());
}

void launch(const char* op, const ProductPlan& plan, const Tensor& /*packed*/,
            const CudaProductArgs<double, double>& args, cudaStream_t stream) {
  TANDEM_CHECK(plan.engine != Engine::kDense, op, "engine must be 'event' or 'auto' for ",
               name_of(plan.weight.scalar_type()), " weights on a CUDA device, got 'dense'");
  check_launch(op, launch_gather_product(args, stream));
}

template <class E>
void launch(const char* op, const ProductPlan& plan, const Tensor& packed, const CudaProductArgs<E, float>& args,
            cudaStream_t stream) {
  const ConvGeometry& g = plan.geometry;
  const bool counts = args.out_bits == nullptr;
  const bool fits = fits_integer_engine(g, kDigitsOf<E>, args.planes, args.largest);
  const bool wanted = takes_tensor_cores(op, plan);
  TANDEM_CHECK(fits || plan.engine != Engine::kDense, op,
               "engine 'dense' on a CUDA device adds up at most 131072 inputs per neuron, and counts or values up to "
               "a sum of 2^24; use 'event' or 'auto' for a product of this size");
  if (!wanted || !fits) {
    check_launch(op, launch_gather_product(args, stream));
    return;
  }
  const Tensor prepared = device_memory(op, plan, prepared_bytes(g, args.bits, args.planes, counts && !args.values));
  // Two blocks of large tiles run on a multiprocessor at once.
  const bool small = large_blocks(g, kDigitsOf<E>, args.time_steps, counts) <
                     int64_t{2} * attribute(op, cudaDevAttrMultiProcessorCount);
  const bool warpgroups = !counts && has_warpgroup_tiles() && attribute(op, cudaDevAttrComputeCapabilityMajor) == 9 &&
                          attribute(op, cudaDevAttrComputeCapabilityMinor) == 0;
  const Tiles tiles = small ? Tiles::kSmall : warpgroups ? Tiles::kWarpgroup : Tiles::kLarge;
  auto* const to = static_cast<uint8_t*>(prepared.mutable_data_ptr());
  with_fragments<E>(op, plan, packed, [&](const void* fragments) {
    check_launch(op, launch_integer_product(args, fragments, to, tiles, stream));
  });
}

// What every kernel takes but weights. E: theirs. spiking: null for a product with spike counts.
template <class E, class T>
CudaProductArgs<E, T> arguments_of(const ProductPlan& plan, const SpikingArguments* spiking) {
  CudaProductArgs<E, T> args = {};
  args.geometry = plan.geometry;
  args.bits = static_cast<const uint8_t*>(plan.bits.const_data_ptr());
  args.planes = plan.bits.size(0);
  args.values = plan.radix > 0;
  args.largest = spiking ? 0 : largest_input(plan);
  args.scale = data_or_null<T>(plan.scale);
  args.bias = data_or_null<T>(plan.bias);
  args.initial = given_state<T>(plan.initial);
  args.out_bits = output<uint8_t>(plan.out_bits);
  args.sum = output<T>(plan.out_sum);
  args.state = wanted_state<T>(plan.out_state);
  args.joined = joined_of<T>(plan);
  args.time_steps = spiking ? spiking->time_steps : args.planes * kStepsPerPlane;
  args.neuron = plan.neuron;
  return args;
}

void run(const char* op, const ProductPlan& plan, const SpikingArguments* spiking) {
  const ConvGeometry& g = plan.geometry;
  if (g.pixels_out() == 0) return;
  const cudaStream_t stream = current_stream(op, plan.weight.get_device_index());
  const ScalarType weights = plan.weight.scalar_type();
  dispatch_device_packed(weights, [&](auto element, auto type) {
    using E = decltype(element);
    using T = decltype(type);
    if (fits_depthwise(g) && plan.engine != Engine::kDense) {
      // Weights as they are: so few are arranged faster than they are looked after.
      if (plan.packed) check_packed<E>(op, "packed", *plan.packed, plan.weight, g);
      dispatch_unpacked<E>(weights, [&](auto unpacked) {
        using W = decltype(unpacked);
        CudaDepthwiseArgs<W, T> args = {arguments_of<W, T>(plan, spiking), 0, 0, 0};
        args.product.weight = static_cast<const W*>(plan.weight.const_data_ptr());
        args.stride_o = plan.weight.stride(0);
        if (plan.weight.dim() == 4) args.stride_h = plan.weight.stride(2), args.stride_w = plan.weight.stride(3);
        check_launch(op, launch_depthwise_product(args, stream));
      });
      return;
    }
    // Fragments of narrow layers are made in this call, of the weights as they are: so are their units.
    const bool packs_anew = std::is_same_v<E, int32_t> && plan.engine == Engine::kDense && !has_fragments<E>(g);
    if (packs_anew && plan.packed) check_packed<E>(op, "packed", *plan.packed, plan.weight, g);
    const Tensor packed = packed_on_device<E>(op, plan.weight, packs_anew ? std::nullopt : plan.packed, g);
    const PackedLayout layout = packed_layout<E>(g);
    CudaProductArgs<E, T> args = arguments_of<E, T>(plan, spiking);
    args.weight = static_cast<const E*>(packed.const_data_ptr());
    args.block = layout.block, args.blocks = layout.blocks;
    args.unit = units_in<E>(packed, g);
    launch(op, plan, packed, args, stream);
  });
}

std::tuple<Tensor, Tensor, Tensor> spiking(const char* op, const ProductArguments& arguments,
                                           const SpikingArguments& neurons, const ConvGeometry& geometry, bool linear) {
  const DeviceGuard guard(arguments.bits.get_device_index());
  const ProductPlan plan = plan_spiking(op, arguments, neurons, geometry, linear);
  run(op, plan, &neurons);
  return {plan.out_bits, plan.out_sum, plan.out_state};
}

Tensor counted(const char* op, const ProductArguments& arguments, const ConvGeometry& geometry, bool linear,
               const RadixArguments* /*firing*/) {  // on CUDA, Python calls radix_spikes
  const DeviceGuard guard(arguments.bits.get_device_index());
  const ProductPlan plan = plan_product(op, arguments, geometry, linear);
  run(op, plan, nullptr);
  return plan.out_sum;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tandem_cuda, CUDA, m) {
  m.impl("pack_weight", TORCH_BOX(&pack_weight));
  m.impl("pack_weight_out", TORCH_BOX(&pack_weight_out));
  m.impl("pack_weight_if_changed", TORCH_BOX(&pack_weight_if_changed));
  m.impl("spiking_product", TORCH_BOX(&spiking_product<spiking>));
  m.impl("count_product", TORCH_BOX(&count_product<counted>));
}

}  // namespace tandem
