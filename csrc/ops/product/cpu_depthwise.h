// Products of one input channel a group, or of one pair: threads and packing around the depthwise kernel.
#pragma once

#include "ops/product/plan.h"

namespace tandem {

// Whether run_spiking_depthwise (largest_input: 1) or run_count_depthwise (largest_input: the largest possible count)
// serves the product.
bool is_depthwise(const ProductPlan& plan, int64_t largest_input);
// Whether run_count_depthwise serves a product whose outputs read two inputs at every tap: a value's two signs.
bool is_pairwise(const ProductPlan& plan);

// Fills plan.out_bits, out_sum and out_state.
void run_spiking_depthwise(const char* op, const ProductPlan& plan, int64_t time_steps);
// Fills plan.out_sum, or the bits of the neurons that the sums drive.
void run_count_depthwise(const char* op, const ProductPlan& plan);

}  // namespace tandem
