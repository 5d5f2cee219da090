// radix_spikes' kernel, run on the host, against a plain loop and the CPU's portable kernel: the same bits.
#include "ops/radix_spikes/radix_spikes.cu"

#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <vector>

// Sanitizers judge the device's kernel; to build the other one for them takes longer.
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define TANDEM_ISA scalar
#include "cpu/simd.inl.h"
// after what it needs
#include "ops/radix_spikes/radix_spikes.inl.h"
#endif

namespace {

using tandem::CudaRadixSpikesArgs;

constexpr unsigned kScale = 1, kBias = 2, kState = 4, kMisaligned = 8, kOptions = 16;

struct Case {
  int64_t neurons, channels;
  int time_steps;
  unsigned options;
};

template <class T>
struct Inputs {
  std::vector<T> current, scale, bias;
  T threshold, start;
};

template <class T>
struct Result {
  std::vector<uint8_t> bits;
  std::vector<T> state;
  int64_t exact = 0, nans = 0, saturated = 0;
};

template <class T>
Inputs<T> inputs_of(const Case& c) {
  Inputs<T> in;
  uint32_t state = static_cast<uint32_t>(c.neurons * 31 + c.time_steps);
  const auto below = [&](uint32_t bound) {
    state = state * 1664525u + 1013904223u;
    return (state >> 16) % bound;
  };
  in.threshold = c.time_steps % 2 == 0 ? T(0.5) : T(0.7);
  in.start = T(0.5) * in.threshold;
  // Multiples of the threshold, less what is added, are exactly at one; and numbers next to these.
  for (int64_t i = 0; i < c.neurons; ++i) {
    const int levels = 1 << c.time_steps;
    const auto q = static_cast<T>(static_cast<int>(below(static_cast<uint32_t>(levels + 6))) - 3);
    T x = q * in.threshold - in.start;
    if (below(3) == 0) x = std::nextafter(x, below(2) == 0 ? T(-1e9) : T(1e9));
    if (below(5) == 0) x += in.threshold * T(0.3);
    in.current.push_back(x);
  }
  for (size_t i = 5; i < in.current.size(); i += 29) in.current[i] = std::numeric_limits<T>::quiet_NaN();
  for (size_t i = 11; i < in.current.size(); i += 37) in.current[i] = -T(0);
  for (size_t i = 7; i < in.current.size(); i += 41) in.current[i] = std::numeric_limits<T>::infinity();
  for (size_t i = 8; i < in.current.size(); i += 41) in.current[i] = -std::numeric_limits<T>::infinity();
  for (int64_t i = 0; i < c.channels; ++i) {
    in.scale.push_back(below(3) == 0 ? T(1.1) : T(0.5) * T(1 + below(4)));
    in.bias.push_back(T(static_cast<int>(below(9)) - 4) / T(10));
  }
  return in;
}

template <class T>
Result<T> loop(const Case& c, const Inputs<T>& in) {
  Result<T> out;
  for (int64_t n = 0; n < c.neurons; ++n) {
    const auto channel = static_cast<size_t>(n % c.channels);
    T u = in.current[static_cast<size_t>(n)];
    if (c.options & kScale) u = u * in.scale[channel];
    if (c.options & kBias) u = u + in.bias[channel];
    u = u + in.start;
    int value = 0;
    for (int t = 1; t <= c.time_steps; ++t) {
      const T h = in.threshold * std::ldexp(T(1), c.time_steps - t);
      out.exact += u == h;
      if (!(u >= h)) continue;
      value += 1 << (c.time_steps - t);
      u = u - h;
    }
    out.bits.push_back(static_cast<uint8_t>(value));
    out.state.push_back(u);
    out.nans += u != u;
    out.saturated += value == (1 << c.time_steps) - 1;
  }
  return out;
}

#if defined(TANDEM_ISA)
// The same by the CPU's kernel, which reads scale and bias again and again.
template <class T>
Result<T> cpu_kernel(const Case& c, const Inputs<T>& in) {
  const auto repeated = [&](const std::vector<T>& values) {
    std::vector<T> all;
    for (int64_t i = 0; i < c.channels + tandem::kRadixBlock; ++i) {
      all.push_back(values[static_cast<size_t>(i % c.channels)]);
    }
    return all;
  };
  const std::vector<T> scale = repeated(in.scale), bias = repeated(in.bias);
  Result<T> out;
  out.bits.resize(static_cast<size_t>(c.neurons));
  out.state.resize(static_cast<size_t>(c.neurons));
  tandem::RadixSpikesArgs<T> args = {};
  args.current = in.current.data();
  args.scale = c.options & kScale ? scale.data() : nullptr;
  args.bias = c.options & kBias ? bias.data() : nullptr;
  args.bits = out.bits.data();
  args.state = out.state.data();
  args.channels = c.channels;
  args.time_steps = c.time_steps;
  args.threshold = in.threshold;
  args.start = in.start;
  tandem::scalar::radix_spikes(args, 0, c.neurons);
  return out;
}
#endif

// Of a NaN, that it is one: which of several comes out of a sum is the processor's choice.
template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  for (size_t i = 0; i < a.size(); ++i) {
    if (a[i] != a[i] && b[i] != b[i]) continue;
    if (memcmp(&a[i], &b[i], sizeof(T)) != 0) return false;
  }
  return a.size() == b.size();
}

// A copy behind `gap` elements that nobody reads.
template <class T>
std::vector<T> moved(const std::vector<T>& values, size_t gap) {
  std::vector<T> out(gap, T(77));
  out.insert(out.end(), values.begin(), values.end());
  return out;
}

template <class T>
bool check(const Case& c, Result<T>& total) {
  const Inputs<T> in = inputs_of<T>(c);
  const Result<T> expected = loop(c, in);
  const auto neurons = static_cast<size_t>(c.neurons);
  const size_t gap = c.options & kMisaligned ? 1 : 0;
  const std::vector<T> current = moved(in.current, gap), scale = moved(in.scale, gap), bias = moved(in.bias, gap);
  // Filled with what the kernel must overwrite, and must not where nobody asked for it.
  std::vector<uint8_t> bits(neurons, 0xa5);
  std::vector<T> state(neurons, T(-77));
  CudaRadixSpikesArgs<T> args = {};
  args.current = current.data() + gap;
  args.scale = c.options & kScale ? scale.data() + gap : nullptr;
  args.bias = c.options & kBias ? bias.data() + gap : nullptr;
  args.bits = bits.data();
  args.state = c.options & kState ? state.data() : nullptr;
  args.neurons = c.neurons;
  args.channels = c.channels;
  args.time_steps = c.time_steps;
  args.threshold = in.threshold;
  args.start = in.start;
  // Blocks of which each walks on, too.
  tandem::host::most_blocks = c.time_steps % 2 == 0 ? 2 : 0;
  const cudaError_t error = tandem::launch_radix_spikes(args, nullptr);
  tandem::host::most_blocks = 0;
#if defined(TANDEM_ISA)
  const Result<T> twin = cpu_kernel(c, in);
  if (twin.bits != expected.bits || !same_bits(twin.state, expected.state)) return false;
#endif

  total.exact += expected.exact;
  total.nans += expected.nans;
  total.saturated += expected.saturated;
  const std::vector<T> untouched(neurons, T(-77));
  return error == cudaSuccess && bits == expected.bits &&
         same_bits(state, c.options & kState ? expected.state : untouched);
}

// Every option with every number of time steps, for numbers of neurons and channels that fill lanes and do not.
template <class T>
int check_all(const char* name) {
  const int64_t shapes[][2] = {{0, 1}, {1, 1}, {31, 31}, {255, 17}, {256, 4}, {257, 257}, {1000, 8}, {3000, 12}};
  int wrong = 0, cases = 0;
  Result<T> total;
  for (int time_steps = 1; time_steps <= 8; ++time_steps) {
    for (unsigned options = 0; options < kOptions; ++options) {
      for (const auto& shape : shapes) {
        const Case c = {shape[0], shape[1], time_steps, options};
        ++cases;
        if (check<T>(c, total)) continue;
        ++wrong;
        printf("%s: %lld neurons, %lld channels, %d steps, options %#x: wrong\n", name,
               static_cast<long long>(c.neurons), static_cast<long long>(c.channels), c.time_steps, c.options);
      }
    }
  }
  printf("%s: %d cases, %lld potentials at a threshold, %lld NaN, %lld of the largest value, %d wrong\n", name, cases,
         static_cast<long long>(total.exact), static_cast<long long>(total.nans),
         static_cast<long long>(total.saturated), wrong);
  // Inputs that met none of these would have proved little.
  if (total.exact == 0 || total.nans == 0 || total.saturated == 0) ++wrong;
  return wrong;
}

}  // namespace

int main() { return check_all<float>("float") + check_all<double>("double") != 0; }
