// Runs the device's products on the calls in a file and writes what they make of them to another: run_products IN OUT
// (calls.h). test_cuda_host.py and test_digest.py compare with the library's operators on the CPU. engine: 0 for the
// gather engine; of floats, the number of terms of tensor cores; of integers, 1 for tensor cores with large tiles and 2
// with small ones; -1 for the depthwise kernel.
#include "ops/product/depthwise_product.cu"
#include "ops/product/gather_product.cu"
#include "ops/product/integer_product.cu"
#include "ops/product/term_product.cu"
// after what it needs
#include "../calls.h"

namespace {

using namespace tandem;

template <class E>
void multiply_integers(const CudaProductArgs<E, float>& args, const E* weight, bool small) {
  const ConvGeometry& g = args.geometry;
  CudaFragmentArgs<E> pack = {};
  pack.geometry = g, pack.weight = weight;
  pack.stride_o = g.features(), pack.stride_c = g.taps(), pack.stride_h = g.kernel_w, pack.stride_w = 1;
  const Array<uint8_t> fragments(fragment_layout(g, kDigitsOf<E>).bytes());
  pack.fragments = fragments.data;
  const bool counts = args.out_bits == nullptr && !args.values;
  const Array<uint8_t> prepared(prepared_bytes(g, args.bits, args.planes, counts));
  if (launch_pack_fragments(pack, nullptr) != cudaSuccess) stop("refused to pack");
  if (launch_integer_product(args, fragments.data, prepared.data, small, nullptr) != cudaSuccess) stop("refused");
}

template <class W>
void multiply_terms(const CudaProductArgs<float, float>& args, const W* weight, int terms) {
  const ConvGeometry& g = args.geometry;
  CudaTermArgs<W> pack = {};
  pack.geometry = g, pack.weight = weight;
  pack.stride_o = g.features(), pack.stride_c = g.taps(), pack.stride_h = g.kernel_w, pack.stride_w = 1;
  const Array<uint8_t> fragments(term_layout(g, kStoredTerms<W>).bytes());
  pack.fragments = fragments.data;
  if (launch_pack_terms(pack, nullptr) != cudaSuccess) stop("refused to pack");
  const cudaError_t error = launch_tensor_core_product(args, fragments.data, kStoredTerms<W>, terms, nullptr);
  if (error != cudaSuccess) stop("refused");
}

// W: weights as given; E: packed; T: neurons.
template <class W, class E, class T>
void product() {
  const ProductCall<W, T> call;
  const ConvGeometry& g = call.geometry;
  host::most_blocks = static_cast<unsigned>(call.most_blocks);
  CudaPackArgs<W, E> pack = {};
  pack.geometry = g, pack.weight = call.weight.data;
  pack.block = block_size<E>(g.group_out());
  pack.blocks = (g.group_out() + pack.block - 1) / pack.block;
  pack.stride_o = g.features(), pack.stride_c = g.taps(), pack.stride_h = g.kernel_w, pack.stride_w = 1;
  const Array<E> packed(g.groups * pack.blocks * g.features() * pack.block);
  pack.packed = packed.data;
  launch_pack_weight(pack, nullptr);

  CudaProductArgs<E, T> args = {};
  args.geometry = g, args.bits = call.bits.data, args.planes = call.planes;
  args.values = call.input == kValues, args.largest = call.largest;
  args.weight = packed.data, args.block = pack.block, args.blocks = pack.blocks;
  args.time_steps = call.time_steps;
  call.give(args);
  if (!call.counts) args.out_bits = call.out_bits.data;
  const auto terms = static_cast<int>(call.engine);
  if (terms == -1) {
    CudaDepthwiseArgs<W, T> depthwise = {};
    depthwise.product.geometry = g, depthwise.product.bits = call.bits.data, depthwise.product.planes = call.planes;
    depthwise.product.weight = call.weight.data, depthwise.product.time_steps = call.time_steps;
    depthwise.product.values = call.input == kValues;
    depthwise.stride_o = g.taps(), depthwise.stride_h = g.kernel_w, depthwise.stride_w = 1;
    call.give(depthwise.product);
    if (!call.counts) depthwise.product.out_bits = call.out_bits.data;
    if (launch_depthwise_product(depthwise, nullptr) != cudaSuccess) stop("refused");
    host::most_blocks = 0;
    packed.write(), call.write();
    return;
  }
  if constexpr (std::is_same<E, float>::value) {
    if (terms != 0) {
      if (call.most_blocks != 0) stop("the tensor-core engine has a block for each tile");
      multiply_terms(args, call.weight.data, terms);
    }
  } else if constexpr (std::is_integral<E>::value) {
    if (terms != 0) multiply_integers(args, call.weight.data, terms == 2);
  } else if (terms != 0) {
    stop("no tensor cores for float64 weights");
  }
  if (terms == 0) launch_gather_product(args, nullptr);
  host::most_blocks = 0;
  packed.write(), call.write();
}

}  // namespace

int main(int argc, char** argv) {
  return run_calls(argc, argv, [](int64_t which) {
    switch (which) {
      case kFloat32:
        return product<float, float, float>();
      case kFloat64:
        return product<double, double, double>();
      case kFloat16:
        return product<Float16, float, float>();
      case kBFloat16:
        return product<BFloat16, float, float>();
      case kInt8:
        return product<int8_t, int8_t, float>();
      case kInt16:
        return product<int16_t, int16_t, float>();
      default:
        stop("no product");
    }
  });
}
