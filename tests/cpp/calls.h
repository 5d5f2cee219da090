// Calls of the library's operators in files, for programs that compute them with kernels of their own: PROGRAM IN OUT.
// call_files.py writes and reads the files.
//
// IN: calls, one after another. A call is 64-bit integers, doubles and arrays, in the order of the members below. An
// array is the number of its bytes and these; none stands for one that is not given. OUT: arrays.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include "core/bit_planes.h"
#include "core/conv_geometry.h"
#include "neuron/models.h"
#include "ops/product/block_size.h"

namespace tandem {

inline FILE* in = nullptr;
inline FILE* out = nullptr;

[[noreturn]] inline void stop(const char* why) {
  std::fprintf(stderr, "a file of calls: %s\n", why);
  std::exit(4);
}

template <class T>
T read() {
  T value;
  if (std::fread(&value, sizeof(value), 1, in) != 1) stop("a call ends early");
  return value;
}

// Memory from a 64-byte boundary on, without a byte to spare behind it: a sanitizer sees the first one too many.
template <class T>
struct Array {
  explicit Array(int64_t n) : size(n) {
    void* memory = nullptr;
    if (posix_memalign(&memory, 64, std::max<size_t>(1, static_cast<size_t>(n) * sizeof(T))) != 0) std::abort();
    data = static_cast<T*>(memory);
  }
  ~Array() { std::free(data); }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;

  void write() const {
    const int64_t bytes = size * static_cast<int64_t>(sizeof(T));
    const bool ok = std::fwrite(&bytes, sizeof(bytes), 1, out) == 1 &&
                    std::fwrite(data, sizeof(T), static_cast<size_t>(size), out) == static_cast<size_t>(size);
    if (!ok) stop("cannot write");
  }

  T* data;
  int64_t size;
};

// The next array of a call, which has n elements or is not given.
template <class T>
struct Given : Array<T> {
  explicit Given(int64_t n) : Array<T>(n) {
    const auto bytes = read<int64_t>();
    given = bytes != 0;
    if (given && bytes != n * static_cast<int64_t>(sizeof(T))) stop("an array of another size than the call's");
    if (std::fread(this->data, 1, static_cast<size_t>(bytes), in) != static_cast<size_t>(bytes)) stop("no array");
  }
  const T* or_null() const { return given ? this->data : nullptr; }
  bool given;
};

inline ConvGeometry read_geometry() {
  ConvGeometry g = {};
  for (int64_t* size :
       {&g.batch, &g.in_channels, &g.height, &g.width, &g.out_channels, &g.out_height, &g.out_width, &g.kernel_h,
        &g.kernel_w, &g.stride_h, &g.stride_w, &g.padding_h, &g.padding_w, &g.dilation_h, &g.dilation_w, &g.groups}) {
    *size = read<int64_t>();
  }
  return g;
}

inline Neuron read_neuron() {
  Neuron neuron = {};
  neuron.kind = static_cast<int>(read<int64_t>());
  const auto count = read<int64_t>();
  if (neuron.kind < 0 || neuron.kind >= kModelCount || count > kMostParameters) stop("no such neuron");
  for (int64_t i = 0; i < count; ++i) neuron.parameters[i] = read<double>();
  return neuron;
}

// What a call is: a product with weights of one of six dtypes, or one of the others.
enum : int64_t {
  kFloat32,
  kFloat64,
  kFloat16,
  kBFloat16,
  kInt8,
  kInt16,
  kOrderedInt8,
  kOrderedInt16,
  kNeurons,
  kRadixSpikes
};

// What a product multiplies: spikes, their counts, or the values of radix spikes.
enum : int64_t { kSpikes, kCounts, kValues };

// W: weights as given; T: neurons.
template <class W, class T>
struct ProductCall {
  ConvGeometry geometry = read_geometry();
  int64_t time_steps = read<int64_t>();
  int64_t engine = read<int64_t>();  // what it means is up to the program
  int64_t input = read<int64_t>();   // kSpikes to kValues
  bool counts = input != kSpikes;
  int64_t most_blocks = read<int64_t>();  // of a device's grid; 0 for as many as the launcher likes
  Neuron neuron = read_neuron();
  int64_t planes = planes_for(time_steps), inputs = geometry.pixels_in() * geometry.in_channels;
  int64_t largest = !counts ? 0 : input == kCounts ? planes * kStepsPerPlane : (int64_t{1} << time_steps) - 1;
  int64_t neurons = geometry.pixels_out() * geometry.out_channels, states = states_of(neuron);
  Given<uint8_t> bits{planes * inputs};
  Given<W> weight{geometry.out_channels * geometry.features()};  // [O, C/groups, kH, kW]
  Given<T> scale{geometry.out_channels}, bias{geometry.out_channels}, initial{states * neurons};
  Given<T> added_current{time_steps * neurons}, amplitude{geometry.out_channels};
  Given<uint8_t> added_spikes{planes * neurons};
  Array<uint8_t> out_bits{counts ? 0 : planes * neurons};
  Array<T> sum{neurons}, state{counts ? 0 : states * neurons};

  // Scale, bias and what else the neurons need, to a kernel's arguments.
  template <class Args>
  void give(Args& args) const {
    args.scale = scale.or_null(), args.bias = bias.or_null();
    args.sum = sum.data, args.neuron = neuron;
    if (counts) return;
    args.initial = {initial.or_null(), neurons}, args.state = {state.data, neurons};
    args.joined = {added_current.or_null(), added_spikes.or_null(), neurons, amplitude.or_null()};
  }
  void write() const { out_bits.write(), sum.write(), state.write(); }
};

// A product of real input.
template <class W>
struct OrderedCall {
  ConvGeometry geometry = read_geometry();
  Given<float> input{geometry.pixels_in() * geometry.in_channels};
  Given<W> weight{geometry.out_channels * geometry.features()};
  Array<float> output{geometry.pixels_out() * geometry.out_channels};
};

// Weights [O, C/groups, kH, kW] as [groups, blocks, features, block], channels of a tap side by side.
template <class E>
struct Packed : Array<E> {
  template <class W>
  Packed(const ConvGeometry& g, const W* weight) : Packed(g, weight, block_size<E>(g.group_out())) {}

  const int64_t block, blocks;

 private:
  template <class W>
  Packed(const ConvGeometry& g, const W* weight, int64_t block_)
      : Array<E>(g.groups * ((g.group_out() + block_ - 1) / block_) * g.features() * block_),
        block(block_),
        blocks((g.group_out() + block_ - 1) / block_) {
    std::fill(this->data, this->data + this->size, E(0));
    for (int64_t o = 0; o < g.out_channels; ++o) {
      const int64_t in_group = o % g.group_out(), b = o / g.group_out() * blocks + in_group / block;
      for (int64_t i = 0; i < g.features(); ++i) {
        const int64_t feature = i % g.taps() * g.group_in() + i / g.taps();
        this->data[(b * g.features() + feature) * block + in_group % block] = weight[o * g.features() + i];
      }
    }
  }
};

// Neurons and a current.
struct NeuronCall {
  int64_t pixels = read<int64_t>(), channels = read<int64_t>(), time_steps = read<int64_t>();
  CurrentMode mode = static_cast<CurrentMode>(read<int64_t>());
  Neuron neuron = read_neuron();
  int64_t neurons = pixels * channels, planes = planes_for(time_steps), states = states_of(neuron);
  Given<float> current{neurons * (mode == CurrentMode::kSeries ? time_steps : 1)};
  Given<float> scale{channels}, bias{channels}, initial{states * neurons};
  Array<uint8_t> bits{planes * neurons};
  Array<float> sum{neurons}, state{states * neurons};

  template <class Args>
  void give(Args& args) const {
    args.current = current.data, args.scale = scale.or_null(), args.bias = bias.or_null();
    args.initial = {initial.or_null(), neurons}, args.bits = bits.data;
    args.sum = sum.data, args.state = {state.data, neurons};
    args.channels = channels, args.time_steps = time_steps, args.mode = mode, args.neuron = neuron;
  }
  void write() const { bits.write(), sum.write(), state.write(); }
};

// Neurons with radix spikes, and a current summed over all time steps.
struct RadixCall {
  int64_t pixels = read<int64_t>(), channels = read<int64_t>(), time_steps = read<int64_t>();
  double threshold = read<double>(), initial = read<double>();
  int64_t neurons = pixels * channels;
  Given<float> current{neurons}, scale{channels}, bias{channels};
  Array<uint8_t> bits{neurons};
  Array<float> state{neurons};

  template <class Args>
  void give(Args& args) const {
    args.current = current.data, args.scale = scale.or_null(), args.bias = bias.or_null();
    args.bits = bits.data, args.state = state.data;
    args.channels = channels, args.time_steps = static_cast<int>(time_steps);
    args.threshold = static_cast<float>(threshold);
    args.start = static_cast<float>(initial) * args.threshold;
  }
  void write() const { bits.write(), state.write(); }
};

// main(): run(which) for every call.
template <class F>
int run_calls(int argc, char** argv, const F& run) {
  if (argc != 3) stop("usage: PROGRAM IN OUT");
  in = std::fopen(argv[1], "rb");
  out = std::fopen(argv[2], "wb");
  if (in == nullptr || out == nullptr) stop("cannot open the files");
  int calls = 0;
  for (int64_t which; std::fread(&which, sizeof(which), 1, in) == 1; ++calls) run(which);
  if (std::fclose(out) != 0) stop("cannot write");
  std::printf("%d calls\n", calls);
  return 0;
}

}  // namespace tandem
