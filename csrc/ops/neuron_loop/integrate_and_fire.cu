#include <type_traits>

#include "neuron/epilogue.cuh"
#include "ops/neuron_loop/integrate_and_fire.cuh"

namespace tandem {

namespace {

constexpr unsigned kThreads = 256;
// Blocks beyond this many walk the neurons in a grid-stride loop: enough to fill any device many times over.
constexpr int64_t kMostBlocks = int64_t{1} << 20;

// One thread a neuron at a time; neighbouring threads read and write neighbouring neurons.
template <class T, CurrentMode kMode, class Model>
__global__ void __launch_bounds__(kThreads)
    integrate_and_fire_kernel(const CudaIntegrateAndFireArgs<T> a, const Model model) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < a.neurons; i += stride) {
    const T bias = a.bias ? a.bias[i % a.channels] : T(0);
    const T scale = a.scale ? a.scale[i % a.channels] : T(1);
    const auto given = [&](int64_t at) {
      return current_of(a.current[at], a.scale != nullptr, scale, a.bias != nullptr, bias);
    };
    DeviceNeuron<T, Model> neuron;
    neuron.start(model, a.initial, i);
    neuron.sum = T(-0.0);  // -0 + x is x, whatever x is
    T x = kMode == CurrentMode::kSeries ? T(0) : given(i);
    int64_t t = 0;
    for (int64_t p = 0; t < a.time_steps; ++p) {
      const auto current = [&](int /*s*/) {
        if (kMode == CurrentMode::kSeries) return given(t++ * a.neurons + i);
        if (kMode == CurrentMode::kImpulse && t == 1) x = bias;
        if (kMode == CurrentMode::kOnce && t == 1) x = T(0);
        ++t;
        return x;
      };
      a.bits[p * a.neurons + i] =
          run_plane<0>(model, static_cast<int>(steps_in_plane(p, a.time_steps)), current, neuron);
    }
    neuron.store(a.state, a.sum, i);
  }
}

template <class T>
cudaError_t launch(const CudaIntegrateAndFireArgs<T>& args, cudaStream_t stream) {
  if (args.neurons == 0) return cudaSuccess;
  const int64_t blocks = (args.neurons + kThreads - 1) / kThreads;
  const auto grid = static_cast<unsigned>(blocks < kMostBlocks ? blocks : kMostBlocks);
  visit_model<Scalar<T>>(args.neuron, [&](const auto& model) {
    using Model = std::decay_t<decltype(model)>;
    switch (args.mode) {
      case CurrentMode::kConstant:
        TANDEM_LAUNCH((integrate_and_fire_kernel<T, CurrentMode::kConstant, Model>), grid, kThreads, 0, stream, args,
                      model);
        break;
      case CurrentMode::kImpulse:
        TANDEM_LAUNCH((integrate_and_fire_kernel<T, CurrentMode::kImpulse, Model>), grid, kThreads, 0, stream, args,
                      model);
        break;
      case CurrentMode::kSeries:
        TANDEM_LAUNCH((integrate_and_fire_kernel<T, CurrentMode::kSeries, Model>), grid, kThreads, 0, stream, args,
                      model);
        break;
      case CurrentMode::kOnce:
        TANDEM_LAUNCH((integrate_and_fire_kernel<T, CurrentMode::kOnce, Model>), grid, kThreads, 0, stream, args,
                      model);
        break;
    }
  });
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_integrate_and_fire(const CudaIntegrateAndFireArgs<float>& args, cudaStream_t stream) {
  return launch(args, stream);
}

cudaError_t launch_integrate_and_fire(const CudaIntegrateAndFireArgs<double>& args, cudaStream_t stream) {
  return launch(args, stream);
}

}  // namespace tandem
