// pack_spikes, unpack_spikes, spike_count and tandem_count on the CPU: dense trains at the edges, bit planes within.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <atomic>

#include "common/tensors.h"
#include "cpu/isa.h"
#include "cpu/kernels/kernels.h"
#include "cpu/parallel.h"

namespace tandem {

namespace {

constexpr int64_t kGrain = 16384;

// Features are dimension 2 of a train [T or P, N, C, *spatial], its last one where there is no dimension 2.
int64_t train_feature_dim(int64_t dims) { return std::min<int64_t>(2, dims - 1); }

Sizes without_time(const Tensor& train) {
  Sizes sizes = sizes_of(train);
  sizes.erase(sizes.begin());
  return sizes;
}

template <class F>
void dispatch_dense(const char* op, const char* argument, ScalarType type, F&& f) {
  if (type == ScalarType::Bool || type == ScalarType::Byte) {
    f(uint8_t{});  // torch's bool is a byte of 0 or 1
  } else {
    check(type == ScalarType::Float || type == ScalarType::Double, op, argument,
          " must be float32, float64, bool or uint8, got ", name_of(type));
    dispatch_floating(op, type, f);
  }
}

Tensor pack_spikes(const Tensor& spikes) {
  const char* op = "pack_spikes";
  check(spikes.dim() >= 2, op, "spikes must be [T, N, ...], got ", shape(spikes));
  check_time_steps(op, spikes.size(0));
  const int64_t feature_dim = train_feature_dim(spikes.dim());
  const int64_t time_steps = spikes.size(0);
  Sizes sizes = sizes_of(spikes);
  sizes[0] = planes_for(time_steps);
  const Tensor bits = empty_channels_last(spikes, sizes, ScalarType::Byte, feature_dim);
  dispatch_dense(op, "spikes", spikes.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const Tensor in = channels_last(spikes, feature_dim);
    const T* dense = static_cast<const T*>(in.const_data_ptr());
    uint8_t* out = static_cast<uint8_t*>(bits.mutable_data_ptr());
    const int64_t neurons = in.numel() / time_steps;
    std::atomic<bool> binary{true};
    parallel_ranges(neurons, kGrain, [&](int64_t begin, int64_t end) {
      if (!kernels().dense<T>().pack(dense, time_steps, neurons, begin, end, out)) binary = false;
    });
    if (!binary) {
      const T* odd = std::find_if(dense, dense + in.numel(), [](T x) { return !(x == 0 || x == 1); });
      check(false, op, "spikes must be 0 or 1, got ", static_cast<double>(*odd));
    }
  });
  return bits;
}

Tensor unpack_spikes(const Tensor& bits, int64_t time_steps, ScalarType dtype) {
  const char* op = "unpack_spikes";
  check_bits(op, bits, 2);
  check_planes(op, bits, time_steps);
  const int64_t feature_dim = train_feature_dim(bits.dim());
  Sizes sizes = sizes_of(bits);
  sizes[0] = time_steps;
  checked_numel(op, sizes);
  const Tensor in = channels_last(bits, feature_dim);
  Tensor dense;
  dispatch_dense(op, "dtype", dtype, [&](auto type) {
    using T = decltype(type);
    dense = empty_channels_last(bits, sizes, dtype, feature_dim);
    const uint8_t* from = static_cast<const uint8_t*>(in.const_data_ptr());
    T* to = static_cast<T*>(dense.mutable_data_ptr());
    const int64_t neurons = in.numel() / in.size(0);
    parallel_ranges(neurons, kGrain, [&](int64_t begin, int64_t end) {
      kernels().dense<T>().unpack(from, neurons, time_steps, neurons, begin, end, to);
    });
  });
  return dense;
}

Tensor count_as(const char* op, const Tensor& bits, ScalarType dtype) {
  const int64_t feature_dim = train_feature_dim(bits.dim());
  const Tensor in = channels_last(bits, feature_dim);
  Tensor count;
  dispatch_floating(op, dtype, [&](auto type) {
    using T = decltype(type);
    count = empty_channels_last(bits, without_time(bits), dtype, feature_dim - 1);
    const uint8_t* from = static_cast<const uint8_t*>(in.const_data_ptr());
    T* to = static_cast<T*>(count.mutable_data_ptr());
    const int64_t planes = in.size(0), neurons = in.numel() / planes;
    const TypedKernels<T>& k = kernels().typed<T>();
    parallel_ranges(neurons, kGrain,
                    [&](int64_t begin, int64_t end) { k.spike_count(from, planes, neurons, begin, end, to); });
  });
  return count;
}

Tensor spike_count(const Tensor& bits, ScalarType dtype) {
  check_bits("spike_count", bits, 2);
  return count_as("spike_count", bits, dtype);
}

Tensor tandem_count(const Tensor& bits, const Tensor& pre_activation, int64_t time_steps, double threshold, double leak,
                    double upper) {
  const char* op = "tandem_count";
  check_bits(op, bits, 2);
  check_planes(op, bits, time_steps);
  check_neuron(op, threshold, leak);
  check(upper > 0, op, "upper must be positive, got ", upper);
  check_floating(op, "pre_activation", pre_activation);
  check_same_device(op, "pre_activation", pre_activation, bits, "bits");
  check_shape(op, "pre_activation", pre_activation, without_time(bits));
  return count_as(op, bits, pre_activation.scalar_type());
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(tandem_cuda, CPU, m) {
  m.impl("pack_spikes", TORCH_BOX(&pack_spikes));
  m.impl("unpack_spikes", TORCH_BOX(&unpack_spikes));
  m.impl("spike_count", TORCH_BOX(&spike_count));
  m.impl("tandem_count", TORCH_BOX(&tandem_count));
}

}  // namespace tandem
