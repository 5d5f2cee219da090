// The event-driven engine of spike counts and floating-point weights.
#pragma once

#include "ops/product/cpu_event.h"

namespace tandem {

// out [pixels_out, O] = weight * counts of some samples, or += where `add`. counts: unsigned integers, their bytes in
// `planes` of [pixels_in, C]; packed: the weights.
template <class T>
void add_count_product(const char* op, const ConvGeometry& geometry, Samples samples, const T* packed,
                       const uint8_t* counts, int64_t planes, const T* scale, const T* bias, bool add, T* out);

// Fills the outputs of some samples.
void run_count_lists(const char* op, const ProductPlan& plan, Samples samples, const BinaryCounts& counts);

}  // namespace tandem
