"""Other simulators run exported files with the same spike counts."""

import os
import subprocess
import venv
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tandem_cuda
from exact import dyadic, same, train
from tandem_cuda import IF, LIF, Encode, SpikeTrain, SpikingAvgPool2d, TandemConv2d, TandemLinear
from tandem_cuda.nn import SpikeWindows

nir = pytest.importorskip("nir", reason="pip install tandem_cuda[nir]")


from nir_networks import IMAGES, network, randomised  # noqa: E402
from tandem_cuda.exchange import to_nir  # noqa: E402 (only where the extra is there)

# Both take NIR's v_reset for a hard reset, the only one they know from it, so the scripts say "subtract" to their
# neurons; everything else comes from the file.
SPIKINGJELLY = """
import sys, numpy as np, torch
from spikingjelly.activation_based import base, neuron
from spikingjelly.activation_based.nir_exchange import import_from_nir

path, inputs, outputs, dtype = sys.argv[1:]
net = import_from_nir(path, dt=1e-4, dtype=getattr(torch, dtype))
for module in net.modules():
    if isinstance(module, neuron.IFNode):
        module.v_reset = None
x, state, total = torch.from_numpy(np.load(inputs)), None, 0
with torch.no_grad():
    for step in x:
        y, state = net(step, state)
        total = total + y
np.save(outputs, total.numpy())
"""


SNNTORCH = """
import sys, nir, numpy as np, torch, snntorch
from snntorch.import_nir import import_from_nir

path, inputs, outputs, dtype = sys.argv[1:]
net = import_from_nir(nir.read(path)).to(getattr(torch, dtype))
for name, module in list(net.named_modules()):
    if isinstance(module, snntorch.Leaky):
        net.set_submodule(name, snntorch.Leaky(
            beta=module.beta, threshold=module.threshold, reset_mechanism="subtract", init_hidden=True,
            spike_grad=lambda u: (u >= 0).to(u.dtype),
        ))
x, total = torch.from_numpy(np.load(inputs)), 0
with torch.no_grad():
    for step in x:
        y, _ = net(step)
        total = total + y
np.save(outputs, total.numpy())
"""


@pytest.fixture(scope="module")
def simulators(tmp_path_factory) -> Path:
    """The Python of an environment of its own, with both simulators; it borrows torch from this one."""
    folder = tmp_path_factory.mktemp("simulators")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    site = subprocess.check_output(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
    ).strip()
    (Path(site) / "borrowed.pth").write_text(str(Path(torch.__file__).parents[1]) + "\n")
    reached = subprocess.run(
        [python, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), "nir"], check=False
    )
    if reached.returncode:
        pytest.skip("the package index cannot be reached")
    subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "spikingjelly[nir]==2.0.0", "snntorch==1.0.0", "nir", "nirtorch"],
        check=True,
        timeout=900,
    )
    return python


def executed(python: Path, folder: Path, script: str, net: nn.Module, x: Tensor, steps: Tensor) -> Tensor:
    """Sums over time of what another simulator makes of the exported network, given its input at each step."""
    path, inputs, outputs = folder / "net.nir", folder / "in.npy", folder / "out.npy"
    to_nir(net, x, path)
    np.save(inputs, steps.numpy())
    dtype = str(x.dtype).removeprefix("torch.")
    done = subprocess.run(
        [python, "-c", script, path, inputs, outputs, dtype], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return torch.from_numpy(np.load(outputs))


@pytest.mark.slow
@pytest.mark.parametrize("neuron", [IF(), IF(0.75)], ids=str)
@pytest.mark.parametrize("norm", ["batch", None])
def test_spikingjelly_counts_the_same_spikes(simulators: Path, tmp_path: Path, neuron: IF, norm: str | None):
    """A convolutional network in float64, where no potential is so near its threshold that rounding tells."""
    net = randomised(network(norm=norm, neuron=neuron)).double()
    x = IMAGES.double()
    spikes = nn.Sequential(*net[:5])
    got = executed(simulators, tmp_path, SPIKINGJELLY, spikes, x, x.expand(8, *x.shape))
    with torch.no_grad():
        want, logits = spikes(x).count, net(x)
    assert 0 < want.mean() < 8
    assert len(want.unique()) > 3
    same(got, want)
    got = executed(simulators, tmp_path, SPIKINGJELLY, net, x, x.expand(8, *x.shape))
    torch.testing.assert_close(got, logits, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_spikingjelly_runs_recorded_spikes(simulators: Path, tmp_path: Path):
    """In float32 with dyadic weights, where all sums are exact."""
    net = nn.Sequential(
        TandemConv2d(2, 6, 3, padding=1), TandemConv2d(6, 5, 3, stride=2), nn.Flatten(), TandemLinear(60, 9)
    )
    with torch.no_grad():
        for i, parameter in enumerate(net.parameters()):
            parameter.copy_(dyadic(*parameter.shape, seed=i))
    spikes = train(8, 4, 2, 8, 9, seed=0).float()
    x = SpikeTrain.from_dense(spikes)
    path, inputs, outputs = tmp_path / "net.nir", tmp_path / "in.npy", tmp_path / "out.npy"
    to_nir(net, x, path)
    np.save(inputs, spikes.numpy())
    subprocess.run([simulators, "-c", SPIKINGJELLY, path, inputs, outputs, "float32"], check=True, timeout=300)
    want = net(x).count.detach()
    assert 0 < want.mean() < 8
    same(torch.from_numpy(np.load(outputs)), want)


@pytest.mark.slow
def test_spikingjelly_adds_branches_and_pools(simulators: Path, tmp_path: Path):
    """A shortcut whose spikes weigh 0.5, means of 2 x 2 and sums of 5 x 5 pixels; dyadic weights, float64.

    Means with and without neurons.
    """
    from test_exchange_graphs import IMAGES as images
    from test_exchange_graphs import Residual, filled, repeated
    from test_exchange_graphs import images as behind_a_convolution

    x = images.double()
    folded = behind_a_convolution(SpikeWindows(2), TandemConv2d(16, 6, 3))
    for net in (Residual(0.5), behind_a_convolution(SpikingAvgPool2d(2), TandemConv2d(4, 6, 3)), folded):
        net = repeated(filled(net).double())
        got = executed(simulators, tmp_path, SPIKINGJELLY, net, x, x.expand(8, *x.shape))
        with torch.no_grad():
            want = net(x)
        want = want.count if isinstance(want, SpikeTrain) else want
        assert len(want.unique()) > 2
        same(got, want)


@pytest.mark.slow
def test_graphs_that_spikingjelly_holds_in_memory(simulators: Path):
    """They say nothing of the reset; with it said, they count here what they count there."""
    code = """
import sys, torch
from torch import nn
from spikingjelly.activation_based import neuron
from spikingjelly.activation_based.nir_exchange import export_to_nir
from tandem_cuda.exchange import from_nir
torch.manual_seed(0)
net = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), neuron.IFNode(0.5), nn.Flatten(), nn.Linear(360, 8), neuron.IFNode())
graph = export_to_nir(net.double(), torch.rand(1, 2, 9, 10).double())
try:
    from_nir(graph, time_steps=8, encoding="constant")
except ValueError as error:
    assert "reset must be given" in str(error)
else:
    raise AssertionError
ours = from_nir(graph, time_steps=8, encoding="constant", reset="subtract")
for module in net:
    if isinstance(module, neuron.IFNode):
        module.reset()
        module.v_reset = None
x = torch.rand(16, 2, 9, 10).double()
with torch.no_grad():
    want = sum(net(x) for _ in range(8))
    assert len(want.unique()) > 2
    assert torch.equal(ours(x).count, want)
"""
    root = str(Path(tandem_cuda.__file__).parents[1])
    done = subprocess.run(
        [simulators, "-c", code], env={**os.environ, "PYTHONPATH": root}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("neuron", [LIF(leak=0.75), LIF(0.5, 0.9)], ids=str)
def test_snntorch_counts_the_same_spikes(simulators: Path, tmp_path: Path, neuron: LIF):
    """Leaky neurons, in float64."""
    net = randomised(
        nn.Sequential(
            Encode(16),
            TandemLinear(20, 30, norm="batch", neuron=neuron),
            TandemLinear(30, 25, neuron=neuron),
            TandemLinear(25, 12, neuron=neuron),
        )
    ).double()
    x = torch.rand(6, 20, generator=torch.Generator().manual_seed(0)).double()
    got = executed(simulators, tmp_path, SNNTORCH, net, x, x.expand(16, *x.shape))
    with torch.no_grad():
        want = net(x).count
    assert 0 < want.mean() < 16
    assert len(want.unique()) > 3
    same(got, want)
