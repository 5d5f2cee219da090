// The same as run_products.cpp for the device's neurons with radix spikes.
#include "ops/radix_spikes/radix_spikes.cu"
// after what it needs
#include "../calls.h"

int main(int argc, char** argv) {
  using namespace tandem;
  return run_calls(argc, argv, [](int64_t which) {
    if (which != kRadixSpikes) stop("no radix spikes");
    const RadixCall call;
    CudaRadixSpikesArgs<float> args = {};
    args.neurons = call.neurons;
    call.give(args);
    if (launch_radix_spikes(args, nullptr) != cudaSuccess) stop("refused");
    call.write();
  });
}
