#include "ops/product/cpu_integer.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <vector>

#include "ops/neuron_loop/cpu_run_neurons.h"
#include "ops/product/cpu_count_kernels.h"
#include "ops/product/cpu_event_kernels.h"
#include "ops/product/cpu_pack_weight.h"
#include "ops/product/cpu_tiles.h"
#include "ops/radix_spikes/cpu_fire.h"

namespace tandem {

namespace {

// Words, or counts, of one pass take at most this many bytes, unless one sample alone needs more.
constexpr int64_t kPassBytes = int64_t{64} << 20;

// planes: [plane_count, pixels_in, C] of all samples; args: as event_tile takes them, at the first sample.
template <class E>
void run_words(const char* op, const ProductPlan& plan, Samples samples, const uint8_t* planes, int64_t plane_count,
               EventTileArgs<E, float> args) {
  const ConvGeometry& g = plan.geometry;
  if (samples.count() * g.out_height * g.out_width == 0) return;
  const PackedLayout layout = packed_layout<E>(g);
  args.source.group_words = group_words_for(g.group_in());
  args.sink.scale = data_or_null<float>(plan.scale);
  args.sink.bias = data_or_null<float>(plan.bias);
  const int64_t pixels = g.height * g.width, pixel_words = g.groups * args.source.group_words;
  const int64_t sample_words = plane_count * pixels * pixel_words * kStepsPerPlane;
  const int64_t sample_bytes = sample_words * static_cast<int64_t>(sizeof(uint64_t));
  const int64_t most = std::clamp<int64_t>(kPassBytes / std::max<int64_t>(1, sample_bytes), 1, samples.count());
  with_packed<E>(op, plan, [&](const E* packed) {
    const AlignedBuffer<uint64_t> words(op, most * sample_words);
    args.source.words = words.data;
    for (int64_t n = samples.first; n < samples.last; n += most) {
      ConvGeometry band = g;
      band.batch = std::min(most, samples.last - n);
      const int64_t in_plane = band.batch * pixels;
      parallel_ranges(
          plane_count * in_plane, std::max<int64_t>(1, 16384 / g.in_channels), [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end;) {
              const int64_t plane = i / in_plane, last = std::min(end, (plane + 1) * in_plane);
              const uint8_t* from = planes + ((plane * g.batch + n) * pixels + i % in_plane) * g.in_channels;
              uint64_t* const to = words.data + (plane * pixel_words * in_plane + i % in_plane) * kStepsPerPlane;
              kernels<EventKernels>().build_words(from, last - i, g.groups, g.group_in(), to,
                                                  in_plane * kStepsPerPlane);
              i = last;
            }
          });
      EventTileArgs<E, float> pass = args;
      pass.sink = args.sink.at(0, n * g.out_height * g.out_width * g.out_channels);
      const int64_t block = table_block<E>(layout.block), blocks = (g.group_out() + block - 1) / block;
      // Sums of 32 bits beside those of 16 are seldom touched.
      const int64_t seldom = std::is_same_v<E, int8_t> ? kStepsPerPlane * static_cast<int64_t>(sizeof(int32_t)) : 0;
      const int64_t row_bytes = event_scratch_bytes<E, float>(1, block, states_of(args.sink.neuron)) - block * seldom;
      run_tiles(op, band, layout, packed, block, tile_rows(band, row_bytes, g.groups * blocks), pass);
    }
  });
}

}  // namespace

void run_spiking_words(const char* op, const ProductPlan& plan, Samples samples, int64_t time_steps) {
  dispatch_integers(plan.weight.scalar_type(), [&](auto element) {
    EventTileArgs<decltype(element), float> args = {};
    args.steps = time_steps;
    args.sink = spiking_sink<float>(plan);
    run_words(op, plan, samples, static_cast<const uint8_t*>(plan.bits.const_data_ptr()), plan.bits.size(0), args);
  });
}

void run_count_words(const char* op, const ProductPlan& plan, Samples samples, const BinaryCounts& counts) {
  dispatch_integers(plan.weight.scalar_type(), [&](auto element) {
    EventTileArgs<decltype(element), float> args = {};
    args.steps = counts.digits;
    args.sink.sum = output<float>(plan.out_sum);
    run_words(op, plan, samples, counts.bytes, counts.planes, args);
  });
}

bool uses_matrices(const ProductPlan& plan) {
  return has_matrix_tiles() && plan.type == ScalarType::Float && fills_panels(plan.geometry);
}

bool multiplies_counts(const ProductPlan& plan) {
  const int64_t largest = largest_input(plan);
  const bool integers = is_integer(plan.weight.scalar_type());
  const bool able = integers ? kernels<CountKernels>().multiplies_bytes : uses_matrices(plan);
  return able && largest <= 255 &&
         plan.geometry.features() <= most_inputs(ScalarType::Char) / largest;  // of a digit, 8 bits
}

namespace {

// What all tiles of a block of outputs have in common. panels: of all groups and blocks.
template <class E>
CountTileArgs<E> block_of_tiles(const ProductPlan& plan, const uint8_t* panels, int64_t group, int64_t b) {
  const ConvGeometry& g = plan.geometry;
  const PackedLayout layout = packed_layout<E>(g);
  const int64_t channel = group * g.group_out() + b * layout.block;
  CountTileArgs<E> tile = {};
  tile.panel = panels + (group * layout.blocks + b) * panel_bytes<E>(g);
  const PanelHolds& holds = holds_of<E>(g, tile.panel);
  tile.sizes = PanelSizes(g, holds.paired_inputs);
  tile.paired_outputs = holds.paired_outputs;
  tile.block = layout.block / (holds.paired_outputs ? 2 : 1);
  tile.valid = std::min(layout.block, g.group_out() - b * layout.block);
  tile.scale = plan.scale ? data_or_null<float>(plan.scale) + channel : nullptr;
  tile.bias = plan.bias ? data_or_null<float>(plan.bias) + channel : nullptr;
  if (plan.radix_neurons) {
    RadixSpikesArgs<float> neurons = {};
    set_neurons<float>(neurons, *plan.radix_neurons);
    tile.start = neurons.start;
    tile.inverse = exact_inverse(neurons.threshold);
    tile.most = static_cast<float>((1 << neurons.time_steps) - 1);
    tile.joined = joined_of<float>(plan);
    if (tile.joined.amplitude) tile.joined.amplitude += channel;
    tile.joined_stride = g.out_channels;
  }
  return tile;
}

// Lets the sums of a tile drive neurons, whose bits lie `stride` apart from output pixel to output pixel. All of them
// fire at once, since a call for each pixel would leave most vectors partly empty. scratch: for the bits.
template <class E>
void fire_tile(const CountTileArgs<E>& tile, const RadixNeurons& neurons, int64_t stride, uint8_t* scratch,
               uint8_t* bits) {
  const bool dense = tile.valid == stride;
  fire_radix<float>(neurons, tile.sum, tile.pixels * tile.valid, dense ? bits : scratch);
  for (int64_t i = 0; i < tile.pixels && !dense; ++i) {
    std::memcpy(bits + i * stride, scratch + i * tile.valid, static_cast<size_t>(tile.valid));
  }
}

// Whether a byte holds the difference of two inputs, made positive.
bool holds_differences(int64_t largest) { return 2 * largest <= 255; }

// Writes the rows of the output pixels of a task. Sums of signed values come from differences of their inputs, which
// are made positive, and a row of `offset` alone; or where a byte does not hold that, from twice as many rows, the
// second half for the second inputs. Returns how many rows there are behind those of the pixels.
int64_t fill_task(RowsArgs rows, bool paired_inputs, int64_t largest) {
  const auto fill_rows = kernels<CountKernels>().fill_rows;
  const int64_t pixels = rows.row_end - rows.row_begin, row_bytes = rows.sizes.row_bytes();
  if (!paired_inputs) {
    fill_rows(rows);
    return 0;
  }
  const bool differences = holds_differences(largest);
  rows.row_of = differences ? RowOf::kDifferences : RowOf::kFirst;
  rows.offset = differences ? static_cast<uint8_t>(largest) : 0;
  fill_rows(rows);
  rows.rows += pixels * row_bytes;
  if (differences) {
    std::memset(rows.rows, rows.offset, static_cast<size_t>(row_bytes));
    return 1;
  }
  rows.row_of = RowOf::kSecond;
  fill_rows(rows);
  return pixels;
}

// A task rearranges the inputs of some output pixels for all blocks of outputs, or for some where there are few pixels:
// the more pixels a task has, the less often weights are read, which do not fit the cache.
template <class E>
void multiply_panels(const char* op, const ProductPlan& plan, Samples samples, const BinaryCounts& given,
                     const uint8_t* panels) {
  ConvGeometry g = plan.geometry;
  g.batch = samples.count();
  const bool paired_inputs = holds_of<E>(g, panels).paired_inputs;
  const bool matrices = uses_matrices(plan) && !paired_inputs;  // matrix tiles subtract no rows
  // Of a task, in the L2 cache beside a block of weights. Processors with matrix tiles have a larger one.
  const int64_t input_bytes = int64_t{matrices ? 768 : 96} << 10, sum_bytes = int64_t{128} << 10;
  const int64_t step = matrices ? kMatrixRows : 6;  // output pixels that kernels take at a time
  const CountKernels& k = kernels<CountKernels>();
  const PackedLayout layout = packed_layout<E>(g);
  const PanelSizes sizes(g, paired_inputs);
  const uint8_t* const counts = given.bytes + samples.first * g.height * g.width * g.in_channels;
  const auto parts_of = [](int64_t all, int64_t most) { return (all + most - 1) / std::max<int64_t>(1, most); };
  const auto in_steps = [&](int64_t rows) { return std::max(step, parts_of(rows, step) * step); };
  int64_t most = std::min<int64_t>(512, input_bytes / sizes.row_bytes());
  if (!matrices) most = std::min(most, sum_bytes / byte_scratch_bytes<E>(1, layout.block));
  most = in_steps(most - step + 1);
  const int64_t pixels = g.pixels_out(), wanted = parts_of(int64_t{4} * torch::stable::get_num_threads(), g.groups);
  const int64_t splits = std::clamp<int64_t>(parts_of(wanted, parts_of(pixels, most)), 1, layout.blocks);
  const int64_t rows = std::min(most, in_steps(parts_of(pixels, parts_of(wanted, splits))));
  const int64_t tiles = parts_of(pixels, rows), largest = largest_input(plan);
  const int64_t behind = !paired_inputs ? 0 : holds_differences(largest) ? 1 : rows;
  const bool fires = plan.radix_neurons.has_value();
  // Whether a tile stores its sums before its neurons fire.
  const bool stores = fires && exact_inverse(static_cast<float>(plan.radix_neurons->threshold)) == 0;
  parallel_tasks(g.groups * splits, tiles, [&](const auto& next) {
    const AlignedBuffer<uint8_t> inputs(op, (rows + behind) * sizes.row_bytes());
    const AlignedBuffer<uint8_t> scratch(
        op, matrices ? matrix_scratch_bytes<E>() : byte_scratch_bytes<E>(rows + behind, layout.block));
    const AlignedBuffer<float> sums(op, stores ? rows * layout.block : 0);
    const AlignedBuffer<uint8_t> bits(op, stores ? rows * layout.block : 0);
    for (int64_t task = next(); task >= 0; task = next()) {
      const int64_t split = task / tiles % splits, group = task / tiles / splits;
      const int64_t first = task % tiles * rows, last = std::min(pixels, first + rows);
      const RowsArgs of_task = {&g, counts, sizes, group, first, last, inputs.data, RowOf::kInputs, 0};
      const int64_t subtracted = fill_task(of_task, paired_inputs, largest);
      for (int64_t b = split * layout.blocks / splits; b < (split + 1) * layout.blocks / splits; ++b) {
        CountTileArgs<E> tile = block_of_tiles<E>(plan, panels, group, b);
        const int64_t at = (samples.first * g.out_height * g.out_width + first) * g.out_channels +
                           group * g.group_out() + b * layout.block;
        tile.largest = paired_inputs && holds_differences(largest) ? 2 * largest : largest;
        tile.rows = inputs.data;
        tile.pixels = last - first;
        tile.subtracted = subtracted;
        tile.row_stride = stores ? tile.valid : g.out_channels;
        uint8_t* const to = fires ? output<uint8_t>(plan.out_bits) + at : nullptr;
        tile.bits = stores ? nullptr : to;
        tile.joined = tile.joined.at(0, at);
        tile.sum = stores ? sums.data : fires ? nullptr : output<float>(plan.out_sum) + at;
        tile.scratch = scratch.data;
        if (matrices) {
          k.matrix_tile(tile);
        } else if constexpr (!std::is_same_v<E, float>) {
          k.byte_tile(tile);
        }
        if (stores) fire_tile(tile, *plan.radix_neurons, g.out_channels, bits.data, to);
      }
    }
  });
}

template <class E>
void run_bytes(const char* op, const ProductPlan& plan, Samples samples, const BinaryCounts& given) {
  with_panels<E>(op, plan, [&](const uint8_t* panels) { multiply_panels<E>(op, plan, samples, given, panels); });
}

}  // namespace

void run_count_bytes(const char* op, const ProductPlan& plan, Samples samples, const BinaryCounts& counts) {
  if (!is_integer(plan.weight.scalar_type())) return run_bytes<float>(op, plan, samples, counts);
  dispatch_integers(plan.weight.scalar_type(),
                    [&](auto element) { run_bytes<decltype(element)>(op, plan, samples, counts); });
}

void check_32_bits(const char* op, const ProductPlan& plan) {
  const ScalarType type = plan.weight.scalar_type();
  const ConvGeometry& g = plan.geometry;
  if (!is_integer(type) || g.features() <= most_inputs(type)) return;
  const WeightView view = weight_view(plan.weight);
  std::atomic<bool> exceeds{false};
  parallel_ranges(g.out_channels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t o = begin; o < end; ++o) {
      int64_t sum = 0;
      for (int64_t i = 0; i < g.features(); ++i) {
        const int64_t at = o * view.stride_o + i / g.taps() * view.stride_c +
                           i % g.taps() / g.kernel_w * view.stride_h + i % g.kernel_w * view.stride_w;
        sum += std::abs(int64_t{static_cast<const int16_t*>(view.data)[at]});
      }
      if (sum >= int64_t{1} << 31) exceeds = true;
    }
  });
  TANDEM_CHECK(!exceeds, op, "the magnitudes of a neuron's ", name_of(type),
               " weights must add up to less than 2^31, so that sums fit into 32 bits");
}

}  // namespace tandem
