// A thread: one channel.
#include "cuda/device.cuh"
#include "ops/batch_norm/batch_norm.cuh"

namespace tandem {

namespace {

constexpr int kThreads = 128;

template <class T>
__global__ void __launch_bounds__(kThreads) update_statistics_kernel(const UpdateStatisticsArgs<T> a) {
  const int64_t c = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (c < a.channels) update_channel(a, factors_of(a), c);
  if (c == 0) ++*a.num_batches_tracked;
}

template <class T>
__global__ void __launch_bounds__(kThreads) fold_norm_kernel(const FoldNormArgs<T> a) {
  const int64_t c = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (c < a.channels) fold_channel(a, c);
}

// Blocks for so many channels, or 0 if there are more than a grid can have.
unsigned blocks_for(int64_t channels) {
  const int64_t blocks = (channels + kThreads - 1) / kThreads;
  return blocks > INT32_MAX ? 0 : static_cast<unsigned>(blocks);
}

}  // namespace

template <class T>
cudaError_t launch_update_statistics(const UpdateStatisticsArgs<T>& args, cudaStream_t stream) {
  const unsigned grid = args.channels == 0 ? 1 : blocks_for(args.channels);  // the batch counts in any case
  if (grid == 0) return cudaErrorInvalidValue;
  TANDEM_LAUNCH((update_statistics_kernel<T>), grid, kThreads, 0, stream, args);
  return cudaGetLastError();
}

template <class T>
cudaError_t launch_fold_norm(const FoldNormArgs<T>& args, cudaStream_t stream) {
  if (args.channels == 0) return cudaSuccess;
  const unsigned grid = blocks_for(args.channels);
  if (grid == 0) return cudaErrorInvalidValue;
  TANDEM_LAUNCH((fold_norm_kernel<T>), grid, kThreads, 0, stream, args);
  return cudaGetLastError();
}

template cudaError_t launch_update_statistics(const UpdateStatisticsArgs<float>&, cudaStream_t);
template cudaError_t launch_update_statistics(const UpdateStatisticsArgs<double>&, cudaStream_t);
template cudaError_t launch_fold_norm(const FoldNormArgs<float>&, cudaStream_t);
template cudaError_t launch_fold_norm(const FoldNormArgs<double>&, cudaStream_t);

}  // namespace tandem
