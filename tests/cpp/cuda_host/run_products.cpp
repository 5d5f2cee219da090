// Runs the device's products on what a file holds, and writes what they make of it to another: run_products IN OUT. The
// test that writes and reads the files, test_cuda_host.py, compares with the library's operators on the CPU.
//
// IN: calls, one after another. A call is 64-bit integers, two doubles and arrays, as product() reads them. An array is
// the number of its bytes and these; none stands for one that is not given. OUT: arrays.
#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "ops/product/spiking_product.cu"

namespace {

using namespace tandem;

FILE* in = nullptr;
FILE* out = nullptr;

[[noreturn]] void stop(const char* why) {
  std::fprintf(stderr, "run_products: %s\n", why);
  std::exit(4);
}

template <class T>
T read() {
  T value;
  if (std::fread(&value, sizeof(value), 1, in) != 1) stop("a call ends early");
  return value;
}

// Memory from a 64-byte boundary on, without a byte to spare behind it: a sanitizer sees the first one too many.
template <class T>
struct Array {
  explicit Array(int64_t n) : size(n) {
    void* memory = nullptr;
    if (posix_memalign(&memory, 64, std::max<size_t>(1, static_cast<size_t>(n) * sizeof(T))) != 0) std::abort();
    data = static_cast<T*>(memory);
  }
  ~Array() { std::free(data); }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;

  void write() const {
    const int64_t bytes = size * static_cast<int64_t>(sizeof(T));
    const bool ok = std::fwrite(&bytes, sizeof(bytes), 1, out) == 1 &&
                    std::fwrite(data, sizeof(T), static_cast<size_t>(size), out) == static_cast<size_t>(size);
    if (!ok) stop("cannot write");
  }

  T* data;
  int64_t size;
};

// The next array of a call, which has n elements or is not given.
template <class T>
struct Given : Array<T> {
  explicit Given(int64_t n) : Array<T>(n) {
    const auto bytes = read<int64_t>();
    given = bytes != 0;
    if (given && bytes != n * static_cast<int64_t>(sizeof(T))) stop("an array of another size than the call's");
    if (std::fread(this->data, 1, static_cast<size_t>(bytes), in) != static_cast<size_t>(bytes)) stop("no array");
  }
  const T* or_null() const { return given ? this->data : nullptr; }
  bool given;
};

// How a product is computed: terms of tensor cores, or 0 for the gather engine; of the spikes or of their counts; by so
// many blocks at most, or 0 for as many as the launcher likes.
struct How {
  int terms;
  bool counts;
  unsigned blocks;
};

Neuron read_neuron() {
  Neuron neuron = {};
  neuron.kind = static_cast<int>(read<int64_t>());
  const auto count = read<int64_t>();
  if (neuron.kind < 0 || neuron.kind >= kModelCount || count > kMostParameters) stop("no such neuron");
  for (int64_t i = 0; i < count; ++i) neuron.parameters[i] = read<double>();
  return neuron;
}

// W: weights as given; E: packed; T: neurons.
template <class W, class E, class T>
void product() {
  ConvGeometry g = {};
  for (int64_t* size :
       {&g.batch, &g.in_channels, &g.height, &g.width, &g.out_channels, &g.out_height, &g.out_width, &g.kernel_h,
        &g.kernel_w, &g.stride_h, &g.stride_w, &g.padding_h, &g.padding_w, &g.dilation_h, &g.dilation_w, &g.groups}) {
    *size = read<int64_t>();
  }
  const auto time_steps = read<int64_t>();
  const How how = {static_cast<int>(read<int64_t>()), read<int64_t>() != 0, static_cast<unsigned>(read<int64_t>())};
  const Neuron neuron = read_neuron();
  const int64_t planes = planes_for(time_steps), neurons = g.pixels_out() * g.out_channels;
  const int64_t states = states_of(neuron);
  const Given<uint8_t> bits(planes * g.pixels_in() * g.in_channels);
  const Given<W> weight(g.out_channels * g.features());
  const Given<T> scale(g.out_channels), bias(g.out_channels), initial(states * neurons);
  const Given<T> added_current(time_steps * neurons), amplitude(g.out_channels);
  const Given<uint8_t> added_spikes(planes * neurons);

  host::most_blocks = how.blocks;
  const int64_t unit = 64 / static_cast<int64_t>(sizeof(E)), outputs = g.group_out();
  CudaPackArgs<W, E> pack = {};
  pack.geometry = g, pack.weight = weight.data;
  pack.block = outputs <= unit ? unit : outputs <= 2 * unit ? 2 * unit : 4 * unit;
  pack.blocks = (outputs + pack.block - 1) / pack.block;
  pack.stride_o = g.features(), pack.stride_c = g.taps(), pack.stride_h = g.kernel_w, pack.stride_w = 1;
  const Array<E> packed(g.groups * pack.blocks * g.features() * pack.block);
  pack.packed = packed.data;
  launch_pack_weight(pack, nullptr);

  const Array<uint8_t> out_bits(how.counts ? 0 : planes * neurons);
  const Array<T> sum(neurons), state(how.counts ? 0 : states * neurons);
  CudaProductArgs<E, T> args = {};
  args.geometry = g, args.bits = bits.data, args.planes = planes;
  args.weight = packed.data, args.block = pack.block, args.blocks = pack.blocks;
  args.scale = scale.or_null(), args.bias = bias.or_null();
  args.sum = sum.data, args.time_steps = time_steps, args.neuron = neuron;
  if (!how.counts) {
    args.initial = {initial.or_null(), neurons}, args.state = {state.data, neurons};
    args.out_bits = out_bits.data;
    args.joined = {added_current.or_null(), added_spikes.or_null(), neurons, amplitude.or_null()};
  }
  if constexpr (std::is_same<E, float>::value) {
    if (how.terms != 0) {
      if (how.blocks != 0) stop("the tensor-core engine has a block for each tile");
      if (launch_tensor_core_product(args, how.terms, nullptr) != cudaSuccess) stop("refused");
    }
  } else if (how.terms != 0) {
    stop("tensor cores take float32 weights");
  }
  if (how.terms == 0) launch_gather_product(args, nullptr);
  host::most_blocks = 0;
  packed.write(), out_bits.write(), sum.write(), state.write();
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) stop("usage: run_products IN OUT");
  in = std::fopen(argv[1], "rb");
  out = std::fopen(argv[2], "wb");
  if (in == nullptr || out == nullptr) stop("cannot open the files");
  int calls = 0;
  for (int64_t which; std::fread(&which, sizeof(which), 1, in) == 1; ++calls) {
    switch (which) {
      case 0:
        product<float, float, float>();
        break;
      case 1:
        product<double, double, double>();
        break;
      case 2:
        product<Float16, float, float>();
        break;
      case 3:
        product<BFloat16, float, float>();
        break;
      case 4:
        product<int8_t, int16_t, float>();
        break;
      case 5:
        product<int16_t, int32_t, float>();
        break;
      default:
        stop("no such weights");
    }
  }
  if (std::fclose(out) != 0) stop("cannot write");
  std::printf("%d calls\n", calls);
  return 0;
}
