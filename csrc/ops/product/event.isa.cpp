// The kernels of one instruction set: see cpu/kernel_table.h.
#include "ops/product/event_tile.inl.h"
#include "ops/product/event_visits.inl.h"

namespace tandem::TANDEM_ISA {

const EventKernels kEventKernels = {
    build_units,
    build_visits,
    build_words,
    {{event_tile<float, float>},
     {event_tile<double, double>},
     {event_tile<int8_t, float>},
     {event_tile<int16_t, float>}},
};

}  // namespace tandem::TANDEM_ISA
