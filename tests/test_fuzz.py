"""The fuzzer's oracle against numbers worked out by hand, planted bugs that it must find; slow, a minute of fuzzing."""

import re
import sys

import numpy as np
import pytest
import torch
from torch import nn

from exact import replace_operator
from fuzz import oracle, runner
from fuzz.__main__ import one
from fuzz.draw import Draw, Mismatch
from fuzz.runner import DIFFERENTIAL, KINDS, MUTATORS, RADIX, Run, reproduction, run_case, seed_of_the_day
from tandem_cuda import IF, LIF, ops
from tandem_cuda.neuron import STATES


def array(*values):
    return np.array(values, np.float32)


def test_neurons_by_hand():
    spikes, total, u = oracle.neurons(np.full((4, 1), 0.5, np.float32), IF())
    assert spikes.ravel().tolist() == [0, 1, 0, 1]  # u: 0.5, 1, 0.5, 1
    assert (total.item(), u.item()) == (2.0, 1.0)
    spikes, total, u = oracle.neurons(np.full((3, 1), 1.0, np.float32), LIF(leak=0.5))
    assert spikes.ravel().tolist() == [1, 0, 1]  # u: 1; 0.5 - 1 + 1 = 0.5; 0.25 + 1 = 1.25
    assert u.item() == 1.25
    spikes, _, u = oracle.neurons(np.zeros((2, 1), np.float32), IF(), array(2.5)[None])
    assert (spikes.ravel().tolist(), u.item()) == ([1, 0], 0.5)


def test_every_model_is_drawn():
    """And so is every parameter: as many values of each as there may be."""
    drawn = [Draw(seed).neuron() for seed in range(100)]
    assert {neuron.kind for neuron in drawn} == {*oracle.MODELS} == {*STATES}
    for kind in STATES:
        values = zip(*(neuron.parameters for neuron in drawn if neuron.kind == kind), strict=True)
        assert all(len({*found}) > 3 for found in values)


def test_planes_by_hand():
    train = np.array([1, 0, 0, 0, 0, 0, 0, 1, 0, 1]).reshape(10, 1)
    planes = oracle.pack(train)
    assert planes.ravel().tolist() == [0b10000001, 0b10]
    assert (oracle.unpack(planes, 10) == train).all()


def test_convolutions_by_hand():
    x = np.arange(1, 10).reshape(1, 1, 3, 3)
    weight = np.array([[1, 0], [0, 2]]).reshape(1, 1, 2, 2)
    assert oracle.convolution(x, weight).ravel().tolist() == [11, 14, 20, 23]  # 1 + 2 * 5, 2 + 2 * 6, ...
    assert oracle.convolution(x, weight, stride=2, padding=1).ravel().tolist() == [2, 6, 14, 23]
    assert oracle.convolution(x, weight, dilation=2).ravel().tolist() == [19]  # 1 + 2 * 9
    two = np.stack([x[:, 0], 10 * x[:, 0]], 1)
    grouped = oracle.convolution(two, np.array([3, 4]).reshape(2, 1, 1, 1), groups=2)
    assert grouped[0, :, 0, 0].tolist() == [3, 40]
    spread = oracle.conv_transpose2d(np.array([[1, 2]]).reshape(1, 1, 1, 2), weight, (1, 2), (0, 0), (0, 0), 1, (1, 1))
    assert spread.reshape(2, 4).tolist() == [[1, 0, 2, 0], [0, 2, 0, 4]]
    volume, deep = np.stack([x, 10 * x, 100 * x], 2), np.array([1, 2]).reshape(1, 1, 2, 1, 1)
    of_depth = oracle.convolution(volume, deep, (1, 2, 2))
    assert of_depth.reshape(2, 4).tolist() == [[21, 63, 147, 189], [210, 630, 1470, 1890]]  # 1 + 2 * 10, ...
    of_x, of_weight = oracle.conv2d_gradients(np.ones((1, 1, 2, 2)), x, weight, (1, 1), (0, 0), (1, 1), 1)
    assert of_x.reshape(3, 3).tolist() == [[1, 1, 0], [1, 3, 2], [0, 2, 2]]
    assert of_weight.ravel().tolist() == [12, 16, 24, 28]  # 1 + 2 + 4 + 5, ...


def test_coupling_and_norm_by_hand():
    v = array(-1, 0, 1, 4, 5)
    assert oracle.tandem_gradient(np.ones(5, np.float32), v, 2.0, 4.0).tolist() == [0, 0, 0.5, 0.5, 0]
    gain, bias = oracle.batch_norm_fold(array(2), array(3), array(1), array(3), 1.0, array(5))
    assert (gain.item(), bias.item()) == (1.0, 7.0)  # 2 / sqrt(3 + 1); (5 - 1) * 1 + 3
    moved = oracle.move_statistics((array(1), array(2)), (array(3), array(4)), array(1), None, 2, 0.5, 2)
    assert [x.item() for x in moved] == [4.0, 17.0]  # (1 + 2 * 3 + 1) / 2; (2 + 2 * 2**2 * 4) / 2
    moved = oracle.move_statistics((array(1), array(2)), (array(6), array(16)), array(1), array(0.5), 2, 0.5, 2)
    assert [x.item() for x in moved] == [4.0, 17.0]  # the same in other units
    # Far above its onset a LIF neuron's rate is nearly 1 / ln(1 + a / q) * -ln(leak): differences agree with the slope.
    x, h = np.array([3.0, 6.0]), 1e-6

    def count(v):
        onset = 0.25
        q = 0.1 * onset * np.logaddexp(0, (v / 8 - onset) / (0.1 * onset))
        return 8 * np.log(4 / 3) / np.log1p(onset / 0.75 / q)

    want = (count(x + h) - count(x - h)) / (2 * h)
    np.testing.assert_allclose(oracle.lif_gradient(np.ones(2), x, 8, 1.0, 0.75, np.inf), want, rtol=1e-6)
    product = np.array([[0.0], [2.0]])  # normalised: -1 and 1; the gate is open for the second alone
    want, _ = oracle.norm_gradient(np.ones((2, 1)), product, np.ones(1), np.zeros(1), 0.0, 1.0, np.inf)
    of_product, gamma, beta = want
    assert (of_product.ravel().tolist(), gamma.tolist(), beta.tolist()) == ([0, 0], [1], [1])


def test_pooling_by_hand():
    assert oracle.average_windows(5, 2, 2, 0, True, True) == [(0, 2, 2), (2, 4, 2), (4, 5, 1)]
    assert oracle.average_windows(4, 3, 2, 1, False, False) == [(0, 2, 2), (1, 4, 3)]
    assert oracle.adaptive_windows(5, 2) == [(0, 3, 3), (2, 5, 3)]
    spikes = np.array([[1, 0], [1, 1], [0, 0]]).reshape(3, 1, 1, 1, 2)
    rows, columns = [(0, 1, 1)], [(0, 2, 2)]  # means 0.5, 1, 0: potentials 0.5, 1.5 (spike), 0.5
    assert oracle.average_pool(spikes, (rows, columns), 1.0, None, np.float32).ravel().tolist() == [0, 1, 0]
    assert oracle.max_pool(spikes, (rows, columns)).ravel().tolist() == [1, 1, 0]
    sums, common = oracle.window_sums(spikes[1], (rows, columns), 3)
    assert (sums.tolist(), common) == ([[[[2]]]], 3)
    turns = np.array([[1, 0], [0, 1], [0, 1]]).reshape(3, 1, 1, 1, 2)  # the second neuron catches up, then leads
    assert oracle.max_pool(turns, (rows, columns)).ravel().tolist() == [1, 0, 1]


def test_bfloat16_by_hand():
    assert oracle.bfloat16(array(1 + 2**-8, 1 + 3 * 2**-8, -3.0)).tolist() == [1.0, 1 + 2**-6, -3.0]


def test_layouts_hold_the_values():
    """Every layout that the fuzzer draws shows the array; and among them are expanded, sliced and offset ones."""
    kinds = set()
    for seed in range(300):
        draw = Draw(seed)
        values = draw.floats(*[draw.int(1, 4) for _ in range(draw.int(1, 5))])
        x = draw.tensor(values)
        assert (x.numpy() == values).all()
        kinds |= {name for name, there in _traits(x).items() if there}
    assert kinds == {"contiguous", "expanded", "offset", "permuted", "odd stride of a single element"}


def _traits(x):
    several = [(stride, size) for stride, size in zip(x.stride(), x.shape, strict=True) if size > 1]
    return {
        "contiguous": x.is_contiguous(),
        "expanded": any(stride == 0 for stride, _ in several),
        "offset": x.storage_offset() > 0,
        "permuted": [s for s, _ in several] != sorted((s for s, _ in several), reverse=True),
        "odd stride of a single element": any(
            s in (17, 1000) for s, n in zip(x.stride(), x.shape, strict=True) if n == 1
        ),
    }


@pytest.mark.parametrize("kind", [*KINDS])
def test_a_case_is_a_function_of_its_seed(kind):
    pytest.importorskip("nir" if kind == "nir_graphs" else "safetensors")
    (first, notes), (second, again) = run_case(kind, 3), run_case(kind, 3)
    assert notes == again
    assert str(first) == str(second)


# ---- Planted bugs


def first_failure(kind, cases=200):
    for seed in range(cases):
        error, _ = run_case(kind, seed)
        if isinstance(error, Mismatch) and "gradient" not in str(error):
            return error
    return None


def flipped(op, *, one_in=1):
    """An operator that flips one spike of every `one_in`-th call's result that has any."""
    calls = [0]

    def wrong(*arguments, **named):
        out = op(*arguments, **named)
        bits = out[0] if isinstance(out, tuple) else out
        calls[0] += 1
        if bits.numel() and calls[0] % one_in == 0:
            bits[(-1,) * bits.dim()] ^= 1
        return out

    return wrong


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("trains", "pack_spikes"),
        ("neurons", "integrate_and_fire"),
        ("radix", "radix_spikes"),
        ("products", "spiking_conv2d"),
        ("products", "spiking_linear"),
        ("networks", "spiking_conv2d"),
        ("radix_networks", "integrate_and_fire"),
    ],
)
def test_a_flipped_spike_is_found(monkeypatch, kind, name):
    replace_operator(monkeypatch, name, flipped(getattr(ops, name), one_in=5))
    error = first_failure(kind)
    # One spike, and where; of a network, a spike behind it may differ, too.
    number = r"\d+" if "networks" in kind else "1"
    assert re.search(rf": {number} of \d+ differ, at \[", str(error))


def test_a_lost_bias_and_a_wrong_gradient_are_found(monkeypatch):
    right = ops.count_linear
    replace_operator(
        monkeypatch, "count_linear", lambda bits, weight, bias, **named: right(bits, weight, None, **named)
    )
    assert first_failure("products") is not None
    assert first_failure("radix_networks") is not None
    monkeypatch.undo()
    replace_operator(monkeypatch, "tandem_count", lambda bits, v, steps, *rest: ops.spike_count(bits, v.dtype) + 0 * v)
    assert any(isinstance(run_case("coupling", seed)[0], Mismatch) for seed in range(20))
    right_fold = ops.fold_norm
    replace_operator(
        monkeypatch, "fold_norm", lambda *vectors, eps, **named: right_fold(*vectors, eps=2 * eps, **named)
    )
    assert isinstance(first_failure("norms"), Mismatch)


def test_a_file_that_should_be_refused_is_found(monkeypatch):
    """A loader with an exception of another type, and one that takes everything."""
    pytest.importorskip("safetensors")
    from tandem_cuda import FrozenNetwork

    def wrong(path, **named):
        raise KeyError("nodes")

    monkeypatch.setattr(FrozenNetwork, "load", wrong)
    assert isinstance(run_case("files", 1)[0], KeyError)
    nan = nn.Linear(2, 3)
    nn.init.constant_(nan.bias, torch.nan)
    nan.time_steps = 4
    monkeypatch.setattr(FrozenNetwork, "load", lambda path: nan)
    error, _ = run_case("files", 1)
    assert str(error) == "loads with weights that are not finite"


WORKER = """
import os, signal, sys
seed = int(sys.argv[2])
for seed in range(seed, 12):
    print("begin neurons", seed, flush=True)
    if seed == 8:
        print("x.h:3: runtime error: planted", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGABRT)
    if seed == 10:
        print("fail neurons 10 Mismatch: bits: planted", flush=True)
print("end", flush=True)
"""


def test_run_names_failures_and_crashes_and_goes_on(capsys):
    run = Run(["neurons"], 1, 1, 7, command=[sys.executable, "-c", WORKER]).run()
    assert run.failures == [
        (reproduction("neurons", 8, run.processor(0)), "the process ends with SIGABRT: x.h:3: runtime error: planted"),
        (reproduction("neurons", 10, run.processor(0)), "Mismatch: bits: planted"),
    ]
    assert run.cases["neurons"] == 5
    assert run.summary().splitlines()[1].split() == ["neurons", "5", "cases", "2", "failures"]
    assert "python -m tests.fuzz neurons --seed 8  # the process ends" in capsys.readouterr().out


def test_a_hung_worker_is_ended(monkeypatch):
    monkeypatch.setattr(runner, "SILENT_SECONDS", 0.3)
    hangs = "import time; print('begin neurons 7', flush=True); time.sleep(60)"
    run = Run(["neurons"], 1e-9, 1, 7, command=[sys.executable, "-c", hangs]).run()
    assert [(line, what.split(":")[0]) for line, what in run.failures] == [
        (reproduction("neurons", 7, run.processor(0)), "hangs")
    ]


def test_a_case_that_takes_too_long_is_ended(monkeypatch):
    monkeypatch.setattr(runner, "CASE_SECONDS", 0.05)

    def forever(*_, **__):
        while True:
            pass

    replace_operator(monkeypatch, "integrate_and_fire", forever)
    assert isinstance(run_case("neurons", 1)[0], runner.TooSlow)


def test_one_command_reproduces_a_case(capsys):
    assert reproduction("neurons", 12) == "python -m tests.fuzz neurons --seed 12"
    assert one(["neurons"], 12) == 0
    assert "neurons 12: passes" in capsys.readouterr().out


def fuzz(kinds):
    """Twenty seconds of some kinds, with the seed of the day; `make fuzz` takes as long as one likes."""
    seed = seed_of_the_day()
    print(f"seed of the day: {seed}")
    run = Run(kinds, 1 / 3, 1, seed).run()
    print(run.summary())
    assert not run.failures, run.summary()
    assert all(run.cases[kind] > 5 for kind in kinds), run.summary()


@pytest.mark.slow
def test_fuzz_operators_and_layers():
    fuzz(DIFFERENTIAL)


@pytest.mark.slow
def test_fuzz_radix_spikes():
    fuzz(RADIX)


@pytest.mark.slow
def test_fuzz_files():
    pytest.importorskip("safetensors")
    pytest.importorskip("nir")
    fuzz(MUTATORS)
