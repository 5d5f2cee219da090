// The device's gradient of neurons behind batch norm, run on the host, against its formula in float64.
#include "ops/tandem_count/tandem_norm_count.cu"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <memory>
#include <random>
#include <vector>

namespace {

using namespace tandem;

std::mt19937 generator(7);

int random_int(int low, int high) { return std::uniform_int_distribution<int>(low, high)(generator); }

// Without a byte to spare: a sanitizer sees the first one too many.
template <class T>
std::unique_ptr<T[]> filled(int64_t n, double scale) {
  std::unique_ptr<T[]> out(new T[static_cast<size_t>(n)]);
  for (int64_t i = 0; i < n; ++i) out[static_cast<size_t>(i)] = static_cast<T>(random_int(-1000, 1000) * scale);
  return out;
}

template <class T>
bool close(T got, double want, double size) {
  const double tolerance = (sizeof(T) == 4 ? 2e-5 : 1e-13) * (1 + size);
  return std::fabs(static_cast<double>(got) - want) <= tolerance;
}

// Whether a kernel that computes in T may take the gate for open where float64 finds it closed.
bool doubtful(double v, double upper) { return std::fabs(v) < 1e-4 || std::fabs(v - upper) < 1e-4; }

template <class T>
int check(int64_t rows, int64_t channels, double upper, bool with_unit) {
  const int64_t n = rows * channels;
  const auto grad = filled<T>(n, 1e-3), gamma = filled<T>(channels, 2e-3), beta = filled<T>(channels, 1e-3);
  const auto product = filled<T>(n, 5e-3);
  std::unique_ptr<T[]> unit(new T[static_cast<size_t>(channels)]);
  for (int64_t c = 0; c < channels; ++c) unit[static_cast<size_t>(c)] = static_cast<T>(random_int(1, 30) * 0.1);
  const double threshold = 0.75, eps = 1e-5;
  std::vector<double> mean(static_cast<size_t>(channels)), var(static_cast<size_t>(channels));
  std::unique_ptr<T[]> mean_t(new T[static_cast<size_t>(channels)]), var_t(new T[static_cast<size_t>(channels)]);
  const auto gain_of = [&](size_t c) {
    const double factor = with_unit ? static_cast<double>(unit[c]) : 1.0;
    return factor / std::sqrt(factor * factor * var[c] + eps);
  };
  const auto normal_at = [&](int64_t row, int64_t c) {
    const auto i = static_cast<size_t>(c);
    return (static_cast<double>(product[static_cast<size_t>(row * channels + c)]) - mean[i]) * gain_of(i);
  };
  const auto v_at = [&](int64_t row, int64_t c) {
    const auto i = static_cast<size_t>(c);
    return static_cast<double>(gamma[i]) * normal_at(row, c) + static_cast<double>(beta[i]);
  };
  for (int64_t c = 0; c < channels; ++c) {
    const auto i = static_cast<size_t>(c);
    for (int64_t row = 0; row < rows; ++row)
      mean[i] += static_cast<double>(product[static_cast<size_t>(row * channels + c)]);
    mean[i] /= static_cast<double>(rows);
    for (int64_t row = 0; row < rows; ++row) {
      const double rest = static_cast<double>(product[static_cast<size_t>(row * channels + c)]) - mean[i];
      var[i] += rest * rest / static_cast<double>(rows);
    }
    mean_t[i] = static_cast<T>(mean[i]);
    var_t[i] = static_cast<T>(var[i]);
    mean[i] = static_cast<double>(mean_t[i]), var[i] = static_cast<double>(var_t[i]);
  }

  const int64_t chunks = (rows + kNormRows - 1) / kNormRows;
  std::unique_ptr<T[]> out(new T[static_cast<size_t>(n)]), sums(new T[static_cast<size_t>(chunks * 2 * channels)]);
  std::unique_ptr<T[]> grad_gamma(new T[static_cast<size_t>(channels)]),
      grad_beta(new T[static_cast<size_t>(channels)]);
  CudaNormGradientArgs<T> args = {};
  args.grad = grad.get(), args.product = product.get(), args.mean = mean_t.get(), args.var = var_t.get();
  args.gamma = gamma.get(), args.beta = beta.get(), args.unit = with_unit ? unit.get() : nullptr;
  args.grad_product = out.get(), args.out_gamma = grad_gamma.get(), args.out_beta = grad_beta.get();
  args.sums = sums.get(), args.rows = rows, args.channels = channels;
  args.eps = static_cast<T>(eps), args.threshold = static_cast<T>(threshold), args.upper = static_cast<T>(upper);
  if (launch_norm_sums(args, nullptr) != cudaSuccess) return 1;
  // As if another process had as many rows, whose gradients were the same, or there were none.
  const bool shared = rows % 2 == 1;
  const T all_rows = static_cast<T>(2 * rows);
  std::vector<T> all_gamma(static_cast<size_t>(channels)), all_beta(all_gamma.size());
  for (size_t i = 0; i < all_gamma.size(); ++i) {
    all_gamma[i] = grad_gamma[i] * (shared ? T(2) : T(1)), all_beta[i] = grad_beta[i] * (shared ? T(2) : T(1));
  }
  args.grad_gamma = all_gamma.data(), args.grad_beta = all_beta.data(), args.all_rows = shared ? &all_rows : nullptr;
  if (launch_norm_gradient(args, nullptr) != cudaSuccess) return 1;

  int wrong = 0;
  for (int64_t c = 0; c < channels; ++c) {
    const auto i = static_cast<size_t>(c);
    double sum = 0, along = 0, size = 0;
    bool skip = false;
    std::vector<double> gated(static_cast<size_t>(rows)), normal(static_cast<size_t>(rows));
    for (int64_t row = 0; row < rows; ++row) {
      const auto r = static_cast<size_t>(row);
      const double v = v_at(row, c);
      skip = skip || (sizeof(T) == 4 && doubtful(v, upper));
      normal[r] = normal_at(row, c);
      gated[r] =
          v > 0 && v <= upper ? static_cast<double>(grad[static_cast<size_t>(row * channels + c)]) / threshold : 0;
      sum += gated[r];
      along += gated[r] * normal[r];
      size += std::fabs(gated[r]);
    }
    if (skip) continue;
    wrong += !close(grad_beta[i], sum, size) + !close(grad_gamma[i], along, size);
    for (int64_t row = 0; row < rows; ++row) {
      const auto r = static_cast<size_t>(row);
      const double count = static_cast<double>(rows), factor = static_cast<double>(gamma[i]) * gain_of(i);
      const double want = factor * (gated[r] - sum / count - normal[r] * along / count);
      wrong += !close(out[static_cast<size_t>(row * channels + c)], want, std::fabs(factor));
    }
  }
  if (wrong != 0) {
    printf("%zu bytes, %lld rows, %lld channels, upper %g: %d wrong\n", sizeof(T), static_cast<long long>(rows),
           static_cast<long long>(channels), upper, wrong);
  }
  return wrong != 0;
}

}  // namespace

int main() {
  int wrong = 0, cases = 0;
  for (const int64_t rows : {0, 1, 2, 7, 8, 9, 255, 256, 257, 600}) {
    for (const int64_t channels : {1, 3, 31, 32, 33, 70}) {
      for (const double upper : {std::numeric_limits<double>::infinity(), 1.0}) {
        for (const bool with_unit : {false, true}) {
          wrong += check<double>(rows, channels, upper, with_unit);
          // Of more rows one gate is always doubtful.
          wrong += rows < 20 ? check<float>(rows, channels, upper, with_unit) : 0;
          ++cases;
        }
      }
    }
  }
  wrong += check<double>(3, 600, 1.0, true);                // several blocks of totals
  wrong += check<double>(9 * kNormRows + 5, 9, 1.0, true);  // more chunks than lanes that share them out
  printf("tandem_norm_count_test: %d cases, %d wrong\n", cases, wrong);
  return wrong != 0;
}
