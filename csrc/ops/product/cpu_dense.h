// The dense engine: torch's own convolution or matrix product on unpacked spikes, then the neuron loop.
#pragma once

#include "ops/product/plan.h"

namespace tandem {

// Time steps of one sample that torch convolves in one call, at most. A call sees one sample, so that its sums do not
// depend on the others: torch chooses its algorithm by the shapes. And it sees fewer than 16 images, from which on
// torch may call NNPACK (where oneDNN is disabled), whose sums are rounded even where they could be exact.
constexpr int64_t kDenseSteps = 15;

// The plan with weights as torch is to have them: of the currents' dtype, finite, laid out for its convolution.
ProductPlan plan_dense(const char* op, ProductPlan plan);

// Both fill the outputs of some samples of a plan_dense.
void run_spiking_dense(const char* op, const ProductPlan& plan, Samples samples, int64_t time_steps);
void run_count_dense(const char* op, const ProductPlan& plan, Samples samples);

}  // namespace tandem
