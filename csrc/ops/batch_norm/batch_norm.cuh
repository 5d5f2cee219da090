// The operators of batch norm on the device: plain pointers and a stream. Torch-free.
#pragma once

#include <cuda_runtime_api.h>

#include "ops/batch_norm/channel.h"

namespace tandem {

// Each one launch on the current device; returns what cudaGetLastError says of it.
template <class T>
cudaError_t launch_update_statistics(const UpdateStatisticsArgs<T>& args, cudaStream_t stream);
template <class T>
cudaError_t launch_fold_norm(const FoldNormArgs<T>& args, cudaStream_t stream);

}  // namespace tandem
