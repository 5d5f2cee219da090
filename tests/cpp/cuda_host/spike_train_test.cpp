// The device's element-wise operators, run on the host, against plain loops over time steps and neurons.
#include "ops/spike_train/spike_train.cu"

#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

namespace {

using namespace tandem;

const std::vector<int64_t> kSizes = {0, 1, 3, 4, 5, 6, 31, 257, 1000, 1026};
constexpr int64_t kMostSteps = 20;
constexpr int kUnwritten = 0xa5;

int failures = 0;
std::mt19937 generator(7);

int random_int(int low, int high) { return std::uniform_int_distribution<int>(low, high)(generator); }

// Memory from so many elements behind a 64-byte boundary on. AddressSanitizer sees what is touched beyond; elsewhere
// what is written there is found afterwards.
template <class T>
class Buffer {
#if defined(__SANITIZE_ADDRESS__)
  static constexpr size_t kGuard = 0;
#else
  static constexpr size_t kGuard = 64;
#endif

 public:
  Buffer(int64_t n, int64_t offset) : size(n), before_(static_cast<size_t>(offset) * sizeof(T)) {
    bytes_ = before_ + static_cast<size_t>(n) * sizeof(T) + kGuard;
    void* memory = nullptr;
    if (posix_memalign(&memory, 64, bytes_ == 0 ? 1 : bytes_) != 0) std::abort();
    memory_ = static_cast<unsigned char*>(memory);
    std::memset(memory_, kUnwritten, bytes_);
    data = reinterpret_cast<T*>(memory_ + before_);
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { std::free(memory_); }

  T& operator[](int64_t i) { return data[i]; }

  bool untouched_around() const {
    for (size_t i = 0; i < bytes_; ++i) {
      const bool inside = i >= before_ && i < bytes_ - kGuard;
      if (!inside && memory_[i] != kUnwritten) return false;
    }
    return true;
  }

  T* data;
  int64_t size;

 private:
  size_t before_, bytes_;
  unsigned char* memory_;
};

template <class T>
bool same(T a, T b) {
  return std::memcmp(&a, &b, sizeof(T)) == 0 || (a != a && b != b);
}

void fail(const std::string& what) {
  ++failures;
  std::printf("FAIL %s\n", what.c_str());
}

template <class T>
void compare(const std::string& where, Buffer<T>& got, const std::vector<T>& expected) {
  if (!got.untouched_around()) fail(where + ": wrote beyond its output");
  for (int64_t i = 0; i < got.size; ++i) {
    const T want = expected[static_cast<size_t>(i)];
    if (same(got[i], want)) continue;
    fail(where + ": element " + std::to_string(i) + " is " + std::to_string(got[i]) + ", expected " +
         std::to_string(want));
    return;
  }
}

void check_success(const std::string& where, cudaError_t error) {
  if (error != cudaSuccess) fail(where + ": the launch returned " + std::to_string(error));
}

template <class T>
std::string name(const char* op, int64_t neurons, int64_t time_steps, int64_t in, int64_t out) {
  return std::string(op) + ", " + std::to_string(sizeof(T)) + " bytes, " + std::to_string(neurons) + " neurons, T " +
         std::to_string(time_steps) + ", offsets " + std::to_string(in) + " " + std::to_string(out);
}

// A train, [T, neurons] of 0 and 1, and its bit planes.
struct Train {
  Train(int64_t steps, int64_t n)
      : spikes(static_cast<size_t>(steps * n)), bits(static_cast<size_t>(planes_for(steps) * n)) {
    for (int64_t t = 0; t < steps; ++t) {
      for (int64_t i = 0; i < n; ++i) {
        const int spike = random_int(0, 2) == 0;
        spikes[static_cast<size_t>(t * n + i)] = spike;
        uint8_t& byte = bits[static_cast<size_t>(t / 8 * n + i)];
        byte = static_cast<uint8_t>(byte | spike << t % 8);
      }
    }
  }

  std::vector<int> spikes;
  std::vector<uint8_t> bits;
};

template <class D>
CudaPackSpikesArgs<D> pack_arguments(Buffer<D>& dense, Buffer<uint8_t>& bits, int64_t time_steps, int64_t neurons) {
  CudaPackSpikesArgs<D> args = {};
  args.dense = dense.data, args.bits = bits.data, args.time_steps = time_steps, args.neurons = neurons;
  return args;
}

template <class D>
void pack_and_unpack(int64_t neurons, int64_t time_steps, int64_t in, int64_t out) {
  const Train train(time_steps, neurons);
  const std::vector<D> spikes(train.spikes.begin(), train.spikes.end());
  {
    Buffer<D> dense(time_steps * neurons, in);
    for (int64_t i = 0; i < dense.size; ++i) {
      // A zero with a sign is a zero.
      const D zero = i % 5 == 0 ? -D(0) : D(0);
      dense[i] = train.spikes[static_cast<size_t>(i)] ? D(1) : zero;
    }
    Buffer<uint8_t> bits(planes_for(time_steps) * neurons, out);
    const std::string where = name<D>("pack_spikes", neurons, time_steps, in, out);
    check_success(where, launch_pack_spikes(pack_arguments(dense, bits, time_steps, neurons), nullptr));
    compare(where, bits, train.bits);
  }
  {
    Buffer<uint8_t> bits(planes_for(time_steps) * neurons, in);
    for (int64_t i = 0; i < bits.size; ++i) bits[i] = train.bits[static_cast<size_t>(i)];
    Buffer<D> dense(time_steps * neurons, out);
    CudaUnpackSpikesArgs<D> args = {};
    args.bits = bits.data, args.dense = dense.data, args.time_steps = time_steps, args.neurons = neurons;
    const std::string where = name<D>("unpack_spikes", neurons, time_steps, in, out);
    check_success(where, launch_unpack_spikes(args, nullptr));
    compare(where, dense, spikes);
  }
}

// radix: values, in which the bit of time step t weighs 2^t.
template <class T>
void count(int64_t neurons, int64_t time_steps, int64_t in, int64_t out, bool radix) {
  const Train train(time_steps, neurons);
  std::vector<T> expected(static_cast<size_t>(neurons));
  for (int64_t t = 0; t < time_steps; ++t) {
    for (int64_t i = 0; i < neurons; ++i) {
      const int spike = train.spikes[static_cast<size_t>(t * neurons + i)];
      expected[static_cast<size_t>(i)] += static_cast<T>(radix ? spike << t : spike);
    }
  }
  Buffer<uint8_t> bits(planes_for(time_steps) * neurons, in);
  for (int64_t i = 0; i < bits.size; ++i) bits[i] = train.bits[static_cast<size_t>(i)];
  // Bits past T, which do not count where T is given.
  for (int64_t i = bits.size - neurons; i < bits.size; ++i) bits[i] |= bits_past(time_steps);
  Buffer<T> counts(neurons, out);
  CudaSpikeCountArgs<T> args = {};
  args.bits = bits.data, args.count = counts.data, args.planes = planes_for(time_steps), args.neurons = neurons;
  args.past = bits_past(time_steps);
  args.radix = radix;
  const std::string where = name<T>(radix ? "spike_count of values" : "spike_count", neurons, time_steps, in, out);
  check_success(where, launch_spike_count(args, nullptr));
  compare(where, counts, expected);
}

// Offsets: of grad, pre_activation and out.
template <class T>
void backward(int64_t neurons, T upper, const int64_t (&offsets)[3], bool in_place) {
  const T infinity = std::numeric_limits<T>::infinity(), nan = std::numeric_limits<T>::quiet_NaN();
  const T threshold = T(0.7), tiny = std::numeric_limits<T>::denorm_min();
  const std::vector<T> special = {
      nan,      0,        -T(0), tiny, -tiny, upper, std::nextafter(upper, infinity), std::nextafter(upper, T(0)),
      infinity, -infinity};
  const auto value = [&] {
    return random_int(0, 1) ? special[static_cast<size_t>(random_int(0, static_cast<int>(special.size()) - 1))]
                            : static_cast<T>(random_int(-1000, 1000)) / T(300);
  };
  Buffer<T> grad(neurons, offsets[0]), v(neurons, offsets[1]), out(neurons, offsets[2]);
  std::vector<T> expected(static_cast<size_t>(neurons));
  for (int64_t i = 0; i < neurons; ++i) {
    grad[i] = value();
    v[i] = value();
    if (v[i] > 0 && v[i] <= upper) expected[static_cast<size_t>(i)] = grad[i] / threshold;
  }
  CudaTandemCountBackwardArgs<T> args = {};
  args.grad = grad.data, args.pre_activation = v.data, args.out = in_place ? grad.data : out.data;
  args.neurons = neurons, args.threshold = threshold, args.upper = upper;
  const std::string where = name<T>(in_place ? "tandem_count_backward in place" : "tandem_count_backward", neurons, 0,
                                    offsets[0] + 10 * offsets[1], offsets[2]) +
                            ", upper " + std::to_string(upper);
  check_success(where, launch_tandem_count_backward(args, nullptr));
  compare(where, in_place ? grad : out, expected);
}

// Fewer threads than neurons: each of them walks on.
template <int kLanes>
void stride() {
  const int64_t neurons = 5 * 2 * kThreads * kLanes + 3, time_steps = 8;
  const Train train(time_steps, neurons);
  Buffer<float> dense(time_steps * neurons, 0);
  for (int64_t i = 0; i < dense.size; ++i) dense[i] = static_cast<float>(train.spikes[static_cast<size_t>(i)]);
  Buffer<uint8_t> bits(neurons, 0);
  // One step alone: its row may end anywhere, and still be read four at a time.
  const PackSpikes<float> op = {pack_arguments(dense, bits, kLanes == 1 ? time_steps : 1, neurons)};
  TANDEM_LAUNCH((spike_train_kernel<PackSpikes<float>, kLanes>), 2, kThreads, 0, nullptr, op);
  std::vector<uint8_t> expected = train.bits;
  for (uint8_t& byte : expected) byte = static_cast<uint8_t>(kLanes == 1 ? byte : byte & 1);
  compare("pack_spikes by 2 blocks, " + std::to_string(kLanes) + " lanes", bits, expected);
}

// What is neither 0 nor 1 must end the process, and not before it has said why.
template <class D>
void odd(D value, const char* text, int64_t neurons, int64_t offset, int64_t at) {
  const int64_t time_steps = 9;
  Buffer<D> dense(time_steps * neurons, offset);
  for (int64_t i = 0; i < dense.size; ++i) dense[i] = static_cast<D>(i % 2);
  dense[at] = value;
  Buffer<uint8_t> bits(planes_for(time_steps) * neurons, 0);
  int ends[2];
  std::fflush(stdout);
  if (pipe(ends) != 0) std::abort();
  const pid_t child = fork();
  if (child < 0) std::abort();
  if (child == 0) {
    dup2(ends[1], STDOUT_FILENO);
    dup2(ends[1], STDERR_FILENO);
    close(ends[0]);
    launch_pack_spikes(pack_arguments(dense, bits, time_steps, neurons), nullptr);
    _exit(0);
  }
  close(ends[1]);
  std::string said;
  char chunk[256];
  for (ssize_t n = 0; (n = read(ends[0], chunk, sizeof(chunk))) > 0;) said.append(chunk, static_cast<size_t>(n));
  close(ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  const std::string where = std::string("pack_spikes of ") + text + ", " + std::to_string(neurons) +
                            " neurons, element " + std::to_string(at);
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) fail(where + ": did not trap");
  const std::string message = std::string("pack_spikes: spikes must be 0 or 1, got ") + text + "\n";
  const size_t found = said.find(message);
  if (found == std::string::npos || said.find(message, found + 1) != std::string::npos) {
    fail(where + ": said not once what is wrong, but: " + said);
  }
}

template <class D>
void odds(int64_t neurons, int64_t offset) {
  for (const int64_t at : {int64_t{0}, 5 * neurons + neurons / 2, 9 * neurons - 1}) odd(D(2), "2", neurons, offset, at);
}

}  // namespace

int main() {
  // First: a child of a process that has run kernels would inherit what they left.
  for (const int64_t neurons : {4, 257}) {
    odds<uint8_t>(neurons, 0);
    odds<float>(neurons, 0);
    odds<float>(neurons, 1);
    odds<double>(neurons, 0);
  }
  odd(0.5F, "0.5", 4, 0, 1);
  odd(-1.0, "-1", 4, 0, 1);
  odd(std::numeric_limits<float>::quiet_NaN(), "nan", 4, 0, 1);
  odd(std::numeric_limits<double>::infinity(), "inf", 4, 0, 1);

  for (const int64_t neurons : kSizes) {
    for (const int64_t in : {0, 1}) {
      for (const int64_t out : {0, 1}) {
        for (int64_t time_steps = 1; time_steps <= kMostSteps; ++time_steps) {
          pack_and_unpack<uint8_t>(neurons, time_steps, in, out);
          pack_and_unpack<float>(neurons, time_steps, in, out);
          pack_and_unpack<double>(neurons, time_steps, in, out);
          for (const bool radix : {false, true}) {
            if (radix && time_steps > tandem::kStepsPerPlane) continue;
            count<float>(neurons, time_steps, in, out, radix);
            count<double>(neurons, time_steps, in, out, radix);
          }
        }
        for (const int64_t v : {0, 1}) {
          for (const bool in_place : {false, true}) {
            backward<float>(neurons, 1.5F, {in, v, out}, in_place);
            backward<float>(neurons, std::numeric_limits<float>::infinity(), {in, v, out}, in_place);
            backward<double>(neurons, 1.5, {in, v, out}, in_place);
            backward<double>(neurons, std::numeric_limits<double>::infinity(), {in, v, out}, in_place);
          }
        }
      }
    }
  }
  count<float>(5, 3000, 0, 0, false);  // counts that fit no byte
  stride<1>();
  stride<kWide>();
  std::printf("spike_train_test: %d failures\n", failures);
  return failures != 0;
}
