// spiking_linear, spiking_conv2d, count_linear and count_conv2d on the CPU: the choice of the engine.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <atomic>
#include <limits>
#include <tuple>

#include "common/product_operators.h"
#include "cpu/dense_product.h"
#include "cpu/depthwise_product.h"
#include "cpu/event_product.h"
#include "cpu/isa.h"
#include "cpu/kernels/kernels.h"
#include "cpu/parallel.h"

namespace tandem {

namespace {

double spikes_per_step(int64_t spikes, int64_t bytes, const ProductPlan& plan, int64_t time_steps) {
  const double steps_per_byte = static_cast<double>(time_steps) / static_cast<double>(plan.bits.size(0));
  return bytes > 0 ? static_cast<double>(spikes) / (static_cast<double>(bytes) * steps_per_byte) : 0;
}

// Spikes per neuron and time step of the input; of a large one, of every seventh cache line, so that counting costs
// little even where there is nothing to add. Seven, for no number of channels that is a power of two comes round to the
// same channels.
double density(const ProductPlan& plan, int64_t time_steps) {
  constexpr int64_t kLine = 64, kEvery = 7, kLarge = int64_t{1} << 16;
  const auto* bits = static_cast<const uint8_t*>(plan.bits.const_data_ptr());
  const int64_t bytes = plan.bits.numel();
  if (bytes < kLarge) return spikes_per_step(kernels().count_spikes(bits, 0, bytes), bytes, plan, time_steps);
  std::atomic<int64_t> spikes{0};
  const int64_t lines = bytes / kLine / kEvery;
  parallel_ranges(lines, int64_t{1} << 13, [&](int64_t begin, int64_t end) {
    int64_t here = 0;
    for (int64_t i = begin; i < end; ++i) {
      here += kernels().count_spikes(bits, i * kEvery * kLine, i * kEvery * kLine + kLine);
    }
    spikes.fetch_add(here, std::memory_order_relaxed);
  });
  return spikes_per_step(spikes.load(), lines * kLine, plan, time_steps);
}

// The time of the event-driven engine over that of the dense one is close to overhead + slope * density. Making lists
// is the overhead; it weighs less the more output channels use them. Measured: docs/performance.md.
double crossover(const ConvGeometry& g, double list_cost, double slope) {
  const double rows = static_cast<double>(std::min<int64_t>(g.features(), kUnitRows));
  const double per_output = list_cost * std::min(3.0, static_cast<double>(kUnitRows) / rows);
  return std::max(0.0, 1 - per_output / static_cast<double>(g.group_out())) / slope;
}

bool is_linear(const ConvGeometry& g) { return g.taps() * g.height * g.width == 1; }

// Spikes per neuron and step above which the dense engine is the faster one.
double spike_crossover(const ConvGeometry& g) {
  // A matrix product of few rows waits for its weights, of which the event-driven engine reads no more.
  if (is_linear(g)) return 1;
  // Threads share a small dense product badly, unless there are so few features that lists cost more than it.
  constexpr int64_t kSmall = int64_t{1} << 25;  // multiply-adds a time step
  const int64_t multiply_adds = g.pixels_out() * g.features() * g.out_channels;
  if (multiply_adds < kSmall && g.features() >= kUnitRows && g.group_out() >= 32) return 1;
  // Narrow blocks of output channels spend more of their time on lists' entries. Wide ones win at any density.
  const double slope = g.group_out() < 32 ? 1.7 : g.group_out() < 64 ? 1.4 : g.group_out() < 256 ? 1.2 : 0.95;
  return crossover(g, g.group_in() < kUnitRows ? 6 : 1, slope);
}

// Binary ones per spike count above which the dense engine is the faster one.
double count_crossover(const ConvGeometry& g) { return crossover(g, 40, 1.1); }

// The engine that was asked for, as far as there is a choice: an image without pixels leaves nothing to multiply, and
// torch's convolution would refuse it.
Engine asked(const char* op, const ProductPlan& plan, bool depthwise) {
  const bool integers = plan.weight.scalar_type() == ScalarType::Char;
  check(!(integers && plan.engine == Engine::kDense), op,
        "engine dense cannot serve int8 weights; engine event (or auto) does, or float weights of the same values");
  const bool no_choice = integers || (depthwise && plan.engine == Engine::kAuto) || plan.geometry.pixels_in() == 0;
  return no_choice ? Engine::kEvent : plan.engine;
}

std::tuple<Tensor, Tensor, Tensor> spiking(const char* op, const ProductArguments& arguments,
                                           const SpikingArguments& neurons, const ConvGeometry& geometry, bool linear) {
  const ProductPlan plan = plan_spiking(op, arguments, neurons, geometry, linear);
  const bool depthwise = is_depthwise(plan, 1);
  const Engine engine = asked(op, plan, depthwise);
  const int64_t time_steps = neurons.time_steps;
  const double threshold = neurons.threshold, leak = neurons.leak;
  const bool lists = engine != Engine::kDense && !depthwise;
  const double spikes = lists ? density(plan, time_steps) : 0;
  if (engine == Engine::kDense || (lists && engine == Engine::kAuto && spikes > spike_crossover(geometry))) {
    run_spiking_dense(op, plan, time_steps, threshold, leak);
  } else if (depthwise) {
    run_spiking_depthwise(op, plan, time_steps, threshold, leak);
  } else {
    run_spiking_events(op, plan, time_steps, threshold, leak, spikes);
  }
  return {plan.out_bits, plan.out_sum, plan.out_potential};
}

Tensor counted(const char* op, const ProductArguments& arguments, const ConvGeometry& geometry, bool linear) {
  const ProductPlan plan = plan_product(op, arguments, geometry, linear);
  const bool depthwise = is_depthwise(plan, plan.bits.size(0) * kStepsPerPlane);
  const Engine engine = asked(op, plan, depthwise);
  if (engine == Engine::kEvent && depthwise) {
    run_count_depthwise(op, plan);
    return plan.out_sum;
  }
  const double most = engine == Engine::kEvent ? std::numeric_limits<double>::infinity() : count_crossover(geometry);
  if (engine != Engine::kDense && run_count_events(op, plan, most)) return plan.out_sum;
  return run_count_dense(op, plan);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tandem_cuda, CPU, m) {
  m.impl("spiking_linear", TORCH_BOX(&spiking_linear<spiking>));
  m.impl("spiking_conv2d", TORCH_BOX(&spiking_conv2d<spiking>));
  m.impl("count_linear", TORCH_BOX(&count_linear<counted>));
  m.impl("count_conv2d", TORCH_BOX(&count_conv2d<counted>));
}

}  // namespace tandem
