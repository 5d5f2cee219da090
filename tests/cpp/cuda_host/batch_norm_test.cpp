// The device's operators of batch norm, run on the host, against their formulas in the order in which torch computes
// them, to the bit.
#include "ops/batch_norm/batch_norm.cu"

#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <memory>
#include <random>

namespace {

using namespace tandem;

std::mt19937 generator(7);

// Without an element to spare: a sanitizer sees the first one too many.
template <class T>
struct Vector {
  explicit Vector(int64_t n) : data(new T[static_cast<size_t>(n)]), size(static_cast<size_t>(n)) {}
  T& operator[](size_t i) { return data[i]; }
  Vector copy() const {
    Vector out(static_cast<int64_t>(size));
    if (size != 0) std::memcpy(out.data.get(), data.get(), size * sizeof(T));
    return out;
  }

  std::unique_ptr<T[]> data;
  size_t size;
};

template <class T>
Vector<T> drawn(int64_t n, T least) {
  Vector<T> out(n);
  for (size_t i = 0; i < out.size; ++i) out[i] = std::uniform_real_distribution<T>(least, T(3))(generator);
  if (n > 3) out[3] = std::numeric_limits<T>::infinity();
  return out;
}

template <class T>
bool differ(T got, T want) {
  return std::isnan(want) ? !std::isnan(got) : std::memcmp(&got, &want, sizeof(T)) != 0;
}

template <class T>
int check_update(int64_t channels, bool with_missing, bool with_unit, bool on_device) {
  auto running_mean = drawn<T>(channels, -3), running_var = drawn<T>(channels, 0);
  auto mean = drawn<T>(channels, -3), var = drawn<T>(channels, 0), missing = drawn<T>(channels, -3);
  auto unit = drawn<T>(channels, 0);
  auto old_mean = running_mean.copy(), old_var = running_var.copy();
  std::unique_ptr<int64_t> batches(new int64_t(41));
  UpdateStatisticsArgs<T> args = {};
  args.running_mean = running_mean.data.get(), args.running_var = running_var.data.get();
  args.num_batches_tracked = batches.get();
  args.mean = mean.data.get(), args.var = var.data.get();
  args.missing = with_missing ? missing.data.get() : nullptr;
  args.unit = with_unit ? unit.data.get() : nullptr;
  std::unique_ptr<double> momentum(new double(0.1));
  args.repeats = 1.0 / 7, args.momentum = on_device ? 0.9 : 0.1,
  args.momentum_now = on_device ? momentum.get() : nullptr;
  args.values = 11;
  args.channels = channels;
  if (launch_update_statistics(args, nullptr) != cudaSuccess) return 1;
  int wrong = *batches != 42;
  for (size_t c = 0; c < running_mean.size; ++c) {
    const T mean_v = with_unit ? mean[c] * unit[c] : mean[c];
    const T partly = var[c] * unit[c], var_v = with_unit ? partly * unit[c] : var[c];
    const T scaled = mean_v * T(1.0 / 7), of_v = with_missing ? scaled + missing[c] : scaled;
    const T kept_mean = old_mean[c] * T(0.9), new_mean = of_v * T(0.1);
    const T kept_var = old_var[c] * T(0.9), new_var = var_v * T(1.0 / 7 * (1.0 / 7) * 0.1 * 11 / 10);
    wrong += differ(running_mean[c], kept_mean + new_mean) + differ(running_var[c], kept_var + new_var);
  }
  return wrong;
}

// given: one bit for each of the optional vectors.
template <class T>
int check_fold(int64_t channels, unsigned given) {
  auto mean = drawn<T>(channels, -3), var = drawn<T>(channels, 0);
  auto gamma = drawn<T>(channels, -3), beta = drawn<T>(channels, -3), bias = drawn<T>(channels, -3);
  auto unit = drawn<T>(channels, 0);
  Vector<T> gain_out(channels), bias_out(channels);
  const bool has_gamma = given & 1, has_beta = given & 2, has_bias = given & 4, has_unit = given & 8;
  FoldNormArgs<T> args = {};
  args.running_mean = mean.data.get(), args.running_var = var.data.get();
  args.gamma = has_gamma ? gamma.data.get() : nullptr, args.beta = has_beta ? beta.data.get() : nullptr;
  args.bias = has_bias ? bias.data.get() : nullptr, args.unit = has_unit ? unit.data.get() : nullptr;
  args.gain_out = gain_out.data.get(), args.bias_out = bias_out.data.get();
  args.eps = T(1e-5), args.amplitude = T(1) / 3, args.time_steps = 7;
  args.channels = channels;
  if (launch_fold_norm(args, nullptr) != cudaSuccess) return 1;
  int wrong = 0;
  for (size_t c = 0; c < mean.size; ++c) {
    const T sum = var[c] + T(1e-5);
    const T root = static_cast<T>(std::sqrt(static_cast<double>(sum)));
    const T g = has_gamma ? gamma[c] / root : 1 / root;
    const T centred = has_bias ? bias[c] - mean[c] : -mean[c];
    const T product = centred * g;
    const T shift = has_beta ? product + beta[c] : product;
    const T gain = has_unit ? unit[c] * g : g;
    wrong += differ(gain_out[c], gain * (T(1) / 3)) + differ(bias_out[c], shift / 7);
  }
  return wrong;
}

template <class T>
int check(int64_t channels) {
  int wrong = 0;
  for (int given = 0; given < 8; ++given) wrong += check_update<T>(channels, given & 1, given & 2, given & 4);
  for (unsigned given = 0; given < 16; ++given) wrong += check_fold<T>(channels, given);
  if (wrong != 0) printf("%zu bytes, %lld channels: %d wrong\n", sizeof(T), static_cast<long long>(channels), wrong);
  return wrong;
}

}  // namespace

int main() {
  int wrong = 0;
  for (const int64_t channels : {0, 1, 31, 127, 128, 129, 1000})
    wrong += check<float>(channels) + check<double>(channels);
  printf("batch_norm_test: %d wrong\n", wrong);
  return wrong != 0;
}
