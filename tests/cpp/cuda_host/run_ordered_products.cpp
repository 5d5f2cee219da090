// The same as run_products.cpp for the device's products of real input with integer weights.
#include "ops/ordered_product/ordered_product.cu"
// after what it needs
#include "../calls.h"

namespace {

using namespace tandem;

template <class E>
void product() {
  const OrderedCall<E> call;
  const Packed<E> packed(call.geometry, call.weight.data);
  CudaOrderedArgs<E> args = {};
  args.geometry = call.geometry, args.input = call.input.data;
  args.weight = packed.data, args.block = packed.block, args.blocks = packed.blocks;
  args.out = call.output.data;
  if (launch_ordered_product(args, nullptr) != cudaSuccess) stop("refused");
  call.output.write();
}

}  // namespace

int main(int argc, char** argv) {
  return run_calls(argc, argv, [](int64_t which) {
    switch (which) {
      case kOrderedInt8:
        return product<int8_t>();
      case kOrderedInt16:
        return product<int16_t>();
      default:
        stop("no product of real input");
    }
  });
}
