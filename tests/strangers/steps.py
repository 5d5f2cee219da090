"""What a converted network must do, in steps of which each can fail by itself."""

import functools
import inspect
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import keystr, tree_flatten_with_path

from tandem_cuda import FrozenNetwork, convert, freeze

from . import NETWORKS
from .network import Network, built

TIME_STEPS = 8
CALIBRATION = 128  # samples
LARGEST_ERROR = 0.10
"""The relative error of the outputs: the norm of the difference over the norm of the ANN's outputs."""

NEEDS = {"converts": None, "close": "converts", "trains": "converts", "freezes": "converts"}
NEEDS |= {"file": "freezes", "export": "freezes"}
"""The steps in their order, each with an earlier step that it cannot do without."""


def tensors(output: Any) -> dict[str, Tensor]:
    """All tensors of an output, by their places in it."""
    return {keystr(path): leaf for path, leaf in tree_flatten_with_path(output)[0] if isinstance(leaf, Tensor)}


def floats(output: Any) -> Tensor:
    """All float outputs as one vector."""
    return torch.cat([leaf.flatten() for leaf in tensors(output).values() if leaf.is_floating_point()])


def check_same(output: Any, expected: Any) -> None:
    output, expected = tensors(output), tensors(expected)
    assert [*output] == [*expected], f"outputs {[*output]}, expected {[*expected]}"
    for name, tensor in expected.items():
        assert torch.equal(output[name], tensor), f"output{name} differs by {(output[name] - tensor).abs().max():.3g}"


def train_step(net: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Training mode, gradients of the sum of squares, and a small step."""
    net.train()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-5)
    optimizer.zero_grad()
    floats(net(*inputs)).square().sum().backward()
    optimizer.step()


class Walk:
    """One network on its way through the converter.

    Attributes:
        failures: by the name of a step, what it raised; a step that could not begin is among them.
        error: relative error of the converted network's outputs, NaN if there are none.
        sample_error: the same difference over the one between outputs for other inputs. Networks that nobody has
            trained owe most of their outputs to biases, which any conversion gets right.
        seconds: time that all steps took.
    """

    def __init__(self, network: Network) -> None:
        self.failures: dict[str, Exception] = {}
        self.error = self.sample_error = math.nan
        start = time.perf_counter()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            self.network = network
            self.ann = built(network)
            self.calibration, self.inputs, self.other = (network.inputs(n) for n in (CALIBRATION, 16, 16))
            for step, needed in NEEDS.items():
                if needed in self.failures:
                    self.failures[step] = AssertionError(f"{step} needs a network that {needed}")
                    continue
                try:
                    getattr(self, step)()
                except Exception as error:
                    self.failures[step] = error
        self.seconds = time.perf_counter() - start

    def converts(self) -> None:
        calibrate = self.calibration
        if len(calibrate) == 1 and isinstance(calibrate[0], Tensor):
            calibrate = calibrate[0]
        required = sum(p.default is p.empty for p in inspect.signature(self.ann.forward).parameters.values())
        example = self.inputs if len(self.inputs) > required else None  # an optional input must be seen
        self.snn = convert(self.ann, time_steps=TIME_STEPS, calibrate=calibrate, example=example)

    def close(self) -> None:
        with torch.no_grad():
            expected, output = self.ann.eval()(*self.inputs), self.snn.eval()(*self.inputs)
            other = self.ann(*self.other)
        assert tensors(output).keys() == tensors(expected).keys()
        difference = (floats(output) - floats(expected)).norm()
        self.error = float(difference / floats(expected).norm())
        self.sample_error = float(difference / (floats(other) - floats(expected)).norm())
        assert self.error < LARGEST_ERROR, f"relative error {self.error:.3f} of the outputs"

    def trains(self) -> None:
        twin = built(self.network)  # a training step of the ANN says which parameters have gradients
        train_step(twin, self.calibration)
        self.ann.zero_grad()
        train_step(self.snn, self.calibration)
        gradients = {name: parameter.grad for name, parameter in self.ann.named_parameters()}
        wanted = [name for name, parameter in twin.named_parameters() if parameter.grad is not None]
        missing = [name for name in wanted if gradients[name] is None]
        assert not missing, f"no gradient for {missing}"
        wrong = [name for name in wanted if not gradients[name].isfinite().all()]
        assert not wrong, f"gradient not finite for {wrong}"

    def freezes(self) -> None:
        self.snn.eval()
        self.frozen = freeze(self.snn)
        with torch.no_grad():
            check_same(self.frozen(*self.inputs), self.snn(*self.inputs))

    def file(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            self.frozen.save(Path(folder) / "network.safetensors")
            loaded = FrozenNetwork.load(Path(folder) / "network.safetensors")
        with torch.no_grad():
            check_same(loaded(*self.inputs), self.frozen(*self.inputs))

    def export(self) -> None:
        exported = torch.export.export(self.frozen, self.inputs).module()
        with torch.no_grad():
            check_same(exported(*self.inputs), self.frozen(*self.inputs))


@functools.cache
def walk(name: str) -> Walk:
    return Walk(NETWORKS[name])
