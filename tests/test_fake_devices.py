"""Layers on a CUDA device that does not exist: where tensors of the host and of the device meet, torch raises an error.

Fake tensors have shapes, dtypes and devices, but no values. Graphs of gradients need a torch that was built for CUDA,
and the backward pass needs a device.
"""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from pairwise import each
from tandem_cuda import freeze, quantise
from tandem_cuda.ops import checks
from test_convert_layers import LINES, NETS, NEURONS, converted
from test_synchronisation import KINDS, Layers

pytestmark = pytest.mark.skipif(torch.version.cuda is None, reason="torch is built without CUDA")


@pytest.fixture(autouse=True)
def fake(monkeypatch):
    """Fake tensors, on the device unless code says otherwise."""
    monkeypatch.setattr(checks, "check_finite", lambda *named: None)
    monkeypatch.setattr(FakeTensor, "__bool__", lambda self: True)  # whether all weights are finite
    with FakeTensorMode() as mode:
        yield mode


def runs(net, *shape):
    x = torch.empty(shape, device="cuda")
    for training in (True, False):
        assert net.train(training)(x).device.type == "cuda"
        with torch.no_grad():
            assert net(x).device.type == "cuda"
    return x


@pytest.mark.parametrize("kind", KINDS)
def test_layers(kind):
    bits, neuron, padding_mode = KINDS[kind]
    with torch.device("cuda"):
        net = Layers(None, neuron, padding_mode)
        if bits is not None:
            quantise(net, bits)
    runs(net, 4, 3, 10, 10)


# Here, conversion or freeze reads values, which fake tensors do not have: of constants, of slopes, or of the numbers
# that say which channel goes where.
CONSTANTS = "filtered", "constants", "a matrix", "prelu", "steep", "leakyrelu behind"
CHANNELS = "huffl", "split", "slices", "channels by", "parts of", "repeated"
FAKE = [name for name in NETS if not any(part in name.lower() for part in (*CONSTANTS, *CHANNELS))]


@each(name=FAKE, neuron=NEURONS)
def test_converted_networks(name, neuron):
    with torch.device("cuda"):
        net = converted(name, NETS[name](), 4, neuron=neuron)
    x = runs(net, 8, 3, *((16,) if name in LINES else (8, 12)))
    assert freeze(net)(x).device.type == "cuda"


def test_what_mixes_devices_is_found():
    with pytest.raises(RuntimeError, match="two different devices"):
        torch.empty(3, device="cuda") + torch.empty(3, device="cpu")
