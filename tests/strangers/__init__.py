"""Networks as different people write them, which the converter was not written for.

`python -m tests.strangers` prints how far each of them gets.
"""

from . import classics, gates, images, mobile, points, residual, sequences, several, transformers
from .network import Network as Network

NETWORKS: dict[str, Network] = {}
for _module in (classics, residual, mobile, transformers, gates, sequences, images, several, points):
    assert not NETWORKS.keys() & _module.NETWORKS.keys()
    NETWORKS |= _module.NETWORKS
