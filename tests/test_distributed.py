"""Two processes that train together end with the weights of one that trains alone, with a fused optimiser."""

import os

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tandem_cuda import IF, Decode, Encode, TandemConv2d, TandemLinear

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without torch.distributed"),
]
STEPS = 4
LABELS = torch.arange(8) % 3


def network():
    """Without norm: the statistics of half a batch are others, as with any batch norm."""
    torch.manual_seed(0)
    return nn.Sequential(
        Encode(8),
        TandemConv2d(1, 6, 3, neuron=IF(0.5), dtype=torch.float64),
        TandemConv2d(6, 8, 3, stride=2, neuron=IF(0.5), dtype=torch.float64),
        nn.Flatten(),
        TandemLinear(72, 20, neuron=IF(0.5), dtype=torch.float64),
        Decode(),
        nn.Linear(20, 3, dtype=torch.float64),
    )


def images():
    return torch.rand(8, 1, 9, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def trained(net, x, labels):
    """Train without a call of train() or eval(); returns what the network puts out after each step."""
    optimiser = torch.optim.AdamW(net.parameters(), lr=0.01, fused=True)
    outputs = []
    for _ in range(STEPS):
        optimiser.zero_grad()
        F.cross_entropy(net(x), labels).backward()
        optimiser.step()
        with torch.no_grad():
            outputs.append(net(x).clone())
    return outputs


def data_parallel(net):
    return nn.parallel.DistributedDataParallel(net)


def fully_sharded(net):
    """As a whole: hooks that gather weights for the backward pass look for tensors, not into spike trains."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    return fully_shard(net, mesh=init_device_mesh("cpu", (2,)))


def worker(rank, folder, wrap):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=2)
    net = wrap(network())
    x = images()
    outputs = trained(net, x[rank::2], LABELS[rank::2])
    net.eval()
    with torch.no_grad():
        outputs.append(net(x[rank::2]))
    whole = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in net.parameters()]
    torch.save((outputs, [p.detach() for p in whole]), folder / f"{rank}.pt")
    torch.distributed.barrier()
    # No farewell: the end of gloo's group, holding the GIL, may wait for a thread of its own that waits for the GIL.
    os._exit(0)


@pytest.mark.parametrize("wrap", [data_parallel, fully_sharded])
def test_as_in_one_process(wrap, tmp_path):
    torch.multiprocessing.spawn(worker, (tmp_path, wrap), nprocs=2)
    alone = network()
    x = images()
    want = trained(alone, x, LABELS)
    with torch.no_grad():
        want.append(alone.eval()(x))
    for rank in (0, 1):
        outputs, parameters = torch.load(tmp_path / f"{rank}.pt")
        for got, whole in zip(outputs, want, strict=True):
            torch.testing.assert_close(got, whole[rank::2], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(parameters, [p.detach() for p in alone.parameters()], rtol=1e-9, atol=1e-9)
    assert not torch.equal(want[0], want[-1])
