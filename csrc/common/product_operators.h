// The arguments of the product operators, in the order of their schemas, for a device's products.
#pragma once

#include <tuple>

#include "common/product_plan.h"

namespace tandem {

using SpikingProduct = std::tuple<Tensor, Tensor, Tensor>(const char* op, const ProductArguments&,
                                                          const SpikingArguments&, const ConvGeometry&, bool linear);
using CountProduct = Tensor(const char* op, const ProductArguments&, const ConvGeometry&, bool linear);

template <SpikingProduct* kProduct>
std::tuple<Tensor, Tensor, Tensor> spiking_linear(const Tensor& bits, const std::optional<Tensor>& count,
                                                  const Tensor& weight, const std::optional<Tensor>& packed,
                                                  const std::optional<Tensor>& scale, const std::optional<Tensor>& bias,
                                                  const std::optional<Tensor>& potential, int64_t time_steps,
                                                  double threshold, double leak, int64_t engine, int64_t terms,
                                                  bool want_sum, bool want_potential) {
  const char* op = "spiking_linear";
  return kProduct(op, {bits, count, weight, packed, scale, bias, engine, terms},
                  {potential, time_steps, threshold, leak, want_sum, want_potential}, linear_geometry(op, bits, weight),
                  true);
}

template <SpikingProduct* kProduct>
std::tuple<Tensor, Tensor, Tensor> spiking_conv2d(const Tensor& bits, const std::optional<Tensor>& count,
                                                  const Tensor& weight, const std::optional<Tensor>& packed,
                                                  const std::optional<Tensor>& scale, const std::optional<Tensor>& bias,
                                                  const std::optional<Tensor>& potential, const Sizes& stride,
                                                  const Sizes& padding, const Sizes& dilation, int64_t groups,
                                                  int64_t time_steps, double threshold, double leak, int64_t engine,
                                                  int64_t terms, bool want_sum, bool want_potential) {
  const char* op = "spiking_conv2d";
  return kProduct(op, {bits, count, weight, packed, scale, bias, engine, terms},
                  {potential, time_steps, threshold, leak, want_sum, want_potential},
                  conv2d_geometry(op, bits, weight, stride, padding, dilation, groups), false);
}

template <CountProduct* kProduct>
Tensor count_linear(const Tensor& bits, const std::optional<Tensor>& count, const Tensor& weight,
                    const std::optional<Tensor>& packed, const std::optional<Tensor>& scale,
                    const std::optional<Tensor>& bias, int64_t engine, int64_t terms) {
  const char* op = "count_linear";
  return kProduct(op, {bits, count, weight, packed, scale, bias, engine, terms}, linear_geometry(op, bits, weight),
                  true);
}

template <CountProduct* kProduct>
Tensor count_conv2d(const Tensor& bits, const std::optional<Tensor>& count, const Tensor& weight,
                    const std::optional<Tensor>& packed, const std::optional<Tensor>& scale,
                    const std::optional<Tensor>& bias, const Sizes& stride, const Sizes& padding, const Sizes& dilation,
                    int64_t groups, int64_t engine, int64_t terms) {
  const char* op = "count_conv2d";
  return kProduct(op, {bits, count, weight, packed, scale, bias, engine, terms},
                  conv2d_geometry(op, bits, weight, stride, padding, dilation, groups), false);
}

}  // namespace tandem
