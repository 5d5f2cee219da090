"""What holds for every layer: copied, saved, without gradients, of empty batches, frozen."""

import copy
import inspect
import io
import pickle

import pytest
import torch
from torch import nn

import tandem_cuda.nn
from exact import same
from freezable import graph_of, in_chunks
from layer_cases import CASES, every, of_each_kind
from tandem_cuda import Encode, EncodedInput, FrozenNetwork, SpikeTrain, freeze
from tandem_cuda import reference as ref
from tandem_cuda.nn import Decode

every_case = every(CASES)


def made(case, **named):
    """The layer in eval mode, with enough current to fire now and then."""
    torch.manual_seed(0)
    layer = case.make(**named).eval()
    with torch.no_grad():
        for name, p in layer.named_parameters():
            if name.endswith("weight") and p.dim() > 1:
                p.normal_(0.5 / p[0].numel(), 2 / p[0].numel() ** 0.5)
    return layer


def test_every_class_is_there():
    """A layer without an entry in layer_cases.py would not be tested."""
    modules = [getattr(tandem_cuda.nn, name) for name in tandem_cuda.nn.__all__]
    layers = {m.__name__ for m in modules if inspect.isclass(m) and issubclass(m, nn.Module)}
    assert {case.kind for case in CASES} == layers - {"Encode", "Decode"}
    assert not issubclass(EncodedInput, nn.Module)
    assert len({case.name for case in CASES}) == len(CASES)


@every_case
def test_spikes_do_not_depend_on_gradients(case):
    layer, inputs = made(case), case.inputs(batch=6)
    want = layer(*inputs)
    assert isinstance(want, SpikeTrain)
    assert want.bits.any()
    for guard in (torch.no_grad, torch.inference_mode):
        for _ in range(2):  # what is kept from the first call serves the second
            with guard():
                got = layer(*inputs)
                same((got.bits.clone(), got.count.clone()), (want.bits, want.count.detach()))
    for p in layer.parameters():
        p.requires_grad_(False)
    same(layer(*inputs).bits, want.bits)


@every_case
def test_counts_are_those_of_the_spikes(case):
    """In the dtype of the layer's parameters, or of its input, in training and in eval mode."""
    layer, inputs = case.make().double(), case.inputs(dtype=torch.float64)
    for training in (True, False):
        out = layer.train(training)(*inputs)
        assert out.count.dtype == out.dtype == torch.float64
        same(out.count.detach(), ref.spike_count(out.bits, torch.float64))


@every_case
def test_empty_batch(case):
    layer = case.make().eval()
    shape = layer(*case.inputs()).shape
    out = layer(*case.inputs(batch=0))
    assert out.shape == (0, *shape[1:])
    out.count.sum().backward() if out.count.requires_grad else None
    assert all(p.grad is not None and not p.grad.any() for p in layer.parameters())


@every(of_each_kind())
def test_copied_and_saved(case):
    layer, inputs = made(case), case.inputs()
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    want = layer(*inputs).bits
    twin = case.make().eval()
    twin.load_state_dict(layer.state_dict())
    for other in (
        copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.load(file, weights_only=False), twin
    ):  # fmt: skip
        assert repr(other) == repr(layer)
        same(other(*inputs).bits, want)
        assert not {p.data_ptr() for p in other.parameters()} & {p.data_ptr() for p in layer.parameters()}


@every([case for case in CASES if case.encodes])
@pytest.mark.parametrize("mode", ["constant", "impulse"])
def test_real_input(case, mode):
    """The same spikes with and without gradients; of an empty batch, zero gradients."""
    layer, x = made(case), 3 * torch.rand(6, *case.samples[0])
    want = layer(Encode(8, mode)(x))
    assert want.bits.any()
    for guard in (torch.no_grad, torch.inference_mode):
        with guard():
            same(layer(Encode(8, mode)(x)).bits.clone(), want.bits)
    empty = layer(Encode(8, mode)(x[:0]))
    assert empty.shape == (0, *want.shape[1:])
    empty.count.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in layer.parameters())
    for p in layer.parameters():
        p.requires_grad_(False)
    same(layer(Encode(8, mode)(x)).bits, want.bits)


# A network takes one train: layers of several take it several times.
@every([case for case in CASES if case.reads_spikes and len(set(case.samples)) == 1])
def test_frozen(case, tmp_path):
    """The outputs of eval mode, whole, from a file and, but of what needs the whole train, in chunks of time."""
    parts = nn.ModuleDict({"layer": made(case), "decode": Decode()})
    net = graph_of(parts, {"layer": ("x",) * len(case.samples), "decode": ("layer",)}).eval()
    x = case.inputs()[0]
    with torch.no_grad():
        want = net(x)
    frozen = freeze(net)
    same(frozen(x), want)
    frozen.save(tmp_path / "net.safetensors")
    same(FrozenNetwork.load(tmp_path / "net.safetensors")(x), want)
    if not getattr(case.named.get("neuron"), "two_phase", None):
        same(in_chunks(frozen.stream(x), (3,)), want)
