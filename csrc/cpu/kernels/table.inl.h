// Everything of one instruction set: included once per translation unit, with TANDEM_ISA naming its namespace.
#include "cpu/kernels/simd.inl.h"
// the loops
#include "cpu/kernels/bit_planes.inl.h"
#include "cpu/kernels/event_tile.inl.h"
#include "cpu/kernels/integrate_and_fire.inl.h"

#define TANDEM_STRING_(x) #x
#define TANDEM_STRING(x) TANDEM_STRING_(x)

namespace tandem::TANDEM_ISA {

const Kernels kernels = {
    TANDEM_STRING(TANDEM_ISA),
    {integrate_and_fire<float>, event_tile<float>, spike_count<float>},
    {integrate_and_fire<double>, event_tile<double>, spike_count<double>},
    {pack<float>, unpack<float>},
    {pack<double>, unpack<double>},
    {pack<uint8_t>, unpack<uint8_t>},
    build_units,
    build_visits,
    count_bytes,
};

}  // namespace tandem::TANDEM_ISA
