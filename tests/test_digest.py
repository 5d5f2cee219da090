"""Trained networks and digests of their spikes stand in golden/: every path must compute the same, to the bit."""

import numpy as np
import pytest
import torch

from digests import (
    KINDS,
    LAYERS,
    Watch,
    check_elsewhere,
    digests_in_parts,
    digests_of,
    digits,
    every_network,
    expected,
    frozen_network,
    layers_of,
    one_phase,
    radix,
    unfrozen_network,
)
from elsewhere import CUDA_ENGINES, Elsewhere, Programs, Reference
from exact import ENGINES, ISAS, THREADS, as_on_cuda
from tandem_cuda import _C, freeze

pytest.importorskip("safetensors")

FILES = {"frozen": frozen_network, "unfrozen": unfrozen_network}
WHOLE, IN_SEVENS = 100, 7


def use(net, engine):
    for layer in net.modules():
        if hasattr(layer, "engine"):
            layer.engine = engine


@every_network
@pytest.mark.parametrize("form", FILES)
def test_every_path(name, form):
    net = FILES[form](name)
    watch, want = Watch(net), expected(name)
    for isa in ISAS:
        _C.set_cpu_isa(isa)
        for engine in ENGINES:
            use(net, engine)
            for threads, batch in zip(THREADS, (WHOLE, IN_SEVENS), strict=True):
                torch.set_num_threads(threads)
                assert digests_of(net, watch, batch) == want, (isa, engine, threads)


@every_network
def test_samples_by_themselves(name):
    net = frozen_network(name)
    assert digests_of(net, Watch(net), 1) == expected(name)


@radix
def test_every_path_in_fewer_steps(name):
    """The same weights at T = 4."""
    unfrozen = unfrozen_network(name)
    unfrozen.set_time_steps(4)
    frozen = freeze(unfrozen)
    watch = Watch(frozen, 4)
    with Elsewhere(Reference()):
        want = digests_of(frozen, watch, samples=8)
    for net, seen in ((frozen, watch), (unfrozen, Watch(unfrozen, 4))):
        for isa in ISAS:
            _C.set_cpu_isa(isa)
            for engine in ENGINES:
                use(net, engine)
                for threads, batch in zip(THREADS, (8, 3), strict=True):
                    torch.set_num_threads(threads)
                    assert digests_of(net, seen, batch, samples=8) == want, (isa, engine, threads)


@every_network
def test_where_gradients_are_needed(name):
    net = unfrozen_network(name)
    watch = Watch(net)
    for x in digits()[0].split(IN_SEVENS):
        net(x).sum().backward()
    assert watch.digests() == expected(name)


@one_phase
def test_potentials_on_every_path(name):
    net = frozen_network(name)
    watch, want = Watch(net), expected(name, *KINDS)
    for isa in ISAS:
        _C.set_cpu_isa(isa)
        for engine in ENGINES:
            use(net, engine)
            assert digests_in_parts(net, watch) == want, (isa, engine)


@one_phase
@pytest.mark.parametrize("size", [1, 3])
def test_streams(name, size):
    net, (x, _) = frozen_network(name), digits()
    watch, stream = Watch(net), net.stream(x)
    while stream.remaining:
        stream.advance(min(size, stream.remaining))
    assert watch.digests(dim=0) == expected(name)


@every_network
def test_device(name, device):
    net = frozen_network(name).to(device)
    with as_on_cuda(device):
        assert digests_of(net, Watch(net)) == expected(name)


@every_network
@torch.no_grad()
def test_networks_have_learned(name):
    """The read-out adds floats, so its classes are no part of the digest."""
    net, (x, labels) = frozen_network(name), digits()
    assert (net(x).argmax(1) == labels).float().mean() > 0.95


@one_phase
def test_weights_are_not_dyadic(name):
    """Sums of floats would be rounded: scales and biases have random last bits."""
    for layer in layers_of(frozen_network(name)).values():
        scales = torch.cat([x for key, x in layer.tensors().items() if key.endswith(("scale", "bias"))])
        assert ((scales.view(torch.int32) & 0xFF) != 0).float().mean() > 0.9


@radix
@torch.no_grad()
def test_values_fill_their_byte(name):
    """A product that lost a digit, or read a value as a signed byte, would show."""
    net = frozen_network(name)
    watch = Watch(net)
    net(digits()[0])
    values = {layer: np.unique(np.packbits(train.numpy(), axis=0)) for layer, (train,) in watch.trains.items()}
    assert all(len(values[layer]) == 256 for layer in LAYERS if layer != "hidden"), values


# ---- Other implementations of the operators


@every_network
def test_reference(name):
    check_elsewhere(name, Reference())


@pytest.mark.nightly
@pytest.mark.parametrize("engine", CUDA_ENGINES.values(), ids=CUDA_ENGINES)
@every_network
def test_cuda_kernels_on_the_host(name, engine, host, tmp_path):
    def run(*command):
        result = host.run(command[0], "plain", *command[1:], order="rand")
        assert (result.returncode, result.stdout, result.stderr) == (0, "1 calls\n", "")

    check_elsewhere(name, Programs(tmp_path, run, engine))
