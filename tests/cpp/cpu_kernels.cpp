// Every kernel of the instruction set in use on fixed inputs: one line with that set's name, then one line a case, its
// name and a hash of the bytes it computed. TANDEM_CPU_ISA chooses the set.
//
// The project promises the same bits everywhere; what this prints on one processor must be what it prints on another.
// So inputs come from integers alone, and all NaNs count as one: their sign bit is the processor's own choice. One
// file, so that a cross compiler needs one command.
#include "ops/max_pool/cpu_kernels.h"

#include <algorithm>
#include <cinttypes>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <string>
#include <type_traits>
#include <vector>

#include "core/bit_planes.h"
#include "cpu/aligned_buffer.h"
#include "cpu/finite.h"
#include "cpu/isa.h"
#include "event_product.h"
#include "ops/neuron_loop/cpu_kernels.h"
#include "ops/ordered_product/cpu_kernels.h"
#include "ops/product/block_size.h"
#include "ops/product/cpu_count_kernels.h"
#include "ops/product/cpu_depthwise_kernels.h"
#include "ops/radix_spikes/cpu_kernels.h"
#include "ops/spike_train/cpu_kernels.h"
#include "ops/tandem_count/cpu_kernels.h"

namespace tandem {

namespace {

template <class T>
constexpr const char* kName = "";
template <>
constexpr const char* kName<float> = "float32";
template <>
constexpr const char* kName<double> = "float64";
template <>
constexpr const char* kName<uint8_t> = "uint8";
template <>
constexpr const char* kName<int8_t> = "int8";
template <>
constexpr const char* kName<int16_t> = "int16";

// SplitMix64. Each case starts its own, so that cases depend on nothing but themselves.
class Random {
  uint64_t state_ = 0;

 public:
  uint64_t next() {
    uint64_t z = state_ += 0x9E3779B97F4A7C15;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
    return z ^ (z >> 31);
  }

  // From -1 to below 1, all digits of a T used, without rounding; integers as weights may be.
  template <class T>
  T value() {
    if constexpr (sizeof(T) == 1) {
      return static_cast<T>(static_cast<int64_t>(next() >> 56) - 128);
    } else if constexpr (std::is_integral_v<T>) {
      return static_cast<T>(next() % (2 * kLargest16 + 1)) - kLargest16;
    } else {
      constexpr int digits = std::numeric_limits<T>::digits;
      constexpr int64_t half = int64_t{1} << (digits - 1);
      return static_cast<T>(static_cast<int64_t>(next() >> (64 - digits)) - half) / static_cast<T>(half);
    }
  }

  template <class T>
  std::vector<T> values(int64_t n) {
    std::vector<T> out(static_cast<size_t>(n));
    for (T& x : out) x = value<T>();
    return out;
  }

  // Bit planes [planes, pixels, channels], three spikes in four; no pixel 4, 9, 14... spikes.
  std::vector<uint8_t> planes(int64_t time_steps, int64_t pixels, int64_t channels) {
    std::vector<uint8_t> out(static_cast<size_t>(planes_for(time_steps) * pixels * channels));
    for (int64_t i = 0; i < static_cast<int64_t>(out.size()); ++i) {
      const int64_t steps = steps_in_plane(i / (pixels * channels), time_steps);
      const uint64_t bits = next() & ((1U << steps) - 1), more = next();
      if (i / channels % pixels % 5 != 4) out[i] = static_cast<uint8_t>(bits | (more & ((1U << steps) - 1)));
    }
    return out;
  }
};

// 64-bit FNV-1a.
class Hash {
  uint64_t state_ = 0xCBF29CE484222325;

 public:
  void add(const void* data, size_t bytes) {
    for (size_t i = 0; i < bytes; ++i) {
      state_ = (state_ ^ static_cast<const uint8_t*>(data)[i]) * 0x100000001B3;
    }
  }
  template <class T>
  void add(std::vector<T> values) {
    if constexpr (std::is_floating_point_v<T>) {
      for (T& value : values) {
        if (std::isnan(value)) value = std::numeric_limits<T>::quiet_NaN();
      }
    }
    add(values.data(), values.size() * sizeof(T));
  }
  void print(const std::string& name) const { std::printf("%s: %016" PRIx64 "\n", name.c_str(), state_); }
};

std::string steps_name(int64_t time_steps) { return " T=" + std::to_string(time_steps); }

template <class T>
T* data_if(bool wanted, std::vector<T>& values) {
  return wanted ? values.data() : nullptr;
}

// ---- The neuron loop

// IF where the leak is 1, else LIF: models of one state variable, so that a state has no stride. Of a count product,
// with leak 0, nobody looks.
Neuron neuron(double leak) { return leak == 1 ? Neuron{0, {0.75}} : Neuron{1, {0.75, leak}}; }

enum : unsigned { kScale = 1, kBias = 2, kInitial = 4, kSum = 8, kAddSum = 16, kPotential = 32, kAll = 63 };

std::string options_name(unsigned options) {
  constexpr const char* names[] = {" scale", " bias", " initial", " sum", " add_sum", " potential"};
  std::string out;
  for (int i = 0; i < 6; ++i) out += options >> i & 1 ? names[i] : "";
  return out;
}

template <class T>
void integrate_and_fire(CurrentMode mode, int64_t time_steps, T leak, unsigned options) {
  constexpr int64_t neurons = 77, split = 45, channels = 7;
  Random random;
  const bool series = mode == CurrentMode::kSeries;
  std::vector<T> current = random.values<T>((series ? time_steps : 1) * neurons);
  current[3] = std::numeric_limits<T>::quiet_NaN();
  current[5] = std::numeric_limits<T>::infinity();
  current[9] = T(-0.0);
  current[11] = std::numeric_limits<T>::denorm_min();
  std::vector<T> scale = random.values<T>(channels), bias = random.values<T>(channels);
  for (int64_t i = 0; i < kNeuronBlock; ++i) {
    scale.push_back(scale[i]);
    bias.push_back(bias[i]);
  }
  std::vector<T> initial = random.values<T>(neurons), sum = random.values<T>(neurons), potential(neurons);
  std::vector<uint8_t> bits(static_cast<size_t>(planes_for(time_steps) * neurons));

  IntegrateAndFireArgs<T> args = {};
  args.current = current.data();
  args.current_stride = neurons;
  args.scale = data_if(options & kScale, scale);
  args.bias = data_if(options & kBias, bias);
  args.initial = {data_if(options & kInitial, initial), 0};
  args.bits = bits.data();
  args.bits_stride = neurons;
  args.sum = data_if(options & kSum, sum);
  args.add_sum = options & kAddSum;
  args.state = {data_if(options & kPotential, potential), 0};
  args.channels = channels;
  args.time_steps = time_steps;
  args.mode = mode;
  args.neuron = neuron(leak);
  kernels<NeuronLoopKernels>().integrate_and_fire(args, 0, split);
  kernels<NeuronLoopKernels>().integrate_and_fire(args, split, neurons);

  Hash hash;
  hash.add(bits);
  if (options & kSum) hash.add(sum);
  if (options & kPotential) hash.add(potential);
  const char* modes[] = {" constant", " impulse", " series", " once"};
  hash.print(std::string("integrate_and_fire ") + kName<T> + modes[static_cast<int>(mode)] + steps_name(time_steps) +
             (leak == 1 ? " IF" : " LIF") + options_name(options));
}

template <class T>
void radix_spikes(int time_steps, unsigned options) {
  constexpr int64_t neurons = 301, split = 130, channels = 7;
  Random random;
  std::vector<T> current = random.values<T>(neurons), potential(neurons);
  for (T& x : current) x *= T(1 << time_steps);
  current[3] = std::numeric_limits<T>::quiet_NaN();
  current[5] = std::numeric_limits<T>::infinity();
  current[6] = -std::numeric_limits<T>::infinity();
  current[9] = T(-0.0);
  current[11] = std::numeric_limits<T>::denorm_min();
  current[300] = std::numeric_limits<T>::max();
  std::vector<T> scale = random.values<T>(channels), bias = random.values<T>(channels);
  for (int64_t i = 0; i < kRadixBlock; ++i) {
    scale.push_back(scale[i]);
    bias.push_back(bias[i]);
  }
  std::vector<uint8_t> bits(neurons);

  RadixSpikesArgs<T> args = {};
  args.current = current.data();
  args.scale = data_if(options & kScale, scale);
  args.bias = data_if(options & kBias, bias);
  args.bits = bits.data();
  args.state = data_if(options & kPotential, potential);
  args.channels = channels;
  args.time_steps = time_steps;
  args.threshold = T(0.7);
  args.start = T(0.35);
  kernels<RadixSpikesKernels>().radix_spikes(args, 0, split);
  kernels<RadixSpikesKernels>().radix_spikes(args, split, neurons);

  Hash hash;
  hash.add(bits);
  if (options & kPotential) hash.add(potential);
  hash.print(std::string("radix_spikes ") + kName<T> + steps_name(time_steps) + options_name(options));
}

// ---- Bit planes

constexpr int64_t kNeurons = 301, kSplit = 130;

template <class D>
void pack_and_unpack(int64_t time_steps) {
  const SpikeTrainKernels& k = kernels<SpikeTrainKernels>();
  Random random;
  std::vector<D> dense(static_cast<size_t>(time_steps * kNeurons));
  for (D& x : dense) x = static_cast<D>(random.next() >> 63);
  std::vector<uint8_t> bits(static_cast<size_t>(planes_for(time_steps) * kNeurons));
  const bool binary = k.pack(dense.data(), time_steps, kNeurons, 0, kSplit, bits.data()) &&
                      k.pack(dense.data(), time_steps, kNeurons, kSplit, kNeurons, bits.data());
  dense.back() = D(2);
  std::vector<uint8_t> odd(bits.size());
  const bool odd_binary = k.pack(dense.data(), time_steps, kNeurons, 0, kNeurons, odd.data());
  Hash packed;
  packed.add(bits);
  packed.add(&binary, 1);
  packed.add(&odd_binary, 1);
  packed.print(std::string("pack ") + kName<D> + steps_name(time_steps));

  std::vector<D> back(dense.size());
  k.unpack(bits.data(), kNeurons, time_steps, kNeurons, 0, kSplit, back.data());
  k.unpack(bits.data(), kNeurons, time_steps, kNeurons, kSplit, kNeurons, back.data());
  Hash unpacked;
  unpacked.add(back);
  unpacked.print(std::string("unpack ") + kName<D> + steps_name(time_steps));
}

template <class T>
void spike_count(int64_t time_steps) {
  const std::vector<uint8_t> bits = Random().planes(time_steps, kNeurons, 1);
  std::vector<T> count(kNeurons);
  const SpikeTrainKernels& k = kernels<SpikeTrainKernels>();
  k.spike_count(bits.data(), planes_for(time_steps), kNeurons, 0, kSplit, count.data());
  k.spike_count(bits.data(), planes_for(time_steps), kNeurons, kSplit, kNeurons, count.data());
  Hash hash;
  hash.add(count);
  hash.print(std::string("spike_count ") + kName<T> + steps_name(time_steps));
}

void count_bytes(int64_t time_steps, int64_t byte_planes) {
  const std::vector<uint8_t> bits = Random().planes(time_steps, kNeurons, 1);
  std::vector<uint8_t> bytes(static_cast<size_t>(byte_planes * kNeurons));
  kernels<SpikeTrainKernels>().count_bytes(bits.data(), planes_for(time_steps), kNeurons, 0, kNeurons, bytes.data(),
                                           byte_planes);
  Hash hash;
  hash.add(bytes);
  hash.print("count_bytes" + steps_name(time_steps));
}

void count_spikes(int64_t begin, int64_t end) {
  const std::vector<uint8_t> bits = Random().planes(kStepsPerPlane, kNeurons, 1);
  const int64_t spikes = kernels<SpikeTrainKernels>().count_spikes(bits.data(), begin, end);
  Hash hash;
  hash.add(&spikes, sizeof(spikes));
  hash.print("count_spikes " + std::to_string(begin) + ".." + std::to_string(end));
}

void max_pool(int64_t channels, int64_t time_steps, bool given) {
  ConvGeometry g = {};
  g.batch = 2, g.height = 5, g.width = 7, g.out_height = 3, g.out_width = 4;
  g.in_channels = g.out_channels = g.groups = channels;
  g.kernel_h = g.kernel_w = 3, g.stride_h = g.stride_w = 2, g.padding_h = g.padding_w = 1;
  g.dilation_h = g.dilation_w = 1;
  Random random;
  const std::vector<uint8_t> bits = random.planes(time_steps, g.pixels_in(), channels);
  std::vector<int32_t> count(static_cast<size_t>(g.pixels_in() * channels));
  for (int32_t& x : count) x = static_cast<int32_t>(random.next() >> 58);
  MaxPoolArgs args = {};
  args.geometry = &g;
  args.bits = bits.data();
  args.planes = planes_for(time_steps);
  args.count = given ? count.data() : nullptr;
  std::vector<uint8_t> out(static_cast<size_t>(args.planes * g.pixels_out() * channels));
  args.out = out.data();
  const AlignedBuffer<uint8_t> scratch("max_pool", pool_pixels(g) * pool_scratch_bytes(pool_taps(g)));
  kernels<MaxPoolKernels>().max_pool(args, 0, g.pixels_out(), scratch.data);
  const auto neurons = static_cast<int64_t>(count.size());
  kernels<SpikeTrainKernels>().add_counts(bits.data(), args.planes, neurons, 0, neurons, args.count, count.data());
  Hash hash;
  hash.add(out);
  hash.add(count);
  hash.print("max_pool" + steps_name(time_steps) + ", " + std::to_string(channels) + " channels" +
             (given ? ", counts" : ""));
}

template <class T>
void whole_bytes(bool odd) {
  Random random;
  std::vector<T> values(kNeurons);
  for (T& x : values) x = static_cast<T>(random.next() >> 56);
  if (odd) {
    values[1] = T(256);
    values[20] = T(-1);
    values[150] = T(0.5);
    values[299] = std::numeric_limits<T>::quiet_NaN();
    values[300] = std::numeric_limits<T>::infinity();
  }
  std::vector<uint8_t> bytes(kNeurons);
  int64_t ones = 0;
  const bool whole = kernels<SpikeTrainKernels>().whole_bytes(values.data(), 1, kNeurons, bytes.data(), &ones);
  Hash hash;
  hash.add(bytes);
  hash.add(&ones, sizeof(ones));
  hash.add(&whole, 1);
  hash.print(std::string("whole_bytes ") + kName<T> + (odd ? " odd" : ""));
}

template <class T>
void tandem_count_backward() {
  Random random;
  const std::vector<T> grad = random.values<T>(kNeurons);
  std::vector<T> v = random.values<T>(kNeurons), out(kNeurons);
  v[7] = std::numeric_limits<T>::quiet_NaN();
  v[8] = std::numeric_limits<T>::infinity();
  v[300] = T(0.5);
  kernels<TandemCountKernels>().tandem_count_backward(grad.data(), v.data(), 0, kNeurons, T(0.7), T(0.5), out.data());
  Hash hash;
  hash.add(out);
  hash.print(std::string("tandem_count_backward ") + kName<T>);
}

// ---- Products

ConvGeometry geometry(int64_t batch, int64_t height, int64_t width, int64_t in_channels, int64_t out_channels,
                      int64_t groups, int64_t kernel) {
  ConvGeometry g = {};
  g.batch = batch, g.height = height, g.width = width;
  g.in_channels = in_channels, g.out_channels = out_channels, g.groups = groups;
  g.kernel_h = g.kernel_w = kernel;
  g.stride_h = 1, g.stride_w = 2;
  g.padding_h = g.padding_w = kernel / 2;
  g.dilation_h = 1, g.dilation_w = kernel == 3 ? 2 : 1;
  g.out_height = (height + 2 * g.padding_h - g.dilation_h * (kernel - 1) - 1) / g.stride_h + 1;
  g.out_width = (width + 2 * g.padding_w - g.dilation_w * (kernel - 1) - 1) / g.stride_w + 1;
  return g;
}

std::string geometry_name(const ConvGeometry& g) {
  return " " + std::to_string(g.in_channels) + "->" + std::to_string(g.out_channels) + "/" + std::to_string(g.groups) +
         " " + std::to_string(g.kernel_h) + "x" + std::to_string(g.kernel_w);
}

// leak 0: a count product.
template <class T>
std::string neuron_name(T leak) {
  return leak == 0 ? " count" : leak == 1 ? " IF" : " LIF";
}

// values: of a count product, the bytes are numbers.
template <class T>
void depthwise(int64_t channels, int64_t multiplier, int64_t time_steps, T leak, unsigned options, bool values) {
  const ConvGeometry g = geometry(2, 5, 7, channels, channels * multiplier, channels, 3);
  const int64_t outputs = g.pixels_out() * g.out_channels, planes = planes_for(time_steps);
  Random random;
  const std::vector<uint8_t> bits = random.planes(time_steps, g.pixels_in(), channels);
  const int64_t weight_stride = std::max<int64_t>(g.out_channels, 64 / sizeof(T));
  const std::vector<T> weight = random.values<T>(g.taps() * weight_stride);
  std::vector<T> scale = random.values<T>(g.out_channels), bias = random.values<T>(g.out_channels);
  std::vector<T> initial = random.values<T>(outputs), sum(outputs), potential(outputs);
  std::vector<uint8_t> out_bits(static_cast<size_t>(planes * outputs));
  std::vector<DepthwiseTap> scratch(static_cast<size_t>(kDepthwisePixels * g.taps()));

  DepthwiseArgs<T> args = {};
  args.geometry = &g;
  args.bits = bits.data();
  args.planes = planes;
  args.values = values;
  args.weight = weight.data();
  args.weight_stride = weight_stride;
  args.scale = data_if(options & kScale, scale);
  args.bias = data_if(options & kBias, bias);
  args.initial = {data_if(options & kInitial, initial), 0};
  args.out_bits = data_if(leak != 0, out_bits);
  args.sum = data_if((options & kSum) || leak == 0, sum);
  args.state = {data_if(options & kPotential, potential), 0};
  args.time_steps = time_steps;
  args.neuron = neuron(leak);
  args.scratch = scratch.data();
  kernels<DepthwiseKernels>().depthwise(args, 0, 13);
  kernels<DepthwiseKernels>().depthwise(args, 13, g.pixels_out());

  Hash hash;
  hash.add(out_bits);
  hash.add(sum);
  hash.add(potential);
  hash.print(std::string("depthwise ") + kName<T> + geometry_name(g) + steps_name(time_steps) + neuron_name(leak) +
             (values ? " values" : "") + options_name(options));
}

// An event-driven product and what its stages made.
template <class E, class T>
void event_product(const ConvGeometry& g, int64_t taps_per_chunk, int64_t unit_channels, int64_t units_per_chunk,
                   int64_t steps, T leak, unsigned options) {
  const int64_t planes = planes_for(steps), outputs = g.pixels_out() * g.out_channels;
  Random random;
  const std::vector<uint8_t> bits = random.planes(steps, g.pixels_in(), g.in_channels);
  const EventProduct<E, T> product(g, bits.data(), steps, taps_per_chunk, unit_channels, units_per_chunk);
  // Where so many rows are added, emptying the 16-bit sums is part of the case.
  if (sizeof(E) == 1 && g.features() > 2 * kChunkRows &&
      !std::count(product.widened.begin(), product.widened.end(), 1)) {
    std::fprintf(stderr, "no visit widens its sums\n");
    std::exit(1);
  }

  const int64_t elements = g.groups * product.blocks * g.features() * product.block;
  const AlignedBuffer<E> weight("event tile", elements);
  for (int64_t i = 0; i < elements; ++i) weight.data[i] = random.value<E>();
  std::vector<T> scale = random.values<T>(g.out_channels), bias = random.values<T>(g.out_channels);
  std::vector<T> initial = random.values<T>(outputs), sum = random.values<T>(outputs), potential(outputs);
  std::vector<uint8_t> out_bits(static_cast<size_t>(planes * outputs));

  EventTileArgs<E, T> args = {};
  EventSink<T>& sink = args.sink;
  sink.scale = data_if(options & kScale, scale);
  sink.bias = data_if(options & kBias, bias);
  sink.initial = {data_if(options & kInitial, initial), 0};
  sink.bits = data_if(leak != 0, out_bits);
  sink.sum = data_if((options & kSum) || leak == 0, sum);
  sink.add_sum = options & kAddSum;
  sink.state = {data_if(options & kPotential, potential), 0};
  sink.neuron = neuron(leak);
  const std::vector<T> before = sum;
  product.run(args, weight.data, Sums::kVisits);

  const std::string name = std::string(kName<E>) + geometry_name(g) + (taps_per_chunk > 1 ? " joined" : "") +
                           steps_name(steps) + neuron_name(leak) + options_name(options);
  if (options == 0) {  // the others have the same visits
    // What the lists say, not what lies between them.
    Hash stages;
    for (int64_t task = 0; task < product.tasks(); ++task) {
      const uint8_t* at = product.visits_of(task);
      for (int64_t chunk = 0; chunk < product.chunks(); ++chunk) {
        ChunkVisits header;
        std::memcpy(&header, at, sizeof(header));
        stages.add(&header, sizeof(header));
        const auto* group = reinterpret_cast<const VisitGroup*>(at + sizeof(header));
        const VisitGroup* const end = group + header.groups;
        const auto* slot = reinterpret_cast<const uint16_t*>(end);
        stages.add(group, header.groups * sizeof(*group));
        stages.add(slot, header.visits * sizeof(*slot));
        const auto* list = reinterpret_cast<const uint8_t*>(slot + header.slots);
        for (; group != end; ++group) {
          stages.add(list, static_cast<size_t>(group->length) * group->visits);
          list += group->length * group->visits + kGroupSlack;
        }
        at += header.bytes;
      }
    }
    stages.add(product.units);
    stages.add(product.widened);
    stages.print("build_visits " + name);
  }
  Hash hash;
  hash.add(out_bits);
  hash.add(sum);
  hash.add(potential);
  hash.print("event_tile " + name);

  const std::vector<uint8_t> bits_of_visits = out_bits;
  const std::vector<T> sum_of_visits = sum, potential_of_visits = potential;
  const auto check = [&](Sums sums, const char* named) {
    sum = before;
    product.run(args, weight.data, sums);
    if (out_bits == bits_of_visits && sum == sum_of_visits && potential == potential_of_visits) return;
    std::fprintf(stderr, "%s: %s differ from visits\n", name.c_str(), named);
    std::exit(1);
  };
  check(Sums::kWindows, "lists of windows");
  if constexpr (std::is_integral_v<E>) check(Sums::kTables, "tables of sums");
}

// A product of counts of two bytes each with floating-point weights, its tiles of a few pixels.
template <class T>
void listed_counts(const ConvGeometry& g, unsigned options) {
  Random random;
  const int64_t inputs = g.pixels_in() * g.in_channels, rows = 7, tiles = (g.pixels_out() + rows - 1) / rows;
  const int64_t block = block_size<T>(g.group_out()), blocks = (g.group_out() + block - 1) / block;
  std::vector<uint8_t> counts(static_cast<size_t>(2 * inputs));
  for (uint8_t& x : counts) x = static_cast<uint8_t>(random.next() % 3 == 0 ? random.next() % 5 : 0);
  const std::vector<T> weight = random.values<T>(g.groups * blocks * g.features() * block);
  const std::vector<T> scale = random.values<T>(g.out_channels), bias = random.values<T>(g.out_channels);
  std::vector<T> sum = random.values<T>(g.pixels_out() * g.out_channels);
  const CountListSizes sizes(g.features(), rows);
  const AlignedBuffer<uint8_t> lists("counts", sizes.bytes());
  const AlignedBuffer<T> scratch("counts", rows * block);
  for (int64_t plane = 0; plane < 2; ++plane) {
    const uint8_t* const bytes = counts.data() + plane * inputs;
    for (int64_t task = 0; task < g.groups * tiles; ++task) {
      const int64_t group = task / tiles, begin = task % tiles * rows, end = std::min(g.pixels_out(), begin + rows);
      const CountLists place = sizes.lists(lists.data);
      kernels<CountKernels>().list_tile({&g, bytes, bytes + inputs, group, begin, end, place});
      for (int64_t b = 0; b < blocks; ++b) {
        const int64_t channel = group * g.group_out() + b * block;
        CountSweepArgs<T> args = {};
        args.lists = place;
        args.features = g.features();
        args.weight = weight.data() + (group * blocks + b) * g.features() * block;
        args.block = block;
        args.valid = std::min(block, g.group_out() - b * block);
        args.row_begin = begin, args.row_end = end;
        args.row_stride = g.out_channels;
        args.factor = plane == 0 ? 1 : 256;
        args.add = plane > 0 || (options & kAddSum);
        args.scale = plane > 0 && (options & kScale) ? scale.data() + channel : nullptr;
        args.bias = plane > 0 && (options & kBias) ? bias.data() + channel : nullptr;
        args.sum = sum.data() + channel;
        args.scratch = scratch.data;
        kernels<CountKernels>().sweep_counts(args);
      }
    }
  }
  Hash hash;
  hash.add(sum);
  hash.print(std::string("listed_counts ") + kName<T> + geometry_name(g) + options_name(options));
}

template <class E>
void ordered_product() {
  Random random;
  const ConvGeometry given = geometry(2, 5, 7, 6, 35, 2, 3), g = with_zeros(given);
  const int64_t block = block_size<E>(g.group_out()), blocks = (g.group_out() + block - 1) / block;
  const std::vector<float> images = random.values<float>(given.pixels_in() * g.in_channels);
  std::vector<float> input(static_cast<size_t>(g.pixels_in() * g.in_channels));
  add_zeros(given, images.data(), 0, g.batch * g.height, input.data());
  std::vector<float> out(static_cast<size_t>(g.pixels_out() * g.out_channels));
  const AlignedBuffer<E> weight("ordered_product", g.groups * blocks * g.features() * block);
  for (int64_t i = 0; i < g.groups * blocks * g.features() * block; ++i) weight.data[i] = random.value<E>();
  const AlignedBuffer<float> scratch("ordered_product", g.pixels_out() * block);
  for (int64_t task = 0; task < g.groups * blocks; ++task) {
    const int64_t b = task % blocks, group = task / blocks;
    OrderedTileArgs<E> args = {};
    args.geometry = &g;
    args.input = input.data();
    args.weight = weight.data + task * g.features() * block;
    args.block = block;
    args.valid = std::min(block, g.group_out() - b * block);
    args.group = group;
    args.row_end = g.pixels_out();
    args.out = out.data() + group * g.group_out() + b * block;
    args.scratch = scratch.data;
    kernels<OrderedProductKernels>().ordered_tile(args);
  }
  Hash hash;
  hash.add(out);
  hash.print(std::string("ordered_product ") + kName<E>);
}

template <class E, class T>
void event_products() {
  const auto all_neurons = [](const ConvGeometry& g, int64_t taps_per_chunk, int64_t unit_channels,
                              int64_t units_per_chunk, int64_t steps) {
    const auto product = [&](T leak, unsigned options) {
      event_product<E, T>(g, taps_per_chunk, unit_channels, units_per_chunk, steps, leak, options);
    };
    product(T(1), 0);
    product(T(1), kAll);
    product(T(0.9), kScale | kSum | kPotential);
    if constexpr (std::is_integral_v<E>) {  // a count product
      product(T(0), kBias);
      product(T(0), kScale | kBias);
    }
  };
  all_neurons(geometry(9, 1, 1, 64, 37, 1, 1), 1, 64, 1, 1);     // a linear layer, whole words of channels
  all_neurons(geometry(2, 5, 7, 260, 140, 2, 3), 1, 65, 1, 20);  // several units of a pixel, several blocks
  all_neurons(geometry(2, 5, 7, 390, 140, 2, 3), 1, 65, 2, 20);  // two units a chunk, of one tap or of two
  all_neurons(geometry(2, 5, 7, 24, 34, 2, 3), 9, 12, 1, 11);    // all taps in one chunk
  all_neurons(geometry(2, 5, 7, 24, 5, 1, 5), 5, 24, 1, 20);     // five taps in each of five
}

template <class T>
void typed_cases() {
  for (const CurrentMode mode :
       {CurrentMode::kConstant, CurrentMode::kImpulse, CurrentMode::kSeries, CurrentMode::kOnce}) {
    for (const int64_t time_steps : {1, 8, 20}) {
      for (const T leak : {T(1), T(0.9)}) {
        for (const unsigned options : {0U, +kScale, +kBias, +kInitial, +kSum, kAll & ~kAddSum, +kAll}) {
          integrate_and_fire<T>(mode, time_steps, leak, options);
        }
      }
    }
  }
  for (const int time_steps : {1, 3, 8}) {
    for (const unsigned options : {0U, kScale | kBias, +kPotential}) radix_spikes<T>(time_steps, options);
  }
  for (const int64_t time_steps : {1, 8, 20}) {
    pack_and_unpack<T>(time_steps);
    spike_count<T>(time_steps);
    for (const T leak : {T(0), T(1), T(0.9)}) {
      depthwise<T>(19, 1, time_steps, leak, 0, false);
      depthwise<T>(3, 1, time_steps, leak, kAll & ~kAddSum, false);  // narrower than most vectors
      depthwise<T>(7, 3, time_steps, leak, kScale | kBias | kSum, false);
    }
  }
  depthwise<T>(19, 1, 8, T(0), 0, true);
  depthwise<T>(3, 1, 8, T(0), 0, true);
  depthwise<T>(7, 3, 8, T(0), kScale | kBias | kSum, true);
  for (const unsigned options : {0U, +kScale, kScale | kBias | kAddSum}) {
    listed_counts<T>(geometry(9, 1, 1, 64, 37, 1, 1), options);    // a linear layer, whole words of channels
    listed_counts<T>(geometry(2, 5, 7, 256, 140, 2, 3), options);  // several chunks of a tap, several blocks
    listed_counts<T>(geometry(2, 5, 7, 30, 34, 2, 3), options);    // chunks that begin within a tap
    listed_counts<T>(geometry(2, 5, 7, 6, 5, 1, 5), options);      // several taps in each
  }
  whole_bytes<T>(false);
  whole_bytes<T>(true);
  tandem_count_backward<T>();
}

}  // namespace

}  // namespace tandem

int main() {
  using namespace tandem;
  std::printf("%s\n", active_isa().c_str());
  typed_cases<float>();
  typed_cases<double>();
  for (const int64_t time_steps : {1, 8, 20}) pack_and_unpack<uint8_t>(time_steps);
  for (const int64_t channels : {3, 19}) {
    for (const int64_t time_steps : {1, 8, 20, 300}) {
      max_pool(channels, time_steps, false);
      max_pool(channels, time_steps, true);
    }
  }
  count_bytes(20, 1);
  count_bytes(400, 2);  // counts beyond a byte
  count_spikes(0, 301);
  count_spikes(3, 9);
  event_products<float, float>();
  event_products<double, double>();
  event_products<int8_t, float>();
  event_products<int16_t, float>();
  ordered_product<int8_t>();
  ordered_product<int16_t>();
  return 0;
}
