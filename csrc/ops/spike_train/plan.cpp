#include "ops/spike_train/plan.h"

#include <algorithm>

namespace tandem {

namespace {

// Features are dimension 2 of a train [T or P, N, C, *spatial], its last one where there is no dimension 2.
int64_t train_feature_dim(int64_t dims) { return std::min<int64_t>(2, dims - 1); }

}  // namespace

Sizes without_time(const Tensor& train) {
  Sizes sizes = sizes_of(train);
  sizes.erase(sizes.begin());
  return sizes;
}

TrainPlan plan_count(const char* op, const Tensor& bits, ScalarType dtype) {
  TrainPlan plan;
  dispatch_floating(op, dtype, [&](auto) {
    const int64_t feature_dim = train_feature_dim(bits.dim());
    plan.in = channels_last(op, bits, feature_dim);
    plan.out = empty_channels_last(op, bits, without_time(bits), dtype, feature_dim - 1);
    plan.neurons = plan.out.numel();
  });
  return plan;
}

TrainPlan plan_pack_spikes(const Tensor& spikes) {
  const char* op = "pack_spikes";
  TANDEM_CHECK(spikes.dim() >= 2, op, "spikes must be [T, N, ...], got ", shape(spikes));
  check_time_steps(op, spikes.size(0));
  TrainPlan plan;
  dispatch_dense(op, "spikes", spikes.scalar_type(), [&](auto) {
    const int64_t feature_dim = train_feature_dim(spikes.dim());
    Sizes sizes = sizes_of(spikes);
    sizes[0] = planes_for(spikes.size(0));
    plan.in = channels_last(op, spikes, feature_dim);
    plan.out = empty_channels_last(op, spikes, sizes, ScalarType::Byte, feature_dim);
    plan.neurons = plan.out.numel() / sizes[0];
  });
  return plan;
}

TrainPlan plan_unpack_spikes(const Tensor& bits, int64_t time_steps, ScalarType dtype) {
  const char* op = "unpack_spikes";
  check_bits(op, bits, 2);
  check_planes(op, bits, time_steps);
  Sizes sizes = sizes_of(bits);
  sizes[0] = time_steps;
  checked_numel(op, sizes);
  TrainPlan plan;
  dispatch_dense(op, "dtype", dtype, [&](auto) {
    const int64_t feature_dim = train_feature_dim(bits.dim());
    plan.in = channels_last(op, bits, feature_dim);
    check_past_end(op, "bits", plan.in, time_steps);
    plan.out = empty_channels_last(op, bits, sizes, dtype, feature_dim);
    plan.neurons = bits.numel() / bits.size(0);
  });
  return plan;
}

TrainPlan plan_spike_count(const Tensor& bits, ScalarType dtype) {
  const char* op = "spike_count";
  check_bits(op, bits, 2);
  return plan_count(op, bits, dtype);
}

}  // namespace tandem
