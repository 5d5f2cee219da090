"""How torch's precision of float32 products becomes the number of bf16 terms that tensor cores take a weight for."""

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from cases import raw
from exact import EVENT, HALVES, META, dyadic, planes
from tandem_cuda import ops
from tandem_cuda.ops.product import terms_of

# The place of `terms` among the arguments of each operator.
PLACES = {"spiking_product": 15, "count_product": 11}
PRECISIONS = {"highest": 3, "high": 2, "medium": 1}
every_precision = pytest.mark.parametrize(("precision", "terms"), PRECISIONS.items())


@pytest.fixture(autouse=True)
def _restore_precision():
    yield
    torch.backends.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")
    torch.compiler.reset()


class Recorded(TorchDispatchMode):
    """The `terms` of every product that is called."""

    def __init__(self):
        super().__init__()
        self.terms = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "tandem_cuda":
            self.terms.append(args[PLACES[func._opname]])
        return func(*args, **(kwargs or {}))


def terms_passed(dtype, device):
    """What every product passes for weights of a dtype on a device, which need not exist."""
    with FakeTensorMode(), Recorded() as recorded:
        row, image = (torch.empty(1, 2, *shape, dtype=torch.uint8, device=device) for shape in ((3,), (3, 4, 4)))
        matrix, kernel = (torch.empty(*shape, dtype=dtype, device=device) for shape in ((5, 3), (5, 3, 2, 2)))
        ops.spiking_linear(row, matrix, time_steps=8)
        ops.count_linear(row, matrix)
        ops.spiking_conv2d(image, kernel, time_steps=8)
        ops.count_conv2d(image, kernel)
    assert len(recorded.terms) == 4
    return set(recorded.terms)


@every_precision
def test_float32_on_cuda(precision, terms):
    torch.set_float32_matmul_precision(precision)
    assert terms_passed(torch.float32, "cuda") == {terms}


@every_precision
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, *HALVES])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_nothing_else_asks(precision, terms, dtype, device):
    if (dtype, device) != (torch.float32, "cuda"):
        torch.set_float32_matmul_precision(precision)
        assert terms_passed(dtype, device) == {3}


@pytest.mark.parametrize(("setting", "terms"), [("ieee", 3), ("tf32", 2)])
def test_setting_of_the_cuda_backend(setting, terms):
    """torch's newer setting, after which it does not answer for the older one."""
    torch.backends.cuda.matmul.fp32_precision = setting
    assert terms_passed(torch.float32, "cuda") == {terms}
    torch.backends.cuda.matmul.fp32_precision = "none"


def test_the_cpu_takes_no_notice():
    bits, weight = planes(9, 3, 21, seed=0), dyadic(10, 21, seed=1) / 3
    geometry = {"stride": [1, 1], "padding": [0, 0], "dilation": [1, 1], "groups": 1}
    arguments = {"bits": bits, "weight": weight, **geometry, "engine": EVENT}
    results = [raw("count_product", **arguments, terms=terms) for terms in (1, 2, 3)]
    assert all(torch.equal(result, results[0]) for result in results)


@every_precision
def test_compiles_in_one_graph(precision, terms):
    """The setting is a constant of the graph; one that has become another is noticed where TF32 goes on or off."""
    weight = torch.empty(5, 3, device=META)

    class OnCuda:  # what terms_of asks of a weight; there need be no device
        is_cuda, dtype = True, torch.float32

    def f(x):
        return x * terms_of(OnCuda)

    compiled = torch.compile(f, backend="eager", fullgraph=True)
    for setting in ("highest", precision, "highest"):
        torch.set_float32_matmul_precision(setting)
        assert compiled(torch.ones(1)).item() == PRECISIONS[setting]
    assert terms_of(weight) == 3
