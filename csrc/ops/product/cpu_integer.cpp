#include "ops/product/cpu_integer.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <vector>

#include "cpu/aligned_buffer.h"
#include "ops/neuron_loop/cpu_run_neurons.h"
#include "ops/product/cpu_count_kernels.h"
#include "ops/product/cpu_event_kernels.h"
#include "ops/product/cpu_matrix.h"
#include "ops/product/cpu_pack_weight.h"
#include "ops/product/cpu_panels.h"
#include "ops/product/cpu_tiles.h"

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
  // Of a task, in the L2 cache beside a block of weights.
  constexpr int64_t kInputBytes = int64_t{96} << 10, kSumBytes = int64_t{128} << 10;
  constexpr int64_t kStep = 6;  // output pixels that kernels take at a time
  // Where so few inputs do not fit either: of fewer pixels, most of what a task reads would be weights.
  constexpr int64_t kLeastPixels = 24;
  const bool paired_inputs = holds_of<E>(g, panels).paired_inputs;
  const PackedLayout layout = packed_layout<E>(g);
  const PanelSizes sizes(g, paired_inputs);
  const uint8_t* const counts = given.bytes + samples.first * g.height * g.width * g.in_channels;
  const auto in_steps = [&](int64_t rows) { return std::max(kStep, parts_of(rows, kStep) * kStep); };
  const int64_t fit = std::min(std::max(kLeastPixels, kInputBytes / sizes.row_bytes()),
                               kSumBytes / byte_scratch_bytes<E>(1, layout.block));
  const int64_t most = in_steps(std::min<int64_t>(512, fit) - kStep + 1);
  const int64_t pixels = g.pixels_out(), wanted = parts_of(int64_t{4} * torch::stable::get_num_threads(), g.groups);
  const int64_t splits = std::clamp<int64_t>(parts_of(wanted, parts_of(pixels, most)), 1, layout.blocks);
  const int64_t rows = std::min(most, in_steps(parts_of(pixels, parts_of(wanted, splits))));
  const int64_t tiles = parts_of(pixels, rows), largest = largest_input(plan);
  const int64_t before = samples.first * g.out_height * g.out_width;
  const int64_t behind = !paired_inputs ? 0 : holds_differences(largest) ? 1 : rows;
  parallel_tasks(g.groups * splits, tiles, [&](const auto& next) {
    const AlignedBuffer<uint8_t> inputs(op, (rows + behind) * sizes.row_bytes());
    const AlignedBuffer<uint8_t> scratch(op, byte_scratch_bytes<E>(rows + behind, layout.block));
    const PanelOutputs<E> outputs(plan, panels);
    for (int64_t task = next(); task >= 0; task = next()) {
      const int64_t split = task / tiles % splits, group = task / tiles / splits;
      const int64_t first = task % tiles * rows, last = std::min(pixels, first + rows);
      const RowsArgs of_task = {&g, counts, sizes, group, first, last, inputs.data, RowOf::kInputs, 0};
      const int64_t subtracted = fill_task(of_task, paired_inputs, largest);
      for (int64_t b = split * layout.blocks / splits; b < (split + 1) * layout.blocks / splits; ++b) {
        CountTileArgs<E> tile = outputs.tile(group, b, before + first, last - first);
        tile.largest = paired_inputs && holds_differences(largest) ? 2 * largest : largest;
        tile.rows = inputs.data;
        tile.subtracted = subtracted;
        tile.scratch = scratch.data;
        kernels<CountKernels>().byte_tile(tile);
      }
    }
  });
}

template <class E>
void run_bytes(const char* op, const ProductPlan& plan, Samples samples, const BinaryCounts& given) {
  with_panels<E>(op, plan, [&](const uint8_t* panels) {
    const bool paired_inputs = holds_of<E>(plan.geometry, panels).paired_inputs;
    // Matrix tiles subtract no rows.
    if (uses_matrices(plan) && !paired_inputs) return multiply_matrices<E>(op, plan, samples, given, panels);
    if constexpr (!std::is_same_v<E, float>) multiply_panels<E>(op, plan, samples, given, panels);
  });
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
