// Everything of one instruction set: included once per translation unit, with TANDEM_ISA naming its namespace.
#include "cpu/simd.inl.h"
// the loops
#include "ops/max_pool/max_pool_spikes.inl.h"
#include "ops/neuron_loop/integrate_and_fire.inl.h"
#include "ops/ordered_product/ordered_product.inl.h"
#include "ops/product/count_lists.inl.h"
#include "ops/product/count_tile.inl.h"
#include "ops/product/depthwise.inl.h"
#include "ops/product/event_tile.inl.h"
#include "ops/product/event_visits.inl.h"
#include "ops/spike_train/bit_planes.inl.h"
#include "ops/tandem_count/tandem_count_backward.inl.h"
#include "ops/tandem_count/tandem_norm_count.inl.h"

#define TANDEM_STRING_(x) #x
#define TANDEM_STRING(x) TANDEM_STRING_(x)

namespace tandem::TANDEM_ISA {

const Kernels kernels = {
    TANDEM_STRING(TANDEM_ISA),
    {integrate_and_fire<float>, spike_count<float>, whole_bytes<float>, tandem_count_backward<float>,
     sweep_counts<float>, depthwise<float>, norm_sums<float>, norm_gradient<float>},
    {integrate_and_fire<double>, spike_count<double>, whole_bytes<double>, tandem_count_backward<double>,
     sweep_counts<double>, depthwise<double>, norm_sums<double>, norm_gradient<double>},
    {pack<float>, unpack<float>},
    {pack<double>, unpack<double>},
    {pack<uint8_t>, unpack<uint8_t>},
    event_tile<float, float>,
    event_tile<double, double>,
    event_tile<int8_t, float>,
    event_tile<int16_t, float>,
    kCountTile<int8_t>,
    kCountTile<int16_t>,
    ordered_tile<int8_t>,
    ordered_tile<int16_t>,
    count_spikes,
    build_units,
    build_visits,
    list_tile,
    build_words,
    count_bytes,
    add_counts,
    max_pool,
};

}  // namespace tandem::TANDEM_ISA
