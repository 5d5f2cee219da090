#include "ops/product/cpu_integer.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <type_traits>
#include <vector>

#include "cpu/isa.h"
#include "ops/neuron_loop/cpu_run_neurons.h"
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
  args.group_words = group_words_for(g.group_in());
  args.scale = data_or_null<float>(plan.scale);
  args.bias = data_or_null<float>(plan.bias);
  const int64_t pixels = g.height * g.width, pixel_words = g.groups * args.group_words;
  const int64_t sample_words = plane_count * pixels * pixel_words * kStepsPerPlane;
  const int64_t sample_bytes = sample_words * static_cast<int64_t>(sizeof(uint64_t));
  const int64_t most = std::clamp<int64_t>(kPassBytes / std::max<int64_t>(1, sample_bytes), 1, samples.count());
  with_packed<E>(op, plan, [&](const E* packed) {
    const AlignedBuffer<uint64_t> words(op, most * sample_words);
    args.words = words.data;
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
              kernels().build_words(from, last - i, g.groups, g.group_in(), to, in_plane * kStepsPerPlane);
              i = last;
            }
          });
      EventTileArgs<E, float> pass = args;
      const int64_t first = n * g.out_height * g.out_width * g.out_channels;
      if (pass.bits) pass.bits += first;
      if (pass.sum) pass.sum += first;
      pass.initial = pass.initial + first;
      pass.state = pass.state + first;
      pass.joined = pass.joined.at(0, first);
      const int64_t block = table_block<E>(layout.block), blocks = (g.group_out() + block - 1) / block;
      // Sums of 32 bits beside those of 16 are seldom touched.
      const int64_t seldom = std::is_same_v<E, int8_t> ? kStepsPerPlane * static_cast<int64_t>(sizeof(int32_t)) : 0;
      const int64_t row_bytes = event_scratch_bytes<E, float>(1, block, states_of(args.neuron)) - block * seldom;
      run_tiles(op, band, layout, packed, block, tile_rows(band, row_bytes, g.groups * blocks), pass);
    }
  });
}

}  // namespace

void run_spiking_words(const char* op, const ProductPlan& plan, Samples samples, int64_t time_steps) {
  dispatch_integers(plan.weight.scalar_type(), [&](auto element) {
    EventTileArgs<decltype(element), float> args = {};
    args.steps = time_steps;
    args.initial = given_state<float>(plan.initial);
    args.bits = output<uint8_t>(plan.out_bits);
    args.bits_stride = plan.geometry.pixels_out() * plan.geometry.out_channels;
    args.sum = output<float>(plan.out_sum);
    args.state = wanted_state<float>(plan.out_state);
    args.joined = joined_of<float>(plan);
    args.neuron = plan.neuron;
    run_words(op, plan, samples, static_cast<const uint8_t*>(plan.bits.const_data_ptr()), plan.bits.size(0), args);
  });
}

void run_count_words(const char* op, const ProductPlan& plan, Samples samples, const BinaryCounts& counts) {
  dispatch_integers(plan.weight.scalar_type(), [&](auto element) {
    EventTileArgs<decltype(element), float> args = {};
    args.steps = counts.digits;
    args.sum = output<float>(plan.out_sum);
    run_words(op, plan, samples, counts.bytes.data, counts.planes, args);
  });
}

bool multiplies_counts(const ProductPlan& plan) {
  const int64_t largest = plan.bits.size(0) * kStepsPerPlane;
  return kernels().count_i8 != nullptr && largest <= 255 &&
         plan.geometry.features() <= most_inputs(ScalarType::Char) / largest;  // of a digit, 8 bits
}

namespace {

template <class E>
void run_bytes(const char* op, const ProductPlan& plan, Samples samples, const BinaryCounts& given) {
  const ConvGeometry& g = plan.geometry;
  const PackedLayout layout = packed_layout<E>(g);
  const int64_t pixels = g.height * g.width, channels = g.group_in();
  const int64_t group_counts = (channels + 3) / 4 * 4, size = g.groups * group_counts;
  const bool pads = group_counts > channels;
  const int64_t most = pads ? std::clamp<int64_t>(kPassBytes / std::max<int64_t>(1, pixels * size), 1, samples.count())
                            : samples.count();
  with_packed<E>(op, plan, [&](const E* packed) {
    const AlignedBuffer<uint8_t> padded(op, pads ? most * pixels * size : 0);
    for (int64_t n = samples.first; n < samples.last; n += most) {
      ConvGeometry band = g;
      band.batch = std::min(most, samples.last - n);
      const uint8_t* const from = given.bytes.data + n * pixels * g.in_channels;
      if (pads) {
        parallel_ranges(
            band.batch * pixels * g.groups, std::max<int64_t>(1, 16384 / channels), [&](int64_t begin, int64_t end) {
              for (int64_t i = begin; i < end; ++i) {
                uint8_t* const to = padded.data + i * group_counts;
                std::fill_n(std::copy_n(from + i * channels, channels, to), group_counts - channels, uint8_t{0});
              }
            });
      }
      const int64_t wanted = int64_t{4} * torch::stable::get_num_threads();
      const int64_t tasks_per_tile = g.groups * layout.blocks;
      const int64_t wanted_tiles = (wanted + tasks_per_tile - 1) / tasks_per_tile;
      const int64_t rows = std::clamp<int64_t>((band.pixels_out() + wanted_tiles - 1) / wanted_tiles, 1, kCountRows);
      const int64_t tiles = (band.pixels_out() + rows - 1) / rows;
      parallel_tasks(tasks_per_tile, tiles, [&](const auto& next) {
        const AlignedBuffer<uint8_t> scratch(op, count_scratch_bytes<E>(rows, layout.block));
        for (int64_t task = next(); task >= 0; task = next()) {
          const int64_t b = task / tiles % layout.blocks, group = task / tiles / layout.blocks;
          const int64_t channel = group * g.group_out() + b * layout.block;
          CountTileArgs<E> tile = {};
          tile.geometry = &band;
          tile.counts = pads ? padded.data : from;
          tile.group_counts = group_counts;
          tile.weight = packed + (group * layout.blocks + b) * layout.block_elements();
          tile.block = layout.block;
          tile.valid = std::min(layout.block, g.group_out() - b * layout.block);
          tile.group = group;
          tile.row_begin = task % tiles * rows;
          tile.row_end = std::min(band.pixels_out(), tile.row_begin + rows);
          tile.row_stride = g.out_channels;
          tile.scale = data_or_null<float>(plan.scale) + channel;
          tile.bias = plan.bias ? data_or_null<float>(plan.bias) + channel : nullptr;
          tile.sum = output<float>(plan.out_sum) + n * g.out_height * g.out_width * g.out_channels + channel;
          tile.scratch = scratch.data;
          kernels().count_tile<E>()(tile);
        }
      });
    }
  });
}

}  // namespace

void run_count_bytes(const char* op, const ProductPlan& plan, Samples samples, const BinaryCounts& counts) {
  dispatch_integers(plan.weight.scalar_type(),
                    [&](auto element) { run_bytes<decltype(element)>(op, plan, samples, counts); });
}

// ---- Sums that 32 bits do not hold

bool exceeds_32_bits(const ProductPlan& plan) {
  const ScalarType type = plan.weight.scalar_type();
  const ConvGeometry& g = plan.geometry;
  if (!is_integer(type) || g.features() <= most_inputs(type)) return false;
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
  return exceeds;
}

namespace {

// f(input, packed row) for the inputs of a pixel's group of channels: where they lie in a plane, and their weights.
template <class F>
void for_inputs(const ConvGeometry& g, int64_t pixel, int64_t group, const F& f) {
  const int64_t image = pixel / (g.out_height * g.out_width) * g.height;
  const int64_t top = pixel / g.out_width % g.out_height * g.stride_h - g.padding_h;
  const int64_t side = pixel % g.out_width * g.stride_w - g.padding_w;
  for (int64_t tap = 0; tap < g.taps(); ++tap) {
    const int64_t h = top + tap / g.kernel_w * g.dilation_h, w = side + tap % g.kernel_w * g.dilation_w;
    if (h < 0 || h >= g.height || w < 0 || w >= g.width) continue;
    for (int64_t c = 0; c < g.group_in(); ++c) {
      f(((image + h) * g.width + w) * g.in_channels + group * g.group_in() + c, tap * g.group_in() + c);
    }
  }
}

// current[step, pixel, O] of all steps, as float32 of the exact sums. counts: one step, of the numbers of spikes.
Tensor wide_sums(const char* op, const ProductPlan& plan, int64_t steps, bool counts) {
  const ConvGeometry& g = plan.geometry;
  const PackedLayout layout = packed_layout<int16_t>(g);
  const int64_t pixels = g.pixels_out(), planes = plan.bits.size(0), stride = g.pixels_in() * g.in_channels;
  const auto* bits = static_cast<const uint8_t*>(plan.bits.const_data_ptr());
  const Tensor current = empty_channels_last(op, plan.weight, {steps, pixels, g.out_channels}, plan.type, 2);
  float* const out = static_cast<float*>(current.mutable_data_ptr());
  with_packed<int16_t>(op, plan, [&](const int16_t* packed) {
    parallel_ranges(pixels, 1, [&](int64_t begin, int64_t end) {
      std::vector<int64_t> sums(static_cast<size_t>(steps * g.out_channels));
      for (int64_t pixel = begin; pixel < end; ++pixel) {
        std::fill(sums.begin(), sums.end(), 0);
        for (int64_t group = 0; group < g.groups; ++group) {
          for_inputs(g, pixel, group, [&](int64_t input, int64_t feature) {
            for (int64_t o = 0; o < g.group_out(); ++o) {
              const int64_t block = group * layout.blocks + o / layout.block;
              const int64_t weight = packed[(block * layout.features + feature) * layout.block + o % layout.block];
              int64_t* const sum = sums.data() + group * g.group_out() + o;
              for (int64_t p = 0; p < planes; ++p) {
                const unsigned word = bits[p * stride + input];
                if (counts) {
                  *sum += weight * __builtin_popcount(word);
                } else {
                  for (int64_t t = 0; t < steps_in_plane(p, steps); ++t) {
                    if (word >> t & 1) sum[(p * kStepsPerPlane + t) * g.out_channels] += weight;
                  }
                }
              }
            }
          });
        }
        for (int64_t t = 0; t < steps; ++t) {
          for (int64_t o = 0; o < g.out_channels; ++o) {
            out[(t * pixels + pixel) * g.out_channels + o] = static_cast<float>(sums[t * g.out_channels + o]);
          }
        }
      }
    });
  });
  return current;
}

}  // namespace

void run_spiking_wide(const char* op, const ProductPlan& plan, int64_t time_steps) {
  const Tensor current = wide_sums(op, plan, time_steps, false);
  const int64_t neurons = plan.geometry.pixels_out() * plan.geometry.out_channels;
  IntegrateAndFireArgs<float> args = {};
  args.current = static_cast<const float*>(current.const_data_ptr());
  args.current_stride = neurons;
  args.scale = data_or_null<float>(plan.scale);
  args.bias = data_or_null<float>(plan.bias);
  args.bits = output<uint8_t>(plan.out_bits);
  args.bits_stride = neurons;
  args.sum = output<float>(plan.out_sum);
  args.state = wanted_state<float>(plan.out_state);
  args.initial = given_state<float>(plan.initial);
  args.channels = plan.geometry.out_channels;
  args.time_steps = time_steps;
  join_series(args, joined_of<float>(plan), static_cast<float*>(current.mutable_data_ptr()), neurons);
  args.mode = CurrentMode::kSeries;
  args.neuron = plan.neuron;
  run_neurons(args, neurons);
}

namespace {

// plan.out_sum = the sums, scaled, with bias.
void write_sums(const ProductPlan& plan, const Tensor& sums) {
  const int64_t channels = plan.geometry.out_channels;
  const auto* from = static_cast<const float*>(sums.const_data_ptr());
  const float* const scale = data_or_null<float>(plan.scale);
  const float* const bias = data_or_null<float>(plan.bias);
  float* const out = output<float>(plan.out_sum);
  for (int64_t i = 0; i < sums.numel(); ++i) {
    const float scaled = from[i] * scale[i % channels];
    out[i] = bias ? scaled + bias[i % channels] : scaled;
  }
}

}  // namespace

void run_count_wide(const char* op, const ProductPlan& plan) { write_sums(plan, wide_sums(op, plan, 1, true)); }

void run_step_wide(const char* op, const ProductPlan& plan, int64_t time_steps) {
  write_sums(plan, wide_sums(op, plan, time_steps, false));
}

}  // namespace tandem
