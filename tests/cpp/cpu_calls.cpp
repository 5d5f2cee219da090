// Computes the calls in a file with the kernels of the instruction set in use: cpu_calls IN OUT (calls.h).
// test_aarch64.py runs networks with it, here and on an emulated processor. engine: 0 for events by visits, 1 for
// tables of sums.
#include <vector>

#include "calls.h"
#include "cpu/isa.h"
#include "event_product.h"
#include "ops/neuron_loop/cpu_kernels.h"
#include "ops/ordered_product/cpu_kernels.h"
#include "ops/radix_spikes/cpu_kernels.h"
#include "ops/spike_train/cpu_kernels.h"

namespace {

using namespace tandem;

// The product of these spikes, its weights in chunks like the library's.
template <class E>
EventProduct<E, float> events_of(const ConvGeometry& g, const uint8_t* bits, int64_t steps) {
  const int64_t units = (g.group_in() + kUnitRows - 1) / kUnitRows;
  const int64_t taps = 2 * g.group_in() <= kUnitRows ? std::min(g.taps(), kChunkRows / g.group_in()) : 1;
  return {g, bits, steps, taps, (g.group_in() + units - 1) / units, kChunkUnits};
}

template <class E>
void product() {
  const ProductCall<E, float> call;
  const ConvGeometry& g = call.geometry;
  const Packed<E> packed(g, call.weight.data);
  EventTileArgs<E, float> args = {};
  call.give(args.sink);
  if (call.input == kCounts) {  // of which the binary digits are spikes
    int64_t digits = 3;
    while (call.planes >> (digits - 3)) ++digits;
    std::vector<uint8_t> bytes(static_cast<size_t>(planes_for(digits) * call.inputs));
    kernels<SpikeTrainKernels>().count_bytes(call.bits.data, call.planes, call.inputs, 0, call.inputs, bytes.data(),
                                             planes_for(digits));
    events_of<E>(g, bytes.data(), digits).run(args, packed.data, call.engine == 1 ? Sums::kTables : Sums::kVisits);
  } else {  // spikes, or values, which are their own binary digits
    if (call.input == kSpikes) args.sink.bits = call.out_bits.data;
    events_of<E>(g, call.bits.data, call.time_steps)
        .run(args, packed.data, call.engine == 1 ? Sums::kTables : Sums::kVisits);
  }
  packed.write(), call.write();
}

template <class E>
void ordered_product() {
  const OrderedCall<E> call;
  const ConvGeometry g = with_zeros(call.geometry);
  const Array<float> input(g.pixels_in() * g.in_channels);
  add_zeros(call.geometry, call.input.data, 0, g.batch * g.height, input.data);
  const Packed<E> packed(g, call.weight.data);
  const Array<float> scratch(kTileRows * packed.block);
  for (int64_t task = 0; task < g.groups * packed.blocks; ++task) {
    const int64_t b = task % packed.blocks, group = task / packed.blocks;
    OrderedTileArgs<E> args = {};
    args.geometry = &g;
    args.input = input.data;
    args.weight = packed.data + task * g.features() * packed.block;
    args.block = packed.block;
    args.valid = std::min(packed.block, g.group_out() - b * packed.block);
    args.group = group;
    args.scratch = scratch.data;
    for (args.row_begin = 0; args.row_begin < g.pixels_out(); args.row_begin = args.row_end) {
      args.row_end = std::min(g.pixels_out(), args.row_begin + kTileRows);
      args.out = call.output.data + args.row_begin * g.out_channels + group * g.group_out() + b * packed.block;
      kernels<OrderedProductKernels>().ordered_tile(args);
    }
  }
  call.output.write();
}

// [channels + block] of [channels], again and again, for kernels that read so many at once.
std::vector<float> repeated(const Given<float>& values, int64_t block) {
  std::vector<float> all(static_cast<size_t>(values.size + block));
  for (size_t i = 0; i < all.size(); ++i) all[i] = values.data[static_cast<int64_t>(i) % values.size];
  return all;
}

void neurons() {
  const NeuronCall call;
  const std::vector<float> scale = repeated(call.scale, kNeuronBlock), bias = repeated(call.bias, kNeuronBlock);
  IntegrateAndFireArgs<float> args = {};
  call.give(args);
  args.current_stride = args.bits_stride = call.neurons;
  if (args.scale) args.scale = scale.data();
  if (args.bias) args.bias = bias.data();
  kernels<NeuronLoopKernels>().integrate_and_fire(args, 0, call.neurons);
  call.write();
}

void radix_spikes() {
  const RadixCall call;
  const std::vector<float> scale = repeated(call.scale, kRadixBlock), bias = repeated(call.bias, kRadixBlock);
  RadixSpikesArgs<float> args = {};
  call.give(args);
  if (args.scale) args.scale = scale.data();
  if (args.bias) args.bias = bias.data();
  kernels<RadixSpikesKernels>().radix_spikes(args, 0, call.neurons);
  call.write();
}

}  // namespace

int main(int argc, char** argv) {
  return run_calls(argc, argv, [](int64_t which) {
    switch (which) {
      case kInt8:
        return product<int8_t>();
      case kInt16:
        return product<int16_t>();
      case kOrderedInt8:
        return ordered_product<int8_t>();
      case kOrderedInt16:
        return ordered_product<int16_t>();
      case kNeurons:
        return neurons();
      case kRadixSpikes:
        return radix_spikes();
      default:
        stop("no call that the kernels know");
    }
  });
}
