// The dense engine: torch's own convolution or matrix product on unpacked spikes, then the neuron loop.
#pragma once

#include "common/product_plan.h"

namespace tandem {

// Fills plan.out_bits, out_sum and out_potential.
void run_spiking_dense(const char* op, const ProductPlan& plan, int64_t time_steps, double threshold, double leak);
// The count product, [N, O, Ho, Wo] or [N, *, O], features last in memory.
Tensor run_count_dense(const char* op, const ProductPlan& plan);

}  // namespace tandem
