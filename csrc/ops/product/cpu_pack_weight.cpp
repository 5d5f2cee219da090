#include "ops/product/cpu_pack_weight.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

#include "cpu/finite.h"
#include "cpu/huge_pages.h"
#include "cpu/parallel.h"
#include "ops/product/cpu_count_kernels.h"

namespace tandem {

namespace {

// 16 bytes of weights.
template <class W>
struct Line {
  typedef W Vector __attribute__((vector_size(16)));
  static constexpr int64_t kLanes = 16 / static_cast<int64_t>(sizeof(W));
};

// The lanes of two lines in turn, of their first halves or of their second.
template <class W, int kHalf, int... lane>
typename Line<W>::Vector zipped(typename Line<W>::Vector a, typename Line<W>::Vector b,
                                std::integer_sequence<int, lane...>) {
  constexpr int n = sizeof...(lane);
#if defined(__clang__)
  return __builtin_shufflevector(a, b, (lane / 2 + lane % 2 * n + kHalf * n / 2)...);
#else
  using Index = std::conditional_t<sizeof(W) == 1, int8_t, std::conditional_t<sizeof(W) == 2, int16_t, int32_t> >;
  typedef Index Order __attribute__((vector_size(16)));
  return __builtin_shuffle(a, b, Order{static_cast<Index>(lane / 2 + lane % 2 * n + kHalf * n / 2)...});
#endif
}

// A square of lines -> its transpose: a line is zipped with the one half the square below it, and so on.
template <class W>
void turn_square(typename Line<W>::Vector (&line)[Line<W>::kLanes]) {
  constexpr int64_t n = Line<W>::kLanes;
  constexpr auto lanes = std::make_integer_sequence<int, static_cast<int>(n)>{};
  for (int64_t step = 1; step < n; step *= 2) {
    typename Line<W>::Vector zip[n];
    for (int64_t i = 0; i < n / 2; ++i) {
      zip[2 * i] = zipped<W, 0>(line[i], line[i + n / 2], lanes);
      zip[2 * i + 1] = zipped<W, 1>(line[i], line[i + n / 2], lanes);
    }
    std::copy_n(zip, n, line);
  }
}

}  // namespace

template <class W, class E>
bool turn(const W* from, int64_t row_stride, int64_t stride, int64_t rows, int64_t n, E* to, int64_t columns) {
  int64_t row = 0;
  bool odd = false;
  if constexpr (std::is_same_v<W, E> && sizeof(W) <= 4) {
    using Vector = typename Line<W>::Vector;
    constexpr int64_t lanes = Line<W>::kLanes;
    for (; stride == 1 && row + lanes <= rows; row += lanes) {
      Vector seen[4] = {};  // sums, which cost less than a look at exponents; or bits of what is too large
      const auto look = [&](int64_t i, Vector line) {
        if constexpr (std::is_same_v<W, float>) seen[i % 4] += line;
        if constexpr (std::is_same_v<W, int16_t>) seen[i % 4] |= (line > kLargest16) | (line < -kLargest16);
      };
      // The processor itself finds no pattern in short pieces of rows that lie far apart.
      if (row + 3 * lanes <= rows) {
        const W* const ahead = from + (row + 2 * lanes) * row_stride;
        for (int64_t r = 0; r < lanes; ++r) {
          for (int64_t j = 0; j < n; j += 64 / static_cast<int64_t>(sizeof(W))) {
            __builtin_prefetch(ahead + r * row_stride + j);
          }
        }
      }
      int64_t i = 0;
      for (; i + lanes <= n; i += lanes) {
        Vector line[lanes];
        for (int64_t r = 0; r < lanes; ++r) {
          std::memcpy(&line[r], from + (row + r) * row_stride + i, sizeof(Vector));
          look(r, line[r]);
        }
        turn_square<W>(line);
        for (int64_t r = 0; r < lanes; ++r) std::memcpy(to + (i + r) * columns + row, &line[r], sizeof(Vector));
      }
      for (; i < n; ++i) {
        Vector column;
        for (int64_t r = 0; r < lanes; ++r) column[r] = from[(row + r) * row_stride + i];
        std::memcpy(to + i * columns + row, &column, sizeof(column));
        look(0, column);
      }
      for (int64_t lane = 0; lane < 4 * lanes; ++lane) {
        const W found = seen[lane % 4][lane / 4];
        odd |= std::is_same_v<W, float> ? odd_bits(found) != 0 : found != 0;
      }
    }
  }
  decltype(odd_bits(E{})) odd_rest = 0;
  for (; row < rows; ++row) {
    for (int64_t i = 0; i < n; ++i) {
      // NOLINTNEXTLINE(bugprone-signed-char-misuse): 8-bit integers, no characters
      const E value = static_cast<E>(from[row * row_stride + i * stride]);
      to[i * columns + row] = value;
      odd_rest |= odd_bits(value);
    }
  }
  return !odd && odd_rest == 0;
}

WeightView weight_view(const Tensor& weight) {
  const bool linear = weight.dim() == 2;
  return {weight.const_data_ptr(), weight.scalar_type(),          weight.stride(0),
          weight.stride(1),        linear ? 1 : weight.stride(2), linear ? 1 : weight.stride(3)};
}

namespace {

template <class W, class E>
bool pack(const WeightView& weight, const ConvGeometry& g, E* packed) {
  constexpr int64_t kBufferBytes = 16384;
  const W* w = static_cast<const W*>(weight.data);
  const int64_t stride_o = weight.stride_o, stride_c = weight.stride_c;
  const int64_t stride_h = weight.stride_h, stride_w = weight.stride_w;
  const bool contiguous =
      g.taps() == 1 ? stride_c == 1 : stride_w == 1 && stride_h == g.kernel_w && stride_c == g.taps();
  const PackedLayout layout = packed_layout<E>(g);
  const int64_t outputs = g.group_out(), channels = g.group_in(), block = layout.block;
  // One task: some channels of one block, all taps. They are turned round in a buffer that fits the L1 cache: the rows
  // of the result lie at distances that would evict each other from it.
  const int64_t slice_channels = std::clamp<int64_t>(kBufferBytes / (g.taps() * block * sizeof(E)), 1, channels);
  const int64_t slices = (channels + slice_channels - 1) / slice_channels;
  std::atomic<bool> finite{true};
  parallel_ranges(g.groups * layout.blocks * slices, 4, [&](int64_t begin, int64_t end) {
    bool finite_here = true;
    std::vector<E> turned(slice_channels * g.taps() * block);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t slice = task % slices, b = task / slices % layout.blocks, group = task / slices / layout.blocks;
      const int64_t first = group * outputs + b * block, valid = std::min(block, outputs - b * block);
      const int64_t c_begin = slice * slice_channels, c_end = std::min(channels, c_begin + slice_channels);
      E* to = turned.data();  // [channel, tap, block]
      const W* from = w + first * stride_o + c_begin * stride_c;
      if (stride_o == 1 && g.taps() == 1) {
        for (int64_t c = 0; c < c_end - c_begin; ++c) {
          std::copy_n(from + c * stride_c, valid, to + c * block);
          finite_here &= all_finite(to + c * block, valid);
        }
      } else if (contiguous) {
        finite_here &= turn(from, stride_o, 1, valid, (c_end - c_begin) * g.taps(), to, block);
      } else {
        for (int64_t c = 0; c < c_end - c_begin; ++c) {
          for (int64_t kh = 0; kh < g.kernel_h; ++kh) {
            finite_here &= turn(from + c * stride_c + kh * stride_h, stride_o, stride_w, valid, g.kernel_w,
                                to + (c * g.taps() + kh * g.kernel_w) * block, block);
          }
        }
      }
      E* out = packed + (group * layout.blocks + b) * layout.block_elements();
      for (int64_t c = c_begin; c < c_end; ++c) {
        for (int64_t tap = 0; tap < g.taps(); ++tap, to += block) {
          E* row = out + (tap * channels + c) * block;
          std::copy_n(to, valid, row);
          std::fill_n(row + valid, block - valid, E(0));
        }
      }
    }
    if (!finite_here) finite = false;
  });
  return finite;
}

}  // namespace

void report_odd_weight(const char* op, const Tensor& weight) {
  const WeightView view = weight_view(weight);
  const Sizes sizes = sizes_of(weight);
  const int64_t height = sizes.size() == 4 ? sizes[2] : 1, width = sizes.size() == 4 ? sizes[3] : 1;
  dispatch_packed(weight.scalar_type(), [&](auto packed, auto) {
    dispatch_unpacked<decltype(packed)>(weight.scalar_type(), [&](auto element) {
      using W = decltype(element);
      for (int64_t i = 0; i < weight.numel(); ++i) {
        Sizes at = {i / (sizes[1] * height * width), i / (height * width) % sizes[1], i / width % height, i % width};
        const W* place = static_cast<const W*>(view.data) + at[0] * view.stride_o + at[1] * view.stride_c +
                         at[2] * view.stride_h + at[3] * view.stride_w;
        // NOLINTNEXTLINE(bugprone-signed-char-misuse): 8-bit integers, no characters
        const auto value = static_cast<double>(*place);
        at.resize(sizes.size());
        if constexpr (std::is_same_v<W, int16_t>) {
          TANDEM_CHECK(std::abs(value) <= kLargest16, op, "16-bit weights must be from -32639 to 32639, got ", *place,
                       " at ", to_string(at));
        }
        TANDEM_CHECK(std::isfinite(value), op, "weight must be finite, got ",
                     std::isnan(value) ? std::fabs(value) : value, " at ", to_string(at));
      }
    });
  });
}

template <class E>
bool pack_if_finite(const WeightView& weight, const ConvGeometry& geometry, E* packed) {
  bool finite = true;
  dispatch_unpacked<E>(weight.type, [&](auto element) { finite = pack<decltype(element)>(weight, geometry, packed); });
  return finite;
}

template <class E>
void pack_weight(const char* op, const Tensor& weight, const ConvGeometry& geometry, E* packed) {
  if (!pack_if_finite(weight_view(weight), geometry, packed)) report_odd_weight(op, weight);
}

namespace {

// Whether n integers, `stride` apart, are those from `others` on with the other sign.
template <class E>
bool are_opposite(const E* weights, const E* others, int64_t stride, int64_t n) {
  if constexpr (!std::is_integral_v<E>) return false;
  int odd = 0;
  for (int64_t i = 0; i < n * stride; i += stride) odd |= static_cast<int>(weights[i] + others[i]);
  return odd == 0;
}

template <class E>
bool has_paired_inputs(const ConvGeometry& g, const E* packed) {
  const PackedLayout layout = packed_layout<E>(g);
  bool paired = g.group_in() % 2 == 0;
  for (int64_t at = 0; paired && at < layout.elements(); at += 2 * layout.block) {
    paired = are_opposite(packed + at, packed + at + layout.block, 1, layout.block);
  }
  return paired;
}

template <class E>
bool has_paired_outputs(const PackedLayout& layout, const E* block) {
  bool paired = layout.block >= 2 * kPartOutputs;
  for (int64_t at = 0; paired && at < layout.block_elements(); at += layout.block) {
    paired = are_opposite(block + at, block + at + 1, 2, layout.block / 2);
  }
  return paired;
}

}  // namespace

template <class E>
void fill_panels(const ConvGeometry& g, const E* packed, uint8_t* panels) {
  if constexpr (!std::is_same_v<E, double>) {
    const PackedLayout layout = packed_layout<E>(g);
    const int64_t bytes = panel_bytes<E>(g);
    // Matrix tiles multiply all inputs in less time than bytes half of them.
    const bool paired_inputs = !has_matrix_tiles() && has_paired_inputs(g, packed);
    parallel_ranges(layout.groups * layout.blocks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const E* const weight = packed + i * layout.block_elements();
        const PanelHolds holds = {true, paired_inputs, has_paired_outputs(layout, weight)};
        const PanelSizes sizes(g, holds.paired_inputs);
        const int64_t channels = g.group_in() / (holds.paired_inputs ? 2 : 1);
        const int64_t block = layout.block / (holds.paired_outputs ? 2 : 1);
        uint8_t* const panel = panels + i * bytes;
        const int64_t used = sizes.panel_bytes<E>(block) - kLineBytes;
        std::memset(panel + used, 0, static_cast<size_t>(bytes - used));
        *holds_of<E>(g, panel) = holds;
        kernels<CountKernels>().fill_panel(PanelArgs<E>{weight, g.taps(), channels, block, holds, sizes, panel});
      }
    });
  }
}

namespace {

// Rows, and panels where there is room for them.
template <class E>
void pack_into(const char* op, const Tensor& weight, const ConvGeometry& geometry, const Tensor& packed) {
  E* const rows = static_cast<E*>(packed.mutable_data_ptr());
  pack_weight(op, weight, geometry, rows);
  const int64_t elements = packed_layout<E>(geometry).elements();
  if (packed.numel() == elements) return;
  const int64_t panels = elements_before_panels<E>(geometry);
  std::fill(rows + elements, rows + panels, E(0));
  if constexpr (!std::is_same_v<E, double>) {
    auto* const first = reinterpret_cast<uint8_t*>(rows + panels);
    *holds_of<E>(geometry, first) = {};  // of the weights that were here
    if (reads_panels<E>()) fill_panels(geometry, rows, first);
  }
}

}  // namespace

Tensor packed_weight(const char* op, const Tensor& weight, const ConvGeometry& geometry) {
  Tensor packed;
  dispatch_packed(weight.scalar_type(), [&](auto element, auto) {
    using E = decltype(element);
    packed = empty_packed<E>(op, weight, geometry);
    prefer_huge_pages(packed.mutable_data_ptr(), static_cast<size_t>(packed.numel()) * sizeof(E));
    pack_into<E>(op, weight, geometry, packed);
  });
  return packed;
}

void check_finite_weight(const char* op, const Tensor& weight) {
  dispatch_floating(op, weight.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const WeightView view = weight_view(weight);
    const int64_t channels = weight.size(1), taps = weight.numel() / weight.size(0) / channels;
    const int64_t width = weight.dim() == 4 ? weight.size(3) : 1;
    std::atomic<bool> finite{true};
    parallel_ranges(weight.size(0) * taps, std::max<int64_t>(1, 16384 / channels), [&](int64_t begin, int64_t end) {
      bool finite_here = true;
      for (int64_t i = begin; i < end; ++i) {
        const int64_t tap = i % taps;
        const T* row = static_cast<const T*>(view.data) + i / taps * view.stride_o + tap / width * view.stride_h +
                       tap % width * view.stride_w;
        finite_here &= all_finite(row, channels, view.stride_c);
      }
      if (!finite_here) finite = false;
    });
    if (!finite) report_odd_weight(op, weight);
  });
}

template bool turn<float, float>(const float*, int64_t, int64_t, int64_t, int64_t, float*, int64_t);
template bool turn<double, double>(const double*, int64_t, int64_t, int64_t, int64_t, double*, int64_t);
template bool pack_if_finite<float>(const WeightView&, const ConvGeometry&, float*);
template bool pack_if_finite<double>(const WeightView&, const ConvGeometry&, double*);
template void fill_panels<float>(const ConvGeometry&, const float*, uint8_t*);
template void fill_panels<int8_t>(const ConvGeometry&, const int8_t*, uint8_t*);
template void fill_panels<int16_t>(const ConvGeometry&, const int16_t*, uint8_t*);
template void pack_weight<float>(const char*, const Tensor&, const ConvGeometry&, float*);
template void pack_weight<double>(const char*, const Tensor&, const ConvGeometry&, double*);
template void pack_weight<int8_t>(const char*, const Tensor&, const ConvGeometry&, int8_t*);
template void pack_weight<int16_t>(const char*, const Tensor&, const ConvGeometry&, int16_t*);

namespace {

Tensor pack_weight_op(const Tensor& weight, int64_t groups) {
  return packed_weight("pack_weight", weight, weight_geometry("pack_weight", weight, groups));
}

void pack_weight_out(const Tensor& weight, int64_t groups, Tensor out) {
  const ConvGeometry g = weight_geometry("pack_weight", weight, groups);
  check_same_device("pack_weight", "out", out, weight, "weight");
  dispatch_packed(weight.scalar_type(), [&](auto element, auto) {
    using E = decltype(element);
    check_packed<E>("pack_weight", "out", out, weight, g);
    pack_into<E>("pack_weight", weight, g, out);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tandem_cuda, CPU, m) {
  m.impl("pack_weight", TORCH_BOX(&pack_weight_op));
  m.impl("pack_weight_out", TORCH_BOX(&pack_weight_out));
}

}  // namespace tandem
