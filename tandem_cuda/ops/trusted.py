"""The operators for the layers of this library, which pass what an operator takes: checks run where a call fails."""

from .batch_statistics import batch_statistics as _batch_statistics
from .count_conv2d import count_conv2d as _count_conv2d
from .count_linear import count_linear as _count_linear
from .fold_norm import fold_norm as _fold_norm
from .integrate_and_fire import integrate_and_fire as _integrate_and_fire
from .max_pool_spikes import max_pool_spikes as _max_pool_spikes
from .ordered_product import ordered_product as _ordered_product
from .ordered_spikes import ordered_spikes as _ordered_spikes
from .pack_weight import pack_weight as _pack_weight
from .quantise_weight import quantise_weight as _quantise_weight
from .spike_count import spike_count as _spike_count
from .spiking_conv2d import spiking_conv2d as _spiking_conv2d
from .spiking_linear import spiking_linear as _spiking_linear
from .step_product import step_product as _step_product
from .tandem_count import tandem_count as _tandem_count
from .tandem_norm_count import tandem_norm_count as _tandem_norm_count
from .unpack_spikes import unpack_spikes as _unpack_spikes
from .update_statistics import update_statistics_ as _update_statistics

batch_statistics = _batch_statistics.trusted
count_conv2d = _count_conv2d.trusted
count_linear = _count_linear.trusted
fold_norm = _fold_norm.trusted
integrate_and_fire = _integrate_and_fire.trusted
max_pool_spikes = _max_pool_spikes.trusted
ordered_product = _ordered_product.trusted
ordered_spikes = _ordered_spikes.trusted
pack_weight = _pack_weight.trusted
quantise_weight = _quantise_weight.trusted
spike_count = _spike_count.trusted
spiking_conv2d = _spiking_conv2d.trusted
spiking_linear = _spiking_linear.trusted
step_product = _step_product.trusted
tandem_count = _tandem_count.trusted
tandem_norm_count = _tandem_norm_count.trusted
unpack_spikes = _unpack_spikes.trusted
update_statistics_ = _update_statistics.trusted
