"""Two processes that train together end with the weights of one that trains alone, with a fused optimiser.

On the CPU through Gloo, on two CUDA devices through NCCL.
"""

import copy
import os

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from exact import replace_operator
from tandem_cuda import IF, Decode, Encode, TandemConv2d, TandemLinear, ops

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without torch.distributed"),
]
NCCL = torch.distributed.is_available() and torch.distributed.is_nccl_available()
two_devices = pytest.mark.skipif(torch.cuda.device_count() < 2 or not NCCL, reason="needs two CUDA devices and NCCL")
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

    device = next(net.parameters()).device.type
    return fully_shard(net, mesh=init_device_mesh(device, (2,)))


def synchronised(net):
    """With batch norm of all processes' batches. On the CPU, DistributedDataParallel refuses it."""
    net = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    if next(net.parameters()).is_cuda:
        return data_parallel(net)

    def average(parameter):
        torch.distributed.all_reduce(parameter.grad)
        parameter.grad /= 2

    for parameter in net.parameters():
        parameter.register_post_accumulate_grad_hook(average)
    return net


def normalised():
    net = network()
    for at, channels in ((1, 6), (2, 8), (4, 20)):
        net[at].norm = (nn.BatchNorm2d if at < 4 else nn.BatchNorm1d)(channels, dtype=torch.float64)
    return net


def worker(rank, folder, wrap, network, device):
    torch.set_num_threads(1)
    backend = "gloo"
    if device == "cuda":
        torch.cuda.set_device(rank)
        backend, device = "nccl", f"cuda:{rank}"
    rendezvous = f"file://{folder / 'rendezvous'}"
    torch.distributed.init_process_group(backend, init_method=rendezvous, rank=rank, world_size=2)
    net = wrap(network().to(device))
    x = images().to(device)
    outputs = trained(net, x[rank::2], LABELS[rank::2].to(device))
    net.eval()
    with torch.no_grad():
        outputs.append(net(x[rank::2]))
    whole = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in net.parameters()]
    torch.save(([y.cpu() for y in outputs], [p.detach().cpu() for p in whole]), folder / f"{rank}.pt")
    torch.distributed.barrier()
    # No farewell: the end of gloo's group, holding the GIL, may wait for a thread of its own that waits for the GIL.
    os._exit(0)


def check(folder, wrap, network, device):
    """Compare two processes with one."""
    torch.multiprocessing.spawn(worker, (folder, wrap, network, device), nprocs=2)
    alone = network()
    x = images()
    want = trained(alone, x, LABELS)
    with torch.no_grad():
        want.append(alone.eval()(x))
    for rank in (0, 1):
        outputs, parameters = torch.load(folder / f"{rank}.pt")
        for got, whole in zip(outputs, want, strict=True):
            torch.testing.assert_close(got, whole[rank::2], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(parameters, [p.detach() for p in alone.parameters()], rtol=1e-9, atol=1e-9)
    assert not torch.equal(want[0], want[-1])


EVERY_WRAP = pytest.mark.parametrize(
    ("wrap", "make"), [(data_parallel, network), (fully_sharded, network), (synchronised, normalised)]
)


@EVERY_WRAP
def test_as_in_one_process(wrap, make, tmp_path):
    check(tmp_path, wrap, make, "cpu")


@pytest.mark.gpu
@two_devices
@EVERY_WRAP
def test_on_two_devices(wrap, make, tmp_path):
    check(tmp_path, wrap, make, "cuda")


def test_synchronised_batch_norm_of_one_process(monkeypatch):
    """It is batch norm, which tandem_norm_count computes."""
    ours = normalised()
    other = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(ours))
    assert [type(other[at].norm) for at in (1, 2, 4)] == [nn.SyncBatchNorm] * 3
    operator, calls = ops.tandem_norm_count, []

    def counted(*arguments, **named):
        calls.append(1)
        return operator(*arguments, **named)

    replace_operator(monkeypatch, "tandem_norm_count", counted)
    want = trained(ours, images(), LABELS)
    got = trained(other, images(), LABELS)
    assert len(calls) == 2 * 3 * STEPS
    torch.testing.assert_close(got, want, rtol=0, atol=0)
    torch.testing.assert_close(list(other.state_dict().values()), list(ours.state_dict().values()), rtol=0, atol=0)
    assert not torch.equal(want[0], want[-1])


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, nn.SyncBatchNorm])
def test_a_norm_without_a_bias(kind):
    layer = TandemConv2d(1, 6, 3, neuron=IF(0.5), norm="batch")
    layer.norm = kind(6)
    layer.norm.register_parameter("bias", None)
    layer(Encode(8)(images().float())).count.sum().backward()
    assert layer.norm.weight.grad.any()
