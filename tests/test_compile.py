"""Whole networks compiled, exported and packaged for batches of any size, with the results of eager mode."""

import copy
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.export import Dim

import freezable
import layer_twins
from exact import ISAS, generator, planes, same
from tandem_cuda import (
    IF,
    AdaptiveIF,
    Decode,
    Encode,
    RadixIF,
    SpikeTrain,
    SpikingAdaptiveAvgPool2d,
    SpikingAvgPool2d,
    TandemConv2d,
    TandemLinear,
    freeze,
    ops,
)
from tandem_cuda.nn.tandem import TandemLayer
from tandem_cuda.ops.compiling import assume_constant_result

BATCHES = (4, 8, 3)
BATCH = {0: Dim("batch")}


def plain(norm=None):
    """Real input of one channel, which has both memory formats."""
    torch.manual_seed(0)
    return nn.Sequential(
        Encode(8),
        TandemConv2d(1, 4, 3, padding=1, norm=norm),
        TandemConv2d(4, 6, 3, stride=2, norm=norm),
        nn.Flatten(),
        TandemLinear(54, 10, norm=norm),
        Decode(),
        nn.Linear(10, 3),
    ).double()


def everything():
    """Joins and pooling of every kind; dropout silences nobody, since compiled code draws other numbers."""
    torch.manual_seed(0)
    net = layer_twins.Everything().double()
    net.drop.p = 0.0
    for layer in net.modules():
        if isinstance(layer, TandemLayer):  # enough current for every layer to fire
            nn.init.normal_(layer.weight, 0.5 / layer.weight[0].numel(), 2 / layer.weight[0].numel() ** 0.5)
            if layer.norm is not None:
                nn.init.uniform_(layer.norm.bias, 1, 3)
    return net


def converted():
    return freezable.converted(freezable.Everything, calibrated=True, dtype=torch.float64).eval()


NETWORKS = {
    "plain": (plain, (1, 8, 8)),
    "batch norm": (lambda: plain("batch"), (1, 8, 8)),
    "everything": (everything, (2, 8, 8)),
    "converted": (converted, (2, 8, 8)),
}
every_network = pytest.mark.parametrize(("make", "size"), NETWORKS.values(), ids=NETWORKS)


def images(batch, size):
    return torch.rand(batch, *size, generator=generator(batch), dtype=torch.float64)


def outcome(net, x, run=None):
    """Output and gradients; gradients of batch norm are sums of many numbers, which a compiler may order anew."""
    out = (net if run is None else run)(x)
    return out.detach(), torch.autograd.grad(out.square().sum(), list(net.parameters()))


def frozen(net):
    """Its frozen twin, if it has one: not where the forward method is code that freeze cannot read."""
    return [] if isinstance(net, layer_twins.Everything) else [freeze(net)]


def check_training(make, size, batches=BATCHES, **how):
    net, twin = make(), make()
    compiled = torch.compile(twin, fullgraph=True, **how)
    for batch in batches:
        x = images(batch, size)
        (want, grads), (got, compiled_grads) = outcome(net, x), outcome(twin, x, compiled)
        assert want.abs().sum() > 0
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(compiled_grads, grads, rtol=1e-9, atol=1e-9)


def check_inference(make, size, batches=BATCHES, **how):
    net = make().eval()
    for run in (net, *frozen(net)):
        torch.compiler.reset()
        compiled = torch.compile(copy.deepcopy(run), fullgraph=True, **how)
        with torch.no_grad():
            for batch in batches:
                x = images(batch, size)
                torch.testing.assert_close(compiled(x), run(x), rtol=1e-12, atol=1e-12)


def test_dynamic_shapes():
    """With numbers such as thresholds and T symbolic, as sizes are."""

    def make():
        torch.manual_seed(0)
        return nn.Sequential(Encode(8), TandemLinear(5, 4), Decode()).double()

    check_inference(make, (5,), (4, 3), dynamic=True, backend="aot_eager")


@pytest.mark.parametrize(
    "neurons",
    [
        (IF(0.25, refractory=1), IF(0.5, refractory=2), IF(0.5, initial=0.5, refractory=3), IF(0.75)),
        (AdaptiveIF(0.25), AdaptiveIF(0.5, 0.7), AdaptiveIF(0.5, 0.3, 0.5), AdaptiveIF(0.4, 0.3, 0.25), IF()),
    ],
    ids=["refractory", "AdaptiveIF"],
)
def test_layers_take_other_neurons(neurons):
    """torch.compile traces a number that has changed as one that it does not know."""
    layer, x = TandemLinear(6, 4), torch.rand(5, 6)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    for neuron in neurons:
        layer.neuron = neuron
        gradients = []
        for run in (compiled, layer):
            layer.zero_grad()
            run(Encode(9)(x)).count.square().sum().backward()
            gradients.append(layer.weight.grad.clone())
        torch.testing.assert_close(*gradients)


def test_windows_of_different_sizes():
    """An image of every size has its own divisors."""
    pool = SpikingAdaptiveAvgPool2d((3, 2))
    compiled = torch.compile(pool, backend="aot_eager", fullgraph=True, dynamic=True)
    for batch, size in ((3, 8), (4, 8), (2, 7)):
        x = SpikeTrain(planes(8, batch, 2, size, size, seed=0), 8)
        want = pool(x).bits
        assert want.any()
        same(compiled(x).bits, want)


def test_constants_are_marked_as_torch_marks_them():
    def mine():
        return 1

    def theirs():
        return 1

    assume_constant_result(mine)
    torch.compiler.assume_constant_result(theirs)
    assert vars(mine) == vars(theirs) != {}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "backend", "dynamic"),
    [*((name, "inductor", True) for name in NETWORKS), ("plain", "aot_eager", None), ("batch norm", "aot_eager", None)],
)
@pytest.mark.filterwarnings("error:tandem_cuda")
def test_compile(network, backend, dynamic):
    """With symbolic sizes from the start, or from the second size on."""
    make, size = NETWORKS[network]
    check_training(make, size, dynamic=dynamic, backend=backend)
    check_inference(make, size, dynamic=dynamic, backend=backend)


def check_export(net, size, dynamic_shapes=(BATCH,), **how):
    exported = torch.export.export(net, (images(4, size),), dynamic_shapes=dynamic_shapes, **how).module()
    for batch in (2, 1, 7):
        x = images(batch, size)
        same(exported(x).detach(), net(x).detach())


def test_export_of_networks_that_take_spikes():
    x = SpikeTrain.from_dense((torch.rand(4, 3, 6) < 0.5).float(), radix=True)
    net = freeze(nn.Sequential(TandemLinear(6, 5, neuron=RadixIF(2.0)), Decode()))
    for strict in (False, True):
        same(torch.export.export(net, (x,), strict=strict).module()(x), net(x))


def test_export_layers_with_a_dynamic_batch():
    net = nn.Sequential(Encode(9), TandemConv2d(1, 3, 3, norm="batch"), nn.Flatten(), TandemLinear(108, 4), Decode())
    check_export(net.double().eval(), (1, 8, 8))
    check_export(freeze(net), (1, 8, 8))


@pytest.mark.slow
@pytest.mark.parametrize(("strict", "gradients"), [(False, True), (True, False)])
@every_network
def test_export_with_a_dynamic_batch(make, size, gradients, strict):
    net = make().eval()
    shapes = ((BATCH,),) if make is converted else (BATCH,)  # a converted network takes *inputs
    with torch.set_grad_enabled(gradients):
        check_export(net, size, shapes, strict=strict)
        for twin in frozen(net):
            check_export(twin, size, strict=strict)


@pytest.mark.slow
def test_packages_compiled_ahead_of_time(tmp_path):
    """AOTInductor places weights where malloc does: each time the package is loaded, elsewhere."""
    net = freeze(plain("batch").eval())
    exported = torch.export.export(net, (images(4, (1, 8, 8)),), dynamic_shapes=(BATCH,))
    path = torch._inductor.aoti_compile_and_package(exported, package_path=str(tmp_path / "net.pt2"))
    kept = []
    for batch in range(1, 17):
        loaded = torch._inductor.aoti_load_package(path)
        kept.append(loaded)  # so that the next one lies elsewhere
        x = images(batch, (1, 8, 8))
        torch.testing.assert_close(loaded(x), net(x), rtol=1e-12, atol=1e-12)


CACHED = """
import torch
from torch import nn
from tandem_cuda import Decode, Encode, RadixIF, TandemConv2d
net = nn.Sequential(Encode(4, "impulse"), *(TandemConv2d(16, 16, 3, neuron=RadixIF(2.5)) for _ in range(2)), Decode())
compiled = torch.compile(net, fullgraph=True)
x = torch.rand(2, 16, 8, 8)
torch.testing.assert_close(compiled(x), net(x))
compiled(x).sum().backward()
"""


@pytest.mark.slow
def test_code_in_the_cache_serves_one_instruction_set(tmp_path):
    """Packed weights have other sizes on matrix tiles, which code from Inductor's cache would expect."""
    if "amx" not in ISAS:
        pytest.skip("no matrix tiles")
    for isa in ("avx512vbmi2", "amx"):
        environment = {**os.environ, "TANDEM_CPU_ISA": isa, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
        subprocess.run([sys.executable, "-c", CACHED], check=True, env=environment)


GRADIENT = """
import torch
from torch import nn
from torch._dynamo.utils import counters
from tandem_cuda import Encode, TandemLinear
torch.manual_seed(0)
net = nn.Sequential(Encode(4), TandemLinear(8, 8), TandemLinear(8, 4))
torch.compile(net)(3 * torch.rand(2, 8)).count.sum().backward()
print(counters["aot_autograd"]["autograd_cache_hit"], net[2].weight.grad.double().sum().item())
"""


def _pooled(x):
    neuron = IF(0.25 * x, initial=0.5, two_phase=True, amplitude=x)
    return TandemConv2d(1, 5, 3, neuron=neuron), SpikingAvgPool2d(2, threshold=0.5 * x, amplitude=x), nn.Flatten()


# Layers whose numbers differ from network to network.
NUMBERS = {
    "level": lambda x: (Encode(4, "impulse"), nn.Flatten(), TandemLinear(36, 20, neuron=RadixIF(x))),
    "amplitude": lambda x: (Encode(4, "impulse"), *_pooled(x)),
    "scale": lambda x: (Encode(4, "radix", scale=x), nn.Flatten(), TandemLinear(36, 20, neuron=RadixIF(x))),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NUMBERS)
def test_graphs_in_the_cache_serve_one_number(name, tmp_path, monkeypatch):
    """From the second network on, torch compiles a number as a variable. Its cache mixed up products of them."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    x = torch.rand(16, 1, 6, 6)
    for number in (1.0, 2.0, 3.0, 0.7):
        torch.manual_seed(0)
        net = freeze(nn.Sequential(*NUMBERS[name](number), Decode()).eval())
        same(torch.compile(net, fullgraph=True)(x), net(x))


@pytest.mark.slow
def test_graphs_in_the_cache_serve_one_version(tmp_path):
    """The backward pass comes with a graph of torch's cache. Another version may have other gradients."""
    here, package = Path(ops.__file__).parent.parent, tmp_path / "tandem_cuda"
    shutil.copytree(here, package, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for library in here.glob("*.so"):
        (package / library.name).symlink_to(library)

    def gradient():
        environment = {**os.environ, "PYTHONPATH": str(tmp_path), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
        printed = subprocess.check_output([sys.executable, "-c", GRADIENT], env=environment, cwd=tmp_path, text=True)
        hits, total = printed.split()
        return int(hits), float(total)

    hits, total = gradient()
    assert hits == 0
    assert total != 0
    assert gradient() == (1, total)
    source = package / "ops" / "tandem_count.py"
    before = source.read_text()
    source.write_text(before.replace("return None, grad, *", "return None, 2 * grad, *"))
    assert source.read_text() != before
    assert gradient() == (0, 2 * total)
