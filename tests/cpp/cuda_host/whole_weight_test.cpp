// Float weights as whole numbers: their units, their errors, what infinities and NaN do, and how far sums of random
// weights are from the exact ones. docs/cuda.md, "Precision", has the figures that this prints.
#include <cfloat>
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "ops/product/gather_product.cu"

namespace {

using namespace tandem;

constexpr int kPixels = 64, kOutputs = 32;
int failures = 0;
std::mt19937 generator(1);

void check(bool good, const char* what) {
  if (good) return;
  ++failures;
  std::printf("FAIL %s\n", what);
}

// The unit of a channel with this largest weight, and what it makes of all weights that are no larger.
void check_unit(float largest) {
  const float unit = weight_unit(magnitude_of(largest)), per_one = units_of_one(unit);
  int exponent = 0;
  check(std::frexp(unit, &exponent) == 0.5f && unit >= FLT_MIN, "a power of two, and normal");
  check(unit * per_one == 1, "the reciprocal");
  const double units = std::fabs(static_cast<double>(largest)) / static_cast<double>(unit);
  check(units < 0x1p31 && (units >= 0x1p30 || unit == FLT_MIN), "the largest takes 31 bits");
  for (float x : {largest, largest / 3, largest * 0x1p-7f, largest * 0x1.23456p-20f, FLT_TRUE_MIN, 0.0f}) {
    if (std::fabs(x) > std::fabs(largest)) continue;
    for (const float weight : {x, -x}) {
      const double held = static_cast<double>(whole_weight(weight, per_one)) * static_cast<double>(unit);
      const double error = std::fabs(held - static_cast<double>(weight));
      check(error <= static_cast<double>(unit) / 2, "the error of a weight");
      // 24 bits of a weight fit 31 of a channel's largest up to seven binary places below it.
      if (std::fabs(weight) >= std::fabs(largest) * 0x1p-7f && unit > FLT_MIN) check(error == 0, "no error");
    }
  }
}

void check_units() {
  for (const float x : {1.0f, 1.5f, 0x1.fffffep0f, FLT_MAX, FLT_MIN, FLT_TRUE_MIN, 0x1p-96f, 0x1.fffffep-97f, 0.0f}) {
    check_unit(x);
  }
  for (int i = 0; i < 100000; ++i) {
    const float x = float_of_word(static_cast<uint32_t>(generator()));
    if (std::isfinite(x)) check_unit(x);
  }
  for (const float x : {INFINITY, -INFINITY, NAN}) {
    check(std::isnan(weight_unit(magnitude_of(x))), "what is not finite has no unit");
  }
  check(units_of_one(NAN) == 0 && whole_weight(1, 0) == 0 && whole_weight(NAN, 0) == 0, "without a unit");
  // Ties to even.
  check(whole_weight(0.5f, 1) == 0 && whole_weight(1.5f, 1) == 2 && whole_weight(-2.5f, 1) == -2, "ties");
}

ConvGeometry of_channels(int channels) {
  ConvGeometry g = {};
  g.batch = kPixels, g.in_channels = channels, g.out_channels = kOutputs;
  g.height = g.width = g.out_height = g.out_width = g.kernel_h = g.kernel_w = 1;
  g.stride_h = g.stride_w = g.dilation_h = g.dilation_w = g.groups = 1;
  return g;
}

// Products of weights [channels, outputs] with counts of one plane, or with values of radix spikes.
std::vector<float> multiply(const ConvGeometry& g, const uint8_t* bits, const float* weight, bool values) {
  std::vector<float> sums(static_cast<size_t>(kPixels * kOutputs)), unit(static_cast<size_t>(kOutputs));
  CudaPackArgs<float> pack = {};
  pack.geometry = g, pack.weight = weight, pack.stride_o = 1, pack.stride_c = kOutputs;
  pack.stride_h = pack.stride_w = 1, pack.block = block_size<int32_t>(kOutputs), pack.blocks = 1;
  std::vector<int32_t> packed(static_cast<size_t>(g.features() * pack.block));
  pack.packed = packed.data(), pack.unit = unit.data();
  check(launch_pack_weight(pack, nullptr) == cudaSuccess, "packing");
  CudaProductArgs<int32_t, float> args = {};
  args.geometry = g, args.bits = bits, args.planes = 1, args.sum = sums.data(), args.time_steps = 8;
  args.values = values, args.weight = packed.data(), args.block = pack.block, args.blocks = 1;
  args.unit = unit.data();
  check(launch_gather_product(args, nullptr) == cudaSuccess, "launch");
  return sums;
}

// A weight that is not finite makes the sums of its own output channel NaN, whether its input spikes or not.
void check_not_finite() {
  constexpr int kInputs = kPixels, kInfinite = 5, kNan = 9;
  std::vector<uint8_t> bits(static_cast<size_t>(kPixels * kInputs));
  for (int i = 0; i < kInputs; ++i) bits[static_cast<size_t>(i * kInputs + i)] = 1;
  std::vector<float> weights(static_cast<size_t>(kInputs * kOutputs), 0.75f);
  weights[kInfinite * kOutputs + kInfinite] = -INFINITY, weights[kNan * kOutputs + kNan] = NAN;
  const std::vector<float> sums = multiply(of_channels(kInputs), bits.data(), weights.data(), false);
  for (int i = 0; i < kPixels * kOutputs; ++i) {
    const int o = i % kOutputs;
    const float got = sums[static_cast<size_t>(i)];
    check(o == kNan || o == kInfinite ? std::isnan(got) : got == 0.75f, "a weight that is not finite");
  }
}

struct Errors {
  double largest = 0;  // in 2^-24 of the sum of the absolute addends
  double squares = 0;

  void add(double error, double scale) {
    largest = std::fmax(largest, std::fabs(error) / scale * (1 << 24));
    squares += error / scale * error / scale;
  }
};

// Sums of `channels` weights: one step's, of which a pixel's spikes pick half, or times values of radix spikes.
void run(int channels, bool one_sign, bool values) {
  std::normal_distribution<float> normal;
  std::vector<uint8_t> bits(static_cast<size_t>(kPixels * channels));
  for (uint8_t& bit : bits) bit = generator() % (values ? 256 : 2);
  std::vector<float> weights(static_cast<size_t>(channels * kOutputs));
  for (float& x : weights) x = one_sign ? std::fabs(normal(generator)) : normal(generator);
  const std::vector<float> sums = multiply(of_channels(channels), bits.data(), weights.data(), values);
  Errors ours, plain;  // plain: float32, one addition after another
  for (int pixel = 0; pixel < kPixels; ++pixel) {
    for (int o = 0; o < kOutputs; ++o) {
      double exact = 0, scale = 0;
      float added = 0;
      for (int i = 0; i < channels; ++i) {
        const float spikes = bits[static_cast<size_t>(pixel * channels + i)];
        const float x = weights[static_cast<size_t>(i * kOutputs + o)];
        const double product = static_cast<double>(x) * static_cast<double>(spikes);
        exact += product, scale += std::fabs(product), added += x * spikes;
      }
      ours.add(static_cast<double>(sums[static_cast<size_t>(pixel * kOutputs + o)]) - exact, scale);
      plain.add(static_cast<double>(added) - exact, scale);
    }
  }
  const double ratio = std::sqrt(ours.squares / plain.squares);
  std::printf("%4d inputs, %s, %s: largest error %.2f of 2^-24 (float32 %.2f), root mean square over float32's: %.3f\n",
              channels, values ? "values" : "spikes", one_sign ? "one sign" : "both signs", ours.largest, plain.largest,
              ratio);
  // Half of the last bit of the sum, and what the weights lost.
  check(ours.largest <= 1.1, "the bound");
  check(ratio < 0.25, "closer than float32");
}

}  // namespace

int main() {
  check_units();
  check_not_finite();
  for (const int channels : {144, 1152, 4608}) {
    for (const bool one_sign : {false, true}) {
      for (const bool values : {false, true}) run(channels, one_sign, values);
    }
  }
  std::printf("whole_weight_test: %d failures\n", failures);
  return failures != 0;
}
