// Products of spikes with weights on the CPU: which of the engines computes one. Weights are rows of `features` inputs.
//
//                    | spikes                          | counts                        | currents of each step
// ------------------ | ------------------------------- | ----------------------------- | -----------------------
// depthwise          | depthwise.inl.h                 | depthwise.inl.h               | as below
// events, float      | visits, or lists of windows     | lists of counts               | visits, or lists of windows
// events, integer    | visits, or lists of windows     | as spikes, one a binary digit | visits, or lists of windows
// dense, float       | torch's convolution             | bytes on AMX, else torch's    | -
// dense, integer     | tables of sums                  | bytes, else tables            | -
//
// Counts are numbers of spikes, or the values of radix spikes. Depthwise counts include pairs, where an output reads
// both signs of a value.
// - Visits (event_visits.inl.h, event_rows.inl.h): lists of the inputs that spike, made once for all output channels.
// - Lists of windows (window_lists.inl.h): made anew for each block of output channels, where the weights are few.
// - Lists of counts (count_lists.inl.h): the inputs whose count is not zero, each with its count.
// - Tables (event_tables.inl.h): 5 inputs look up the sum of their rows of weights.
// - Bytes (count_tile.inl.h): counts times 8-bit digits of weights. Scalar code and NEON without dot
//   products have tables in their place.
//
// "auto" compares the density of each sample with a crossover that was measured; integers give the same sums in all.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <limits>
#include <tuple>
#include <vector>

#include "cpu/parallel.h"
#include "ops/product/cpu_count.h"
#include "ops/product/cpu_count_kernels.h"
#include "ops/product/cpu_dense.h"
#include "ops/product/cpu_depthwise.h"
#include "ops/product/cpu_event.h"
#include "ops/product/cpu_event_kernels.h"
#include "ops/product/cpu_integer.h"
#include "ops/product/cpu_pack_weight.h"
#include "ops/product/operators.h"
#include "ops/radix_spikes/cpu_fire.h"
#include "ops/spike_train/cpu_kernels.h"

namespace tandem {

namespace {

// The bytes begin..end-1 that are not zero.
int64_t count_live(const uint8_t* bytes, int64_t begin, int64_t end) {
  constexpr uint64_t kLow = 0x0101010101010101;
  int64_t live = 0, i = begin;
  for (; i + 8 <= end; i += 8) {
    uint64_t word;
    std::memcpy(&word, bytes + i, sizeof(word));
    word |= word >> 4 & 15 * kLow;
    word |= word >> 2 & 3 * kLow;
    word |= word >> 1;
    live += static_cast<int64_t>((word & kLow) * kLow >> 56);
  }
  for (; i < end; ++i) live += bytes[i] != 0;
  return live;
}

// Counts ones, or bytes that are not zero.
using Count = int64_t(const uint8_t* bytes, int64_t begin, int64_t end);

// Planes of bits [planes, N, inputs of a sample], of which `count` finds up to `digits` at every place.
struct Planes {
  const uint8_t* bits;
  int64_t planes, digits, inputs, batch;
  Count* count = kernels<SpikeTrainKernels>().count_spikes;
};

// What `count` finds in some bytes; of many, an estimate from every seventh cache line, so that counting costs little
// even where there is nothing to add. Seven, for no number of channels that is a power of two comes round to the same
// channels.
double counted_in(Count* count, const uint8_t* bits, int64_t bytes) {
  constexpr int64_t kLine = 64, kEvery = 7, kLarge = int64_t{1} << 16;
  if (bytes < kLarge) return static_cast<double>(count(bits, 0, bytes));
  std::atomic<int64_t> ones{0};
  const int64_t lines = bytes / kLine / kEvery;
  parallel_ranges(lines, int64_t{1} << 13, [&](int64_t begin, int64_t end) {
    int64_t here = 0;
    for (int64_t i = begin; i < end; ++i) {
      here += count(bits, i * kEvery * kLine, i * kEvery * kLine + kLine);
    }
    ones.fetch_add(here, std::memory_order_relaxed);
  });
  return static_cast<double>(ones.load()) * static_cast<double>(bytes) / static_cast<double>(lines * kLine);
}

// Ones per bit of some samples, or the share of their bytes that are not zero.
double density(const Planes& in, Samples samples) {
  const int64_t bytes = samples.count() * in.inputs;
  if (bytes == 0) return 0;
  double found = 0;
  for (int64_t p = 0; p < in.planes; ++p) {
    found += counted_in(in.count, in.bits + (p * in.batch + samples.first) * in.inputs, bytes);
  }
  return found / (static_cast<double>(bytes) * static_cast<double>(in.digits));
}

// The time of the event-driven engine over that of the dense one is close to overhead + slope * density. Making lists
// is the overhead; it weighs less the more output channels use them. Measured: docs/performance.md.
double crossover(const ConvGeometry& g, double list_cost, double slope) {
  const double rows = static_cast<double>(std::min<int64_t>(g.features(), kUnitRows));
  const double per_output = list_cost * std::min(3.0, static_cast<double>(kUnitRows) / rows);
  return std::max(0.0, 1 - per_output / static_cast<double>(g.group_out())) / slope;
}

bool is_linear(const ConvGeometry& g) { return g.taps() * g.height * g.width == 1; }

// The dense engine convolves a sample at a time, and rearranges the weights for each: its time, over that of a large
// batch, for so many images of a sample.
double alone(const ConvGeometry& g, int64_t images) {
  return 1 + 60 / static_cast<double>(images * g.out_height * g.out_width);
}

// Spikes per neuron and step of a sample above which the dense engine is the faster one.
double spike_crossover(const ConvGeometry& g, int64_t time_steps) {
  // A matrix product of few rows waits for its weights, of which the event-driven engine reads no more.
  if (is_linear(g)) return 1;
  // Threads share a small dense product badly, unless there are so few features that lists cost more than it.
  constexpr int64_t kSmall = int64_t{1} << 25;  // multiply-adds a time step
  const int64_t multiply_adds = g.out_height * g.out_width * g.features() * g.out_channels;
  if (multiply_adds < kSmall && g.features() >= kUnitRows && g.group_out() >= 32) return 1;
  // Narrow blocks of output channels spend more of their time on lists' entries. Wide ones win at any density.
  const double slope = g.group_out() < 32 ? 1.7 : g.group_out() < 64 ? 1.4 : g.group_out() < 256 ? 1.2 : 0.95;
  const int64_t images = time_steps <= kDenseSteps ? time_steps : kStepsPerPlane;
  return crossover(g, g.group_in() < kUnitRows ? 6 : 1, slope) * alone(g, images);
}

// Binary ones per spike count of a sample above which the dense engine is the faster one.
double count_crossover(const ConvGeometry& g) {
  if (is_linear(g)) return std::numeric_limits<double>::infinity();  // as above
  return crossover(g, 17, 1) * alone(g, 1);
}

// The same of radix spikes, whose values have up to 8 ones: the share of values that are not zero.
double value_crossover(const ConvGeometry& g) {
  if (is_linear(g)) return std::numeric_limits<double>::infinity();  // as above
  return crossover(g, 5, 2) * alone(g, 1);
}

// The share of counts that are not zero above which matrix tiles are the faster ones. They read all weights, which
// counts where few pixels use them. The sums of floats must not depend on the batch.
double matrix_crossover(const ConvGeometry& g, bool integers) {
  // Of many pixels it would be hardly worth counting.
  if (integers) return g.pixels_out() >= 64 ? -1 : 0.4 / static_cast<double>(g.pixels_out());
  return is_linear(g) ? 0.1 : crossover(g, 3, 20);
}

// Of integers: ones per digit of the input above which tables of sums are the faster ones; and, for numbers of so many
// digits, above which multiplying them is. Lists cost more the more digits there are. Few output pixels are not worth
// reading all weights, and less so rearranging those that are not packed. The number of pixels depends on the batch,
// which changes no sum of integers.
double word_crossover(const ConvGeometry& g) { return g.group_in() < kWordChannels ? 0.3 : crossover(g, 28, 3.4); }

double byte_crossover(const ConvGeometry& g, int64_t digits, int64_t largest, bool packed) {
  const auto of_all = static_cast<double>(digits);
  const double slope = kernels<CountKernels>().byte_slope(largest);
  const double pixels = (packed ? 1.0 : 17.0) / static_cast<double>(g.pixels_out());
  return crossover(g, 20 + 16 * of_all, slope) * (1 + pixels) / of_all;
}

// The engine that was asked for, as far as there is a choice: an image without pixels leaves nothing to multiply, and
// torch's convolution would refuse it.
Engine asked(const ProductPlan& plan, bool depthwise) {
  const bool no_choice = (depthwise && plan.engine == Engine::kAuto) || plan.geometry.pixels_in() == 0;
  return no_choice ? Engine::kEvent : plan.engine;
}

// Samples that take the same engine.
struct Run {
  Samples samples;
  bool dense;
  double density;  // of the event-driven engine's input
};

// Every sample chooses for itself, by its own density, so that its sums do not depend on its batch mates.
std::vector<Run> choose(const Planes& in, Engine engine, double crossover) {
  const Samples all = {0, in.batch};
  if (engine == Engine::kDense || (engine == Engine::kAuto && crossover < 0)) return {{all, true, 0}};
  if (engine == Engine::kEvent || crossover >= 1) return {{all, false, density(in, all)}};
  std::vector<double> densities(in.batch);
  parallel_ranges(in.batch, 1, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) densities[n] = density(in, {n, n + 1});
  });
  std::vector<Run> runs;
  for (int64_t n = 0; n < in.batch; ++n) {
    const bool dense = densities[n] > crossover;
    if (runs.empty() || runs.back().dense != dense) runs.push_back({{n, n}, dense, 0});
    Run& run = runs.back();
    run.samples.last = n + 1;
    run.density += (densities[n] - run.density) / static_cast<double>(run.samples.count());
  }
  return runs;
}

// event(plan, samples, density) and dense(plan, samples) for all runs; what they need of the weights is made once.
// `arranged`: whether the dense engine takes packed weights, too.
template <class Event, class Dense>
void run_engines(const char* op, const ProductPlan& plan, const std::vector<Run>& runs, bool arranged,
                 const Event& event, const Dense& dense) {
  const auto is_dense = [](const Run& run) { return run.dense; };
  const int64_t dense_runs = std::count_if(runs.begin(), runs.end(), is_dense);
  ProductPlan event_plan = plan;
  if (!plan.packed && static_cast<int64_t>(runs.size()) - (arranged ? 0 : dense_runs) > 1) {
    event_plan.packed = packed_weight(op, plan.weight, plan.geometry);
  }
  const ProductPlan dense_plan = arranged ? event_plan : dense_runs > 0 ? plan_dense(op, plan) : plan;
  for (const Run& run : runs) {
    run.dense ? dense(dense_plan, run.samples) : event(event_plan, run.samples, run.density);
  }
}

std::tuple<Tensor, Tensor, Tensor> spiking(const char* op, const ProductArguments& arguments,
                                           const SpikingArguments& neurons, const ConvGeometry& geometry, bool linear) {
  const ProductPlan plan = plan_spiking(op, arguments, neurons, geometry, linear);
  if (geometry.pixels_out() == 0) return {plan.out_bits, plan.out_sum, plan.out_state};
  const bool depthwise = is_depthwise(plan, 1);
  const bool integers = is_integer(plan.weight.scalar_type());
  const Engine engine = asked(plan, depthwise);
  const int64_t time_steps = neurons.time_steps;
  if (depthwise && engine != Engine::kDense) {
    run_spiking_depthwise(op, plan, time_steps);
  } else {
    check_32_bits(op, plan);
    const Planes in = {static_cast<const uint8_t*>(plan.bits.const_data_ptr()), plan.bits.size(0), time_steps,
                       geometry.height * geometry.width * geometry.in_channels, geometry.batch};
    run_engines(
        op, plan, choose(in, engine, integers ? word_crossover(geometry) : spike_crossover(geometry, time_steps)),
        integers,
        [&](const ProductPlan& p, Samples samples, double density) {
          run_spiking_events(op, p, samples, time_steps, density);
        },
        [&](const ProductPlan& p, Samples samples) {
          integers ? run_spiking_words(op, p, samples, time_steps) : run_spiking_dense(op, p, samples, time_steps);
        });
  }
  return {plan.out_bits, plan.out_sum, plan.out_state};
}

// Lets the sums of some samples drive the neurons of a count product, if it has any.
void fire_sums(const char* op, const ProductPlan& plan, Samples samples) {
  if (!plan.radix_neurons) return;
  const ConvGeometry& g = plan.geometry;
  const int64_t of_sample = g.out_height * g.out_width * g.out_channels;
  dispatch_floating(op, plan.type, [&](auto type) {
    using T = decltype(type);
    const Joined<T> joined = joined_of<T>(plan);
    T* const sum = output<T>(plan.out_sum) + samples.first * of_sample;
    uint8_t* const bits = output<uint8_t>(plan.out_bits) + samples.first * of_sample;
    parallel_ranges(samples.count() * of_sample, 8192, [&](int64_t begin, int64_t end) {
      const int64_t n = end - begin;
      add_joined_values(joined, g.out_channels, samples.first * of_sample + begin, n, sum + begin);
      fire_radix<T>(*plan.radix_neurons, sum + begin, n, bits + begin);
    });
  });
}

Tensor counted(const char* op, const ProductArguments& arguments, const ConvGeometry& geometry, bool linear,
               const RadixArguments* firing) {
  ProductPlan plan = plan_product(op, arguments, geometry, linear, firing);
  const Samples all = {0, geometry.batch};
  const auto result = [&] { return firing ? plan.out_bits : plan.out_sum; };
  if (geometry.pixels_out() == 0) return result();
  const bool depthwise = is_depthwise(plan, largest_input(plan)) || is_pairwise(plan);
  const bool integers = is_integer(plan.weight.scalar_type());
  const Engine engine = asked(plan, depthwise);
  const bool bytes = multiplies_counts(plan);
  if (engine == Engine::kDense && !integers && !bytes) {
    add_sums(op, plan);
    run_count_dense(op, plan_dense(op, plan), all);
    fire_sums(op, plan, all);
  } else if (depthwise && engine != Engine::kDense) {
    run_count_depthwise(op, plan);
  } else {
    check_32_bits(op, plan);
    const BinaryCounts counts(op, plan);
    const bool matrices = bytes && uses_matrices(plan), values = matrices || (plan.radix && !integers);
    Planes in = {counts.bytes, counts.planes, counts.digits, geometry.height * geometry.width * geometry.in_channels,
                 geometry.batch};
    if (values) in.digits = 1, in.count = count_live;
    const double crossover = matrices    ? matrix_crossover(geometry, integers)
                             : values    ? value_crossover(geometry)
                             : !integers ? count_crossover(geometry) / static_cast<double>(counts.digits)
                             : bytes
                                 ? byte_crossover(geometry, counts.digits, largest_input(plan), plan.packed.has_value())
                                 : word_crossover(geometry);
    const std::vector<Run> runs = choose(in, engine, crossover);
    // Products of bytes let their neurons fire as they go along.
    if (!bytes || !std::all_of(runs.begin(), runs.end(), [](const Run& run) { return run.dense; })) add_sums(op, plan);
    run_engines(
        op, plan, runs, integers || bytes,
        [&](const ProductPlan& p, Samples samples, double density) {
          integers ? run_count_events(op, p, samples, counts, density) : run_count_lists(op, p, samples, counts);
          fire_sums(op, p, samples);
        },
        [&](const ProductPlan& p, Samples samples) {
          if (bytes) {
            run_count_bytes(op, p, samples, counts);
            return;
          }
          integers ? run_count_words(op, p, samples, counts) : run_count_dense(op, p, samples);
          fire_sums(op, p, samples);
        });
  }
  return result();
}

Tensor step_product(const Tensor& bits, const Tensor& weight, const std::optional<Tensor>& packed,
                    const std::optional<Tensor>& scale, const std::optional<Tensor>& bias, const Sizes& stride,
                    const Sizes& padding, const Sizes& dilation, int64_t groups, int64_t time_steps) {
  const char* op = "step_product";
  const ConvGeometry geometry = product_geometry(op, bits, weight, stride, padding, dilation, groups);
  const std::optional<Tensor> no_count;
  const ProductArguments arguments = {bits, no_count, weight, packed, scale, bias, 0, 0};
  const ProductPlan plan = plan_steps(op, arguments, time_steps, geometry, weight.dim() == 2);
  if (geometry.pixels_out() == 0) return plan.out_sum;
  check_32_bits(op, plan);
  const Planes in = {static_cast<const uint8_t*>(plan.bits.const_data_ptr()), plan.bits.size(0), time_steps,
                     geometry.height * geometry.width * geometry.in_channels, geometry.batch};
  run_step_events(op, plan, time_steps, density(in, {0, geometry.batch}));
  return plan.out_sum;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tandem_cuda, CPU, m) {
  m.impl("step_product", TORCH_BOX(&step_product));
  m.impl("spiking_product", TORCH_BOX(&spiking_product<spiking>));
  m.impl("count_product", TORCH_BOX(&count_product<counted>));
  m.impl("radix_product", TORCH_BOX(&radix_product<counted>));
}

}  // namespace tandem
