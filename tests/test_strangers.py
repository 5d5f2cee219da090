"""Networks of strangers: the plain call converts them, and what it returns trains, freezes, saves and exports."""

import pytest

from strangers import NETWORKS
from strangers.network import built
from strangers.steps import NEEDS, floats, walk

pytest.importorskip("safetensors")


@pytest.mark.parametrize("name", NETWORKS)
def test_the_network_itself_runs(name):
    network = built(NETWORKS[name])
    for training in (False, True):
        network.train(training)
        for batch in (2, 5):
            outputs = floats(network(*NETWORKS[name].inputs(batch)))
            assert outputs.isfinite().all()
            network.zero_grad()
            outputs.square().sum().backward()
            assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("step", NEEDS)
@pytest.mark.parametrize("name", NETWORKS)
def test_step(name, step):
    failure = walk(name).failures.get(step)
    if failure is not None:
        raise failure
