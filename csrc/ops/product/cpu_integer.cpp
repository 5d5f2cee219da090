#include "ops/product/cpu_integer.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <type_traits>
#include <vector>

#include "ops/neuron_loop/cpu_run_neurons.h"
#include "ops/product/cpu_count_kernels.h"
#include "ops/product/cpu_event_kernels.h"
#include "ops/product/cpu_pack_weight.h"
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
  return has_matrix_tiles() && plan.type == ScalarType::Float && fills_matrices(plan.geometry);
}

bool multiplies_counts(const ProductPlan& plan) {
  const int64_t largest = largest_input(plan);
  const bool integers = is_integer(plan.weight.scalar_type());
  const bool able = integers ? kernels<CountKernels>().multiplies_bytes : uses_matrices(plan);
  return able && largest <= 255 &&
         plan.geometry.features() <= most_inputs(ScalarType::Char) / largest;  // of a digit, 8 bits
}

namespace {

// f(geometry of some samples, their first one, their counts [pixels_in, groups, group_counts]) for all samples, in
// passes where zeros must stand behind the channels of a group. group_counts: a multiple of 4.
template <class F>
void for_each_band(const char* op, const ConvGeometry& g, Samples samples, const uint8_t* counts, int64_t group_counts,
                   const F& f) {
  const int64_t pixels = g.height * g.width, channels = g.group_in(), size = g.groups * group_counts;
  const bool pads = group_counts > channels;
  const int64_t most = pads ? std::clamp<int64_t>(kPassBytes / std::max<int64_t>(1, pixels * size), 1, samples.count())
                            : samples.count();
  const AlignedBuffer<uint8_t> padded(op, pads ? most * pixels * size : 0);
  for (int64_t n = samples.first; n < samples.last; n += most) {
    ConvGeometry band = g;
    band.batch = std::min(most, samples.last - n);
    const uint8_t* const from = counts + n * pixels * g.in_channels;
    if (pads) {
      parallel_ranges(
          band.batch * pixels * g.groups, std::max<int64_t>(1, 16384 / channels), [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) {
              uint8_t* const to = padded.data + i * group_counts;
              std::fill_n(std::copy_n(from + i * channels, channels, to), group_counts - channels, uint8_t{0});
            }
          });
    }
    f(band, n, pads ? padded.data : from);
  }
}

// What all tiles of a block of outputs have in common; `n`: the first sample.
template <class E>
CountTileArgs<E> block_of_tiles(const ProductPlan& plan, const ConvGeometry& band, int64_t n, int64_t block,
                                int64_t group, int64_t b) {
  const ConvGeometry& g = plan.geometry;
  const int64_t channel = group * g.group_out() + b * block;
  CountTileArgs<E> tile = {};
  tile.geometry = &band;
  tile.block = block;
  tile.valid = std::min(block, g.group_out() - b * block);
  tile.group = group;
  tile.row_stride = g.out_channels;
  tile.scale = plan.scale ? data_or_null<float>(plan.scale) + channel : nullptr;
  tile.bias = plan.bias ? data_or_null<float>(plan.bias) + channel : nullptr;
  tile.sum = output<float>(plan.out_sum) + n * g.out_height * g.out_width * g.out_channels + channel;
  return tile;
}

// Tasks of one block, each of so many output pixels, a multiple of `multiple`, that all threads find work.
int64_t rows_of_tasks(const ConvGeometry& band, int64_t blocks, int64_t multiple) {
  const int64_t wanted = int64_t{4} * torch::stable::get_num_threads();
  const int64_t tiles = (wanted + blocks - 1) / blocks;
  const int64_t rows = (band.pixels_out() + tiles - 1) / tiles;
  return std::clamp<int64_t>((rows + multiple - 1) / multiple * multiple, multiple, kCountRows);
}

template <class E>
void run_bytes(const char* op, const ProductPlan& plan, Samples samples, const BinaryCounts& given) {
  const ConvGeometry& g = plan.geometry;
  const PackedLayout layout = packed_layout<E>(g);
  const int64_t group_counts = (g.group_in() + 3) / 4 * 4, blocks = g.groups * layout.blocks;
  with_packed<E>(op, plan, [&](const E* packed) {
    for_each_band(op, g, samples, given.bytes, group_counts,
                  [&](const ConvGeometry& band, int64_t n, const uint8_t* counts) {
                    const int64_t rows = std::min(rows_of_tasks(band, blocks, 1), band.pixels_out());
                    const int64_t tiles = (band.pixels_out() + rows - 1) / rows;
                    parallel_tasks(blocks, tiles, [&](const auto& next) {
                      const AlignedBuffer<uint8_t> scratch(op, count_scratch_bytes<E>(rows, layout.block));
                      for (int64_t task = next(); task >= 0; task = next()) {
                        const int64_t b = task / tiles % layout.blocks, group = task / tiles / layout.blocks;
                        CountTileArgs<E> tile = block_of_tiles<E>(plan, band, n, layout.block, group, b);
                        tile.counts = counts;
                        tile.group_counts = group_counts;
                        tile.weight = packed + (group * layout.blocks + b) * layout.block_elements();
                        tile.row_begin = task % tiles * rows;
                        tile.row_end = std::min(band.pixels_out(), tile.row_begin + rows);
                        tile.scratch = scratch.data;
                        kernels<CountKernels>().count_tile(tile);
                      }
                    });
                  });
  });
}

// The same on matrix tiles. A task rearranges the inputs of some output pixels for all blocks of outputs, or for some
// where there are few pixels.
template <class E>
void run_matrices(const char* op, const ProductPlan& plan, Samples samples, const BinaryCounts& given) {
  constexpr int64_t kInputBytes = int64_t{768} << 10;  // of a task, in the L2 cache beside a block of weights
  const ConvGeometry& g = plan.geometry;
  const CountKernels& k = kernels<CountKernels>();
  const PackedLayout layout = packed_layout<E>(g);
  const MatrixSizes sizes(g);
  const int64_t bytes = panel_bytes<E>(g);
  with_panels<E>(op, plan, [&](const uint8_t* panels) {
    for_each_band(
        op, g, samples, given.bytes, sizes.group_counts,
        [&](const ConvGeometry& band, int64_t n, const uint8_t* counts) {
          const int64_t pixels = band.pixels_out();
          const int64_t most = std::min(kCountRows, kInputBytes / sizes.row_bytes() / kMatrixRows * kMatrixRows);
          const int64_t rows =
              std::clamp(rows_of_tasks(band, g.groups, kMatrixRows), kMatrixRows, std::max(kMatrixRows, most));
          const int64_t tiles = (pixels + rows - 1) / rows, wanted = int64_t{4} * torch::stable::get_num_threads();
          const int64_t splits = std::clamp<int64_t>(wanted / (g.groups * tiles), 1, layout.blocks);
          parallel_tasks(g.groups * splits, tiles, [&](const auto& next) {
            const AlignedBuffer<uint8_t> inputs(op, rows * sizes.row_bytes());
            const AlignedBuffer<uint8_t> scratch(op, matrix_scratch_bytes<E>());
            for (int64_t task = next(); task >= 0; task = next()) {
              const int64_t split = task / tiles % splits, group = task / tiles / splits;
              const int64_t first = task % tiles * rows, last = std::min(pixels, first + rows);
              k.fill_matrix_rows({&band, counts, sizes, group, first, last, inputs.data});
              for (int64_t b = split * layout.blocks / splits; b < (split + 1) * layout.blocks / splits; ++b) {
                CountTileArgs<E> tile = block_of_tiles<E>(plan, band, n, layout.block, group, b);
                tile.row_begin = first;
                tile.row_end = last;
                tile.scratch = scratch.data;
                k.matrix_tile(
                    MatrixTileArgs<E>{tile, sizes, inputs.data, panels + (group * layout.blocks + b) * bytes});
              }
            }
          });
        });
  });
}

}  // namespace

void run_count_bytes(const char* op, const ProductPlan& plan, Samples samples, const BinaryCounts& counts) {
  if (!is_integer(plan.weight.scalar_type())) return run_matrices<float>(op, plan, samples, counts);
  dispatch_integers(plan.weight.scalar_type(), [&](auto element) {
    using E = decltype(element);
    (uses_matrices(plan) ? run_matrices<E> : run_bytes<E>)(op, plan, samples, counts);
  });
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
