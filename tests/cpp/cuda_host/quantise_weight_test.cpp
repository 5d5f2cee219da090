// The device's quantise_weight, run on the host, against plain loops that divide and round as IEEE 754 says, to the
// bit.
#include "ops/quantise_weight/quantise_weight.cu"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <memory>
#include <random>

namespace {

using namespace tandem;

constexpr float kMost = std::numeric_limits<float>::max(), kLeast = std::numeric_limits<float>::denorm_min();
constexpr float kNoNumber = std::numeric_limits<float>::quiet_NaN(), kInf = std::numeric_limits<float>::infinity();

std::mt19937 generator(7);

// Without an element to spare: a sanitizer sees the first one too many.
struct Weights {
  Weights(int64_t channels, int64_t size)
      : channels(channels), size(size), data(new float[static_cast<size_t>(channels * size)]) {
    // Of every magnitude, and ties: multiples of half the scale.
    for (int64_t o = 0; o < channels; ++o) {
      const float unit = std::ldexp(1.0f, static_cast<int>(generator() % 280) - 149);
      for (int64_t i = 0; i < size; ++i) {
        const float halves = static_cast<float>(static_cast<int>(generator() % 509) - 254) / 2;
        const float any = std::uniform_real_distribution<float>(-127, 127)(generator);
        at(o, i) = (o % 2 == 0 ? halves : any) * unit;
      }
      if (o % 2 == 0) at(o, size - 1) = 127 * unit;
    }
  }
  float& at(int64_t o, int64_t i) const { return data[static_cast<size_t>(o * size + i)]; }

  int64_t channels, size;
  std::unique_ptr<float[]> data;
};

template <class Q>
int check(const Weights& weights, float largest) {
  const auto numel = static_cast<size_t>(weights.channels * weights.size);
  std::unique_ptr<Q[]> integers(new Q[numel]);
  std::unique_ptr<float[]> scale(new float[static_cast<size_t>(weights.channels)]);
  std::fill_n(integers.get(), numel, Q{55});
  QuantiseArgs<Q> args = {};
  args.weight = weights.data.get(), args.integers = integers.get(), args.scale = scale.get();
  args.channels = weights.channels, args.size = weights.size, args.largest = largest;
  if (launch_quantise_weight(args, nullptr) != cudaSuccess) return 1;
  int wrong = 0;
  for (int64_t o = 0; o < weights.channels; ++o) {
    float most = 0;
    bool finite = true;
    for (int64_t i = 0; i < weights.size; ++i) {
      most = std::fmax(most, std::fabs(weights.at(o, i)));
      finite = finite && std::isfinite(weights.at(o, i));
    }
    const float unit = most / largest, got = scale[static_cast<size_t>(o)];
    wrong += finite ? got != (unit > 0 ? unit : 1) : !std::isnan(got);
    for (int64_t i = 0; i < weights.size; ++i) {
      const float whole = finite && unit > 0 ? std::nearbyint(weights.at(o, i) / unit) : 0;
      wrong += static_cast<float>(integers[static_cast<size_t>(o * weights.size + i)]) !=
               std::fmin(std::fmax(whole, -largest), largest);
    }
  }
  if (wrong != 0) {
    printf("[%lld, %lld], %zu bytes: %d wrong\n", static_cast<long long>(weights.channels),
           static_cast<long long>(weights.size), sizeof(Q), wrong);
  }
  return wrong;
}

int check(const Weights& weights) { return check<int8_t>(weights, 127) + check<int16_t>(weights, 32639); }

// One channel of a row like this, with neighbours that it must not disturb.
int check_row(int64_t size, float first, float others, float last) {
  const Weights weights(3, size);
  for (int64_t i = 0; i < size; ++i) weights.at(1, i) = others;
  weights.at(1, 0) = first;
  weights.at(1, size - 1) = last;
  return check(weights);
}

}  // namespace

int main() {
  int wrong = 0;
  for (const int64_t size : {1, 2, 31, 32, 33, 255, 256, 257, 511, 513, 4608}) {
    for (const int64_t channels : {1, 2, 7}) wrong += check(Weights(channels, size));
    wrong += check_row(size, 0.0f, -0.0f, 0.0f);
    for (const float x : {kMost, -kMost, kLeast, -kLeast, 63 * kLeast, 190 * kLeast, -1e-38f}) {
      wrong += check_row(size, x, 0, x) + check_row(size, 0, x / 3, x) + check_row(size, x, x, 0);
    }
    for (const float x : {kNoNumber, -kNoNumber, kInf, -kInf}) {
      wrong += check_row(size, x, 1, 1) + check_row(size, 1, 1, x) + check_row(size, kInf, x, -1);
    }
  }
  printf("quantise_weight_test: %d wrong\n", wrong);
  return wrong != 0;
}
