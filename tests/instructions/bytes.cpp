// Products of bytes on instructions in software, against sums that are added one after the other.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <type_traits>
#include <vector>

#include "count_matrix.inl.h"
#include "count_tile.inl.h"
#include "ops/product/block_size.h"

namespace {

using namespace tandem;
using namespace tandem::TANDEM_ISA;

std::mt19937 engine(0);
int64_t drawn(int64_t least, int64_t most) { return std::uniform_int_distribution<int64_t>(least, most)(engine); }

struct Free {
  void operator()(uint8_t* memory) const { std::free(memory); }
};
using Buffer = std::unique_ptr<uint8_t, Free>;

// With something in it, so that a kernel that reads what nobody wrote gives another sum.
Buffer aligned(int64_t bytes) {
  const size_t size = (static_cast<size_t>(bytes) + 63) / 64 * 64;
  Buffer buffer(static_cast<uint8_t*>(std::aligned_alloc(64, size)));
  std::memset(buffer.get(), 0xA5, size);
  return buffer;
}

ConvGeometry drawn_geometry() {
  ConvGeometry g = {};
  g.batch = drawn(1, 3), g.groups = drawn(1, 2);
  g.in_channels = g.groups * (drawn(0, 2) ? drawn(8, 140) : drawn(1, 9)), g.out_channels = g.groups * drawn(1, 140);
  g.height = drawn(3, 7), g.width = drawn(3, 7), g.kernel_h = drawn(1, 3), g.kernel_w = drawn(1, 3);
  g.stride_h = drawn(1, 2), g.stride_w = drawn(1, 2), g.padding_h = drawn(0, 1), g.padding_w = drawn(0, 1);
  g.dilation_h = 1, g.dilation_w = g.width > 4 ? drawn(1, 2) : 1;
  g.out_height = (g.height + 2 * g.padding_h - g.dilation_h * (g.kernel_h - 1) - 1) / g.stride_h + 1;
  g.out_width = (g.width + 2 * g.padding_w - g.dilation_w * (g.kernel_w - 1) - 1) / g.stride_w + 1;
  return g;
}

// Whose inputs lie in lines.
ConvGeometry drawn_lines() {
  ConvGeometry g = drawn_geometry();
  g.kernel_h = drawn(1, 4), g.kernel_w = drawn(1, 3), g.stride_h = drawn(1, 3), g.dilation_h = drawn(1, 3);
  g.in_channels = g.groups * 64 * drawn(1, 2) / (g.kernel_w == 2 ? 2 : 1);
  g.out_height = int64_t{1} << drawn(1, 3), g.out_width = 16 / g.out_height * drawn(1, 2);
  g.padding_h = std::min(g.padding_h, g.kernel_h - 1), g.padding_w = std::min(g.padding_w, g.kernel_w - 1);
  g.height = (g.out_height - 1) * g.stride_h + g.dilation_h * (g.kernel_h - 1) + 1 - 2 * g.padding_h;
  g.width = (g.out_width - 1) * g.stride_w + g.dilation_w * (g.kernel_w - 1) + 1 - 2 * g.padding_w;
  return g.height > 0 && g.width > 0 ? g : drawn_lines();
}

template <class E>
E drawn_weight() {
  if constexpr (std::is_same_v<E, float>) return std::ldexp(static_cast<float>(drawn(-(1 << 20), 1 << 20)), -25);
  constexpr int64_t largest = sizeof(E) == 1 ? 127 : 32639, least = sizeof(E) == 1 ? -128 : -largest;
  return static_cast<E>(drawn(0, 9) ? drawn(least, largest) : drawn(0, 1) ? least : largest);
}

// The sum at an output pixel, of the group's channels.
template <class E>
double expected(const ConvGeometry& g, const std::vector<uint8_t>& counts, const std::vector<E>& weight, int64_t block,
                int64_t group, int64_t pixel, int64_t output) {
  const int64_t n = pixel / (g.out_height * g.out_width), channels = g.group_in();
  double sum = 0;
  for (int64_t tap = 0; tap < g.taps(); ++tap) {
    const int64_t y = pixel / g.out_width % g.out_height * g.stride_h - g.padding_h + tap / g.kernel_w * g.dilation_h;
    const int64_t x = pixel % g.out_width * g.stride_w - g.padding_w + tap % g.kernel_w * g.dilation_w;
    if (y < 0 || y >= g.height || x < 0 || x >= g.width) continue;
    for (int64_t c = 0; c < channels; ++c) {
      const int64_t seen = ((n * g.height + y) * g.width + x) * g.in_channels + group * channels + c;
      sum += static_cast<double>(counts[seen]) * static_cast<double>(weight[(tap * channels + c) * block + output]);
    }
  }
  return sum;
}

template <class E>
int64_t wrong(CountTile<E>* kernel, FillPanel<E>* fill, bool on_bytes) {
  const bool lines = !on_bytes && drawn(0, 1);
  const ConvGeometry g = lines ? drawn_lines() : drawn_geometry();
  const int64_t block = block_size<E>(g.group_out()), outputs = std::min(block, g.group_out());
  const int64_t pixels = g.pixels_out(), group = drawn(0, g.groups - 1), channels = g.group_in();
  const int64_t largest = drawn(0, 2) ? drawn(0, 1) ? 255 : drawn(1, 128) : 15;
  std::vector<E> weight(g.features() * block);
  for (E& w : weight) w = drawn_weight<E>();
  PanelHolds holds = {true, false, false};
  if (std::is_integral_v<E>) {
    holds.paired_inputs = on_bytes && channels % 2 == 0 && drawn(0, 1);
    holds.paired_outputs = block >= 2 * kPartOutputs && drawn(0, 1);
    const bool paired = holds.paired_inputs || holds.paired_outputs;
    for (E& w : weight) w = paired && w == -128 ? E(-127) : w;  // which has an opposite
    for (int64_t row = 0; row < g.features(); ++row) {
      for (int64_t o = 0; o < block; ++o) {
        E& w = weight[row * block + o];
        if (holds.paired_outputs && o % 2 == 1) w = static_cast<E>(-weight[row * block + o - 1]);
        if (holds.paired_inputs && row % 2 == 1) w = static_cast<E>(-weight[(row - 1) * block + o]);
      }
    }
  }
  const PanelSizes sizes(g, holds.paired_inputs);
  std::vector<uint8_t> counts(g.pixels_in() * g.in_channels);
  for (uint8_t& count : counts) count = static_cast<uint8_t>(drawn(0, 3) ? drawn(0, largest) : largest);
  const Buffer panel = aligned(PanelSizes(g).panel_bytes<E>(block));
  const LineLayout layout = lines ? LineLayout(g, sizes, g.out_height) : LineLayout{};
  const Buffer rows = aligned(lines ? g.batch * layout.image_bytes(g) : (2 * pixels + 32) * sizes.row_bytes());
  const Buffer scratch = aligned(on_bytes ? byte_scratch_bytes<E>(2 * pixels, block) : matrix_scratch_bytes<E>(pixels));
  const int64_t stride = outputs + drawn(0, 40);
  std::vector<float> sum(pixels * stride, -1.0F), scale(outputs + 64), bias(outputs + 64);
  for (float& x : scale) x = std::ldexp(1.0F, static_cast<int>(drawn(-3, 3)));
  for (float& x : bias) x = static_cast<float>(drawn(-999, 999));
  CountTileArgs<E> args = {};
  args.block = block / (holds.paired_outputs ? 2 : 1);
  fill({weight.data(), g.taps(), channels / (holds.paired_inputs ? 2 : 1), args.block, holds, sizes, panel.get()});
  args.largest = largest;
  const auto fill_all = [&](RowOf of, int64_t offset, int64_t first) {
    fill_rows({&g, counts.data(), sizes, group, 0, pixels, rows.get() + first * sizes.row_bytes(), of,
               static_cast<uint8_t>(offset)});
  };
  if (lines) {
    fill_lines({&g, counts.data(), sizes, layout, group, 0, g.batch, 0, rows.get()});
    const int64_t band = g.out_height * g.out_width;
    args.pieces = {g.kernel_h, g.kernel_w * sizes.group_counts, {}, layout.stride, band, layout.image_bytes(g)};
    for (int64_t kh = 0; kh < g.kernel_h; ++kh) {
      args.pieces.at[kh] = layout.place_of(g, kh * g.dilation_h) * g.out_width * layout.stride;
    }
  } else if (!holds.paired_inputs) {
    fill_all(RowOf::kInputs, 0, 0);
    args.pieces = {1, sizes.depth, {}, sizes.row_bytes(), pixels, 0};
  } else if (largest <= 127) {
    fill_all(RowOf::kDifferences, largest, 0);
    std::memset(rows.get() + pixels * sizes.row_bytes(), static_cast<int>(largest), sizes.row_bytes());
    args.subtracted = 1, args.largest = 2 * largest;
  } else {
    fill_all(RowOf::kFirst, 0, 0);
    fill_all(RowOf::kSecond, 0, pixels);
    args.subtracted = pixels;
  }
  args.sizes = sizes, args.rows = rows.get(), args.panel = panel.get(), args.paired_outputs = holds.paired_outputs;
  args.valid = outputs, args.pixels = pixels, args.row_stride = stride;
  args.scale = drawn(0, 1) ? scale.data() : nullptr, args.bias = drawn(0, 1) ? bias.data() : nullptr;
  args.sum = sum.data(), args.scratch = scratch.get();
  std::vector<uint8_t> bits(pixels * stride, 0xA5);
  const bool fires = drawn(0, 1);
  const float threshold = std::ldexp(drawn(0, 1) ? 1.0F : 1.0F + static_cast<float>(drawn(1, 99)) / 100,
                                     static_cast<int>(drawn(0, 20)) - (std::is_same_v<E, float> ? 20 : 0));
  args.bits = fires ? bits.data() : nullptr;
  RadixSpikesArgs<float> neurons = {};
  neurons.threshold = threshold, neurons.start = threshold / 2, neurons.time_steps = static_cast<int>(drawn(1, 8));
  args.firing = firing_at_once(neurons);
  std::vector<float> current(pixels * stride), amplitude(outputs);
  std::vector<uint8_t> values(pixels * stride);
  for (float& x : current) x = static_cast<float>(drawn(-9999, 9999));
  for (float& x : amplitude) x = std::ldexp(1.0F, static_cast<int>(drawn(-3, 3)));
  for (uint8_t& x : values) x = static_cast<uint8_t>(drawn(0, 255));
  args.joined_stride = stride;
  if (drawn(0, 1)) {
    if (drawn(0, 1)) args.joined.current = current.data();
    if (!args.joined.current) args.joined.bits = values.data();
    args.joined.amplitude = args.joined.bits && drawn(0, 1) ? amplitude.data() : nullptr;
  }
  kernel(args);
  int64_t found = 0;
  for (int64_t i = 0; i < pixels * stride; ++i) {
    const int64_t output = i % stride;
    float v = -1.0F;  // where nothing is written
    uint8_t spikes = 0xA5;
    if (output < outputs) {
      // Integers of 24 bits stand for floats, each of which is exact in its unit here.
      v = static_cast<float>(expected(g, counts, weight, block, group, i / stride, output));
      if (args.scale) v *= scale[output];
      if (args.bias) v += bias[output];
      if (args.joined.current) v += current[i];
      if (args.joined.bits) v += static_cast<float>(values[i]) * (args.joined.amplitude ? amplitude[output] : 1.0F);
      const double quotient = static_cast<double>(v + args.firing.start) / static_cast<double>(threshold);
      spikes = static_cast<uint8_t>(std::min(std::max(quotient, 0.0), static_cast<double>(args.firing.most)));
    }
    found += fires ? bits[i] != spikes : sum[i] != v;
  }
  return found;
}

}  // namespace

int main() {
  int64_t found = 0;
  for (int i = 0; i < 300; ++i) {
    found += wrong<int8_t>(byte_tile<int8_t>, fill_panel<int8_t>, true);
    found += wrong<int16_t>(byte_tile<int16_t>, fill_panel<int16_t>, true);
#if defined(__AVX512VBMI2__)
    found += wrong<int8_t>(matrix_tile<int8_t>, fill_panel<int8_t>, false);
    found += wrong<int16_t>(matrix_tile<int16_t>, fill_panel<int16_t>, false);
    found += wrong<float>(matrix_tile<float>, fill_float_panel, false);
#endif
  }
  std::printf("%lld wrong sums\n", static_cast<long long>(found));
  return found != 0;
}
