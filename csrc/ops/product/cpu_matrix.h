// Products of counts with weights on matrix tiles.
#pragma once

#include "ops/product/cpu_event.h"
#include "ops/product/plan.h"

namespace tandem {

// Fills the outputs of some samples. panels: of all groups and blocks, without pairs of inputs. E: packed weights.
template <class E>
void multiply_matrices(const char* op, const ProductPlan& plan, Samples samples, const BinaryCounts& counts,
                       const uint8_t* panels);

}  // namespace tandem
