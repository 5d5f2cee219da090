// The event-driven engine: threads, tiles and scratch memory around the event_tile kernel.
#pragma once

#include "common/product_plan.h"

namespace tandem {

// Fills plan.out_bits, out_sum and out_potential. density: spikes per neuron and time step of the input, about.
void run_spiking_events(const char* op, const ProductPlan& plan, int64_t time_steps, double threshold, double leak,
                        double density);
// Fills plan.out_sum, unless the counts have more binary ones than `most` per neuron: then it returns false.
bool run_count_events(const char* op, const ProductPlan& plan, double most);

// out [pixels_out, O] = weight * bytes, or += where `add`; bytes: unsigned integers [pixels_in, C], of whose binary
// digits about a share of `density` are ones; packed: the weights.
template <class T>
void add_byte_product(const char* op, const ConvGeometry& geometry, const T* packed, const uint8_t* bytes,
                      double density, bool add, T* out);

}  // namespace tandem
