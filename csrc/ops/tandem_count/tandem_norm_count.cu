// Two passes over memory, each of which reads the gradient and what batch norm normalised: one for the sums over the
// batch, in a fixed order, one for the gradient. The normalised value and the gate are computed anew in both.
#include "cuda/device.cuh"
#include "ops/tandem_count/norm_gain.h"
#include "ops/tandem_count/norm_gate.h"
#include "ops/tandem_count/tandem_norm_count.cuh"

namespace tandem {

namespace {

constexpr int kLanes = 32;  // neighbouring channels
constexpr int kLines = 8;   // rows that a block has in hand
constexpr int kThreads = kLanes * kLines;
constexpr int kTotals = 8;  // channels whose totals a warp computes: what it reads at once is 32 adjacent bytes

template <class T>
struct NormChannel {
  T mean, gain, gamma, beta;
};

template <class T>
__device__ __forceinline__ NormChannel<T> channel_of(const CudaNormGradientArgs<T>& a, int64_t c) {
  return {a.mean[c], norm_gain(a.var[c], a.unit == nullptr ? nullptr : a.unit + c, a.eps), a.gamma[c], a.beta[c]};
}

// f(place, normalised value, gradient behind the gate) for the rows of this block's chunk in which the thread has a
// part.
template <class T, class F>
__device__ __forceinline__ void for_rows(const CudaNormGradientArgs<T>& a, int64_t chunk, int64_t c,
                                         const NormChannel<T>& channel, const F& f) {
  const int64_t first = chunk * kNormRows, end = first + kNormRows < a.rows ? first + kNormRows : a.rows;
  for (int64_t row = first + threadIdx.x / kLanes; row < end; row += kLines) {
    const int64_t at = row * a.channels + c;
    const T normal = normalised(a.product[at], channel.mean, channel.gain);
    f(at, normal, gated_gradient(a.grad[at], normal, channel.gamma, channel.beta, a.threshold, a.upper));
  }
}

// A block: 32 channels of kNormRows rows.
template <class T>
__global__ void __launch_bounds__(kThreads) norm_sums_kernel(const CudaNormGradientArgs<T> a) {
  __shared__ T shared[2][kLines][kLanes];
  const int lane = static_cast<int>(threadIdx.x) % kLanes, line = static_cast<int>(threadIdx.x) / kLanes;
  const int64_t slices = (a.channels + kLanes - 1) / kLanes;
  const int64_t chunk = blockIdx.x / slices, c = blockIdx.x % slices * kLanes + lane;
  T sum = 0, along = 0;
  if (c < a.channels) {
    for_rows(a, chunk, c, channel_of(a, c), [&](int64_t, T normal, T g) {
      sum += g;
      along += g * normal;
    });
  }
  shared[0][line][lane] = sum;
  shared[1][line][lane] = along;
  __syncthreads();
  if (line >= 2 || c >= a.channels) return;
  T total = 0;
  for (int i = 0; i < kLines; ++i) total += shared[line][i][lane];
  a.sums[(chunk * 2 + line) * a.channels + c] = total;
}

// A warp: 8 channels, of each of which four lanes share out the chunks. Channels that do not exist add zeros, since all
// lanes take part in the exchange.
template <class T>
__global__ void __launch_bounds__(kThreads) norm_totals_kernel(const CudaNormGradientArgs<T> a) {
  constexpr int kShares = kLanes / kTotals;
  const int lane = static_cast<int>(threadIdx.x) % kLanes, warp = static_cast<int>(threadIdx.x) / kLanes;
  const int64_t c = (static_cast<int64_t>(blockIdx.x) * kLines + warp) * kTotals + lane % kTotals;
  const bool exists = c < a.channels;
  const int64_t chunks = exists ? (a.rows + kNormRows - 1) / kNormRows : 0;
  double sum = 0, along = 0;
  for (int64_t chunk = lane / kTotals; chunk < chunks; chunk += kShares) {
    sum += static_cast<double>(a.sums[chunk * 2 * a.channels + c]);
    along += static_cast<double>(a.sums[(chunk * 2 + 1) * a.channels + c]);
  }
  for (int lanes = kTotals; lanes < kLanes; lanes *= 2) {
    sum += __shfl_xor_sync(~0u, sum, lanes);
    along += __shfl_xor_sync(~0u, along, lanes);
  }
  if (!exists || lane >= kTotals) return;
  a.out_beta[c] = static_cast<T>(sum);
  a.out_gamma[c] = static_cast<T>(along);
}

template <class T>
__global__ void __launch_bounds__(kThreads, 4) norm_gradient_kernel(const CudaNormGradientArgs<T> a) {
  const int64_t slices = (a.channels + kLanes - 1) / kLanes;
  const int64_t chunk = blockIdx.x / slices, c = blockIdx.x % slices * kLanes + threadIdx.x % kLanes;
  if (c >= a.channels) return;
  const NormChannel<T> channel = channel_of(a, c);
  const T factor = channel.gamma * channel.gain, rows = a.all_rows ? *a.all_rows : static_cast<T>(a.rows);
  const T mean = a.grad_beta[c] / rows, along = a.grad_gamma[c] / rows;
  for_rows(a, chunk, c, channel,
           [&](int64_t at, T normal, T g) { a.grad_product[at] = factor * (g - mean - normal * along); });
}

// Blocks of 32 channels and kNormRows rows; 0 where there are no rows, and -1 for more than fit a launch.
template <class T>
int64_t grid_of(const CudaNormGradientArgs<T>& args) {
  const int64_t slices = (args.channels + kLanes - 1) / kLanes, chunks = (args.rows + kNormRows - 1) / kNormRows;
  return slices * chunks > INT32_MAX ? -1 : slices * chunks;  // more memory than a device has
}

}  // namespace

template <class T>
cudaError_t launch_norm_sums(const CudaNormGradientArgs<T>& args, cudaStream_t stream) {
  if (args.channels == 0) return cudaSuccess;
  const int64_t grid = grid_of(args);
  if (grid < 0) return cudaErrorInvalidValue;
  if (grid != 0) TANDEM_LAUNCH((norm_sums_kernel<T>), static_cast<unsigned>(grid), kThreads, 0, stream, args);
  constexpr int64_t kOfBlock = int64_t{kLines} * kTotals;
  TANDEM_LAUNCH((norm_totals_kernel<T>), static_cast<unsigned>((args.channels + kOfBlock - 1) / kOfBlock), kThreads, 0,
                stream, args);
  return cudaGetLastError();
}

template <class T>
cudaError_t launch_norm_gradient(const CudaNormGradientArgs<T>& args, cudaStream_t stream) {
  const int64_t grid = grid_of(args);
  if (grid < 0) return cudaErrorInvalidValue;
  if (grid == 0) return cudaSuccess;
  TANDEM_LAUNCH((norm_gradient_kernel<T>), static_cast<unsigned>(grid), kThreads, 0, stream, args);
  return cudaGetLastError();
}

template cudaError_t launch_norm_sums(const CudaNormGradientArgs<float>&, cudaStream_t);
template cudaError_t launch_norm_sums(const CudaNormGradientArgs<double>&, cudaStream_t);
template cudaError_t launch_norm_gradient(const CudaNormGradientArgs<float>&, cudaStream_t);
template cudaError_t launch_norm_gradient(const CudaNormGradientArgs<double>&, cudaStream_t);

}  // namespace tandem
