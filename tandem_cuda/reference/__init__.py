"""The operators and layers of tandem_cuda in plain PyTorch, slow and obvious.

This package is the specification: every kernel is tested and timed against it. It needs only the neuron models of the
package, not the compiled library. The operators have the names and signatures of `tandem_cuda.ops`, without the
arguments that say how to compute (`packed`, `engine`). The layers have the constructors of `tandem_cuda`, without the
same arguments, but pass time-major float spike trains, as a user of plain PyTorch would.

Sizes: T time steps, P = ceil(T / 8) bit planes, N batch, C channels, F features in, O features out.
The learning rule is from Wu et al., "A Tandem Learning Rule for Effective Training and Rapid Inference of Deep
Spiking Neural Networks", IEEE TNNLS 2021, doi:10.1109/TNNLS.2021.3095724.
"""

from . import layers, pooling
from .layers import *  # noqa: F403  # __all__ says which names
from .ops import (
    fold_norm,
    integrate_and_fire,
    max_pool_spikes,
    neuron_loop,
    pack_spikes,
    radix_spikes,
    spike_count,
    tandem_count,
    tandem_norm_count,
    unpack_spikes,
    update_statistics_,
)
from .pooling import *  # noqa: F403  # likewise
from .products import (
    count_conv2d,
    count_linear,
    ordered_product,
    ordered_spikes,
    quantise_weight,
    spiking_conv2d,
    spiking_linear,
    step_product,
)

__all__ = [
    "count_conv2d",
    "count_linear",
    "fold_norm",
    "integrate_and_fire",
    "max_pool_spikes",
    "neuron_loop",
    "ordered_product",
    "ordered_spikes",
    "pack_spikes",
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
__all__ += layers.__all__
__all__ += pooling.__all__
