// The inputs of output pixels side by side, as panels have the weights.
#pragma once

#include "cpu/simd.inl.h"
#include "ops/product/cpu_count_kernels.h"

namespace tandem::TANDEM_ISA {

#if defined(__AVX2__) || defined(TANDEM_DOT)

// n bytes. Both arrays may be unaligned.
TANDEM_HOST void copy_bytes(uint8_t* to, const uint8_t* from, int64_t n) {
  const auto copy = [&](int64_t at, auto size) TANDEM_INLINE { std::memcpy(to + at, from + at, size); };
  // The last ones may overlap those before them.
  const auto copy_all = [&](auto size) TANDEM_INLINE {
    for (int64_t at = 0; at + size < n; at += size) copy(at, size);
    copy(n - size, size);
  };
  if (n >= 64) {
    copy_all(std::integral_constant<int, 64>{});
  } else if (n >= 32) {
    copy_all(std::integral_constant<int, 32>{});
  } else if (n >= 8) {
    copy_all(std::integral_constant<int, 8>{});
  } else {
    for (int64_t at = 0; at < n; ++at) to[at] = from[at];
  }
}

// n bytes, each of two inputs.
template <RowOf kOf>
TANDEM_HOST void copy_pairs(uint8_t* to, const uint8_t* from, int64_t n, uint8_t offset) {
  const auto of = [&](auto pair) TANDEM_INLINE {  // of the low and the high byte of 16 bits
    if constexpr (kOf == RowOf::kFirst) return pair & 255;
    if constexpr (kOf == RowOf::kSecond) return pair >> 8;
    return (pair - (pair >> 8) + offset) & 255;
  };
  constexpr int64_t kPairs = kVectorBytes / 2;
  typedef uint16_t Pairs __attribute__((vector_size(kVectorBytes)));
  typedef uint8_t Bytes __attribute__((vector_size(kPairs)));
  int64_t i = 0;
  for (; i + kPairs <= n; i += kPairs) {
    Pairs pairs;
    std::memcpy(&pairs, from + 2 * i, sizeof(pairs));
    const Bytes bytes = __builtin_convertvector(static_cast<Pairs>(of(pairs)), Bytes);
    std::memcpy(to + i, &bytes, sizeof(bytes));
  }
  for (; i < n; ++i) to[i] = static_cast<uint8_t>(of(from[2 * i] | from[2 * i + 1] << 8));
}

// The inputs of a group and row of the kernel at output pixels of a row of the image, one after the other: for each
// column of the kernel its channels, with zeros up to a multiple of 4.
template <RowOf kOf>
class KernelRow {
  static constexpr int64_t kInputs = kOf == RowOf::kInputs ? 1 : 2;  // of a byte
  const ConvGeometry& g_;
  const int64_t channels_, tap_bytes_;
  const bool side_by_side_;
  const uint8_t offset_;

  TANDEM_HOST void copy(uint8_t* to, const uint8_t* from, int64_t n) const {
    if constexpr (kOf == RowOf::kInputs) {
      copy_bytes(to, from, n);
    } else {
      copy_pairs<kOf>(to, from, n, offset_);
    }
  }

 public:
  const int64_t bytes;

  TANDEM_HOST KernelRow(const ConvGeometry& g, const PanelSizes& sizes, uint8_t offset)
      : g_(g),
        channels_(g.group_in() / kInputs),
        tap_bytes_(sizes.group_counts),
        side_by_side_(g.groups == 1 && g.dilation_w == 1 && channels_ == tap_bytes_),
        offset_(offset),
        bytes(g.kernel_w * tap_bytes_) {}

  // Of output column `w`; row: the group's inputs of a row of the image, or null where there is none.
  TANDEM_HOST void fill(uint8_t* to, const uint8_t* row, int64_t w) const {
    const int64_t left = w * g_.stride_w - g_.padding_w;
    if (!row) {
      std::memset(to, offset_, static_cast<size_t>(bytes));
    } else if (side_by_side_ && left >= 0 && left + g_.kernel_w <= g_.width) {
      copy(to, row + left * g_.in_channels, bytes);
    } else {
      for (int64_t kw = 0; kw < g_.kernel_w; ++kw) {
        const int64_t x = left + kw * g_.dilation_w, seen = x < 0 || x >= g_.width ? 0 : channels_;
        uint8_t* const tap = to + kw * tap_bytes_;
        copy(tap, row + x * g_.in_channels, seen);
        for (int64_t c = seen; c < tap_bytes_; ++c) tap[c] = offset_;
      }
    }
  }
  // The group's inputs of a row of an image, or null where there is none.
  TANDEM_HOST const uint8_t* row(const uint8_t* counts, int64_t group, int64_t image, int64_t y) const {
    if (y < 0 || y >= g_.height) return nullptr;
    return counts + (image * g_.height + y) * g_.width * g_.in_channels + group * channels_ * kInputs;
  }
};

template <RowOf kOf>
void fill_rows_of(const RowsArgs& a) {
  const ConvGeometry& g = *a.geometry;
  const KernelRow<kOf> part(g, a.sizes, a.offset);
  int64_t w = a.row_begin % g.out_width, h = a.row_begin / g.out_width % g.out_height;
  int64_t n = a.row_begin / (g.out_width * g.out_height);
  uint8_t* to = a.rows;
  for (int64_t left = a.row_end - a.row_begin; left > 0; w = 0) {
    const int64_t some = std::min(left, g.out_width - w);
    // Behind the inputs, and where they come then: a size that is known takes no call.
    for (int64_t i = 0; i < some; ++i) {
      std::memset(to + i * a.sizes.row_bytes() + a.sizes.depth - kMatrixBytes, a.offset, kMatrixBytes);
    }
    for (int64_t kh = 0; kh < g.kernel_h; ++kh) {
      const uint8_t* const row = part.row(a.counts, a.group, n, h * g.stride_h - g.padding_h + kh * g.dilation_h);
      for (int64_t i = 0; i < some; ++i) part.fill(to + i * a.sizes.row_bytes() + kh * part.bytes, row, w + i);
    }
    to += some * a.sizes.row_bytes();
    left -= some;
    if (++h == g.out_height) h = 0, ++n;
  }
}

inline void fill_rows(const RowsArgs& a) {
  const auto fill = a.row_of == RowOf::kInputs        ? fill_rows_of<RowOf::kInputs>
                    : a.row_of == RowOf::kDifferences ? fill_rows_of<RowOf::kDifferences>
                    : a.row_of == RowOf::kFirst       ? fill_rows_of<RowOf::kFirst>
                                                      : fill_rows_of<RowOf::kSecond>;
  fill(a);
}

inline void fill_lines(const LinesArgs& a) {
  const ConvGeometry& g = *a.geometry;
  const KernelRow<RowOf::kInputs> part(g, a.sizes, 0);
  uint8_t* to = a.lines;
  for (int64_t image = 0; image < a.images; ++image, to += a.layout.image_bytes(g)) {
    for (int64_t y = 0; y < a.layout.image_rows; ++y) {
      const int64_t place = a.layout.place_of(g, y);
      if (place < 0) continue;
      const uint8_t* const row = part.row(a.counts, a.group, a.image + image, a.row * g.stride_h - g.padding_h + y);
      for (int64_t w = 0; w < g.out_width; ++w) part.fill(to + (place * g.out_width + w) * a.layout.stride, row, w);
    }
  }
}

#endif

}  // namespace tandem::TANDEM_ISA
