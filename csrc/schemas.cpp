// Every operator of the library, one schema each. Implementations register themselves in csrc/ops; fake kernels and
// autograd formulas are in tandem_cuda/ops, beside the Python functions.
//
// T: time steps. P = ceil(T / 8): bit planes. N: batch. `bits` is uint8 [P, N, C, *spatial], features last in memory;
// bit i of plane p is the spike at step 8p + i, unused high bits are zero.
//
// neuron: the number of a neuron model in csrc/neuron/models.h, and `parameters` what its header lists. `state` holds
// its S variables, [S, N, C, *spatial], the first of them the membrane potential u before its reset. Passing the state
// that a call returned continues the simulation where that call stopped.
//
// radix: `bits` has one plane, whose bytes are the values of radix spikes: bit T - t is the spike of time step t, which
// weighs 2^(T - t).
//
// Outputs that a `want_*` flag turned off are empty tensors of shape [0]. engine: 0 auto, 1 event, 2 dense. mode: 0
// constant, 1 impulse, 2 series, 3 once. They are no strings because torch's stable ABI (2.13) leaks every string
// argument.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(tandem_cuda, m) {
  // [T, N, C, *spatial] of 0 and 1 (floating point, bool or uint8) -> bits [P, N, C, *spatial]
  m.def("pack_spikes(Tensor spikes) -> Tensor");

  // bits [P, N, C, *spatial] -> [T, N, C, *spatial] of 0 and 1
  m.def("unpack_spikes(Tensor bits, int time_steps, ScalarType dtype) -> Tensor");

  // bits [P, N, C, *spatial] -> spikes per neuron [N, C, *spatial]
  m.def("spike_count(Tensor bits, ScalarType dtype) -> Tensor");

  // Max pooling by count: the output's count after any number of steps is the largest of its window's, padding aside.
  // bits: [P, N, C, H, W]; count: int32 [N, C, H, W], the spikes of earlier time steps, or none; radix: whether bits
  // are radix spikes, of which the largest value is taken
  // -> bits [P, N, C, Ho, Wo], count after the last step, int32 [N, C, H, W]
  m.def(
      "max_pool_spikes(Tensor bits, Tensor? count, int[2] kernel_size, int[2] stride, int[2] padding, int[2] dilation, "
      "bool ceil_mode, int time_steps, bool want_count, bool radix=False) -> (Tensor, Tensor)");

  // The tandem coupling. Forward: spike_count(bits) in the dtype of pre_activation, or with radix the value of the
  // spikes. Backward: the gradient of the ANN activation relu(pre_activation) / threshold (IF), zero above `upper`, or
  // of the soft LIF rate (LIF). pre_activation: [N, C, *spatial], the current summed over all time steps
  m.def(
      "tandem_count(Tensor bits, Tensor pre_activation, int time_steps, int neuron, float[] parameters, float upper, "
      "bool radix=False) -> Tensor");

  // The gradient of relu(pre_activation) / threshold: grad / threshold where 0 < pre_activation <= upper, elsewhere 0,
  // whatever grad is there. grad: like pre_activation, any shape -> the same, laid out in memory as pre_activation
  m.def("tandem_count_backward(Tensor grad, Tensor pre_activation, float threshold, float upper) -> Tensor");

  // The tandem coupling behind batch norm, for neurons without leak. Forward: tandem_count's, in the dtype of product.
  // Backward: tandem_count's gradient for the pre-activation gamma * unit * (product - mean) / sqrt(unit^2 * var + eps)
  // + beta, led on to product, also through mean and var, which have to be its own over all but dimension 1 (var:
  // biased), gamma and beta. product: [N, C, *spatial]; the vectors: [C] -> [N, C, *spatial]
  m.def(
      "tandem_norm_count(Tensor bits, Tensor product, Tensor mean, Tensor var, Tensor gamma, Tensor beta, float eps, "
      "int time_steps, float threshold, float upper, Tensor? unit, bool radix=False) -> Tensor");

  // Its gradients of gamma and beta, each [C], which are sums over all but dimension 1. grad: [N, C, *spatial]
  m.def(
      "tandem_norm_count_sums(Tensor grad, Tensor product, Tensor mean, Tensor var, Tensor gamma, Tensor beta, "
      "float eps, float threshold, float upper, Tensor? unit) -> (Tensor, Tensor)");

  // Its gradient of product. Where other processes have parts of the batch, mean and var are of the whole batch, and
  // the gradients of gamma and beta are the sums of all processes' ones; rows: [1], values of a channel in all of them,
  // in the dtype of product; else none
  m.def(
      "tandem_norm_count_gradient(Tensor grad, Tensor product, Tensor mean, Tensor var, Tensor gamma, Tensor beta, "
      "Tensor grad_gamma, Tensor grad_beta, Tensor? rows, float eps, float threshold, float upper, Tensor? unit) "
      "-> Tensor");

  // Batch norm's running statistics, moved towards those of repeats * unit * product + missing. mean, var: [C], of
  // product [N, C, *spatial] itself, var biased; product: for its shape; missing, unit: [C], or none;
  // momentum_now: float64 [], which is read in place of momentum
  m.def(
      "update_statistics_(Tensor(a!) running_mean, Tensor(b!) running_var, Tensor(c!) num_batches_tracked, "
      "Tensor mean, Tensor var, Tensor product, Tensor? missing, float momentum, float repeats, Tensor? unit, "
      "Tensor? momentum_now=None) -> ()");

  // Batch norm with running statistics as an affine map of sums, for spikes of this amplitude, whose bias enters at
  // each of time_steps steps: g = gamma / sqrt(running_var + eps); unit * g * amplitude and ((bias - running_mean) * g
  // + beta) / time_steps. All vectors: [C]; what is none is left out -> [C], [C]
  m.def(
      "fold_norm(Tensor running_mean, Tensor running_var, Tensor? gamma, Tensor? beta, Tensor? bias, Tensor? unit, "
      "float eps, float amplitude, int time_steps) -> (Tensor, Tensor)");

  // x[t] = scale * current + bias (constant); the same at t = 1, then bias (impulse) or nothing (once); or
  // scale * current[t] + bias (series). scale: [C]
  // current: [N, C, *spatial], series [T, N, C, *spatial]; bias: [C], per time step; state: [S, N, C, *spatial]
  // -> bits [P, N, C, *spatial], sum over t of x[t] [N, C, *spatial], final state [S, N, C, *spatial]
  m.def(
      "integrate_and_fire(Tensor current, Tensor? scale, Tensor? bias, Tensor? state, int time_steps, int mode, "
      "int neuron, float[] parameters, bool want_sum, bool want_state) -> (Tensor, Tensor, Tensor)");

  // The spikes of radix neurons. u = scale * current + bias + initial * threshold; then at each time step t = 1..T a
  // neuron spikes where u >= h = threshold * 2^(T - t), and u -= h there. T is at most 8. current: [N, C, *spatial],
  // summed over all time steps; scale: [C]; bias: [C], which is added once
  // -> bits [1, N, C, *spatial] of the values, u after the last step [1, N, C, *spatial]
  m.def(
      "radix_spikes(Tensor current, Tensor? scale, Tensor? bias, int time_steps, float threshold, float initial, "
      "bool want_state) -> (Tensor, Tensor)");

  // The weights of a product in the order of the event-driven kernels, to be passed as `packed` as long as they stay as
  // they are. weight: [O, F] or [O, C/groups, kH, kW] -> [n]; int16 for int8 weights, int32
  // for int16 ones
  m.def("pack_weight(Tensor weight, int groups) -> Tensor");
  m.def("pack_weight_out(Tensor weight, int groups, Tensor(a!) out) -> ()");

  // The same, unless `out` holds these weights already, on CUDA alone. state: int64 [256], zeros before the first call,
  // later what the last call left; out: what the last call for weights of this shape, dtype and strides has filled.
  m.def("pack_weight_if_changed(Tensor weight, int groups, Tensor(a!) out, Tensor(b!) state) -> ()");

  // x[t] = scale * (weight * s[t]) + bias, then the neuron loop. A weight [O, C/groups, kH, kW] makes a 2-D convolution
  // of bits [P, N, C, H, W]. A weight [O, F] makes a linear product: bits [P, N, *, F], outputs [N, *, O] in place of
  // [N, O, Ho, Wo]; stride and dilation must be (1, 1), padding (0, 0) and groups 1. packed: pack_weight(weight);
  // scale: [O], must be given with int8 and int16 weights; bias: [O], per time step; state: [S, N, O, Ho, Wo]; count:
  // [N, C, H, W] carries the gradient to the layer below and is not read in the forward pass; master: the float weights
  // that integer weights times unit, [O], stand for, which get the gradient and are not read either; added: currents
  // [T, N, O, Ho, Wo] of another branch, which are added to x, or its bits [P, N, O, Ho, Wo], each spike of which adds
  // `amplitude`, [O], or 1
  // -> bits [P, N, O, Ho, Wo], sum over t of x[t] [N, O, Ho, Wo], final state [S, N, O, Ho, Wo]
  m.def(
      "spiking_product(Tensor bits, Tensor? count, Tensor weight, Tensor? packed, Tensor? scale, Tensor? bias, "
      "Tensor? state, int[2] stride, int[2] padding, int[2] dilation, int groups, int time_steps, int neuron, "
      "float[] parameters, int engine, bool want_sum, bool want_state, Tensor? master, "
      "Tensor? unit, Tensor? added, Tensor? amplitude) -> (Tensor, Tensor, Tensor)");

  // scale * (weight * (spike count of bits)) + bias; what batch norm needs before the neurons can fire. Arguments as
  // above. radix: 0, or T of radix spikes, whose values the weights multiply in place of counts -> [N, O, Ho, Wo] or
  // [N, *, O]
  m.def(
      "count_product(Tensor bits, Tensor? count, Tensor weight, Tensor? packed, Tensor? scale, Tensor? bias, "
      "int[2] stride, int[2] padding, int[2] dilation, int groups, int engine, Tensor? master, "
      "Tensor? unit, int radix=0) -> Tensor");

  // The spikes of radix neurons that such sums drive: radix_spikes(count_product(...), ...) without a gradient.
  // Arguments as there. added: what another branch adds to the sums, [N, O, Ho, Wo] or [N, *, O], or its spikes uint8
  // [1, N, ...], whose values `amplitude` [O] multiplies -> bits [1, N, O, Ho, Wo] or [1, N, *, O]
  m.def(
      "radix_product(Tensor bits, Tensor weight, Tensor? packed, Tensor? scale, Tensor? bias, int[2] stride, "
      "int[2] padding, int[2] dilation, int groups, int engine, int radix, int time_steps, "
      "float threshold, float initial, Tensor? added, Tensor? amplitude) -> Tensor");

  // scale * (weight * s[t]) + bias for t = 1..T: the currents of a spiking product, without neurons, by its
  // event-driven engine. Arguments as above -> [T, N, O, Ho, Wo] or [T, N, *, O]
  m.def(
      "step_product(Tensor bits, Tensor weight, Tensor? packed, Tensor? scale, Tensor? bias, int[2] stride, "
      "int[2] padding, int[2] dilation, int groups, int time_steps) -> Tensor");

  // weight * input for real input and integer weights, the same to the bit everywhere: each product is rounded to
  // float32 and added to the sum of those before it, taps in order and channels innermost. input: float32 [N, C, H, W]
  // or [N, *, F]; other arguments as above -> [N, O, Ho, Wo] or [N, *, O]
  m.def(
      "ordered_product(Tensor input, Tensor weight, Tensor? packed, int[2] stride, int[2] padding, int[2] dilation, "
      "int groups, Tensor? master, Tensor? unit) -> Tensor");

  // The spikes of neurons that such sums drive: integrate_and_fire(ordered_product(...), ...) without sum and state.
  // scale, bias: [O]; mode: not series; other arguments as there -> bits [P, N, O, Ho, Wo] or [P, N, *, O]
  m.def(
      "ordered_spikes(Tensor input, Tensor weight, Tensor? packed, Tensor? scale, Tensor? bias, int[2] stride, "
      "int[2] padding, int[2] dilation, int groups, int time_steps, int mode, int neuron, float[] parameters) -> "
      "Tensor");

  // The same with radix neurons: radix_spikes(ordered_product(...), ...) -> bits [1, N, O, Ho, Wo] or [1, N, *, O]
  m.def(
      "ordered_radix_spikes(Tensor input, Tensor weight, Tensor? packed, Tensor? scale, Tensor? bias, int[2] stride, "
      "int[2] padding, int[2] dilation, int groups, int time_steps, float threshold, float initial) -> Tensor");

  // The nearest integers to weight / scale, where the largest of an output channel becomes `largest`, 127 (int8) or
  // 32639 (int16); a channel of zeros has scale 1. weight: float32 [O, ...] -> integers [O, ...], scale [O]
  m.def("quantise_weight(Tensor weight, int largest) -> (Tensor, Tensor)");

  // The gradient of such a convolution with respect to its weights; sparse where the counts are.
  // grad: [N, O, Ho, Wo]; count: [N, C, H, W]; weight: for its shape -> [O, C/groups, kH, kW], contiguous
  m.def(
      "conv2d_weight_gradient(Tensor grad, Tensor count, Tensor weight, int[2] stride, int[2] padding, "
      "int[2] dilation, int groups) -> Tensor");
}
