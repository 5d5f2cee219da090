// Products of bytes on instructions in software, against sums that are added one after the other.
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
int64_t wrong(CountTile<E>* kernel, FillPanel<E>* fill, int64_t scratch_rows) {
  const ConvGeometry g = drawn_geometry();
  const int64_t block = block_size<E>(g.group_out()), outputs = std::min(block, g.group_out());
  const int64_t pixels = g.pixels_out(), group = drawn(0, g.groups - 1);
  const int64_t largest = drawn(0, 2) ? drawn(0, 1) ? 255 : drawn(1, 128) : 15;
  const PanelSizes sizes(g);
  std::vector<E> weight(g.features() * block);
  for (E& w : weight) w = drawn_weight<E>();
  if (std::is_integral_v<E> && drawn(0, 1)) {  // neurons for v and -v
    for (size_t i = 0; i < weight.size(); i += 2) {
      if (weight[i] == -128) weight[i] = 0;
      weight[i + 1] = static_cast<E>(-weight[i]);
    }
  }
  std::vector<uint8_t> counts(g.pixels_in() * g.in_channels);
  for (uint8_t& count : counts) count = static_cast<uint8_t>(drawn(0, 3) ? drawn(0, largest) : largest);
  const Buffer panel = aligned(sizes.panel_bytes<E>(block)), rows = aligned((pixels + 32) * sizes.row_bytes());
  const Buffer scratch =
      aligned(std::max(matrix_scratch_bytes<E>(), scratch_rows * byte_scratch_bytes<E>(pixels, block)));
  std::vector<float> sum(pixels * outputs, -1.0F);
  fill({weight.data(), g.taps(), g.group_in(), block, sizes, panel.get()});
  fill_rows({&g, counts.data(), sizes, group, 0, pixels, rows.get()});
  CountTileArgs<E> args = {};
  args.largest = largest, args.sizes = sizes, args.rows = rows.get(), args.panel = panel.get();
  args.sharing = std::is_same_v<E, float> ? 1 : panel.get()[place_of_sharing<E>(sizes, block)];
  args.block = block / args.sharing, args.valid = outputs, args.pixels = pixels, args.row_stride = outputs;
  args.sum = sum.data(), args.scratch = scratch.get();
  kernel(args);
  int64_t found = 0;
  for (int64_t i = 0; i < pixels * outputs; ++i) {
    // Integers of 24 bits stand for floats, each of which is exact in its unit here.
    const double want = expected(g, counts, weight, block, group, i / outputs, i % outputs);
    found += sum[i] != static_cast<float>(want);
  }
  return found;
}

}  // namespace

int main() {
  int64_t found = 0;
  for (int i = 0; i < 300; ++i) {
    found += wrong<int8_t>(byte_tile<int8_t>, fill_panel<int8_t>, 1);
    found += wrong<int16_t>(byte_tile<int16_t>, fill_panel<int16_t>, 1);
#if defined(__AVX512VBMI2__)
    found += wrong<int8_t>(matrix_tile<int8_t>, fill_panel<int8_t>, 0);
    found += wrong<int16_t>(matrix_tile<int16_t>, fill_panel<int16_t>, 0);
    found += wrong<float>(matrix_tile<float>, fill_float_panel, 0);
#endif
  }
  std::printf("%lld wrong sums\n", static_cast<long long>(found));
  return found != 0;
}
