// The arguments of the product operators, in the order of their schemas, for a device's products.
#pragma once

#include <tuple>
#include <vector>

#include "ops/product/plan.h"

namespace tandem {

using SpikingProduct = std::tuple<Tensor, Tensor, Tensor>(const char* op, const ProductArguments&,
                                                          const SpikingArguments&, const ConvGeometry&, bool linear);
// With neurons it returns their bits, else the sums.
using CountProduct = Tensor(const char* op, const ProductArguments&, const ConvGeometry&, bool linear,
                            const RadixArguments* firing);

template <SpikingProduct* kProduct>
std::tuple<Tensor, Tensor, Tensor> spiking_product(
    const Tensor& bits, const std::optional<Tensor>& count, const Tensor& weight, const std::optional<Tensor>& packed,
    const std::optional<Tensor>& scale, const std::optional<Tensor>& bias, const std::optional<Tensor>& state,
    const Sizes& stride, const Sizes& padding, const Sizes& dilation, int64_t groups, int64_t time_steps,
    int64_t neuron, const std::vector<double>& parameters, int64_t engine, bool want_sum, bool want_state,
    const std::optional<Tensor>& master, const std::optional<Tensor>& unit, const std::optional<Tensor>& added,
    const std::optional<Tensor>& amplitude) {
  const bool linear = weight.dim() == 2;
  const char* op = linear ? "spiking_linear" : "spiking_conv2d";  // as the Python functions are called
  const ConvGeometry geometry = product_geometry(op, bits, weight, stride, padding, dilation, groups);
  check_master(op, weight, master, unit);
  return kProduct(op, {bits, count, weight, packed, scale, bias, engine, 0},
                  {state, time_steps, neuron, parameters, want_sum, want_state, added, amplitude}, geometry, linear);
}

template <CountProduct* kProduct>
Tensor count_product(const Tensor& bits, const std::optional<Tensor>& count, const Tensor& weight,
                     const std::optional<Tensor>& packed, const std::optional<Tensor>& scale,
                     const std::optional<Tensor>& bias, const Sizes& stride, const Sizes& padding,
                     const Sizes& dilation, int64_t groups, int64_t engine, const std::optional<Tensor>& master,
                     const std::optional<Tensor>& unit, int64_t radix) {
  const bool linear = weight.dim() == 2;
  const char* op = linear ? "count_linear" : "count_conv2d";
  const ConvGeometry geometry = product_geometry(op, bits, weight, stride, padding, dilation, groups);
  check_master(op, weight, master, unit);
  return kProduct(op, {bits, count, weight, packed, scale, bias, engine, radix}, geometry, linear, nullptr);
}

template <CountProduct* kProduct>
Tensor radix_product(const Tensor& bits, const Tensor& weight, const std::optional<Tensor>& packed,
                     const std::optional<Tensor>& scale, const std::optional<Tensor>& bias, const Sizes& stride,
                     const Sizes& padding, const Sizes& dilation, int64_t groups, int64_t engine, int64_t radix,
                     int64_t time_steps, double threshold, double initial, const std::optional<Tensor>& added,
                     const std::optional<Tensor>& amplitude) {
  const bool linear = weight.dim() == 2;
  const char* op = linear ? "count_linear" : "count_conv2d";
  const ConvGeometry geometry = product_geometry(op, bits, weight, stride, padding, dilation, groups);
  const std::optional<Tensor> no_count;
  const RadixArguments firing = {{time_steps, threshold, initial}, added, amplitude};
  return kProduct(op, {bits, no_count, weight, packed, scale, bias, engine, radix}, geometry, linear, &firing);
}

}  // namespace tandem
