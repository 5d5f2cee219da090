// The event-driven engine: threads, tiles and scratch memory around the event_tile kernel.
#pragma once

#include "common/product_plan.h"

namespace tandem {

// Fills plan.out_bits, out_sum and out_potential.
void run_spiking_product(const char* op, const ProductPlan& plan, int64_t time_steps, double threshold, double leak);
// Fills plan.out_sum with weight * count + bias.
void run_count_product(const char* op, const ProductPlan& plan);

}  // namespace tandem
