// max_pool_spikes' kernels, run on the host, against a plain loop over time steps and the CPU's portable kernel.
#include "ops/max_pool/max_pool_spikes.cu"

#include <cstdio>
#include <vector>

// Sanitizers judge the device's kernel.
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define TANDEM_ISA scalar
#include "cpu/simd.inl.h"
// after what it needs
#include "ops/max_pool/max_pool_spikes.inl.h"
#include "ops/spike_train/bit_planes.inl.h"
#endif

namespace {

using tandem::ConvGeometry;

struct Case {
  ConvGeometry geometry;
  int64_t time_steps;
  int64_t largest;  // count before the first step; -1: none given
  bool want_count;
  bool radix;
};

struct Inputs {
  std::vector<uint8_t> bits;
  std::vector<int32_t> count;
};

struct Result {
  std::vector<uint8_t> bits;
  std::vector<int32_t> count;

  bool operator==(const Result& other) const { return bits == other.bits && count == other.count; }
};

Case case_of(int64_t batch, int64_t channels, int64_t height, int64_t width, int64_t kernel, int64_t stride,
             int64_t padding, int64_t dilation, int64_t time_steps, int64_t largest, bool want_count,
             bool radix = false) {
  const auto outputs = [&](int64_t size) { return (size + 2 * padding - dilation * (kernel - 1) - 1) / stride + 1; };
  ConvGeometry g = {};
  g.batch = batch, g.in_channels = g.out_channels = g.groups = channels;
  g.height = height, g.width = width, g.out_height = outputs(height), g.out_width = outputs(width);
  g.kernel_h = g.kernel_w = kernel, g.stride_h = g.stride_w = stride;
  g.padding_h = g.padding_w = padding, g.dilation_h = g.dilation_w = dilation;
  return {g, time_steps, largest, want_count, radix};
}

Inputs inputs_of(const Case& c) {
  Inputs in;
  const auto neurons = static_cast<size_t>(c.geometry.pixels_in() * c.geometry.in_channels);
  uint32_t state = static_cast<uint32_t>(neurons * 31 + static_cast<size_t>(c.time_steps));
  const auto below = [&](uint32_t bound) {
    state = state * 1664525u + 1013904223u;
    return (state >> 16) % bound;
  };
  in.bits.assign(static_cast<size_t>((c.time_steps + 7) / 8) * neurons, 0);
  for (size_t i = 0; i < neurons; ++i) {
    const uint32_t rate = below(9);  // of 8: neurons overtake each other
    for (int64_t t = 0; t < c.time_steps; ++t) {
      uint8_t& byte = in.bits[static_cast<size_t>(t / 8) * neurons + i];
      if (below(8) < rate) byte = static_cast<uint8_t>(byte | 1 << t % 8);
    }
    if (c.largest >= 0) in.count.push_back(static_cast<int32_t>(below(static_cast<uint32_t>(c.largest) + 1)));
  }
  return in;
}

Result loop(const Case& c, const Inputs& in, int64_t* spikes) {
  const ConvGeometry& g = c.geometry;
  const int64_t neurons = g.pixels_in() * g.in_channels, pooled = g.pixels_out() * g.in_channels;
  Result out;
  out.bits.assign(static_cast<size_t>((c.time_steps + 7) / 8 * pooled), 0);
  std::vector<int32_t> count = in.count;
  count.resize(static_cast<size_t>(neurons));
  std::vector<int64_t> most(static_cast<size_t>(pooled));
  for (int64_t t = -1; t < c.time_steps; ++t) {
    for (int64_t i = 0; t >= 0 && i < neurons; ++i) {
      count[static_cast<size_t>(i)] += in.bits[static_cast<size_t>(t / 8 * neurons + i)] >> t % 8 & 1;
    }
    for (int64_t i = 0; i < pooled; ++i) {
      const int64_t channel = i % g.in_channels, pixel = i / g.in_channels;
      const int64_t image = pixel / g.out_width / g.out_height;
      int64_t largest = 0;
      for (int64_t tap = 0; tap < g.taps(); ++tap) {
        const int64_t y =
            pixel / g.out_width % g.out_height * g.stride_h - g.padding_h + tap / g.kernel_w * g.dilation_h;
        const int64_t x = pixel % g.out_width * g.stride_w - g.padding_w + tap % g.kernel_w * g.dilation_w;
        if (y < 0 || y >= g.height || x < 0 || x >= g.width) continue;
        const int64_t at = ((image * g.height + y) * g.width + x) * g.in_channels + channel;
        const int64_t here = c.radix ? in.bits[static_cast<size_t>(at)] : count[static_cast<size_t>(at)];
        if (here > largest) largest = here;
      }
      if (t >= 0 && largest > most[static_cast<size_t>(i)]) {
        uint8_t& byte = out.bits[static_cast<size_t>(t / 8 * pooled + i)];
        byte = static_cast<uint8_t>(byte | 1 << t % 8);
        ++*spikes;
      }
      most[static_cast<size_t>(i)] = largest;
      if (c.radix) out.bits[static_cast<size_t>(i)] = static_cast<uint8_t>(largest), *spikes += largest > 0;
    }
  }
  out.count = count;
  return out;
}

Result device_kernel(const Case& c, const Inputs& in, cudaError_t* error) {
  const ConvGeometry& g = c.geometry;
  const int64_t neurons = g.pixels_in() * g.in_channels, planes = (c.time_steps + 7) / 8;
  // Filled with what the kernels must overwrite, and must not where nobody asked for it.
  Result out;
  out.bits.assign(static_cast<size_t>(planes * g.pixels_out() * g.in_channels), 0xa5);
  out.count.assign(static_cast<size_t>(neurons), -77);
  std::vector<int32_t> scratch(static_cast<size_t>(tandem::pool_counts(planes, c.largest >= 0, c.want_count) * neurons),
                               -77);
  tandem::CudaMaxPoolArgs args = {};
  args.geometry = g;
  args.bits = in.bits.data();
  args.count = c.largest >= 0 ? in.count.data() : nullptr;
  args.out = out.bits.data();
  args.out_count = c.want_count ? out.count.data() : nullptr;
  args.scratch = scratch.empty() ? nullptr : scratch.data();
  args.planes = planes;
  args.radix = c.radix;
  // Blocks of which each walks on, too.
  tandem::host::most_blocks = c.time_steps % 2 == 0 ? 2 : 0;
  *error = tandem::launch_max_pool_spikes(args, nullptr);
  tandem::host::most_blocks = 0;
  return out;
}

#if defined(TANDEM_ISA)
Result cpu_kernel(const Case& c, const Inputs& in) {
  const ConvGeometry& g = c.geometry;
  const int64_t neurons = g.pixels_in() * g.in_channels;
  Result out;
  tandem::MaxPoolArgs args = {};
  args.geometry = &g;
  args.bits = in.bits.data();
  args.planes = (c.time_steps + 7) / 8;
  args.radix = c.radix;
  args.count = c.largest >= 0 ? in.count.data() : nullptr;
  out.bits.assign(static_cast<size_t>(args.planes * g.pixels_out() * g.in_channels), 0xa5);
  out.count.assign(static_cast<size_t>(neurons), -77);
  args.out = out.bits.data();
  struct alignas(64) Line {
    uint8_t bytes[64];
  };
  const int64_t bytes = tandem::pool_pixels(g) * tandem::pool_scratch_bytes(tandem::pool_taps(g));
  std::vector<Line> scratch(static_cast<size_t>(bytes / 64 + 1));
  // In two halves, as two threads would.
  const int64_t half = g.pixels_out() / 2;
  tandem::scalar::max_pool(args, half, g.pixels_out(), scratch[0].bytes);
  tandem::scalar::max_pool(args, 0, half, scratch[0].bytes);
  tandem::scalar::add_counts(args.bits, args.planes, neurons, 0, neurons, args.count, out.count.data());
  return out;
}
#endif

// The kernel for 2^32 neurons and more, on fewer.
bool many_neurons() {
  const Case c = case_of(2, 17, 7, 6, 3, 2, 1, 1, 8, -1, false);
  const Inputs in = inputs_of(c);
  int64_t spikes = 0;
  const Result expected = loop(c, in, &spikes);
  std::vector<uint8_t> bits(expected.bits.size(), 0xa5);
  const tandem::MaxPool pool = {c.geometry, in.bits.data(), nullptr, bits.data(), 1, false};
  TANDEM_LAUNCH((tandem::max_pool_kernel<int64_t>), 2, tandem::kThreads, 0, nullptr, pool);
  return bits == expected.bits && spikes > 0;
}

bool check(const Case& c, int64_t* spikes) {
  const Inputs in = inputs_of(c);
  Result expected = loop(c, in, spikes);
#if defined(TANDEM_ISA)
  if (!(cpu_kernel(c, in) == expected)) return false;
#endif
  cudaError_t error = cudaSuccess;
  const Result got = device_kernel(c, in, &error);
  if (!c.want_count) expected.count.assign(expected.count.size(), -77);
  return error == cudaSuccess && got == expected;
}

}  // namespace

int main() {
  // Batch, channels, height, width, kernel, stride, padding, dilation.
  const int64_t shapes[][8] = {{1, 1, 2, 2, 2, 2, 0, 1}, {2, 3, 5, 4, 2, 2, 0, 1},  {1, 17, 7, 6, 3, 2, 1, 1},
                               {3, 5, 4, 4, 2, 1, 1, 3}, {1, 40, 5, 5, 5, 5, 0, 1}, {0, 4, 4, 4, 2, 2, 0, 1},
                               {1, 2, 1, 9, 1, 3, 0, 2}};
  int wrong = many_neurons() ? 0 : 1, cases = 0;
  int64_t spikes = 0;
  for (const auto& s : shapes) {
    for (const int64_t time_steps : {1, 4, 8}) {
      const Case c = case_of(s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7], time_steps, -1, false, true);
      ++cases;
      if (check(c, &spikes)) continue;
      ++wrong;
      printf("channels %lld, kernel %lld, radix spikes: wrong\n", static_cast<long long>(s[1]),
             static_cast<long long>(s[4]));
    }
    for (const int64_t time_steps : {1, 7, 8, 9, 20, 127, 128, 129, 300}) {
      for (const int64_t largest : {-1, 3, 1000}) {
        const Case c = case_of(s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7], time_steps, largest, cases++ % 2 == 0);
        if (check(c, &spikes)) continue;
        ++wrong;
        printf("channels %lld, kernel %lld, %lld steps, counts up to %lld: wrong\n", static_cast<long long>(s[1]),
               static_cast<long long>(s[4]), static_cast<long long>(time_steps), static_cast<long long>(largest));
      }
    }
  }
  printf("%d cases, %lld spikes, %d wrong\n", cases, static_cast<long long>(spikes), wrong);
  return wrong != 0 || spikes == 0;
}
