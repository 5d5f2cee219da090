// Runs the device's products on the calls in a file and writes what they make of them to another: run_products IN OUT
// (calls.h). test_cuda_host.py and test_digest.py compare with the library's operators on the CPU. engine: 0 for the
// gather engine, 1 for tensor cores with large tiles, 2 with small ones and 3 with tiles of warpgroups, -1 for the
// depthwise kernel.
#include "ops/product/depthwise_product.cu"
#include "ops/product/gather_product.cu"
#include "ops/product/integer_product.cu"
#include "ops/product/warpgroup_product.cu"
// after what it needs
#include "../calls.h"

namespace {

using namespace tandem;

// What packs weights as they lie in a call.
template <class Args, class W>
Args weight_args(const ConvGeometry& g, const W* weight) {
  Args args = {};
  args.geometry = g, args.weight = weight;
  args.stride_o = g.features(), args.stride_c = g.taps(), args.stride_h = g.kernel_w, args.stride_w = 1;
  return args;
}

template <class W>
void multiply_on_tensor_cores(const CudaProductArgs<DevicePacked<W>, float>& args, const W* weight, Tiles tiles) {
  const ConvGeometry& g = args.geometry;
  auto pack = weight_args<CudaFragmentArgs<W>>(g, weight);
  const Array<uint8_t> fragments(fragment_layout(g, kDigitsOf<DevicePacked<W>>).bytes());
  pack.fragments = fragments.data, pack.unit = args.unit;
  const bool counts = args.out_bits == nullptr && !args.values;
  const Array<uint8_t> prepared(prepared_bytes(g, args.bits, args.planes, counts));
  if (launch_pack_fragments(pack, nullptr) != cudaSuccess) stop("refused to pack");
  if (args.out_bits == nullptr && tiles == Tiles::kWarpgroup) tiles = Tiles::kLarge;  // as on a device
  if (launch_integer_product(args, fragments.data, prepared.data, tiles, nullptr) != cudaSuccess) stop("refused");
}

// W: weights as given; T: neurons.
template <class W, class T>
void product() {
  using E = DevicePacked<W>;
  const ProductCall<W, T> call;
  const ConvGeometry& g = call.geometry;
  host::most_blocks = static_cast<unsigned>(call.most_blocks);
  auto pack = weight_args<CudaPackArgs<W>>(g, call.weight.data);
  pack.block = block_size<E>(g.group_out());
  pack.blocks = (g.group_out() + pack.block - 1) / pack.block;
  const Array<E> packed(g.groups * pack.blocks * g.features() * pack.block);
  const Array<float> units(std::is_same_v<E, int32_t> ? g.out_channels : 0);
  pack.packed = packed.data, pack.unit = units.size != 0 ? units.data : nullptr;
  launch_pack_weight(pack, nullptr);

  const auto give = [&](auto& args) {
    args.geometry = g, args.bits = call.bits.data, args.planes = call.planes;
    args.values = call.input == kValues, args.largest = call.largest;
    args.time_steps = call.time_steps;
    call.give(args);
    if (!call.counts) args.out_bits = call.out_bits.data;
  };
  CudaProductArgs<E, T> args = {};
  give(args);
  args.weight = packed.data, args.block = pack.block, args.blocks = pack.blocks, args.unit = pack.unit;
  if (call.engine == -1) {
    CudaDepthwiseArgs<W, T> depthwise = {};
    give(depthwise.product);
    depthwise.product.weight = call.weight.data;
    depthwise.stride_o = g.taps(), depthwise.stride_h = g.kernel_w, depthwise.stride_w = 1;
    if (launch_depthwise_product(depthwise, nullptr) != cudaSuccess) stop("refused");
  } else if (call.engine == 0) {
    launch_gather_product(args, nullptr);
  } else {
    if constexpr (std::is_same_v<E, double>) {
      stop("no tensor cores for float64 weights");
    } else {
      constexpr Tiles kTiles[] = {Tiles::kLarge, Tiles::kSmall, Tiles::kWarpgroup};
      multiply_on_tensor_cores(args, call.weight.data, kTiles[call.engine - 1]);
    }
  }
  host::most_blocks = 0;
  packed.write(), call.write();
}

}  // namespace

int main(int argc, char** argv) {
  return run_calls(argc, argv, [](int64_t which) {
    switch (which) {
      case kFloat32:
        return product<float, float>();
      case kFloat64:
        return product<double, double>();
      case kFloat16:
        return product<Float16, float>();
      case kBFloat16:
        return product<BFloat16, float>();
      case kInt8:
        return product<int8_t, float>();
      case kInt16:
        return product<int16_t, float>();
      default:
        stop("no product");
    }
  });
}
