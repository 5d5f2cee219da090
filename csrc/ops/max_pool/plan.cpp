#include "ops/max_pool/plan.h"

#include "ops/product/plan.h"

namespace tandem {

namespace {

constexpr const char* kOp = "max_pool_spikes";

// Windows along an axis, as torch's pooling counts them.
int64_t windows(const char* axis, int64_t size, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation,
                bool ceil_mode) {
  TANDEM_CHECK(padding <= kernel / 2, kOp, "padding must be at most half of the kernel size ", kernel, ", got ",
               padding);
  TANDEM_CHECK(size <= int64_t{1} << 40, kOp, "the ", axis, " of the input is too large");
  const int64_t reach = dilation * (kernel - 1) + 1;  // both at most 2^30
  const int64_t room = size + 2 * padding - reach;
  const int64_t rounded = ceil_mode ? room + stride - 1 : room;
  int64_t out = rounded < 0 ? 0 : rounded / stride + 1;
  if (ceil_mode && (out - 1) * stride >= size + padding) --out;  // the last window would begin in the padding
  TANDEM_CHECK(out >= 1, kOp, "the window (", reach, ") is larger than the padded input (", size + 2 * padding,
               ") along the ", axis);
  return out;
}

ConvGeometry geometry_of(const MaxPoolArguments& a) {
  check_pair(kOp, "kernel_size", a.kernel_size, 1);
  check_pair(kOp, "stride", a.stride, 1);
  check_pair(kOp, "padding", a.padding, 0);
  check_pair(kOp, "dilation", a.dilation, 1);
  ConvGeometry g = {};
  g.batch = a.bits.size(1), g.in_channels = g.out_channels = g.groups = a.bits.size(2);
  g.height = a.bits.size(3), g.width = a.bits.size(4);
  g.kernel_h = a.kernel_size[0], g.kernel_w = a.kernel_size[1];
  g.stride_h = a.stride[0], g.stride_w = a.stride[1];
  g.padding_h = a.padding[0], g.padding_w = a.padding[1];
  g.dilation_h = a.dilation[0], g.dilation_w = a.dilation[1];
  g.out_height = windows("height", g.height, g.kernel_h, g.stride_h, g.padding_h, g.dilation_h, a.ceil_mode);
  g.out_width = windows("width", g.width, g.kernel_w, g.stride_w, g.padding_w, g.dilation_w, a.ceil_mode);
  return g;
}

}  // namespace

MaxPoolPlan plan_max_pool_spikes(const MaxPoolArguments& a) {
  check_bits(kOp, a.bits, 5);
  TANDEM_CHECK(a.bits.dim() == 5 && a.bits.size(2) >= 1 && a.bits.size(3) >= 1 && a.bits.size(4) >= 1, kOp,
               "bits must be [P, N, C, H, W] with channels and pixels, got ", shape(a.bits));
  check_planes(kOp, a.bits, a.time_steps);
  TANDEM_CHECK(a.time_steps < int64_t{1} << 31, kOp, "time_steps must be below 2^31, got ", a.time_steps);
  TANDEM_CHECK(
      !a.radix || (a.time_steps <= kStepsPerPlane && !a.count && !a.want_count), kOp,
      "count must be None, want_count false and time_steps at most 8 with radix, got time_steps = ", a.time_steps);
  const ConvGeometry g = geometry_of(a);
  const Sizes neurons = {g.batch, g.in_channels, g.height, g.width};
  if (a.count) {
    TANDEM_CHECK(a.count->scalar_type() == ScalarType::Int, kOp, "count must be int32, got ",
                 name_of(a.count->scalar_type()));
    check_same_device(kOp, "count", *a.count, a.bits, "bits");
    check_shape(kOp, "count", *a.count, neurons);
  }
  const Sizes pooled = {a.bits.size(0), g.batch, g.out_channels, g.out_height, g.out_width};
  checked_numel(kOp, pooled);
  checked_numel(kOp, {g.batch, g.in_channels, g.height, g.width, 4});
  return {g, channels_last(kOp, a.bits, 2), channels_last(kOp, a.count, 1),
          empty_channels_last(kOp, a.bits, pooled, ScalarType::Byte, 2),
          a.want_count ? empty_channels_last(kOp, a.bits, neurons, ScalarType::Int, 1)
                       : no_tensor(kOp, a.bits, ScalarType::Int)};
}

}  // namespace tandem
