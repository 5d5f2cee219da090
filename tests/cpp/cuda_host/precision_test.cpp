// What the terms of weights hold, and how far the tensor-core engine's sums of random floats are from the exact ones,
// by the model of the rounding of tensor cores that cuda_host.h has for each architecture. docs/cuda.md, "Precision",
// has the figures that this prints.
#include <cfloat>
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "ops/product/gather_product.cu"
#include "ops/product/term_product.cu"

namespace {

using namespace tandem;

constexpr int kPixels = 64, kOutputs = 32;
// Sanitizers look for other things than rounding, and slow the long sums down.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr int kMostInputs = 144;
#else
constexpr int kMostInputs = 4608;
#endif
int failures = 0;

struct Errors {
  double largest = 0;  // in 2^-24 of the sum of the absolute addends
  double squares = 0;

  void add(double error, double scale) {
    largest = std::fmax(largest, std::fabs(error) / scale * (1 << 24));
    squares += error / scale * error / scale;
  }
};

void check(bool good, const char* what) {
  if (good) return;
  ++failures;
  std::printf("FAIL %s\n", what);
}

// A weight as its first terms hold it.
float held(float x, int terms) {
  unsigned words[3];
  split(x, words);
  float sum = 0;
  for (int i = 0; i < terms; ++i) sum += float_of_word(words[i]);
  return sum;
}

void check_finite(float x) {
  unsigned one[1], two[2], three[3];
  split(x, one), split(x, two), split(x, three);
  check(one[0] == three[0] && two[0] == three[0] && two[1] == three[1], "fewer terms are the first ones");
  const double size = std::fabs(static_cast<double>(x));
  // The largest weights are cut off; subnormal terms are multiples of 2^-133.
  const double seventeen = size < 255.5 * 0x1p120 ? 0x1p-17 : 0x1p-16, least = 0x1p-134;
  const double bounds[] = {std::fmax(0x1p-8 * size, least), std::fmax(seventeen * size, least),
                           size < 0x1p-110 ? least : 0};
  double left = static_cast<double>(x);
  for (int i = 0; i < 3; ++i) {
    left -= static_cast<double>(float_of_word(three[i]));
    check(std::fabs(left) <= bounds[i], "the error of a weight");
    check(std::isfinite(held(x, i + 1)), "terms do not overflow");
    if ((three[i] & 0xffff) != 0) check(false, "a term is a bf16");
  }
}

void check_split() {
  const float special[] = {1,
                           0x1.01p0f,
                           0x1.03p0f,
                           0x1.fffffep0f,
                           0x1.fep127f,
                           0x1.fefffep127f,
                           0x1.ffp127f,
                           0x1.ffff7ep127f,
                           0x1.ffff8p127f,
                           FLT_MAX,
                           FLT_MIN,
                           0x1.fffffep-110f,
                           0x1.fffffep-111f,
                           0x1p-133f,
                           0x1p-134f,
                           0x1.8p-134f,
                           0x1p-149f,
                           0};
  for (const float x : special) check_finite(x), check_finite(-x);
  std::mt19937 generator(1);
  for (int i = 0; i < 1000000; ++i) {
    const float x = float_of_word(static_cast<uint32_t>(generator()));
    if (std::isfinite(x)) check_finite(x);
  }
  check(held(0x1.01p0f, 1) == 1 && held(0x1.03p0f, 1) == 0x1.04p0f, "the even one of two");
  check(held(FLT_MAX, 1) == 0x1.fep127f && held(FLT_MAX, 2) == 0x1.fffep127f, "the largest is cut off");
  unsigned words[3];
  for (const uint32_t sign : {0u, 0x80000000u}) {
    split(float_of_word(sign), words);
    check(words[0] == sign && words[1] == 0 && words[2] == 0, "zero");
    split(float_of_word(sign | 0x7f800000u), words);
    check(words[0] == (sign | 0x7f800000u) && words[1] == 0 && words[2] == 0, "infinity");
    for (const uint32_t payload : {1u, 0x8000u, 0x400000u, 0x7fffffu}) {
      split(float_of_word(sign | 0x7f800000u | payload), words);
      check(std::isnan(float_of_word(words[0])) && words[1] == 0 && words[2] == 0, "NaN");
    }
  }
  for (uint32_t word = 0; word < 0x10000; ++word) {
    const float half = Float16{static_cast<uint16_t>(word)}, brain = BFloat16{static_cast<uint16_t>(word)};
    if (!std::isnan(half)) check(held(half, kStoredTerms<Float16>) == half, "two terms hold a float16");
    if (!std::isnan(brain)) check(held(brain, kStoredTerms<BFloat16>) == brain, "a term holds a bfloat16");
  }
}

ConvGeometry of_channels(int channels) {
  ConvGeometry g = {};
  g.batch = kPixels, g.in_channels = channels, g.out_channels = kOutputs;
  g.height = g.width = g.out_height = g.out_width = g.kernel_h = g.kernel_w = 1;
  g.stride_h = g.stride_w = g.dilation_h = g.dilation_w = g.groups = 1;
  return g;
}

// Products of weights [channels, outputs] with counts of one plane, or with values of radix spikes.
std::vector<float> multiply(const ConvGeometry& g, const uint8_t* bits, const float* weight, int terms,
                            bool values = false) {
  std::vector<float> sums(static_cast<size_t>(kPixels * kOutputs));
  CudaProductArgs<float, float> args = {};
  args.geometry = g, args.bits = bits, args.planes = 1, args.sum = sums.data(), args.time_steps = 8;
  args.values = values;
  CudaTermArgs<float> pack = {};
  pack.geometry = g, pack.weight = weight, pack.stride_o = 1, pack.stride_c = kOutputs;
  pack.stride_h = pack.stride_w = 1;
  std::vector<uint4> fragments(static_cast<size_t>(term_layout(g, kStoredTerms<float>).words()));
  pack.fragments = fragments.data();
  check(launch_pack_terms(pack, nullptr) == cudaSuccess, "packing");
  const cudaError_t error = launch_tensor_core_product(args, fragments.data(), kStoredTerms<float>, terms, nullptr);
  check(error == cudaSuccess, "launch");
  return sums;
}

// Where one input spikes, the sum is its weight as the terms hold it, to the bit: any finite one.
void check_single(const host::TensorCores& cores, int terms) {
  host::tensor_cores = cores;
  constexpr int kInputs = kPixels, kInfinite = 5, kNan = 9;
  std::vector<uint8_t> bits(static_cast<size_t>(kPixels * kInputs));
  for (int i = 0; i < kInputs; ++i) bits[static_cast<size_t>(i * kInputs + i)] = 1;
  std::vector<float> weights(static_cast<size_t>(kInputs * kOutputs));
  std::mt19937 generator(2);
  for (float& x : weights) {
    do x = float_of_word(static_cast<uint32_t>(generator()));
    while (!std::isfinite(x));
  }
  weights[0] = FLT_MAX, weights[1] = -FLT_MAX, weights[2] = 0x1.fffffep0f, weights[3] = 0x1p-149f;
  // Of two output channels, one weight each; they spoil their own channel alone.
  weights[kInfinite * kOutputs + kInfinite] = -INFINITY, weights[kNan * kOutputs + kNan] = NAN;
  const std::vector<float> sums = multiply(of_channels(kInputs), bits.data(), weights.data(), terms);
  for (int pixel = 0; pixel < kPixels; ++pixel) {
    for (int o = 0; o < kOutputs; ++o) {
      const float got = sums[static_cast<size_t>(pixel * kOutputs + o)];
      if (o == kNan) {
        check(std::isnan(got), "a NaN among the weights");
      } else if (o == kInfinite) {
        check(pixel == kInfinite ? got == -INFINITY : std::isnan(got), "an infinity among the weights");
      } else {
        check(got == held(weights[static_cast<size_t>(pixel * kOutputs + o)], terms), "a single weight");
      }
    }
  }
}

// A sum of 24 bits whose first terms alone reach 2^24: exact, since the smaller terms are added before.
void check_order(const host::TensorCores& cores) {
  host::tensor_cores = cores;
  constexpr int kInputs = 16;  // of which tensor cores that add up 8 take those first whose number modulo 4 is 0 or 1
  const std::vector<uint8_t> bits(static_cast<size_t>(kPixels * kInputs), 1);
  std::vector<float> weights(static_cast<size_t>(kInputs * kOutputs), 0x1p20f);
  for (int i = 0; i < kInputs; ++i) {
    for (int o = 0; o < kOutputs; ++o)
      weights[static_cast<size_t>(i * kOutputs + o)] += i == 0 ? 1 : i % 4 < 2 ? 0 : -1;
  }
  for (const float sum : multiply(of_channels(kInputs), bits.data(), weights.data(), 3)) {
    check(sum == 0x1p24f - 7, "the smallest terms first");
  }
}

// Sums of `channels` weights: one step's, of which a pixel's spikes pick half, or times values of radix spikes.
void run(const host::TensorCores& cores, int channels, bool one_sign, int terms, bool values = false) {
  host::tensor_cores = cores;
  std::mt19937 generator(static_cast<unsigned>(channels));
  std::normal_distribution<float> normal;
  std::vector<uint8_t> bits(static_cast<size_t>(kPixels * channels));
  for (uint8_t& bit : bits) bit = generator() % (values ? 256 : 2);
  std::vector<float> weights(static_cast<size_t>(channels * kOutputs));
  float* const weight = weights.data();  // [channels, outputs]
  for (int i = 0; i < channels * kOutputs; ++i) {
    const float x = normal(generator);
    weight[i] = one_sign ? std::fabs(x) : x;
  }
  const std::vector<float> sums = multiply(of_channels(channels), bits.data(), weight, terms, values);

  Errors ours, plain, unsplit;  // plain: float32, one addition after another; unsplit: all on tensor cores
  for (int pixel = 0; pixel < kPixels; ++pixel) {
    for (int o = 0; o < kOutputs; ++o) {
      double exact = 0, scale = 0;
      float added = 0, chained = 0;
      for (int first = 0; first < channels; first += 16) {
        float spikes[16], b[3][16][8];
        for (int i = 0; i < 16; ++i) {
          const float x = weight[(first + i) * kOutputs + o], w = held(x, terms);
          spikes[i] = bits[static_cast<size_t>(pixel * channels + first + i)];
          if (spikes[i] != 0) {
            const double product = static_cast<double>(w) * static_cast<double>(spikes[i]);
            exact += product, scale += std::fabs(product), added += w * spikes[i];
          }
          unsigned words[3];
          split(x, words);
          for (int e = 0; e < 3; ++e) b[e][i][0] = float_of_word(words[e]);
        }
        for (int e = 0; e < terms; ++e) {
          for (unsigned k = 0; k < 16; k += cores.products) {
            chained = host::multiply_add(&spikes[k], &b[e][k][0], cores.products, chained);
          }
        }
      }
      if (scale == 0) continue;
      ours.add(static_cast<double>(sums[static_cast<size_t>(pixel * kOutputs + o)]) - exact, scale);
      plain.add(static_cast<double>(added) - exact, scale);
      unsplit.add(static_cast<double>(chained) - exact, scale);
    }
  }
  const double ratio = std::sqrt(ours.squares / plain.squares), before = std::sqrt(unsplit.squares / plain.squares);
  std::printf(
      "%s, %4d inputs, %s, %s, %d terms: largest error %6.2f of 2^-24 (float32 %7.2f, not split %8.2f); root mean "
      "square over float32's: %.2f (not split %.2f)\n",
      cores.architecture, channels, values ? "values" : "spikes", one_sign ? "one sign  " : "both signs", terms,
      ours.largest, plain.largest, unsplit.largest, ratio, before);
  // A block of products loses less than a last bit of each addend and of the sum; then come float32 additions.
  const double lost = cores.products == 8 ? 2 * (9 + 2) : 17.0 / 2 + 2;
  check(ours.largest <= 1.01 * lost + channels / 16.0, "the bound");
  check(ratio < 1.5, "close to float32");
  if (one_sign && channels == 4608 && terms == 3) check(before > 5, "what is not split is seen to be worse");
}

// Blocks of products as the papers describe them: small numbers whose sum is known.
void check_model() {
  float a[16] = {}, b[16][8] = {};
  for (int k = 0; k < 16; ++k) a[k] = 1;
  const float last = std::ldexp(1.0f, -24);
  b[0][0] = 1, b[1][0] = last, b[2][0] = last;
  for (const host::TensorCores& cores : host::kTensorCores) {
    host::tensor_cores = cores;
    // 1 + 2^-24 + 2^-24: the first extra bit holds both, and their sum reaches a float32's last bit.
    check(host::multiply_add(a, &b[0][0], cores.products, 0) == 1 + 2 * last, "one extra bit");
    b[1][0] = b[2][0] = last / 2, b[3][0] = b[4][0] = last / 2;
    // Four times 2^-25 do so where there are two.
    check(host::multiply_add(a, &b[0][0], cores.products, 0) == (cores.extra_bits == 2 ? 1 + 2 * last : 1),
          "the second");
    b[3][0] = b[4][0] = 0, b[1][0] = last, b[2][0] = 0;
    check(host::multiply_add(a, &b[0][0], cores.products, 0) == 1, "cut off, not rounded");
    b[0][0] = -1, b[1][0] = -last;
    check(host::multiply_add(a, &b[0][0], cores.products, 0) == -1, "towards zero");
    b[0][0] = 1, b[1][0] = -last;  // 1 - 2^-24 is a float32
    check(host::multiply_add(a, &b[0][0], cores.products, 0) == 1 - last, "below a power of two");
    b[1][0] = 0, b[2][0] = 0;
    b[0][0] = last, b[1][0] = last;
    check(host::multiply_add(a, &b[0][0], cores.products, 1) == 1 + 2 * last, "the number before them");
    b[0][0] = 1, b[1][0] = 0;
    check(std::isnan(host::multiply_add(a, &b[0][0], cores.products, NAN)), "NaN");
    check(std::isinf(host::multiply_add(a, &b[0][0], cores.products, INFINITY)), "infinity");
    b[1][0] = last, b[2][0] = last;
    // The exponents of 1.5 and 1.5 give 0, though the product is above 2: all bits of 2.25 + 2^-24 + 2^-24 are kept.
    a[0] = b[0][0] = 1.5f, b[1][0] = 2 * last, b[2][0] = 2 * last;
    check(host::multiply_add(a, &b[0][0], cores.products, 0) == 2.25f + 4 * last, "exponents of factors");
    a[0] = 1, b[0][0] = 1, b[1][0] = last, b[2][0] = last;
  }
}

}  // namespace

int main() {
  check_model();
  check_split();
  for (const host::TensorCores& cores : host::kTensorCores) {
    for (const int terms : {1, 2, 3}) check_single(cores, terms);
    check_order(cores);
    for (const int channels : {144, 1152, 4608}) {
      for (const bool one_sign : {false, true}) {
        for (const int terms : {1, 2, 3}) {
          if (channels > kMostInputs || (terms < 3 && channels != 1152)) continue;
          run(cores, channels, one_sign, terms);
          if (channels < 4608) run(cores, channels, one_sign, terms, true);
        }
      }
    }
  }
  std::printf("precision_test: %d failures\n", failures);
  return failures != 0;
}
