#include "ops/product/plan.h"

#include <algorithm>

namespace tandem {

namespace {

// Far beyond any real layer, small enough that the arithmetic below cannot overflow.
constexpr int64_t kLargestParameter = int64_t{1} << 30;

int64_t out_size(const char* op, const char* axis, int64_t size, int64_t kernel, int64_t stride, int64_t padding,
                 int64_t dilation) {
  int64_t reach = 0;
  TANDEM_CHECK(size <= (int64_t{1} << 40) && !__builtin_mul_overflow(dilation, kernel - 1, &reach) &&
                   reach <= (int64_t{1} << 40),
               op, "the ", axis, " of the input or of the dilated kernel is too large");
  const int64_t room = size + 2 * padding - reach - 1;
  TANDEM_CHECK(room >= 0, op, "the dilated kernel (", reach + 1, ") is larger than the padded input (",
               size + 2 * padding, ") along the ", axis);
  return room / stride + 1;
}

void check_weight_type(const char* op, const Tensor& weight) {
  const ScalarType type = weight.scalar_type();
  TANDEM_CHECK(type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::Half ||
                   type == ScalarType::BFloat16 || is_integer(type),
               op, "weight must be float32, float64, float16, bfloat16, int8 or int16, got ", name_of(type));
}

void check_weight(const char* op, const Tensor& bits, const Tensor& weight) {
  check_weight_type(op, weight);
  check_same_device(op, "weight", weight, bits, "bits");
}

void check_packable(const char* op, const ConvGeometry& g) {
  // The packed copy of the weights: output channels of a group padded to a block of at most 128, bytes.
  checked_numel(op, {g.groups, g.group_out() + 128, g.kernel_h, g.kernel_w, g.group_in(), 16});
}

Engine engine_of(const char* op, int64_t number) {
  TANDEM_CHECK(number >= 0 && number <= 2, op, "engine must be 0 (auto), 1 (event) or 2 (dense), got ", number);
  return static_cast<Engine>(number);
}

Sizes neuron_sizes(const Tensor& bits, const ConvGeometry& geometry, bool linear) {
  if (!linear) return {geometry.batch, geometry.out_channels, geometry.out_height, geometry.out_width};
  Sizes sizes = sizes_of(bits);
  sizes.erase(sizes.begin());
  sizes.back() = geometry.out_channels;
  return sizes;
}

int64_t feature_dim(const Sizes& sizes, bool linear) { return linear ? static_cast<int64_t>(sizes.size()) - 1 : 1; }

// The dtype of currents, and of all that is added to them or multiplies them: narrower weights have float32 ones.
ScalarType current_type(const Tensor& weight) {
  return weight.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// count, scale, bias or state.
void check_operand(const char* op, const char* argument, const Tensor& tensor, const Tensor& weight,
                   const Sizes& expected) {
  const ScalarType type = current_type(weight);
  if (type == weight.scalar_type()) {
    check_like(op, argument, tensor, weight, "weight", expected);
    return;
  }
  TANDEM_CHECK(tensor.scalar_type() == type, op, argument,
               " must be float32 with int8, int16, float16 or bfloat16 weights, got ", name_of(tensor.scalar_type()));
  check_same_device(op, argument, tensor, weight, "weight");
  check_shape(op, argument, tensor, expected);
}

// Sums of float weights on a CUDA device: numbers of 32 bits (whole_weight.h) in 64. largest: what an input stands for.
void check_whole_weights(const char* op, const Tensor& weight, int64_t largest) {
  if (weight.is_cpu() || weight.scalar_type() == ScalarType::Double) return;
  const int64_t inputs = weight.numel() / weight.size(0), most = (int64_t{1} << 32) / std::max<int64_t>(1, largest);
  TANDEM_CHECK(inputs <= most, op, name_of(weight.scalar_type()), " weights must have at most ", most,
               " inputs per neuron on a CUDA device, so that sums of numbers up to ", largest,
               " fit into 64 bits, got ", shape(weight));
}

// largest: what an input stands for, at most.
void check_sums(const char* op, const ProductArguments& a, int64_t largest) {
  const ScalarType type = a.weight.scalar_type();
  if (!is_integer(type)) return check_whole_weights(op, a.weight, largest);
  TANDEM_CHECK(a.weight.numel() / a.weight.size(0) <= int64_t{1} << 24, op, name_of(type),
               " weights must have at most 2^24 inputs per neuron, got ", shape(a.weight));
  // On the CPU, the weights of more are read (check_32_bits). Elsewhere nothing reads them: they may be as low as
  // -2^15.
  const int64_t most = std::min(most_inputs(type), int64_t{1} << (type == ScalarType::Char ? 24 : 16));
  TANDEM_CHECK(a.weight.is_cpu() || a.weight.numel() / a.weight.size(0) <= most, op, name_of(type),
               " weights must have at most ", most,
               " inputs per neuron on a CUDA device, so that sums fit into 32 bits, got ", shape(a.weight));
  TANDEM_CHECK(a.scale.has_value(), op, "scale must be given with ", name_of(type), " weights");
}

ProductPlan plan_inputs(const char* op, const ProductArguments& a, const ConvGeometry& geometry, bool linear,
                        int64_t largest) {
  Sizes inputs = sizes_of(a.bits);
  inputs.erase(inputs.begin());
  check_sums(op, a, largest);
  // Only the gradient uses it, but a wrong one is a mistake at this call.
  if (a.count) check_operand(op, "count", *a.count, a.weight, inputs);
  if (a.scale) check_operand(op, "scale", *a.scale, a.weight, {geometry.out_channels});
  if (a.bias) check_operand(op, "bias", *a.bias, a.weight, {geometry.out_channels});
  if (a.packed) check_same_device(op, "packed", *a.packed, a.weight, "weight");
  const ScalarType type = current_type(a.weight);
  // Each its own tensor: an operator's outputs may not alias.
  const auto none = [&] { return no_tensor(op, a.weight, type); };
  const Tensor bits = channels_last(op, a.bits, feature_dim(inputs, linear) + 1);
  const std::optional<Tensor> scale = channels_last(op, a.scale, 0), bias = channels_last(op, a.bias, 0);
  if (scale) check_finite(op, "scale", *scale);
  if (bias) check_finite(op, "bias", *bias);
  return {geometry, bits,   a.weight,    a.packed,     scale,        bias,         engine_of(op, a.engine),
          a.radix,  type,   {},          std::nullopt, std::nullopt, std::nullopt, none(),
          none(),   none(), std::nullopt};
}

// What another branch adds to the plan's neurons: numbers of these sizes, whose features are dimension `dim`, or spikes
// [planes, *neurons], each of which brings its channel's amplitude.
void plan_added(const char* op, ProductPlan& plan, const std::optional<Tensor>& added,
                const std::optional<Tensor>& amplitude, int64_t time_steps, const Sizes& bit_sizes,
                const Sizes& number_sizes, int64_t dim) {
  TANDEM_CHECK(added || !amplitude, op, "amplitude must be None without added, got a tensor");
  if (!added) return;
  if (added->scalar_type() == ScalarType::Byte) {
    check_same_device(op, "added", *added, plan.weight, "weight");
    check_shape(op, "added", *added, bit_sizes);
    plan.added = channels_last(op, *added, dim + static_cast<int64_t>(bit_sizes.size() - number_sizes.size()));
    check_past_end(op, "added", *plan.added, time_steps);
  } else {
    check_operand(op, "added", *added, plan.weight, number_sizes);
    plan.added = channels_last(op, *added, dim);
  }
  if (amplitude) check_operand(op, "amplitude", *amplitude, plan.weight, {plan.geometry.out_channels});
  plan.amplitude = channels_last(op, amplitude, 0);
  if (plan.amplitude) check_finite(op, "amplitude", *plan.amplitude);
}

}  // namespace

void check_pair(const char* op, const char* argument, const Sizes& value, int64_t least) {
  TANDEM_CHECK(value.size() == 2 && value[0] >= least && value[1] >= least && value[0] <= kLargestParameter &&
                   value[1] <= kLargestParameter,
               op, argument, " must be two integers of at least ", least, " and at most 2^30, got ", to_string(value));
}

ConvGeometry conv2d_geometry(const char* op, const Sizes& input, const Tensor& weight, const Sizes& stride,
                             const Sizes& padding, const Sizes& dilation, int64_t groups) {
  const int64_t channels = input[1];
  check_pair(op, "stride", stride, 1);
  check_pair(op, "padding", padding, 0);
  check_pair(op, "dilation", dilation, 1);
  TANDEM_CHECK(weight.dim() == 4, op, "weight must be [O, C/groups, kH, kW], got ", shape(weight));
  TANDEM_CHECK(groups >= 1 && channels % groups == 0 && weight.size(0) % groups == 0, op,
               "groups must divide the input channels (", channels, ") and the output channels (", weight.size(0),
               "), got ", groups);
  TANDEM_CHECK(weight.size(1) == channels / groups, op, "weight must be [O, ", channels / groups, ", kH, kW] for ",
               channels, " input channels in ", groups, " groups, got ", shape(weight));
  TANDEM_CHECK(weight.size(0) >= 1 && weight.size(1) >= 1 && weight.size(2) >= 1 && weight.size(3) >= 1, op,
               "weight must have no empty dimension, got ", shape(weight));
  const Sizes w = sizes_of(weight);
  ConvGeometry g = {};
  g.batch = input[0], g.in_channels = channels, g.height = input[2], g.width = input[3];
  g.out_channels = w[0], g.kernel_h = w[2], g.kernel_w = w[3];
  g.stride_h = stride[0], g.stride_w = stride[1], g.padding_h = padding[0], g.padding_w = padding[1];
  g.dilation_h = dilation[0], g.dilation_w = dilation[1], g.groups = groups;
  g.out_height = out_size(op, "height", g.height, g.kernel_h, g.stride_h, g.padding_h, g.dilation_h);
  g.out_width = out_size(op, "width", g.width, g.kernel_w, g.stride_w, g.padding_w, g.dilation_w);
  checked_numel(op, {g.batch, g.out_channels, g.out_height, g.out_width, 8});
  check_packable(op, g);
  return g;
}

namespace {

// For an input [N, *, F], without planes.
ConvGeometry linear_geometry(const char* op, const Sizes& input, const Tensor& weight) {
  TANDEM_CHECK(weight.dim() == 2 && weight.size(0) >= 1 && weight.size(1) >= 1, op,
               "weight must be [O, F] with no empty dimension, got ", shape(weight));
  const int64_t features = input.back();
  TANDEM_CHECK(weight.size(1) == features, op, "weight must be [O, ", features, "] for an input [N, *, ", features,
               "], got ", shape(weight));
  ConvGeometry g = {};
  g.batch = 1;
  for (size_t d = 0; d + 1 < input.size(); ++d) g.batch *= input[d];
  g.in_channels = features, g.out_channels = weight.size(0);
  g.height = g.width = g.out_height = g.out_width = g.kernel_h = g.kernel_w = 1;
  g.stride_h = g.stride_w = g.dilation_h = g.dilation_w = g.groups = 1;
  checked_numel(op, {g.batch, g.out_channels, 8});
  if (g.batch > 0) check_packable(op, g);
  return g;
}

}  // namespace

ConvGeometry product_geometry(const char* op, const Tensor& bits, const Tensor& weight, const Sizes& stride,
                              const Sizes& padding, const Sizes& dilation, int64_t groups) {
  const bool linear = weight.dim() == 2;
  check_bits(op, bits, linear ? 3 : 5);
  TANDEM_CHECK(linear || bits.dim() == 5, op, "bits must be [P, N, C, H, W], got ", shape(bits));
  check_weight(op, bits, weight);
  Sizes input = sizes_of(bits);
  input.erase(input.begin());
  return product_geometry(op, input, weight, stride, padding, dilation, groups);
}

ConvGeometry product_geometry(const char* op, const Sizes& input, const Tensor& weight, const Sizes& stride,
                              const Sizes& padding, const Sizes& dilation, int64_t groups) {
  if (weight.dim() != 2) return conv2d_geometry(op, input, weight, stride, padding, dilation, groups);
  const Sizes ones = {1, 1}, zeros = {0, 0};
  TANDEM_CHECK(stride == ones, op, "stride must be [1, 1] for a weight [O, F], got ", to_string(stride));
  TANDEM_CHECK(padding == zeros, op, "padding must be [0, 0] for a weight [O, F], got ", to_string(padding));
  TANDEM_CHECK(dilation == ones, op, "dilation must be [1, 1] for a weight [O, F], got ", to_string(dilation));
  TANDEM_CHECK(groups == 1, op, "groups must be 1 for a weight [O, F], got ", groups);
  return linear_geometry(op, input, weight);
}

ConvGeometry weight_geometry(const char* op, const Tensor& weight, int64_t groups) {
  check_weight_type(op, weight);
  TANDEM_CHECK(weight.dim() == 2 || weight.dim() == 4, op, "weight must be [O, C/groups, kH, kW] or [O, F], got ",
               shape(weight));
  for (int64_t d = 0; d < weight.dim(); ++d) {
    TANDEM_CHECK(weight.size(d) >= 1, op, "weight must have no empty dimension, got ", shape(weight));
  }
  TANDEM_CHECK(groups >= 1 && weight.size(0) % groups == 0 && (weight.dim() == 4 || groups == 1), op,
               "groups must divide the output channels (", weight.size(0), ") and be 1 for a linear layer, got ",
               groups);
  ConvGeometry g = {};
  g.out_channels = weight.size(0), g.groups = groups;
  g.kernel_h = weight.dim() == 4 ? weight.size(2) : 1, g.kernel_w = weight.dim() == 4 ? weight.size(3) : 1;
  g.in_channels = checked_numel(op, {weight.size(1), groups});
  check_packable(op, g);
  return g;
}

void check_master(const char* op, const Tensor& weight, const std::optional<Tensor>& master,
                  const std::optional<Tensor>& unit) {
  TANDEM_CHECK(master.has_value() || !unit.has_value(), op, "unit must be None without master, got a tensor");
  if (!master) return;
  TANDEM_CHECK(is_integer(weight.scalar_type()), op,
               "master must be None for weights that are no integers, got a tensor");
  check_operand(op, "master", *master, weight, sizes_of(weight));
  if (unit) check_operand(op, "unit", *unit, weight, {weight.size(0)});
}

ProductPlan plan_product(const char* op, const ProductArguments& a, const ConvGeometry& geometry, bool linear,
                         const RadixArguments* firing) {
  TANDEM_CHECK(a.radix >= 0 && a.radix <= kStepsPerPlane, op, "radix must be from 0 to 8, got ", a.radix);
  TANDEM_CHECK(!a.radix || a.bits.size(0) == 1, op, "bits of radix spikes must have one plane, got ", shape(a.bits));
  ProductPlan plan = plan_inputs(op, a, geometry, linear, largest_input(a.radix, a.bits.size(0)));
  if (a.radix) check_past_end(op, "bits", plan.bits, a.radix);
  const Sizes neurons = neuron_sizes(a.bits, geometry, linear);
  const int64_t dim = feature_dim(neurons, linear);
  if (!firing) {
    plan.out_sum = empty_channels_last(op, a.weight, neurons, plan.type, dim);
    return plan;
  }
  check_radix_neurons(op, firing->neurons, plan.type);
  plan.radix_neurons = firing->neurons;
  Sizes bit_sizes = neurons;
  bit_sizes.insert(bit_sizes.begin(), 1);
  plan_added(op, plan, firing->added, firing->amplitude, firing->neurons.time_steps, bit_sizes, neurons, dim);
  plan.out_bits = empty_channels_last(op, a.bits, bit_sizes, ScalarType::Byte, dim + 1);
  return plan;
}

void add_sums(const char* op, ProductPlan& plan) {
  if (!plan.radix_neurons || plan.out_sum.numel() > 0) return;
  Sizes neurons = sizes_of(plan.out_bits);
  neurons.erase(neurons.begin());
  const int64_t dim = feature_dim(neurons, plan.weight.dim() == 2);
  plan.out_sum = empty_channels_last(op, plan.weight, neurons, plan.type, dim);
}

ProductPlan plan_steps(const char* op, const ProductArguments& a, int64_t time_steps, const ConvGeometry& geometry,
                       bool linear) {
  check_planes(op, a.bits, time_steps);
  ProductPlan plan = plan_inputs(op, a, geometry, linear, 1);
  check_past_end(op, "bits", plan.bits, time_steps);
  Sizes sizes = neuron_sizes(a.bits, geometry, linear);
  const int64_t dim = feature_dim(sizes, linear);
  sizes.insert(sizes.begin(), time_steps);
  checked_numel(op, sizes);
  plan.out_sum = empty_channels_last(op, a.weight, sizes, plan.type, dim + 1);
  return plan;
}

ProductPlan plan_spiking(const char* op, const ProductArguments& a, const SpikingArguments& s,
                         const ConvGeometry& geometry, bool linear) {
  check_planes(op, a.bits, s.time_steps);
  const Neuron neuron = checked_neuron(op, s.neuron, s.parameters, current_type(a.weight));
  ProductPlan plan = plan_inputs(op, a, geometry, linear, 1);
  plan.neuron = neuron;
  check_past_end(op, "bits", plan.bits, s.time_steps);
  const Sizes neurons = neuron_sizes(a.bits, geometry, linear);
  const int64_t dim = feature_dim(neurons, linear);
  const Sizes states = state_sizes(neuron, neurons);
  if (s.state) check_operand(op, "state", *s.state, a.weight, states);
  plan.initial = channels_last(op, s.state, dim + 1);
  Sizes bit_sizes = neurons;
  bit_sizes.insert(bit_sizes.begin(), a.bits.size(0));
  checked_numel(op, bit_sizes);
  Sizes current_sizes = bit_sizes;
  current_sizes[0] = s.time_steps;
  plan_added(op, plan, s.added, s.amplitude, s.time_steps, bit_sizes, current_sizes, dim + 1);
  plan.out_bits = empty_channels_last(op, a.bits, bit_sizes, ScalarType::Byte, dim + 1);
  if (s.want_sum) plan.out_sum = empty_channels_last(op, a.weight, neurons, plan.type, dim);
  if (s.want_state) plan.out_state = empty_channels_last(op, a.weight, states, plan.type, dim + 1);
  return plan;
}

}  // namespace tandem
