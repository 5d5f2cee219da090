// The gather engine, run on the host, against plain loops over pixels, channels and time steps.
// Weights and biases are dyadic, so that every order of addition gives the same bits.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "ops/product/fragment_layout.h"
#include "ops/product/gather_product.cu"
#include "watched.h"

namespace {

using namespace tandem;

int failures = 0;
std::mt19937 generator(7);

int random_int(int low, int high) { return std::uniform_int_distribution<int>(low, high)(generator); }

ConvGeometry geometry(int64_t n, int64_t c, int64_t h, int64_t w, int64_t o, int64_t kernel, int64_t stride,
                      int64_t padding, int64_t dilation, int64_t groups) {
  ConvGeometry g = {};
  g.batch = n, g.in_channels = c, g.height = h, g.width = w, g.out_channels = o;
  g.kernel_h = g.kernel_w = kernel, g.stride_h = g.stride_w = stride, g.padding_h = g.padding_w = padding;
  g.dilation_h = g.dilation_w = dilation, g.groups = groups;
  g.out_height = (h + 2 * padding - dilation * (kernel - 1) - 1) / stride + 1;
  g.out_width = (w + 2 * padding - dilation * (kernel - 1) - 1) / stride + 1;
  return g;
}

struct Case {
  ConvGeometry g;
  int64_t steps;
  double rate;
  bool scale, bias, initial;
  double leak;
};

std::string name_of(const Case& c) {
  char text[256];
  std::snprintf(
      text, sizeof(text), "N %lld C %lld H %lld W %lld O %lld k %lld s %lld p %lld d %lld g %lld T %lld rate %g",
      static_cast<long long>(c.g.batch), static_cast<long long>(c.g.in_channels), static_cast<long long>(c.g.height),
      static_cast<long long>(c.g.width), static_cast<long long>(c.g.out_channels), static_cast<long long>(c.g.kernel_h),
      static_cast<long long>(c.g.stride_h), static_cast<long long>(c.g.padding_h),
      static_cast<long long>(c.g.dilation_h), static_cast<long long>(c.g.groups), static_cast<long long>(c.steps),
      c.rate);
  return text;
}

// Memory from a 64-byte boundary on, without a byte to spare behind it: a sanitizer sees the first one too many.
template <class T>
struct Buffer {
  explicit Buffer(int64_t n) : size(n) {
    void* memory = nullptr;
    if (posix_memalign(&memory, 64, std::max<size_t>(1, static_cast<size_t>(n) * sizeof(T))) != 0) std::abort();
    data = static_cast<T*>(memory);
  }
  ~Buffer() { std::free(data); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  T& operator[](int64_t i) { return data[i]; }
  T* data;
  int64_t size;
};

template <class Args, class Launch, class T>
void check_watched(const std::string& where, const Args& args, const Launch& launch, Buffer<T>& packed) {
  const int64_t bytes = packed.size * static_cast<int64_t>(sizeof(T));
  if (packs_if_changed(args, launch, packed.data, bytes, generator)) return;
  ++failures;
  std::printf("FAIL watched weights, %s\n", where.c_str());
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

// W: weights as given; T: neurons.
template <class W, class T>
void run(const Case& c) {
  using E = DevicePacked<W>;
  const ConvGeometry& g = c.g;
  const int64_t planes = planes_for(c.steps), in = g.pixels_in() * g.in_channels;
  const int64_t out = g.pixels_out() * g.out_channels;
  Buffer<uint8_t> bits(planes * in);
  for (int64_t i = 0; i < bits.size; ++i) {
    bits[i] = 0;
    for (int64_t t = 0; t < steps_in_plane(i / std::max<int64_t>(in, 1), c.steps); ++t) {
      if (random_int(0, 999) < c.rate * 1000) bits[i] = static_cast<uint8_t>(bits[i] | 1 << t);
    }
  }
  constexpr bool kIntegers = sizeof(W) == 1;
  Buffer<W> weight(g.out_channels * g.features());
  // 12 bits: all sums exact in float32.
  for (int64_t i = 0; i < weight.size; ++i) {
    weight[i] = kIntegers ? static_cast<W>(random_int(-128, 127)) : static_cast<W>(random_int(-2048, 2047) / 4096.0);
  }
  Buffer<T> scale(g.out_channels), bias(g.out_channels), initial(out);
  for (int64_t i = 0; i < scale.size; ++i) {
    scale[i] = static_cast<T>((kIntegers ? 1.0 / 128 : 1.0) * (1 << random_int(0, 2)) / 2);
    bias[i] = static_cast<T>(random_int(-16, 24) / 64.0);
  }
  for (int64_t i = 0; i < initial.size; ++i) initial[i] = static_cast<T>(random_int(-64, 96) / 64.0);

  // Packed, by the kernel; checked by the products.
  const int64_t outputs = g.group_out(), block = block_size<E>(outputs);
  CudaPackArgs<W> pack = {};
  pack.geometry = g, pack.weight = weight.data, pack.block = block, pack.blocks = (outputs + block - 1) / block;
  pack.stride_o = g.features(), pack.stride_c = g.taps(), pack.stride_h = g.kernel_w, pack.stride_w = 1;
  Buffer<E> packed(g.groups * pack.blocks * g.features() * block);
  Buffer<float> units(g.out_channels);
  pack.packed = packed.data, pack.unit = std::is_same_v<E, int32_t> ? units.data : nullptr;
  if (launch_pack_weight(pack, nullptr) != cudaSuccess) ++failures;
  check_watched(name_of(c), pack, [](const auto& a) { return launch_pack_weight(a, nullptr); }, packed);

  // Plain loops.
  std::vector<uint8_t> spikes(static_cast<size_t>(planes * out));
  std::vector<T> sum(static_cast<size_t>(out)), potential(static_cast<size_t>(out)), product(static_cast<size_t>(out));
  const T threshold = 1, leak = static_cast<T>(c.leak);
  for (int64_t at = 0; at < g.pixels_out(); ++at) {
    const int64_t n = at / (g.out_height * g.out_width), y = at / g.out_width % g.out_height, x = at % g.out_width;
    for (int64_t o = 0; o < g.out_channels; ++o) {
      const int64_t group = o / outputs, place = at * g.out_channels + o;
      double all = 0;
      T u = c.initial ? initial[place] : T(0), total = 0;
      for (int64_t t = 0; t < c.steps; ++t) {
        double current = 0;
        for (int64_t kh = 0; kh < g.kernel_h; ++kh) {
          for (int64_t kw = 0; kw < g.kernel_w; ++kw) {
            const int64_t h = y * g.stride_h - g.padding_h + kh * g.dilation_h;
            const int64_t w = x * g.stride_w - g.padding_w + kw * g.dilation_w;
            if (h < 0 || h >= g.height || w < 0 || w >= g.width) continue;
            for (int64_t k = 0; k < g.group_in(); ++k) {
              const int64_t from = ((n * g.height + h) * g.width + w) * g.in_channels + group * g.group_in() + k;
              if (bits[t / 8 * in + from] >> t % 8 & 1) {
                current += static_cast<double>(weight[(o * g.group_in() + k) * g.taps() + kh * g.kernel_w + kw]);
              }
            }
          }
        }
        all += current;
        T input = static_cast<T>(current);
        if (c.scale) input *= scale[o];
        if (c.bias) input += bias[o];
        const T held = leak * u;
        u = (held - (u >= threshold ? threshold : T(0))) + input;
        total += input;
        if (u >= threshold) {
          uint8_t& byte = spikes[static_cast<size_t>(t / 8 * out + place)];
          byte = static_cast<uint8_t>(byte | 1 << t % 8);
        }
      }
      sum[static_cast<size_t>(place)] = total;
      potential[static_cast<size_t>(place)] = u;
      T counted = static_cast<T>(all);
      if (c.scale) counted *= scale[o];
      if (c.bias) counted += bias[o];
      product[static_cast<size_t>(place)] = counted;
    }
  }

  for (const bool counts : {false, true}) {
    Buffer<uint8_t> out_bits(planes * out);
    Buffer<T> out_sum(out), out_potential(out);
    CudaProductArgs<E, T> args = {};
    args.geometry = g, args.bits = bits.data, args.planes = planes;
    args.weight = packed.data, args.block = block, args.blocks = pack.blocks, args.unit = pack.unit;
    args.scale = c.scale ? scale.data : nullptr;
    args.bias = c.bias ? bias.data : nullptr;
    args.sum = out_sum.data;
    args.time_steps = c.steps;
    if (!counts) {
      args.initial = {c.initial ? initial.data : nullptr, out};
      args.out_bits = out_bits.data, args.state = {out_potential.data, out};
      args.neuron = c.leak == 1 ? Neuron{0, {threshold}} : Neuron{1, {threshold, leak}};  // IF, LIF
    }
    if (launch_gather_product(args, nullptr) != cudaSuccess) ++failures;
    const std::string where =
        (counts ? "counts, " : "spikes, ") + name_of(c) + ", " + std::to_string(sizeof(E)) + " bytes";
    if (counts) {
      compare("product", where, out_sum, product);
    } else {
      compare("bits", where, out_bits, spikes);
      compare("sum", where, out_sum, sum);
      compare("potential", where, out_potential, potential);
    }
  }
}

// Rows of packed weights are numbered in 32 bits.
void check_limits() {
  CudaPackArgs<float> pack = {};
  pack.geometry = geometry(2, int64_t{1} << 29, 5, 7, 64, 3, 1, 1, 1, 1), pack.blocks = 1, pack.block = 64;
  if (launch_pack_weight(pack, nullptr) == cudaErrorInvalidValue) return;
  ++failures;
  std::printf("FAIL rows beyond 2^32\n");
}

}  // namespace

int main() {
  check_limits();
  const std::vector<Case> cases = {
      {geometry(2, 32, 5, 7, 64, 3, 1, 1, 1, 1), 8, 0.1, false, true, false, 1},
      {geometry(1, 16, 3, 3, 16, 1, 1, 0, 1, 1), 1, 0.5, false, false, false, 1},
      {geometry(3, 20, 6, 5, 40, 3, 2, 1, 1, 1), 8, 0.2, true, true, true, 1},
      {geometry(1, 17, 5, 5, 33, 3, 1, 2, 2, 1), 11, 0.1, true, false, true, 0.5},
      {geometry(2, 3, 6, 6, 10, 5, 1, 2, 1, 1), 20, 0.05, false, true, true, 1},
      {geometry(1, 24, 4, 4, 24, 3, 1, 1, 1, 3), 9, 0.2, false, true, false, 1},
      {geometry(1, 6, 5, 4, 6, 3, 1, 1, 1, 6), 8, 0.3, true, true, false, 1},
      {geometry(5, 100, 1, 1, 130, 1, 1, 0, 1, 1), 17, 0.1, false, true, true, 1},
      {geometry(1, 48, 9, 9, 64, 1, 1, 0, 1, 1), 8, 0, false, true, true, 0.75},
      {geometry(1, 34, 3, 9, 18, 3, 1, 1, 1, 2), 16, 1, false, true, false, 1},
      {geometry(0, 8, 3, 3, 8, 3, 1, 1, 1, 1), 8, 0.5, false, true, false, 1},
  };
  for (int64_t steps = 1; steps <= 20; ++steps) {
    const bool odd = steps % 2 == 1;
    const Case c = {geometry(1, 18, 3, 4, 20, 3, 1, 1, 1, 1), steps, 0.15, odd, true, !odd, odd ? 1.0 : 0.5};
    run<float, float>(c);
    run<double, double>(c);
    run<int8_t, float>(c);
  }
  for (const Case& c : cases) {
    run<float, float>(c);
    run<double, double>(c);
    run<int8_t, float>(c);
  }
  std::printf("spiking_product_test: %d failures\n", failures);
  return failures != 0;
}
