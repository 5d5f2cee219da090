// conv2d_weight_gradient on the CPU: the gradient of a convolution of spike counts with respect to its weights.
//
// dW[o, c, tap] = sum over output pixels p of grad[p, o] * count[pixel(p, tap), c]. For few active inputs this is an
// event-driven product again: rows of grad, [O], are picked for the pixels where a channel has spiked, with the binary
// digits of its count in the place of time steps.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>

#include "cpu/aligned_buffer.h"
#include "cpu/huge_pages.h"
#include "cpu/parallel.h"
#include "ops/product/cpu_count.h"
#include "ops/product/cpu_pack_weight.h"
#include "ops/product/plan.h"
#include "ops/spike_train/cpu_kernels.h"

namespace tandem {

namespace {

// Some weights are summed at a time, over some samples at a time, so that the sums and the counts that these weights
// meet stay in the outer caches: at most this many bytes each, unless 64 weights or one sample need more.
constexpr int64_t kSumBytes = int64_t{2} << 20, kCountBytes = int64_t{4} << 20;

// Where events are faster than oneDNN (measured: docs/performance.md): up to so many binary ones per count, and with so
// many output channels that their additions outweigh the making of lists.
constexpr int64_t kFewestOutputs = 128;
double largest_density(const ConvGeometry& g) { return g.out_channels < 2 * kFewestOutputs ? 0.5 : 1; }

// The counts of one sample, [C, rows, phases, columns], with the padding around them: a channel's counts in one row of
// the image that a tap meets at consecutive output pixels stand side by side, whatever the stride.
struct Turned {
  int64_t rows, phases, columns;

  explicit Turned(const ConvGeometry& g)
      : rows((g.out_height - 1) * g.stride_h + (g.kernel_h - 1) * g.dilation_h + 1),
        phases(g.stride_w),
        columns(g.out_width + (g.kernel_w - 1) * g.dilation_w / g.stride_w) {}

  int64_t channel() const { return rows * phases * columns; }
  // Row and column of the padded image.
  int64_t place(int64_t row, int64_t column) const {
    return (row * phases + column % phases) * columns + column / phases;
  }
};

// Bytes that copying a row may read past its end, and write where the next row follows.
constexpr int64_t kSlack = 16;

void turn_counts(const ConvGeometry& g, const uint8_t* counts, uint8_t* turned) {
  const Turned shape(g);
  const int64_t channel = shape.channel();
  std::memset(turned, 0, static_cast<size_t>(g.in_channels * channel));
  const int64_t height = std::min(g.height, shape.rows - g.padding_h);
  const int64_t width = std::min(g.width, shape.phases * shape.columns - g.padding_w);
  constexpr int64_t kChannels = 64;
  for (int64_t first = 0; first < g.in_channels; first += kChannels) {
    const int64_t n = std::min(kChannels, g.in_channels - first);
    for (int64_t h = 0; h < height; ++h) {
      for (int64_t w = 0; w < width; ++w) {
        const uint8_t* from = counts + (h * g.width + w) * g.in_channels + first;
        uint8_t* to = turned + first * channel + shape.place(h + g.padding_h, w + g.padding_w);
        for (int64_t c = 0; c < n; ++c) to[c * channel] = from[c];
      }
    }
  }
}

// The counts that weight (c, tap) meets at the output pixels of one sample.
void gather_counts(const ConvGeometry& g, const uint8_t* turned, int64_t c, int64_t tap, uint8_t* out) {
  const Turned shape(g);
  const uint8_t* from =
      turned + c * shape.channel() + shape.place(tap / g.kernel_w * g.dilation_h, tap % g.kernel_w * g.dilation_w);
  const int64_t pitch = g.stride_h * shape.phases * shape.columns;
  const uint8_t* const end = out + g.out_height * g.out_width;  // what follows may belong to another thread
  for (int64_t oh = 0; oh < g.out_height; ++oh, out += g.out_width, from += pitch) {
    if (end - out < g.out_width + kSlack) {
      std::memcpy(out, from, static_cast<size_t>(g.out_width));
    } else {
      for (int64_t w = 0; w < g.out_width; w += kSlack) std::memcpy(out + w, from + w, kSlack);
    }
  }
}

// A padded image far larger than the image itself (huge padding, dilation or stride) is not worth writing down. In
// floating point, for the sizes of such images need not fit 64 bits.
bool pays(const ConvGeometry& g) {
  const Turned turned(g);
  const double padded =
      static_cast<double>(turned.rows) * static_cast<double>(turned.phases) * static_cast<double>(turned.columns);
  return g.groups == 1 && g.out_channels >= kFewestOutputs &&
         padded <= 4 * (static_cast<double>(g.height) * static_cast<double>(g.width) + 64);
}

// A linear layer whose samples are `weights` weights, whose inputs are pixels and whose weights are their gradient.
ConvGeometry product_geometry(int64_t weights, int64_t pixels, int64_t out_channels) {
  ConvGeometry g = {};
  g.batch = weights, g.in_channels = pixels, g.out_channels = out_channels;
  g.height = g.width = g.out_height = g.out_width = 1;
  g.kernel_h = g.kernel_w = g.stride_h = g.stride_w = g.dilation_h = g.dilation_w = g.groups = 1;
  return g;
}

// counts: [pixels_in, C] as bytes; grad: [pixels_out, O]; out:
// [O, C, kH, kW]. Returns false, and no gradient, where grad is not finite: NaN times a count of zero is NaN, which an
// event-driven product would not see.
template <class T>
bool run(const char* op, const ConvGeometry& g, const uint8_t* counts, const T* grad, T* out) {
  const int64_t all = g.in_channels * g.taps(), pixels = g.out_height * g.out_width;
  const int64_t row_bytes = g.out_channels * static_cast<int64_t>(sizeof(T));
  const int64_t part = std::min(all, std::max<int64_t>(64, kSumBytes / row_bytes / 16 * 16));
  const int64_t chunk = std::clamp<int64_t>(kCountBytes / (part * pixels), 1, g.batch);
  const int64_t sample_bytes = g.height * g.width * g.in_channels, turned_bytes = g.in_channels * Turned(g).channel();

  const AlignedBuffer<uint8_t> turned(op, g.batch * turned_bytes + kSlack);
  parallel_ranges(g.batch, 1, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) turn_counts(g, counts + n * sample_bytes, turned.data + n * turned_bytes);
  });
  const int64_t packed_pixel = packed_layout<T>(product_geometry(1, 1, g.out_channels)).elements();
  const AlignedBuffer<T> packed(op, g.pixels_out() * packed_pixel);
  for (int64_t n = 0; n < g.batch; n += chunk) {
    const ConvGeometry product = product_geometry(part, std::min(chunk, g.batch - n) * pixels, g.out_channels);
    const bool finite =
        pack_if_finite<T>({grad + n * pixels * g.out_channels, packed_type<T>(), 1, g.out_channels, 1, 1}, product,
                          packed.data + n * pixels * packed_pixel);
    if (!finite) return false;
  }

  const AlignedBuffer<uint8_t> met(op, part * chunk * pixels);
  const AlignedBuffer<T> sums(op, part * g.out_channels);  // [C * taps, O]
  for (int64_t first = 0; first < all; first += part) {
    const int64_t weights = std::min(part, all - first);
    for (int64_t n = 0; n < g.batch; n += chunk) {
      const int64_t samples = std::min(chunk, g.batch - n);
      parallel_ranges(weights, std::max<int64_t>(1, 16384 / (samples * pixels)), [&](int64_t begin, int64_t end) {
        for (int64_t w = begin; w < end; ++w) {
          for (int64_t i = 0; i < samples; ++i) {
            gather_counts(g, turned.data + (n + i) * turned_bytes, (first + w) / g.taps(), (first + w) % g.taps(),
                          met.data + (w * samples + i) * pixels);
          }
        }
      });
      add_count_product<T>(op, product_geometry(weights, samples * pixels, g.out_channels), {0, weights},
                           packed.data + n * pixels * packed_pixel, met.data, 1, nullptr, nullptr, n > 0, sums.data);
    }
    parallel_ranges((weights + 15) / 16, 1, [&](int64_t begin, int64_t end) {
      for (int64_t w = 16 * begin; w < std::min(weights, 16 * end); w += 16) {
        turn(sums.data + w * g.out_channels, g.out_channels, 1, std::min<int64_t>(16, weights - w), g.out_channels,
             out + first + w, all);
      }
    });
  }
  return true;
}

// Whether oneDNN would write past its workspace and may return wrong numbers: with AVX2 and AVX-512, for single taps
// with a stride, fewer channels than a vector has lanes, and channels last
// (github.com/uxlfoundation/oneDNN/issues/6035).
bool is_unsafe_in_onednn(const Tensor& weight, const Sizes& stride, const Sizes& padding) {
  const bool single = weight.size(2) == 1 && weight.size(3) == 1 && weight.size(1) < 16;
  return single && (stride[0] > 1 || stride[1] > 1) && padding[0] == 0 && padding[1] == 0;
}

// The pixels that single taps with a stride read.
Tensor pixels_read(const char* op, const Tensor& count, const Sizes& stride) {
  const Sizes sizes = {count.size(0), count.size(1), (count.size(2) - 1) / stride[0] + 1,
                       (count.size(3) - 1) / stride[1] + 1};
  const Sizes strides = {count.stride(0), count.stride(1), count.stride(2) * stride[0], count.stride(3) * stride[1]};
  AtenTensorHandle view = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_as_strided(count.get(), sizes.data(), strides.data(), &view));
  return channels_last(op, Tensor(view), count.stride(1) == 1 ? 1 : 3);
}

// What torch makes of it, where there are too many events.
Tensor dense_gradient(const char* op, const Tensor& grad, const Tensor& count, const Tensor& weight,
                      const Sizes& stride, const Sizes& padding, const Sizes& dilation, int64_t groups) {
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  if (is_unsafe_in_onednn(weight, stride, padding)) {
    return dense_gradient(op, grad, pixels_read(op, count, stride), weight, {1, 1}, padding, dilation, groups);
  }
  constexpr std::array<bool, 3> kWeightAlone = {false, true, false};
  // torch takes the layout of the count, and copies a gradient of another. A count of one channel has either layout.
  // (Where the output is one column, torch's own forward pass is wrong with that layout, so that is left alone.)
  const bool last = count.size(1) == 1 && grad.size(1) > 1 && grad.size(3) > 1 && grad.stride(1) == 1;
  std::array<StableIValue, 11> stack = {from(canonical(grad)),
                                        from(last ? channels_last(op, count, 1) : canonical(count)),
                                        from(canonical(weight)),
                                        from(std::nullopt),
                                        from(stride),
                                        from(padding),
                                        from(dilation),
                                        from(false),
                                        from(Sizes{0, 0}),
                                        from(groups),
                                        from(torch::headeronly::HeaderOnlyArrayRef<bool>(kWeightAlone.data(), 3))};
  const bool ok =
      torch_call_dispatcher("aten::convolution_backward", "", stack.data(), TORCH_ABI_VERSION) == AOTI_TORCH_SUCCESS;
  TANDEM_CHECK(ok, op, "aten::convolution_backward failed; torch wrote the reason to the standard error");
  const Tensor input = to<Tensor>(stack[0]);  // undefined, but owned
  const Tensor bias = to<Tensor>(stack[2]);
  return to<Tensor>(stack[1]);
}

// grad: [N, O, Ho, Wo]; count: [N, C, H, W]; weight: for its shape -> [O, C/groups, kH, kW]
Tensor conv2d_weight_gradient(const Tensor& grad, const Tensor& count, const Tensor& weight, const Sizes& stride,
                              const Sizes& padding, const Sizes& dilation, int64_t groups) {
  const char* op = "conv2d_weight_gradient";
  check_floating(op, "weight", weight);
  TANDEM_CHECK(count.dim() == 4, op, "count must be [N, C, H, W], got ", shape(count));
  const ConvGeometry g = conv2d_geometry(op, sizes_of(count), weight, stride, padding, dilation, groups);
  check_like(op, "count", count, weight, "weight", sizes_of(count));
  check_like(op, "grad", grad, weight, "weight", {g.batch, g.out_channels, g.out_height, g.out_width});
  if (count.numel() == 0 || grad.numel() == 0) {
    Tensor none = empty_channels_last(op, weight, sizes_of(weight), weight.scalar_type(), 3);
    return torch::stable::zero_(none);
  }
  const auto dense = [&] {  // contiguous, as promised: torch's layout follows that of its arguments
    return channels_last(op, dense_gradient(op, grad, count, weight, stride, padding, dilation, groups), 3);
  };
  if (!pays(g)) return dense();

  const Tensor counts = channels_last(op, count, 1);
  const int64_t inputs = counts.numel();
  const AlignedBuffer<uint8_t> bytes(op, inputs);
  std::atomic<int64_t> ones{0};
  std::atomic<bool> whole{true};
  Tensor out;
  dispatch_floating(op, weight.scalar_type(), [&](auto type) {
    using T = decltype(type);
    parallel_ranges(inputs, 16384, [&](int64_t begin, int64_t end) {
      int64_t ones_here = 0;
      const auto* values = static_cast<const T*>(counts.const_data_ptr());
      if (!kernels<SpikeTrainKernels>().whole_bytes(values, begin, end, bytes.data, &ones_here)) whole = false;
      ones.fetch_add(ones_here, std::memory_order_relaxed);
    });
    if (!whole || static_cast<double>(ones.load()) > largest_density(g) * static_cast<double>(inputs)) return;
    const Tensor rows = channels_last(op, grad, 1);
    const Tensor sparse = empty_channels_last(op, weight, sizes_of(weight), weight.scalar_type(), 3);
    prefer_huge_pages(sparse.mutable_data_ptr(), static_cast<size_t>(sparse.numel()) * sizeof(T));
    if (run(op, g, bytes.data, static_cast<const T*>(rows.const_data_ptr()),
            static_cast<T*>(sparse.mutable_data_ptr()))) {
      out = sparse;
    }
  });
  return out.defined() ? out : dense();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tandem_cuda, CPU, m) { m.impl("conv2d_weight_gradient", TORCH_BOX(&conv2d_weight_gradient)); }

}  // namespace tandem
