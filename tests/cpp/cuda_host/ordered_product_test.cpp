// The device's product of real input with integer weights, run on the host, against plain loops in the order of
// additions that it promises.
#include "ops/ordered_product/ordered_product.cu"

#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

namespace {

using namespace tandem;

std::mt19937 generator(11);

int random_int(int low, int high) { return std::uniform_int_distribution<int>(low, high)(generator); }

template <class E>
int check(const ConvGeometry& g, int64_t block, int largest) {
  const int64_t blocks = (g.group_out() + block - 1) / block;
  std::vector<float> input(static_cast<size_t>(g.pixels_in() * g.in_channels));
  for (float& x : input) x = std::normal_distribution<float>()(generator);
  std::vector<E> weight(static_cast<size_t>(g.groups * blocks * g.features() * block));
  for (E& w : weight) w = static_cast<E>(random_int(-largest, largest));
  const auto outputs = static_cast<size_t>(g.pixels_out() * g.out_channels);
  std::vector<float> got(outputs, -1), want(outputs);
  CudaOrderedArgs<E> args = {};
  args.geometry = g, args.input = input.data(), args.weight = weight.data();
  args.block = block, args.blocks = blocks, args.out = got.data();
  if (launch_ordered_product(args, nullptr) != cudaSuccess) return 1;
  for (int64_t at = 0; at < g.pixels_out(); ++at) {
    const int64_t n = at / (g.out_height * g.out_width), oh = at / g.out_width % g.out_height, ow = at % g.out_width;
    for (int64_t o = 0; o < g.out_channels; ++o) {
      const int64_t group = o / g.group_out(), in_group = o % g.group_out();
      float sum = 0;
      for (int64_t kh = 0; kh < g.kernel_h; ++kh) {
        for (int64_t kw = 0; kw < g.kernel_w; ++kw) {
          const int64_t h = oh * g.stride_h - g.padding_h + kh * g.dilation_h;
          const int64_t w = ow * g.stride_w - g.padding_w + kw * g.dilation_w;
          if (h < 0 || h >= g.height || w < 0 || w >= g.width) continue;
          for (int64_t c = 0; c < g.group_in(); ++c) {
            const int64_t feature = (kh * g.kernel_w + kw) * g.group_in() + c;
            const int64_t row = (group * blocks + in_group / block) * g.features() + feature;
            const float x = input[((n * g.height + h) * g.width + w) * g.in_channels + group * g.group_in() + c];
            const float product = x * static_cast<float>(weight[row * block + in_group % block]);
            sum += product;
          }
        }
      }
      want[at * g.out_channels + o] = sum;
    }
  }
  return outputs > 0 && std::memcmp(got.data(), want.data(), outputs * sizeof(float)) != 0;
}

ConvGeometry geometry(int64_t n, int64_t c, int64_t h, int64_t w, int64_t o, int64_t kernel, int64_t stride,
                      int64_t padding, int64_t dilation, int64_t groups) {
  ConvGeometry g = {};
  g.batch = n, g.in_channels = c, g.height = h, g.width = w, g.out_channels = o;
  g.kernel_h = g.kernel_w = kernel, g.stride_h = g.stride_w = stride, g.padding_h = g.padding_w = padding;
  g.dilation_h = g.dilation_w = dilation, g.groups = groups;
  g.out_height = (h + 2 * padding - dilation * (kernel - 1) - 1) / stride + 1;
  g.out_width = (w + 2 * padding - dilation * (kernel - 1) - 1) / stride + 1;
  return g;
}

}  // namespace

int main() {
  int failures = 0;
  for (const ConvGeometry& g : {geometry(2, 3, 7, 6, 40, 3, 1, 1, 1, 1), geometry(1, 6, 5, 5, 10, 2, 2, 0, 1, 2),
                                geometry(2, 4, 9, 9, 140, 3, 2, 2, 2, 4), geometry(3, 17, 1, 1, 5, 1, 1, 0, 1, 1),
                                geometry(0, 3, 4, 4, 4, 3, 1, 1, 1, 1)}) {
    failures += check<int8_t>(g, 32, 127);
    failures += check<int16_t>(g, 16, 32639);
  }
  std::printf("%d failures\n", failures);
  return failures != 0;
}
