// The integer engine and the gather engine, run on the host, against plain loops over pixels, channels and time steps:
// any weights, scales and biases, random shapes, every neuron model, large tiles and small ones.
// integer_product_test [SEED SHAPES]; no shapes: the largest sums that fit, in a minute.
// integer_product_test GROUPS C O KH KW DIGITS: the bytes of packed weights.
#include "ops/product/integer_product.cu"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "ops/product/block_size.h"
#include "ops/product/gather_product.cu"
#include "ops/product/warpgroup_product.cu"
#include "watched.h"

namespace {

using namespace tandem;

int failures = 0;
int64_t spikes_seen = 0, neurons_seen = 0;
std::mt19937 generator;

int64_t random_int(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(generator); }
float random_float() { return std::normal_distribution<float>()(generator); }
template <class T>
T one_of(std::initializer_list<T> some) {
  return some.begin()[random_int(0, static_cast<int64_t>(some.size()) - 1)];
}

// Memory from a 64-byte boundary on, without a byte to spare behind it: a sanitizer sees the first one too many.
template <class T>
struct Buffer {
  explicit Buffer(int64_t n, int64_t offset_ = 0) : size(n), offset(offset_) {
    if (posix_memalign(&memory, 64, static_cast<size_t>(n + offset) * sizeof(T) + 1) != 0) std::abort();
    data = static_cast<T*>(memory) + offset;
    std::memset(memory, 0x5a, static_cast<size_t>(n + offset) * sizeof(T));
  }
  ~Buffer() { std::free(memory); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  T& operator[](int64_t i) { return data[i]; }
  void* memory = nullptr;
  T* data;
  int64_t size, offset;
};

ConvGeometry random_geometry() {
  ConvGeometry g = {};
  g.groups = one_of<int64_t>({1, 1, 1, 2, 3});
  g.batch = random_int(1, 3);
  g.in_channels = g.groups * one_of<int64_t>({1, 3, 16, 31, 32, 33, 64, 100, 128, random_int(1, 160)});
  g.out_channels = g.groups * one_of<int64_t>({1, 7, 16, 32, 33, 64, 65, random_int(1, 100)});
  g.kernel_h = random_int(1, 4), g.kernel_w = random_int(1, 4);
  if (g.in_channels / g.groups > 40) g.kernel_h = std::min<int64_t>(g.kernel_h, 2);
  g.stride_h = random_int(1, 3), g.stride_w = random_int(1, 3);
  g.padding_h = random_int(0, 2), g.padding_w = random_int(0, 2);
  g.dilation_h = random_int(1, 3), g.dilation_w = random_int(1, 3);
  if (random_int(0, 4) == 0) {  // a linear layer
    g.kernel_h = g.kernel_w = g.stride_h = g.stride_w = g.dilation_h = g.dilation_w = g.groups = 1;
    g.padding_h = g.padding_w = 0;
    g.in_channels = random_int(1, 700), g.out_channels = random_int(1, 100), g.batch = random_int(1, 20);
    g.height = g.width = 1;
  } else {
    g.height = std::max<int64_t>(1, g.dilation_h * (g.kernel_h - 1) + 1 - 2 * g.padding_h) + random_int(0, 4);
    g.width = std::max<int64_t>(1, g.dilation_w * (g.kernel_w - 1) + 1 - 2 * g.padding_w) + random_int(0, 4);
  }
  g.out_height = (g.height + 2 * g.padding_h - g.dilation_h * (g.kernel_h - 1) - 1) / g.stride_h + 1;
  g.out_width = (g.width + 2 * g.padding_w - g.dilation_w * (g.kernel_w - 1) - 1) / g.stride_w + 1;
  return g;
}

std::string name_of(const ConvGeometry& g, int64_t steps, int digits, int kind) {
  char text[300];
  std::snprintf(text, sizeof(text),
                "N %d C %d %d x %d O %d k %d x %d s %d %d p %d %d d %d %d g %d T %d, %d digits, model %d",
                static_cast<int>(g.batch), static_cast<int>(g.in_channels), static_cast<int>(g.height),
                static_cast<int>(g.width), static_cast<int>(g.out_channels), static_cast<int>(g.kernel_h),
                static_cast<int>(g.kernel_w), static_cast<int>(g.stride_h), static_cast<int>(g.stride_w),
                static_cast<int>(g.padding_h), static_cast<int>(g.padding_w), static_cast<int>(g.dilation_h),
                static_cast<int>(g.dilation_w), static_cast<int>(g.groups), static_cast<int>(steps), digits, kind);
  return text;
}

template <class T>
void compare(const char* what, const std::string& where, const Buffer<T>& got, const std::vector<T>& expected) {
  for (int64_t i = 0; i < got.size; ++i) {
    if (std::memcmp(&got.data[i], &expected[static_cast<size_t>(i)], sizeof(T)) == 0) continue;
    ++failures;
    std::printf("FAIL %s, %s: element %lld is %g, expected %g\n", what, where.c_str(), static_cast<long long>(i),
                static_cast<double>(got.data[i]), static_cast<double>(expected[static_cast<size_t>(i)]));
    return;
  }
}

enum Engine { kSmall, kLarge, kWarpgroup, kGather };  // tiles as in Tiles
enum Input { kSpikes, kCounts, kValues };             // what a product multiplies; values: of radix spikes

// The largest number that an input of a count product stands for.
int64_t largest_input(int64_t planes, int64_t steps, Input input) {
  return input == kSpikes ? 0 : input == kCounts ? planes * kStepsPerPlane : (int64_t{1} << steps) - 1;
}

// Sums of the whole weights times what their inputs stand for: sums[step or 0][pixel, channel].
std::vector<int64_t> plain_sums(const ConvGeometry& g, const Buffer<uint8_t>& bits, const std::vector<int64_t>& weight,
                                int64_t step, int64_t planes, Input input) {
  const int64_t in = g.pixels_in() * g.in_channels;
  std::vector<int64_t> out(static_cast<size_t>(g.pixels_out() * g.out_channels));
  for (int64_t m = 0; m < g.pixels_out(); ++m) {
    const int64_t n = m / (g.out_height * g.out_width), y = m / g.out_width % g.out_height, x = m % g.out_width;
    for (int64_t kh = 0; kh < g.kernel_h; ++kh) {
      for (int64_t kw = 0; kw < g.kernel_w; ++kw) {
        const int64_t h = y * g.stride_h - g.padding_h + kh * g.dilation_h;
        const int64_t w = x * g.stride_w - g.padding_w + kw * g.dilation_w;
        if (h < 0 || h >= g.height || w < 0 || w >= g.width) continue;
        for (int64_t c = 0; c < g.in_channels; ++c) {
          const int64_t from = ((n * g.height + h) * g.width + w) * g.in_channels + c;
          int64_t value = 0;
          if (input == kCounts) {
            for (int64_t p = 0; p < planes; ++p) value += __builtin_popcount(bits.data[p * in + from]);
          } else if (input == kValues) {
            value = bits.data[from];
          } else {
            value = bits.data[step / 8 * in + from] >> step % 8 & 1;
          }
          if (value == 0) continue;
          const int64_t group = c / g.group_in();
          for (int64_t o = group * g.group_out(); o < (group + 1) * g.group_out(); ++o) {
            out[static_cast<size_t>(m * g.out_channels + o)] +=
                value *
                weight[static_cast<size_t>((o * g.group_in() + c % g.group_in()) * g.taps() + kh * g.kernel_w + kw)];
          }
        }
      }
    }
  }
  return out;
}

// A random weight about `size`.
template <class W>
W random_weight(float size, bool extreme) {
  if constexpr (std::is_integral_v<W>) {
    constexpr int64_t kLowest = std::numeric_limits<W>::min();
    return static_cast<W>(extreme ? one_of<int64_t>({kLowest, -kLowest - 1}) : random_int(kLowest, -kLowest - 1));
  } else if constexpr (std::is_same_v<W, float>) {
    return extreme ? size * one_of<float>({1.9999999f, -1.9999999f, 0, 0x1p-30f}) : size * random_float();
  } else if constexpr (std::is_same_v<W, Float16>) {
    return {static_cast<uint16_t>(random_int(0, 1) << 15 | random_int(0, 0x7bff))};  // finite, of any size
  } else {
    const float x = size * random_float();
    uint32_t word;
    std::memcpy(&word, &x, sizeof(word));
    return {static_cast<uint16_t>(word >> 16)};
  }
}

// Weights as whole numbers and their units, in double precision: the definition.
template <class W>
std::vector<double> to_whole(const ConvGeometry& g, const Buffer<W>& weight, std::vector<int64_t>& whole) {
  std::vector<double> units(static_cast<size_t>(g.out_channels), 1);
  for (int64_t o = 0; o < g.out_channels; ++o) {
    const W* const of_channel = weight.data + o * g.features();
    if constexpr (!std::is_integral_v<W>) {
      double largest = 0;
      for (int64_t i = 0; i < g.features(); ++i) {
        largest = std::max(largest, std::fabs(static_cast<double>(static_cast<float>(of_channel[i]))));
      }
      int exponent = -200;                              // of zeros alone
      if (largest > 0) std::frexp(largest, &exponent);  // largest < 2^exponent
      units[static_cast<size_t>(o)] = std::ldexp(1.0, std::max(exponent - 31, -126));
    }
    for (int64_t i = 0; i < g.features(); ++i) {
      const auto x = static_cast<double>(static_cast<float>(of_channel[i]));
      whole[static_cast<size_t>(o * g.features() + i)] = std::llrint(x / units[static_cast<size_t>(o)]);
    }
  }
  return units;
}

template <class W>
void run(const ConvGeometry& g, int64_t steps, bool always = false) {
  using E = DevicePacked<W>;
  constexpr int kDigits = kDigitsOf<E>;
  constexpr bool kFloats = !std::is_integral_v<W>;
  const int64_t planes = planes_for(steps), in = g.pixels_in() * g.in_channels;
  const int64_t out = g.pixels_out() * g.out_channels;
  // Planes that start anywhere are filled up, too.
  Buffer<uint8_t> bits(planes * in, one_of<int64_t>({0, 0, 0, 1, 4}));
  const int64_t rate = always ? 100 : one_of<int64_t>({0, 2, 20, 20, 100});
  for (int64_t i = 0; i < bits.size; ++i) {
    bits[i] = 0;
    for (int64_t t = 0; t < steps_in_plane(in == 0 ? 0 : i / in, steps); ++t) {
      if (random_int(0, 99) < rate) bits[i] = static_cast<uint8_t>(bits[i] | 1 << t);
    }
  }
  Buffer<W> weight(g.out_channels * g.features());
  Buffer<float> scale(g.out_channels);
  const bool extreme = random_int(0, 5) == 0;
  for (int64_t o = 0; o < g.out_channels; ++o) {
    // Float weights of every size, and scales that make up for it.
    const float size = !kFloats                     ? 128.0f * (kDigits == 1 ? 1 : 256)
                       : std::is_same_v<W, Float16> ? 128.0f
                                                    : std::ldexp(1.0f, static_cast<int>(random_int(-100, 100)));
    scale[o] = random_float() / size / std::sqrt(static_cast<float>(g.features()));
    for (int64_t i = 0; i < g.features(); ++i) weight[o * g.features() + i] = random_weight<W>(size, extreme);
  }
  std::vector<int64_t> whole(static_cast<size_t>(weight.size));
  const std::vector<double> units = to_whole(g, weight, whole);
  Neuron neuron = {};
  neuron.kind = static_cast<int>(random_int(0, kModelCount - 1));
  neuron.parameters[0] = 0.25 + std::fabs(static_cast<double>(random_float()));
  if (neuron.kind == 0) neuron.parameters[1] = one_of<double>({0, 0.5, 0.3});
  if (neuron.kind == 1) neuron.parameters[1] = 0.8, neuron.parameters[2] = 0.25;
  if (neuron.kind == 2) neuron.parameters[1] = 0.5, neuron.parameters[2] = static_cast<double>(random_int(1, 3));
  const int64_t states = states_of(neuron);
  const std::string where = name_of(g, steps, kDigits, neuron.kind);
  const bool biased = random_int(0, 3) != 0, initial_given = random_int(0, 1) == 0;
  const auto branch = random_int(0, 2);  // what joins: nothing, currents or spikes
  Buffer<float> bias(g.out_channels), initial(states * out), added(steps * out);
  Buffer<float> amplitude(g.out_channels);
  Buffer<uint8_t> added_spikes(planes * out);
  for (int64_t i = 0; i < scale.size; ++i) bias[i] = random_float() / 8, amplitude[i] = random_float() / 4;
  for (int64_t i = 0; i < initial.size; ++i) {
    initial[i] = i < out ? random_float() / 2 : static_cast<float>(random_int(0, 2));
  }
  for (int64_t i = 0; i < added.size; ++i) added[i] = random_float() / 8;
  for (int64_t i = 0; i < added_spikes.size; ++i) added_spikes[i] = static_cast<uint8_t>(random_int(0, 255));
  Joined<float> joined = {};
  joined.stride = out;
  if (branch == 1) joined.current = added.data;
  if (branch == 2) joined.bits = added_spikes.data, joined.amplitude = random_int(0, 1) ? amplitude.data : nullptr;

  const FragmentLayout layout = fragment_layout(g, kDigits);
  Buffer<uint8_t> fragments(layout.bytes());
  Buffer<float> unit(kFloats ? g.out_channels : 0);
  const int64_t block = block_size<E>(g.group_out()), blocks = (g.group_out() + block - 1) / block;
  Buffer<E> packed(g.groups * blocks * g.features() * block);
  const auto fill = [&](auto pack) {
    pack.geometry = g, pack.weight = weight.data, pack.unit = kFloats ? unit.data : nullptr;
    pack.stride_o = g.features(), pack.stride_c = g.taps(), pack.stride_h = g.kernel_w, pack.stride_w = 1;
    return pack;
  };
  auto rows = fill(CudaPackArgs<W>{});
  rows.packed = packed.data, rows.block = block, rows.blocks = blocks;
  auto pack = fill(CudaFragmentArgs<W>{});
  pack.fragments = fragments.data;
  const auto launch_rows = [](const CudaPackArgs<W>& a) { return launch_pack_weight(a, nullptr); };
  const auto launch_pack = [](const CudaFragmentArgs<W>& a) { return launch_pack_fragments(a, nullptr); };
  if (launch_rows(rows) != cudaSuccess || launch_pack(pack) != cudaSuccess) ++failures;
  if (!packs_if_changed(pack, launch_pack, fragments.data, fragments.size, generator) ||
      !packs_if_changed(rows, launch_rows, packed.data, packed.size * static_cast<int64_t>(sizeof(E)), generator) ||
      (kFloats && !packs_if_changed(rows, launch_rows, unit.data, unit.size * 4, generator))) {
    ++failures;
    std::printf("FAIL watched weights\n");
  }
  for (int64_t i = 0; i < unit.size; ++i) {
    if (static_cast<double>(unit[i]) == units[static_cast<size_t>(i)]) continue;
    ++failures;
    std::printf("FAIL the unit of channel %d, %s\n", static_cast<int>(i), where.c_str());
  }

  // Plain loops.
  std::vector<uint8_t> spikes(static_cast<size_t>(planes * out));
  std::vector<float> sum(static_cast<size_t>(out)), state(static_cast<size_t>(states * out));
  std::vector<std::vector<int64_t>> all;
  for (int64_t t = 0; t < steps; ++t) all.push_back(plain_sums(g, bits, whole, t, planes, kSpikes));
  visit_model<Scalar<float>>(neuron, [&](const auto& model) {
    using Model = std::decay_t<decltype(model)>;
    for (int64_t i = 0; i < out; ++i) {
      const int64_t channel = i % g.out_channels;
      float variables[Model::kStates], total = 0;
      for (int v = 0; v < Model::kStates; ++v) variables[v] = initial_given ? initial[v * out + i] : model.start(v);
      for (int64_t t = 0; t < steps; ++t) {
        float x = static_cast<float>(all[static_cast<size_t>(t)][static_cast<size_t>(i)]);
        x *= static_cast<float>(units[static_cast<size_t>(channel)]);
        x *= scale[channel];
        if (biased) x += bias[channel];
        if (joined.current) x += added[t * out + i];
        if (joined.bits && (added_spikes[t / 8 * out + i] >> t % 8 & 1))
          x += joined.amplitude ? amplitude[channel] : 1.0f;
        total += x;
        if (model.step(variables, x) >= model.threshold) {
          uint8_t& byte = spikes[static_cast<size_t>(t / 8 * out + i)];
          byte = static_cast<uint8_t>(byte | 1 << t % 8);
          ++spikes_seen;
        }
      }
      neurons_seen += steps;
      sum[static_cast<size_t>(i)] = total;
      for (int v = 0; v < Model::kStates; ++v) state[static_cast<size_t>(v * out + i)] = variables[v];
    }
  });

  for (const Input input : {kSpikes, kCounts, kValues}) {
    if (input == kValues && planes != 1) continue;
    const bool counts = input != kSpikes;
    std::vector<float> product(static_cast<size_t>(counts ? out : 0));
    if (counts) {
      const std::vector<int64_t> sums = plain_sums(g, bits, whole, 0, planes, input);
      for (size_t i = 0; i < product.size(); ++i) {
        const int64_t channel = static_cast<int64_t>(i) % g.out_channels;
        product[i] = static_cast<float>(sums[i]) * static_cast<float>(units[static_cast<size_t>(channel)]);
        product[i] *= scale[channel];
        if (biased) product[i] += bias[channel];
      }
    }
    for (const Engine engine : {kSmall, kLarge, kWarpgroup, kGather}) {
      if (counts && engine == kWarpgroup) continue;
      Buffer<uint8_t> out_bits(counts ? 0 : planes * out, random_int(0, 1)),
          prepared(prepared_bytes(g, bits.data, planes, input == kCounts));
      Buffer<float> out_sum(out), out_state(counts ? 0 : states * out);
      CudaProductArgs<E, float> args = {};
      args.geometry = g, args.bits = bits.data, args.planes = planes;
      args.weight = packed.data, args.block = block, args.blocks = blocks, args.unit = rows.unit;
      args.values = input == kValues, args.largest = largest_input(planes, steps, input);
      args.scale = scale.data, args.bias = biased ? bias.data : nullptr;
      args.sum = out_sum.data, args.time_steps = steps, args.neuron = neuron;
      if (!counts) {
        args.out_bits = out_bits.data, args.joined = joined;
        args.initial = {initial_given ? initial.data : nullptr, out}, args.state = {out_state.data, out};
      }
      const cudaError_t error = engine == kGather ? launch_gather_product(args, nullptr)
                                                  : launch_integer_product(args, fragments.data, prepared.data,
                                                                           static_cast<Tiles>(engine), nullptr);
      if (error != cudaSuccess) ++failures;
      const char* const inputs[] = {"spikes", "counts", "values"};
      const char* const engines[] = {", small tiles", ", large tiles", ", tiles of warpgroups", ", gather"};
      const std::string what = std::string(inputs[input]) + engines[engine];
      compare((what + ": sum").c_str(), where, out_sum, counts ? product : sum);
      if (counts) continue;
      compare((what + ": bits").c_str(), where, out_bits, spikes);
      compare((what + ": state").c_str(), where, out_state, state);
    }
  }
}

// The most inputs whose sums are exact: all weights at an end of their range, all inputs spike at all steps.
template <class W>
void run_largest(int64_t features) {
  using E = DevicePacked<W>;
  ConvGeometry g = {};
  g.batch = g.height = g.width = g.out_height = g.out_width = g.kernel_h = g.kernel_w = 1;
  g.stride_h = g.stride_w = g.dilation_h = g.dilation_w = g.groups = g.out_channels = 1;
  g.in_channels = features;
  if (!fits_integer_engine(g, kDigitsOf<E>, 1, 0)) ++failures;
  for (const Input input : {kSpikes, kCounts, kValues}) {
    const int64_t largest = largest_input(1, 8, input);
    const bool counts = input != kSpikes;
    ConvGeometry part = g;
    if (counts) part.in_channels = (1 << 24) / largest;
    // The ends of the range, the last of which has the largest low digit, too; the largest floats below 2.
    constexpr int64_t kLowest = -(int64_t{1} << (8 * sizeof(E) - 1)), kFloat = -kLowest - 128;
    constexpr bool kFloats = std::is_same_v<W, float>;
    for (const int64_t value : {kFloats ? -kFloat : kLowest, kFloats ? kFloat : -kLowest - 1}) {
      const int64_t size = part.in_channels;
      float unit = kFloats ? 0x1p-30f : 1;
      Buffer<uint8_t> bits(size);
      Buffer<W> weight(size);
      for (int64_t i = 0; i < size; ++i) {
        bits[i] = 0xff, weight[i] = static_cast<W>(static_cast<double>(value) * static_cast<double>(unit));
      }
      Buffer<uint8_t> fragments(fragment_layout(part, kDigitsOf<E>).bytes()),
          prepared(prepared_bytes(part, bits.data, 1, input == kCounts));
      CudaFragmentArgs<W> pack = {};
      pack.geometry = part, pack.weight = weight.data, pack.fragments = fragments.data;
      pack.unit = kFloats ? &unit : nullptr;
      pack.stride_o = size, pack.stride_c = pack.stride_h = pack.stride_w = 1;
      if (launch_pack_fragments(pack, nullptr) != cudaSuccess) ++failures;
      float sum = 0;
      uint8_t spikes = 0;
      const float scale = 0x1p-31f;
      CudaProductArgs<E, float> args = {};
      args.geometry = part, args.bits = bits.data, args.planes = 1, args.scale = &scale, args.sum = &sum;
      args.time_steps = 8, args.neuron.parameters[0] = 1e9;
      args.values = input == kValues, args.largest = largest, args.unit = pack.unit;
      if (!counts) args.out_bits = &spikes;
      float expected = static_cast<float>(size * value * (counts ? largest : 1)) * unit * scale;
      for (int t = 1; !counts && t < 8; ++t) expected += static_cast<float>(size * value) * unit * scale;
      // One warp has all inputs of a large tile, a quarter of a small one's. Counts have so many that one is enough.
      for (const Tiles tiles : {Tiles::kSmall, Tiles::kLarge, Tiles::kWarpgroup}) {
        if ((input == kCounts && tiles != Tiles::kSmall) || (counts && tiles == Tiles::kWarpgroup)) continue;
        if (launch_integer_product(args, fragments.data, prepared.data, tiles, nullptr) != cudaSuccess) ++failures;
        if (sum != expected) {
          ++failures;
          std::printf("FAIL %lld inputs of %lld: %g, expected %g\n", static_cast<long long>(size),
                      static_cast<long long>(value), static_cast<double>(sum), static_cast<double>(expected));
        }
      }
    }
  }
}

void check_limits() {
  ConvGeometry g = random_geometry();
  const auto check = [&](const char* what, bool expected, const ConvGeometry& of, int64_t planes, int64_t largest = 0) {
    if (fits_integer_engine(of, 1, planes, largest) == expected) return;
    ++failures;
    std::printf("FAIL fits_integer_engine: %s\n", what);
  };
  check("a usual size", true, g, 1);
  ConvGeometry large = g;
  large.groups = 1, large.in_channels = 131072, large.kernel_h = large.kernel_w = 1;
  check("131072 inputs", true, large, 1);
  check("131072 inputs, counts of 128 steps", true, large, 16, largest_input(16, 128, kCounts));
  check("131072 inputs, counts of 136 steps", false, large, 17, largest_input(17, 136, kCounts));
  ++large.in_channels;
  check("131073 inputs", false, large, 1);
  large.in_channels = 65793;
  check("65793 inputs, values of 8 steps", true, large, 1, largest_input(1, 8, kValues));
  ++large.in_channels;
  check("65794 inputs, values of 8 steps", false, large, 1, largest_input(1, 8, kValues));
  check("65794 inputs, values of 7 steps", true, large, 1, largest_input(1, 7, kValues));
  for (int64_t ConvGeometry::* size : {&ConvGeometry::padding_h, &ConvGeometry::dilation_w, &ConvGeometry::batch}) {
    large = g;
    large.*size = int64_t{1} << 30;
    check("a size of 2^30", false, large, 1);
  }
  large = g;
  large.kernel_h = 1, large.dilation_h = 1 << 23;
  check("taps beyond the last one, out of reach", false, large, 1);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 7) {  // GROUPS C O KH KW DIGITS: the bytes of these weights
    ConvGeometry g = {};
    g.groups = std::atoi(argv[1]), g.in_channels = std::atoi(argv[2]), g.out_channels = std::atoi(argv[3]);
    g.kernel_h = std::atoi(argv[4]), g.kernel_w = std::atoi(argv[5]);
    std::printf("%lld\n", static_cast<long long>(is_wide(g) ? fragment_layout(g, std::atoi(argv[6])).bytes() : 0));
    return 0;
  }
  const int shapes = argc > 2 ? std::atoi(argv[2]) : 40;
  generator.seed(static_cast<unsigned>(argc > 1 ? std::atoi(argv[1]) : 1));
  check_limits();
  if (shapes == 0) {
    run_largest<int8_t>(131072);
    run_largest<int16_t>(65536);  // as many as the operators take
    run_largest<float>(131072);
  }
  for (int i = 0; i < shapes; ++i) {
    const ConvGeometry g = random_geometry();
    const int64_t steps = one_of<int64_t>({1, 3, 4, 5, 8, 8, 9, 16, 20, random_int(1, 24)});
    using Run = void (*)(const ConvGeometry&, int64_t, bool);
    const Run runs[] = {run<Float16>, run<BFloat16>, run<int8_t>, run<int16_t>, run<float>, run<float>};
    runs[i % 6](g, steps, false);
  }
  // Counts beyond a byte: more than 255 steps, all of them with spikes.
  ConvGeometry few = {};
  few.batch = few.height = few.out_height = few.kernel_h = few.kernel_w = 1, few.width = few.out_width = 9;
  few.stride_h = few.stride_w = few.dilation_h = few.dilation_w = few.groups = 1;
  few.in_channels = 40, few.out_channels = 20;
  run<int8_t>(few, 300, true);
  run<int16_t>(few, 257, true);
  run<float>(few, 258, true);
  std::printf("integer_product_test: %d shapes, %lld spikes of %lld, %d failures\n", shapes,
              static_cast<long long>(spikes_seen), static_cast<long long>(neurons_seen), failures);
  return failures != 0;
}
