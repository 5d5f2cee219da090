"""The operators: thin, checked functions over ``torch.ops.tandem_cuda``, with their fake kernels and gradients.

Each operator has its own file. Shapes follow :mod:`tandem_cuda.spike_train`: T time steps, P = ceil(T / 8) bit planes,
N batch.
"""

from .. import _C as _C  # registers the operators of torch.ops.tandem_cuda
from .batch_statistics import batch_statistics
from .compiling import tag_compiled_graphs
from .count_conv2d import count_conv2d
from .count_linear import count_linear
from .fold_norm import fold_norm
from .integrate_and_fire import integrate_and_fire
from .max_pool_spikes import max_pool_spikes
from .ordered_product import ordered_product
from .ordered_spikes import ordered_spikes
from .pack_spikes import pack_spikes
from .pack_weight import pack_weight
from .product_gradient import register_products
from .quantise_weight import LARGEST as LARGEST
from .quantise_weight import quantise_weight
from .radix_spikes import radix_spikes
from .spike_count import spike_count
from .spiking_conv2d import spiking_conv2d
from .spiking_linear import spiking_linear
from .step_product import step_product
from .tandem_count import tandem_count
from .tandem_norm_count import tandem_norm_count
from .unpack_spikes import unpack_spikes
from .update_statistics import update_statistics_

register_products()
tag_compiled_graphs()

__all__ = [
    "batch_statistics",
    "count_conv2d",
    "count_linear",
    "fold_norm",
    "integrate_and_fire",
    "max_pool_spikes",
    "ordered_product",
    "ordered_spikes",
    "pack_spikes",
    "pack_weight",
    "quantise_weight",
    "radix_spikes",
    "spike_count",
    "spiking_conv2d",
    "spiking_linear",
    "step_product",
    "tandem_count",
    "tandem_norm_count",
    "unpack_spikes",
    "update_statistics_",
]
