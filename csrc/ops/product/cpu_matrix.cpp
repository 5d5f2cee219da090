#include "ops/product/cpu_matrix.h"

#include <algorithm>
#include <numeric>

#include "cpu/aligned_buffer.h"
#include "cpu/parallel.h"
#include "ops/product/cpu_panels.h"

namespace tandem {

namespace {

// Of a task, in the L2 cache beside a block of weights.
constexpr int64_t kInputBytes = int64_t{768} << 10;
constexpr int64_t kMostPixels = 512;

// How the inputs of output pixels come to lie so that tiles can read them, and how tasks share output pixels.
class MatrixInputs {
  const ConvGeometry g_;
  const PanelSizes sizes_;
  const uint8_t* const counts_;
  const bool in_place_;  // as they are
  const bool lines_;     // else every pixel has its own row
  LineLayout layout_ = {};
  int64_t pixels_;  // of a task
  int64_t period_;  // output pixels at whose end a task ends, too

  int64_t image() const { return g_.out_height * g_.out_width; }
  int64_t images() const { return std::max<int64_t>(1, pixels_ / image()); }

  static bool reads_in_place(const ConvGeometry& g) {
    return g.taps() * g.stride_h * g.stride_w * g.groups == 1 && g.padding_h + g.padding_w == 0 &&
           g.in_channels % kMatrixBytes == 0;
  }
  // Where the rows that a kernel reads lie far apart, lines would be more than rows.
  static bool makes_lines(const ConvGeometry& g, const PanelSizes& sizes) {
    const bool near = (g.kernel_h - 1) * g.dilation_h < 2 * g.kernel_h;
    return near && g.kernel_w * sizes.group_counts % kMatrixBytes == 0 && g.taps() > 1 &&
           g.kernel_h <= LineLayout::kMost && g.stride_h <= LineLayout::kMost && g.out_height * g.out_width % 16 == 0 &&
           g.out_width <= kMostPixels;
  }

  // Whole images, or rows of one that make up tiles.
  void share_lines(int64_t wanted) {
    const int64_t row_step = std::lcm<int64_t>(g_.out_width, 16) / g_.out_width;
    const int64_t image_bytes = std::max<int64_t>(1, LineLayout(g_, sizes_, g_.out_height).image_bytes(g_));
    if (wanted >= image() && image_bytes <= kInputBytes) {
      pixels_ = std::max<int64_t>(1, std::min(wanted / image(), kInputBytes / image_bytes)) * image();
      period_ = g_.pixels_out();
      layout_ = LineLayout(g_, sizes_, g_.out_height);
    } else {
      const int64_t rows = std::min(g_.out_height, std::max(row_step, wanted / g_.out_width / row_step * row_step));
      pixels_ = rows * g_.out_width;
      period_ = image();
      layout_ = LineLayout(g_, sizes_, rows);
    }
  }

 public:
  // tasks: wanted for each group.
  MatrixInputs(const ConvGeometry& g, const uint8_t* counts, int64_t tasks, int64_t blocks)
      : g_(g),
        sizes_(g),
        counts_(counts),
        in_place_(reads_in_place(g)),
        lines_(makes_lines(g, sizes_)),
        period_(g.pixels_out()) {
    const auto in_steps = [](int64_t n) { return std::max(kMatrixRows, parts_of(n, kMatrixRows) * kMatrixRows); };
    const int64_t row_bytes = lines_ ? LineLayout::line_stride(g.kernel_w * sizes_.group_counts) : sizes_.row_bytes();
    const int64_t most = in_steps(std::min(kMostPixels, kInputBytes / row_bytes) - kMatrixRows + 1);
    splits = std::clamp<int64_t>(parts_of(tasks, parts_of(g.pixels_out(), most)), 1, blocks);
    pixels_ = std::min(most, in_steps(parts_of(g.pixels_out(), parts_of(tasks, splits))));
    if (lines_) share_lines(pixels_);
  }

  int64_t splits;  // tasks that share the blocks of outputs

  int64_t tiles() const { return g_.pixels_out() / period_ * parts_of(period_, pixels_); }
  int64_t first(int64_t tile) const {
    const int64_t in_period = parts_of(period_, pixels_);
    return tile / in_period * period_ + tile % in_period * pixels_;
  }
  int64_t count(int64_t tile) const { return std::min(pixels_, period_ - first(tile) % period_); }
  int64_t most_pixels() const { return pixels_; }
  int64_t buffer_bytes() const {
    if (lines_) return images() * layout_.image_bytes(g_);
    return parts_of(pixels_, kMatrixRows) * kMatrixRows * sizes_.row_bytes();
  }

  // Says in `tile` where the inputs of a task's output pixels lie. fresh: copies them to the buffer first, unless tiles
  // read them in place.
  template <class E>
  void place(CountTileArgs<E>& tile, int64_t group, int64_t of_task, bool fresh, uint8_t* buffer) const {
    const int64_t begin = first(of_task), n = count(of_task);
    tile.rows = buffer;
    tile.pieces.count = 1;
    tile.pieces.bytes = sizes_.depth;
    tile.pieces.band = pixels_;
    if (in_place_ && begin + parts_of(n, 16) * 16 <= g_.pixels_in()) {
      tile.rows = counts_ + begin * g_.in_channels;
      tile.pieces.stride = g_.in_channels;
    } else if (!lines_) {
      tile.pieces.stride = sizes_.row_bytes();
      if (!fresh) return;
      kernels<CountKernels>().fill_rows({&g_, counts_, sizes_, group, begin, begin + n, buffer, RowOf::kInputs, 0});
    } else {
      tile.pieces.count = g_.kernel_h;
      tile.pieces.bytes = g_.kernel_w * sizes_.group_counts;
      tile.pieces.stride = layout_.stride;
      tile.pieces.band = std::min(pixels_, image());
      tile.pieces.band_bytes = layout_.image_bytes(g_);
      for (int64_t kh = 0; kh < g_.kernel_h; ++kh) {
        tile.pieces.at[kh] = layout_.place_of(g_, kh * g_.dilation_h) * g_.out_width * layout_.stride;
      }
      if (!fresh) return;
      const int64_t row = begin % image() / g_.out_width, some = std::max<int64_t>(1, n / image());
      kernels<CountKernels>().fill_lines({&g_, counts_, sizes_, layout_, group, begin / image(), some, row, buffer});
    }
  }
};

}  // namespace

// A task multiplies the inputs of some output pixels by all blocks of outputs, or by some where there are few pixels:
// the more pixels a task has, the less often weights are read, which do not fit the cache. A thread's tasks of the same
// output pixels follow each other, and share what the first of them has arranged.
template <class E>
void multiply_matrices(const char* op, const ProductPlan& plan, Samples samples, const BinaryCounts& given,
                       const uint8_t* panels) {
  ConvGeometry g = plan.geometry;
  g.batch = samples.count();
  const int64_t blocks = packed_layout<E>(g).blocks, before = samples.first * g.out_height * g.out_width;
  const uint8_t* const counts = given.bytes + samples.first * g.height * g.width * g.in_channels;
  const int64_t wanted = parts_of(int64_t{4} * torch::stable::get_num_threads(), g.groups);
  const MatrixInputs inputs(g, counts, wanted, blocks);
  const int64_t splits = inputs.splits;
  parallel_tasks(g.groups, inputs.tiles() * splits, [&](const auto& next) {
    const AlignedBuffer<uint8_t> buffer(op, inputs.buffer_bytes());
    const AlignedBuffer<uint8_t> scratch(op, matrix_scratch_bytes<E>(inputs.most_pixels()));
    const PanelOutputs<E> outputs(plan, panels);
    int64_t filled = -1;
    for (int64_t task = next(); task >= 0; task = next()) {
      const int64_t split = task % splits, of_group = task / splits, group = of_group / inputs.tiles();
      const int64_t tile_index = of_group % inputs.tiles(), first = before + inputs.first(tile_index);
      for (int64_t b = split * blocks / splits; b < (split + 1) * blocks / splits; ++b) {
        CountTileArgs<E> tile = outputs.tile(group, b, first, inputs.count(tile_index));
        inputs.place(tile, group, tile_index, filled != of_group, buffer.data);
        filled = of_group;
        tile.scratch = scratch.data;
        kernels<CountKernels>().matrix_tile(tile);
      }
    }
  });
}

template void multiply_matrices<int8_t>(const char*, const ProductPlan&, Samples, const BinaryCounts&, const uint8_t*);
template void multiply_matrices<int16_t>(const char*, const ProductPlan&, Samples, const BinaryCounts&, const uint8_t*);
template void multiply_matrices<float>(const char*, const ProductPlan&, Samples, const BinaryCounts&, const uint8_t*);

}  // namespace tandem
