// integrate_and_fire's kernel, run on the host, against a plain loop and the CPU's portable kernel: the same bits.
#include "ops/neuron_loop/integrate_and_fire.cu"

#include <cstdio>
#include <cstring>
#include <limits>
#include <vector>

// Sanitizers judge the device's kernel; to build the other one for them takes a minute.
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define TANDEM_ISA scalar
#include "cpu/simd.inl.h"
// after what it needs
#include "ops/neuron_loop/integrate_and_fire.inl.h"
#endif

namespace {

using tandem::CudaIntegrateAndFireArgs;
using tandem::CurrentMode;

constexpr int kOptions = 5;                                       // scale, bias, initial state; sum, state
constexpr int kIf = 0, kLif = 1, kRefractory = 2, kAdaptive = 3;  // as in models.h
static_assert(tandem::kModelCount == 4, "the loop below has no other");

struct Case {
  int64_t neurons, channels, time_steps;
  CurrentMode mode;
  unsigned options;
  int kind;
};

// What the loop made: with the spikes and those of them that were exactly at the threshold.
template <class T>
struct Result {
  std::vector<uint8_t> bits;
  std::vector<T> sum, state;
  int64_t spikes = 0, exact = 0, nans = 0;
};

template <class T>
struct Inputs {
  std::vector<T> current, scale, bias, initial;
  T threshold, leak, adaptation, decay;
  int refractory;
};

template <class T>
tandem::Neuron neuron_of(const Case& c, const Inputs<T>& in) {
  if (c.kind == kLif) return {kLif, {in.threshold, in.leak}};
  if (c.kind == kRefractory) return {kRefractory, {in.threshold, 0, static_cast<double>(in.refractory)}};
  if (c.kind == kAdaptive) return {kAdaptive, {in.threshold, in.adaptation, in.decay}};
  return {kIf, {in.threshold}};
}

template <class T>
Inputs<T> inputs_of(const Case& c) {
  Inputs<T> in;
  uint32_t state = static_cast<uint32_t>(c.neurons * 31 + c.time_steps);
  const auto below = [&](uint32_t bound) {
    state = state * 1664525u + 1013904223u;
    return (state >> 16) % bound;
  };
  // Eighths, whose sums are exact and meet the threshold, and tenths, whose sums are rounded.
  const auto fill = [&](std::vector<T>& values, int64_t count, int lowest, uint32_t range) {
    for (int64_t i = 0; i < count; ++i) {
      const auto whole = static_cast<T>(lowest + static_cast<int>(below(range)));
      values.push_back(whole / (below(4) == 0 ? T(10) : T(8)));
    }
  };
  fill(in.current, c.neurons * (c.mode == CurrentMode::kSeries ? c.time_steps : 1), -6, 18);
  for (size_t i = 5; i < in.current.size(); i += 29) in.current[i] = std::numeric_limits<T>::quiet_NaN();
  for (size_t i = 11; i < in.current.size(); i += 37) in.current[i] = -T(0);
  for (int64_t i = 0; i < c.channels; ++i) in.scale.push_back(below(3) == 0 ? T(1.1) : T(0.5) * T(1 + below(4)));
  fill(in.bias, c.channels, -2, 5);
  fill(in.initial, c.neurons, -8, 17);
  // The second variable: steps that are left, or the share of steps with a spike.
  for (int64_t i = 0; i < c.neurons; ++i) in.initial.push_back(T(below(4)) / (c.kind == kAdaptive ? T(4) : T(1)));
  in.threshold = T(0.75);
  in.leak = c.kind == kLif ? T(0.9) : T(1);
  in.adaptation = T(0.5), in.decay = T(0.75);
  in.refractory = 2;
  return in;
}

template <class T>
Result<T> loop(const Case& c, const Inputs<T>& in) {
  const bool scales = c.options & 1, adds_bias = c.options & 2, starts = c.options & 4;
  Result<T> out;
  std::vector<T> seconds;
  out.bits.assign(static_cast<size_t>((c.time_steps + 7) / 8 * c.neurons), 0);
  for (int64_t n = 0; n < c.neurons; ++n) {
    const auto channel = static_cast<size_t>(n % c.channels);
    T u = starts ? in.initial[static_cast<size_t>(n)] : T(0), sum = 0;
    T second = starts ? in.initial[static_cast<size_t>(c.neurons + n)] : T(0);
    bool fired = (c.kind == kAdaptive ? u - in.adaptation * second : u) >= in.threshold;
    if (c.kind == kRefractory) fired = fired && second == 0;
    for (int64_t t = 0; t < c.time_steps; ++t) {
      T x = 0;
      if (c.mode == CurrentMode::kImpulse && t > 0) {
        if (adds_bias) x = in.bias[channel];
      } else if (c.mode == CurrentMode::kOnce && t > 0) {
        x = 0;
      } else {
        x = in.current[static_cast<size_t>(c.mode == CurrentMode::kSeries ? t * c.neurons + n : n)];
        if (scales) x = x * in.scale[channel];
        if (adds_bias) x = x + in.bias[channel];
      }
      if (c.kind == kAdaptive) {
        const T spike = fired ? T(1) : T(0);
        u = (fired ? u - in.adaptation * second - in.threshold : u) + x;
        second = spike + in.decay * (second - spike);
        fired = u - in.adaptation * second >= in.threshold;
      } else {
        u = in.leak * u;
        if (fired) u = u - in.threshold;
        if (c.kind == kRefractory) second = fired ? T(in.refractory) : second < 1 ? T(0) : second - 1;
        const bool active = c.kind != kRefractory || second == 0;
        if (active) u = u + x;
        fired = active && u >= in.threshold;
      }
      sum = t == 0 ? x : sum + x;
      if (fired) {
        auto& byte = out.bits[static_cast<size_t>(t / 8 * c.neurons + n)];
        byte = static_cast<uint8_t>(byte + (1 << t % 8));
      }
      out.spikes += fired;
      out.exact += u == in.threshold;
      out.nans += u != u;
    }
    out.sum.push_back(sum);
    out.state.push_back(u);
    seconds.push_back(second);
  }
  if (c.kind >= kRefractory) out.state.insert(out.state.end(), seconds.begin(), seconds.end());
  return out;
}

#if defined(TANDEM_ISA)
// The same by the CPU's kernel, which reads scale and bias again and again.
template <class T>
Result<T> cpu_kernel(const Case& c, const Inputs<T>& in) {
  const auto repeated = [&](const std::vector<T>& values) {
    std::vector<T> all;
    for (int64_t i = 0; i < c.channels + tandem::kNeuronBlock; ++i) {
      all.push_back(values[static_cast<size_t>(i % c.channels)]);
    }
    return all;
  };
  const std::vector<T> scale = repeated(in.scale), bias = repeated(in.bias);
  Result<T> out;
  out.bits.assign(static_cast<size_t>((c.time_steps + 7) / 8 * c.neurons), 0);
  out.state.resize(static_cast<size_t>(tandem::states_of(neuron_of(c, in)) * c.neurons));
  out.sum.resize(static_cast<size_t>(c.neurons));
  tandem::IntegrateAndFireArgs<T> args = {};
  args.current = in.current.data();
  args.current_stride = args.bits_stride = c.neurons;
  args.scale = c.options & 1 ? scale.data() : nullptr;
  args.bias = c.options & 2 ? bias.data() : nullptr;
  args.initial = {c.options & 4 ? in.initial.data() : nullptr, c.neurons};
  args.bits = out.bits.data();
  args.sum = out.sum.data();
  args.state = {out.state.data(), c.neurons};
  args.channels = c.channels;
  args.time_steps = c.time_steps;
  args.mode = c.mode;
  args.neuron = neuron_of(c, in);
  tandem::scalar::integrate_and_fire(args, 0, c.neurons);
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

template <class T>
bool check(const Case& c, Result<T>& total) {
  const Inputs<T> in = inputs_of<T>(c);
  const Result<T> expected = loop(c, in);
  const auto neurons = static_cast<size_t>(c.neurons);
  // Filled with what the kernel must overwrite, and must not where nobody asked for it.
  std::vector<uint8_t> bits(expected.bits.size(), 0xa5);
  std::vector<T> sum(neurons, T(-77)), state(expected.state.size(), T(-77));
  CudaIntegrateAndFireArgs<T> args = {};
  args.current = in.current.data();
  args.scale = c.options & 1 ? in.scale.data() : nullptr;
  args.bias = c.options & 2 ? in.bias.data() : nullptr;
  args.initial = {c.options & 4 ? in.initial.data() : nullptr, c.neurons};
  args.bits = bits.data();
  args.sum = c.options & 8 ? sum.data() : nullptr;
  args.state = {c.options & 16 ? state.data() : nullptr, c.neurons};
  args.neurons = c.neurons;
  args.channels = c.channels;
  args.time_steps = c.time_steps;
  args.mode = c.mode;
  args.neuron = neuron_of(c, in);
  // Blocks of which each walks on, too.
  tandem::host::most_blocks = c.time_steps % 2 == 0 ? 2 : 0;
  const cudaError_t error = tandem::launch_integrate_and_fire(args, nullptr);
  tandem::host::most_blocks = 0;
#if defined(TANDEM_ISA)
  const Result<T> twin = cpu_kernel(c, in);
  if (twin.bits != expected.bits || !same_bits(twin.sum, expected.sum) || !same_bits(twin.state, expected.state)) {
    return false;
  }
#endif

  total.spikes += expected.spikes;
  total.exact += expected.exact;
  total.nans += expected.nans;
  const std::vector<T> no_sum(neurons, T(-77)), no_state(state.size(), T(-77));
  return error == cudaSuccess && bits == expected.bits && same_bits(sum, c.options & 8 ? expected.sum : no_sum) &&
         same_bits(state, c.options & 16 ? expected.state : no_state);
}

// Every option with every number of time steps in every mode, each time for another number of neurons.
template <class T>
int check_all(const char* name) {
  const int64_t shapes[][2] = {{0, 1}, {1, 1}, {31, 31}, {255, 17}, {256, 1}, {257, 257}, {1000, 8}};
  constexpr int64_t kShapes = sizeof(shapes) / sizeof(shapes[0]);
  int wrong = 0, cases = 0;
  Result<T> total;
  for (int64_t time_steps = 1; time_steps <= 20; ++time_steps) {
    for (int mode = 0; mode < tandem::kCurrentModes; ++mode) {
      for (unsigned options = 0; options < 1u << kOptions; ++options, ++cases) {
        const auto& shape = shapes[(cases + cases / kShapes) % kShapes];
        const int kind = cases / 2 % tandem::kModelCount;
        const Case c = {shape[0], shape[1], time_steps, static_cast<CurrentMode>(mode), options, kind};
        if (check<T>(c, total)) continue;
        ++wrong;
        printf("%s: %lld neurons, %lld channels, %lld steps, mode %d, options %#x, model %d: wrong\n", name,
               static_cast<long long>(c.neurons), static_cast<long long>(c.channels),
               static_cast<long long>(c.time_steps), static_cast<int>(c.mode), c.options, c.kind);
      }
    }
  }
  printf("%s: %d cases, %lld spikes, %lld potentials at the threshold, %lld NaN, %d wrong\n", name, cases,
         static_cast<long long>(total.spikes), static_cast<long long>(total.exact), static_cast<long long>(total.nans),
         wrong);
  // Inputs that met none of these would have proved little.
  if (total.spikes == 0 || total.exact == 0 || total.nans == 0) ++wrong;
  return wrong;
}

}  // namespace

int main() { return check_all<float>("float") + check_all<double>("double") != 0; }
