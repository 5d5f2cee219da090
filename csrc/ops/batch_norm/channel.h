// What happens to the numbers of one channel: the only definition, on the host and on the device. The spikes of
// training and eval mode agree only if every rounding does. Torch-free.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/host_device.h"

namespace tandem {

// T: float or double. Vectors are [channels].
template <class T>
struct UpdateStatisticsArgs {
  T *running_mean, *running_var;
  int64_t* num_batches_tracked;
  const T *mean, *var;      // of the batch
  const T *missing, *unit;  // each may be null
  double repeats, momentum;
  const double* momentum_now;  // in place of momentum, where it is not null
  int64_t values;              // of a channel, two or more
  int64_t channels;
};

// What the numbers of every channel are multiplied by: computed in double precision, as Python does, and rounded once.
template <class T>
struct UpdateFactors {
  T repeats;
  T kept;                 // part of the old value in the new one
  T part_mean, part_var;  // factors of the batch's
};

template <class T>
TANDEM_HOST_DEVICE UpdateFactors<T> factors_of(const UpdateStatisticsArgs<T>& a) {
  const double momentum = a.momentum_now == nullptr ? a.momentum : *a.momentum_now;
  const double values = static_cast<double>(a.values), others = static_cast<double>(a.values - 1);
  return {static_cast<T>(a.repeats), static_cast<T>(1 - momentum), static_cast<T>(momentum),
          static_cast<T>(a.repeats * a.repeats * momentum * values / others)};
}

template <class T>
TANDEM_HOST_DEVICE void update_channel(const UpdateStatisticsArgs<T>& a, const UpdateFactors<T>& by, int64_t c) {
  const T mean_v = a.unit == nullptr ? a.mean[c] : a.mean[c] * a.unit[c];
  const T var_v = a.unit == nullptr ? a.var[c] : a.var[c] * a.unit[c] * a.unit[c];
  const T scaled = mean_v * by.repeats;
  const T mean = a.missing == nullptr ? scaled : scaled + a.missing[c];
  a.running_mean[c] = a.running_mean[c] * by.kept + mean * by.part_mean;
  a.running_var[c] = a.running_var[c] * by.kept + var_v * by.part_var;
}

template <class T>
struct FoldNormArgs {
  const T *running_mean, *running_var;
  const T *gamma, *beta, *bias, *unit;  // each may be null
  T *gain_out, *bias_out;
  T eps, amplitude, time_steps;
  int64_t channels;
};

template <class T>
TANDEM_HOST_DEVICE void fold_channel(const FoldNormArgs<T>& a, int64_t c) {
  const T root = static_cast<T>(std::sqrt(static_cast<double>(a.running_var[c] + a.eps)));
  const T gain = (a.gamma == nullptr ? T(1) : a.gamma[c]) / root;
  const T centred = (a.bias == nullptr ? -a.running_mean[c] : a.bias[c] - a.running_mean[c]) * gain;
  a.gain_out[c] = (a.unit == nullptr ? gain : a.unit[c] * gain) * a.amplitude;
  a.bias_out[c] = (a.beta == nullptr ? centred : centred + a.beta[c]) / a.time_steps;
}

}  // namespace tandem
