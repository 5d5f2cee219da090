// The dense engine of integer weights. Whatever the engine, sums of integers are
// the same to the bit.
#pragma once

#include "ops/product/cpu_event.h"
#include "ops/product/plan.h"

namespace tandem {

// Both fill the outputs of some samples.
void run_spiking_words(const char* op, const ProductPlan& plan, Samples samples, int64_t time_steps);
void run_count_words(const char* op, const ProductPlan& plan, Samples samples, const BinaryCounts& counts);

// Whether matrix tiles multiply counts with these weights, integers or floats.
bool uses_matrices(const ProductPlan& plan);
// Whether the processor multiplies counts with 8-bit weights, or digits of weights, and whether they all fit.
bool multiplies_counts(const ProductPlan& plan);
void run_count_bytes(const char* op, const ProductPlan& plan, Samples samples, const BinaryCounts& counts);

// Throws if a sum of integer weights could exceed 32 bits: they are many, of 16 bits, and large.
void check_32_bits(const char* op, const ProductPlan& plan);

}  // namespace tandem
