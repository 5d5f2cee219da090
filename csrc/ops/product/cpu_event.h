// The event-driven engine: threads, tiles and scratch memory around the event_tile kernel.
#pragma once

#include "cpu/aligned_buffer.h"
#include "ops/product/plan.h"

namespace tandem {

// The numbers that weights multiply, spike counts or the values of radix spikes: their binary digits take the place of
// time steps in an event-driven product.
struct BinaryCounts {
  int64_t digits, planes;
  AlignedBuffer<uint8_t> counted;  // empty for radix spikes, whose bytes are the values
  const uint8_t* bytes;            // [planes, pixels_in, C]

  BinaryCounts(const char* op, const ProductPlan& plan);
};

// Both fill the outputs of some samples; the second of integer weights, for others see cpu_count.h. density: ones per
// bit of these samples' input, about; the order of additions does not depend on it, nor on how many samples there are.
void run_spiking_events(const char* op, const ProductPlan& plan, Samples samples, int64_t time_steps, double density);
void run_count_events(const char* op, const ProductPlan& plan, Samples samples, const BinaryCounts& counts,
                      double density);
// The currents of all steps: plan.out_sum is [T, N, ...].
void run_step_events(const char* op, const ProductPlan& plan, int64_t time_steps, double density);

}  // namespace tandem
