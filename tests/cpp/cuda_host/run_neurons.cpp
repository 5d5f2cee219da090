// The same as run_products.cpp for the device's neuron loop on given currents.
#include "ops/neuron_loop/integrate_and_fire.cu"
// after what it needs
#include "../calls.h"

int main(int argc, char** argv) {
  using namespace tandem;
  return run_calls(argc, argv, [](int64_t which) {
    if (which != kNeurons) stop("no neurons");
    const NeuronCall call;
    CudaIntegrateAndFireArgs<float> args = {};
    args.neurons = call.neurons;
    call.give(args);
    if (launch_integrate_and_fire(args, nullptr) != cudaSuccess) stop("refused");
    call.write();
  });
}
