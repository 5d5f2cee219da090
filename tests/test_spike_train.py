"""SpikeTrain: what a tensor's user expects of it, and what nobody should pay for."""

import copy
import io
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, default_collate
from torch.utils.data._utils.pin_memory import pin_memory

from exact import FLOATS, SEEDS, generator, planes, same, train
from tandem_cuda import (
    IF,
    Decode,
    SpikeCat,
    SpikeRearrange,
    SpikeTrain,
    SpikingAdaptiveAvgPool2d,
    SpikingAvgPool2d,
    SpikingMaxPool2d,
    TandemConv2d,
    TandemDropout,
    TandemDropout2d,
    convert,
    freeze,
    ops,
)
from tandem_cuda import reference as ref
from tandem_cuda.spike_train import SpikeCode


def example(*shape, time_steps=9, **named):
    return SpikeTrain(planes(time_steps, *(shape or (2, 3, 4, 5)), seed=0), time_steps, **named)


def equal(a, b):
    same(a.bits, b.bits)
    same(a.count, b.count)
    assert a.time_steps == b.time_steps
    assert a.dtype == b.dtype


def test_properties():
    x = example()
    assert x.shape == (2, 3, 4, 5)
    assert isinstance(x.shape, torch.Size)
    assert x.bits.shape == (2, 2, 3, 4, 5)
    assert x.time_steps == 9
    assert x.device == torch.device("cpu")
    assert x.dtype == torch.float32
    assert len(x) == 2


def test_repr():
    text = "SpikeTrain([2, 3, 4, 5], time_steps=9, dtype=torch.float64, device=cpu)"
    assert repr(example(dtype=torch.float64)) == text


@given(
    shape=st.lists(st.integers(0, 4), min_size=1, max_size=4),
    time_steps=st.integers(1, 20),
    dtype=st.sampled_from((*FLOATS, torch.float16, torch.bool, torch.uint8)),
    seed=SEEDS,
)
def test_dense_round_trip(shape, time_steps, dtype, seed):
    spikes = train(time_steps, *shape, seed=seed)
    x = SpikeTrain.from_dense(spikes.to(dtype))
    assert x.time_steps == time_steps
    assert x.dtype == (dtype if dtype in FLOATS else torch.float32)
    same(x.to_dense(), spikes.to(x.dtype))
    same(x.to_dense(torch.bool), spikes.bool())
    same(x.count, ref.spike_count(ref.pack_spikes(spikes), x.dtype))


def test_from_dense_dtype():
    spikes = train(9, 2, 3, seed=0)
    x = SpikeTrain.from_dense(spikes.float(), dtype=torch.float64)
    assert x.dtype == x.count.dtype == x.to_dense().dtype == torch.float64


def test_default_dtype():
    torch.set_default_dtype(torch.float64)
    try:
        x = example()
    finally:
        torch.set_default_dtype(torch.float32)
    assert x.dtype == x.count.dtype == torch.float64


def test_count_is_lazy(monkeypatch):
    """Nobody pays for counts that nobody asks for, and whoever asks pays once."""
    calls = []
    count = ops.spike_count.trusted
    monkeypatch.setattr(ops.spike_count, "trusted", lambda *arguments: calls.append(1) or count(*arguments))
    x = example()
    for y in (x, x.detach(), x.flatten(), copy.deepcopy(x), pytree.tree_map(lambda leaf: leaf, x)):
        y.to_dense()
        repr(y)
        assert y.carried_value is None
    assert not calls
    first = x.count
    assert x.count is first is x.carried_value
    assert calls == [1]


def test_given_count_is_kept():
    bits = planes(9, 2, 3, seed=0)
    count = ref.spike_count(bits, torch.float64).requires_grad_()
    x = SpikeTrain(bits, 9, count)
    assert x.count is x.carried_value is count
    assert x.dtype == torch.float64
    assert not x.detach().count.requires_grad
    same(x.detach().count, count.detach())
    assert x.flatten().count.requires_grad
    assert x.count.requires_grad


@pytest.mark.parametrize(
    ("start", "end"), [(1, -1), (1, 1), (1, 2), (1, 3), (2, 3), (2, -1), (3, 3), (-1, -1), (-2, -1), (-3, -2)]
)
@pytest.mark.parametrize("with_count", [True, False])
def test_flatten(start, end, with_count):
    spikes = train(9, 2, 3, 4, 5, seed=0)
    x = SpikeTrain.from_dense(spikes)
    if with_count:
        assert x.count is not None
    flat = x.flatten(start, end)
    want = torch.stack([torch.flatten(step, start, end) for step in spikes])
    assert flat.shape == want.shape[1:]
    same(flat.to_dense(torch.uint8), want)
    same(flat.count, want.float().sum(0))
    same(nn.Flatten(start, end)(x).bits, flat.bits)


def test_nn_flatten():
    spikes = train(9, 2, 3, 4, 5, seed=0)
    x = SpikeTrain.from_dense(spikes)
    leaf = x.count.clone().requires_grad_()
    flat = nn.Flatten()(SpikeTrain(x.bits, 9, leaf))
    same(flat.to_dense(torch.uint8), spikes.flatten(2))
    # The gradient comes back in the order of channels, rows, columns.
    ramp = torch.arange(120.0).view(2, 60)
    (grad,) = torch.autograd.grad(flat.count, leaf, ramp)
    same(grad, ramp.view(2, 3, 4, 5))


@pytest.mark.parametrize(("start", "end"), [(0, -1), (-4, -1), (0, 0)])
def test_flatten_leaves_the_batch_alone(start, end):
    with pytest.raises(ValueError, match=r"SpikeTrain\.flatten: start_dim must leave the batch dimension alone, got"):
        example().flatten(start, end)


@pytest.mark.parametrize(("start", "end"), [(4, -1), (5, -1), (7, -1), (-5, -1), (1, 4), (1, 5), (1, -5), (1, 9)])
def test_flatten_out_of_range(start, end):
    """torch.flatten raises IndexError here; no dimension may be taken for another."""
    with pytest.raises((IndexError, ValueError)):
        torch.zeros(2, 3, 4, 5).flatten(start, end)
    with pytest.raises((IndexError, ValueError)):
        example().flatten(start, end)


def test_flatten_backwards():
    with pytest.raises((RuntimeError, ValueError)):
        example().flatten(2, 1)


def test_to():
    x = example()
    y = x.to(torch.float64)
    assert y.dtype == y.count.dtype == torch.float64
    same(y.bits, x.bits)
    assert x.dtype == torch.float32
    equal(x.to("cpu"), x)
    assert x.to("meta").device == x.to("meta").bits.device == torch.device("meta")
    leaf = x.count.clone().requires_grad_()
    (grad,) = torch.autograd.grad(SpikeTrain(x.bits, 9, leaf).to(torch.float64).count.sum(), leaf)
    same(grad, torch.ones_like(leaf))


def test_firing_rate():
    spikes = train(9, 2, 3, 4, seed=0)
    rate = SpikeTrain.from_dense(spikes).firing_rate()
    assert rate.shape == ()
    assert rate.dtype == torch.float32
    assert rate.item() == pytest.approx(spikes.float().mean().item())
    assert SpikeTrain.from_dense(torch.ones(9, 2, 3)).firing_rate() == 1
    assert SpikeTrain.from_dense(torch.ones(9, 0, 3)).firing_rate().isnan()
    bits = planes(9, 2, 3, seed=0)
    assert not SpikeTrain(bits, 9, torch.ones(2, 3, requires_grad=True)).firing_rate().requires_grad


def test_empty_batch():
    x = SpikeTrain.from_dense(torch.zeros(9, 0, 3, 2, 2))
    assert x.shape == (0, 3, 2, 2)
    assert x.flatten().shape == (0, 12)
    assert x.count.shape == (0, 3, 2, 2)
    assert len(x) == 0


@pytest.mark.parametrize("with_count", [True, False])
def test_pytree(with_count):
    x = example(dtype=torch.float64)
    if with_count:
        assert x.count is not None
    leaves, spec = pytree.tree_flatten({"a": [x]})
    assert len([leaf for leaf in leaves if leaf is not None]) == 1 + with_count
    back = pytree.tree_unflatten(leaves, spec)["a"][0]
    assert isinstance(back, SpikeTrain)
    assert back.bits is x.bits
    assert (back.carried_value is None) != with_count
    equal(back, x)
    moved = pytree.tree_map_only(torch.Tensor, lambda t: t.to("meta"), x)
    assert moved.device == torch.device("meta")
    # Another number of steps is another structure: torch.compile must not reuse a graph.
    assert pytree.tree_structure(x) != pytree.tree_structure(example(time_steps=10, dtype=torch.float64))


def test_pytree_spec_survives_a_file():
    spec = pytree.tree_structure(example(dtype=torch.float64))
    assert pytree.treespec_loads(pytree.treespec_dumps(spec)) == spec


@pytest.mark.parametrize("with_count", [True, False])
def test_copies(with_count):
    x = example(dtype=torch.float64)
    if with_count:
        assert x.count is not None
    file = io.BytesIO()
    torch.save(x, file)
    file.seek(0)
    for y in (copy.deepcopy(x), pickle.loads(pickle.dumps(x)), torch.load(file, weights_only=False)):
        assert (y.carried_value is None) != with_count
        equal(y, x)
        y.bits.zero_()
    assert x.bits.any()
    shallow = copy.copy(x)
    assert shallow.bits is x.bits
    equal(shallow, x)


BITS = torch.zeros(2, 2, 3, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([[0]], 9), TypeError, "bits must be a Tensor, got list"),
        ((BITS.float(), 9), TypeError, "bits must be uint8, got torch.float32"),
        ((BITS[:0], 9), ValueError, r"bits must be .* at least one plane, got \[0, 2, 3\]"),
        ((BITS[:, 0, 0], 9), ValueError, r"bits must be \[P, N, \.\.\.\].*, got \[2\]"),
        ((BITS, 8), ValueError, "bits must have .* 1 planes for 8 time steps, got"),
        ((BITS, 0), ValueError, "time_steps must be at least 1, got 0"),
        ((BITS, 9.0), TypeError, "time_steps must be an int, got float"),
        ((BITS, None), TypeError, "time_steps must be an int, got NoneType"),
        ((BITS, 9, torch.zeros(3, 2)), ValueError, r"count must be \[2, 3\], got \[3, 2\]"),
        ((BITS, 9, torch.zeros(2, 2, 3)), ValueError, r"count must be \[2, 3\], got \[2, 2, 3\]"),
        ((BITS, 9, 3.0), TypeError, "count must be a Tensor, got float"),
        ((BITS, 9, torch.zeros(2, 3, dtype=torch.int64)), TypeError, "count must be .*got torch.int64"),
        ((BITS, 9, torch.zeros(2, 3, device="meta")), ValueError, "count must be on the device of bits, cpu, got meta"),
        ((BITS, 9, None, torch.int32), TypeError, "dtype must be .*got torch.int32"),
    ],
)
def test_bad_input(arguments, error, message):
    with pytest.raises(error, match=f"SpikeTrain: {message}"):
        SpikeTrain(*arguments)


@pytest.mark.parametrize("value", [2.0, -1.0, 0.5, float("nan"), float("inf")])
def test_from_dense_of_no_spikes(value):
    with pytest.raises(RuntimeError, match="spikes must be 0 or 1, got"):
        SpikeTrain.from_dense(torch.full((9, 2, 3), value))


@pytest.mark.parametrize(
    ("spikes", "error"),
    [
        ([[0.0]], TypeError),
        (torch.zeros(9, 2, dtype=torch.int64), TypeError),
        (torch.zeros(9), ValueError),
        (torch.zeros(0, 2), ValueError),
    ],
)
def test_from_dense_bad_input(spikes, error):
    with pytest.raises(error, match="spikes must be"):
        SpikeTrain.from_dense(spikes)


def test_from_dense_bad_dtype():
    with pytest.raises(TypeError, match=r"dtype must be .*got torch\.int32"):
        SpikeTrain.from_dense(torch.zeros(9, 2), dtype=torch.int32)


# --- pairs of neurons for both signs ---------------------------------------------------------------------------------


def difference(x):
    return x[:, ::2] - x[:, 1::2]


def test_modules_read_the_pairs_of_a_train():
    torch.manual_seed(0)  # so that dropout neither keeps nor drops all
    x, y = example(2, 6, 4, 4, time_steps=8, pair_dim=1), example(2, 2, 4, 4, time_steps=8)
    value = difference(x.count)
    same(Decode()(x), value)
    same(Decode(signed=True)(x), value)
    same(Decode()(x.flatten()), value.flatten(1))
    same(Decode()(SpikeCat(False, False)(x, y)), torch.cat([value, y.count], 1))
    chosen = SpikeRearrange("channels", 1, 3)(x)
    assert chosen.paired
    same(Decode()(chosen), value[:, 1:3])
    for drop in (TandemDropout(0.5), TandemDropout2d(0.5)):
        kept = drop(x.replace(bits=torch.full_like(x.bits[:1], 255), time_steps=8)).count.view(2, 3, 2, -1)
        same(kept[:, :, 0], kept[:, :, 1])
        assert 0 < kept.count_nonzero() < kept.numel()


def test_layers_without_a_relu_give_pairs():
    ann = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Dropout(0.5), nn.Flatten(), nn.Linear(108, 2))
    x = torch.rand(2, 1, 8, 8, generator=generator(1))
    network, trains = convert(ann, 8, example=x), []
    for module in network.modules():
        if isinstance(module, TandemConv2d):
            module.register_forward_hook(lambda module, inputs, output: trains.append(output))
    network(x)
    assert [x.paired for x in trains] == [True]


# --- no field is lost ------------------------------------------------------------------------------------------------


def apart(x):
    """Each sample as a train."""
    return [x.rearranged(lambda values, i=i: values[:, i : i + 1]) for i in range(len(x))]


def pinned(x):
    """As where there is page-locked memory, for which torch wants a device."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)
        y = pin_memory(x)
    assert y.bits is not x.bits
    return y


def selected(x):
    """What a stream of all of the train goes on with when some samples leave it."""
    layer = TandemConv2d(x.shape[1], 2, 3, dtype=x.dtype, neuron=IF())
    stream = freeze(layer).stream(x)
    stream.advance(1)
    stream.select(torch.tensor([1]))
    return stream.inputs[0]


OPERATIONS = {
    "flatten": lambda x: x.flatten(),
    "nn.Flatten": nn.Flatten(),
    "rearranged": lambda x: x.rearranged(lambda values: values.flip(-1)),
    "window": lambda x: x.window(0, x.time_steps),
    "cat": lambda x: SpikeTrain.cat([x]),
    "cat of all samples": lambda x: SpikeTrain.cat(apart(x)),
    "default_collate": lambda x: default_collate(apart(x)),
    "pin_memory": pinned,
    "to": lambda x: x.to("cpu"),
    "detach": lambda x: x.detach(),
    "replace": lambda x: x.replace(),
    "replace bits": lambda x: x.replace(bits=x.bits),
    "stream.select": selected,
    "dropout of none": TandemDropout(0.0),
    "dropout in eval mode": TandemDropout(0.5).eval(),
    "dropout": lambda x: TandemDropout(0.5)(x.replace(amplitude=x.amplitude / 2)),
    "dropout2d": lambda x: TandemDropout2d(0.75)(x.replace(amplitude=x.amplitude / 4)),
    "max pooling": SpikingMaxPool2d(2),
    "average pooling": SpikingAvgPool2d(2),
    "adaptive average pooling": SpikingAdaptiveAvgPool2d(2),
    "frozen max pooling": lambda x: freeze(SpikingMaxPool2d(2))(x),
    "frozen average pooling": lambda x: freeze(SpikingAvgPool2d(2))(x),
    "pytree": lambda x: pytree.tree_map_only(torch.Tensor, torch.clone, x),
    "pickle": lambda x: pickle.loads(pickle.dumps(x)),
    "copy": copy.copy,
    "deepcopy": lambda x: copy.deepcopy(x.detach()),
}


@pytest.mark.parametrize("counted", [False, True])
@pytest.mark.parametrize("name", OPERATIONS)
def test_no_field_is_lost(name, counted):
    pair_dim = None if "max pooling" in name else 1  # which pairs do not have
    x = example(2, 4, 4, 5, time_steps=13, dtype=torch.float64, amplitude=3.0, pair_dim=pair_dim)
    if counted:
        x = x.replace(count=x.count.clone().requires_grad_())
    y = OPERATIONS[name](x)
    assert (y.time_steps, y.dtype, y.code, y.device) == (13, torch.float64, SpikeCode(3.0, pair_dim), x.device)
    assert y.count.dtype == torch.float64
    if (
        counted
        and name not in ("to", "detach", "deepcopy", "pickle", "window", "replace bits")
        and "frozen" not in name
    ):
        assert y.carried_value is not None
        assert y.count.requires_grad
    same(y.count.detach(), ops.spike_count(y.bits, torch.float64))


def test_the_operations_are_all_of_them():
    """One that is added needs its line above."""
    made = {name for name, value in vars(SpikeTrain).items() if callable(value) and not name.startswith("_")}
    assert made - set(OPERATIONS) == {"to_dense", "firing_rate", "replace_unchecked"}  # the last is what replace calls


def test_replace():
    x = example(time_steps=9, amplitude=3.0)
    count = x.count.clone().requires_grad_()
    x = x.replace(count=count)
    assert x.count is count
    assert x.replace(amplitude=2).count is count
    assert x.replace(amplitude=2).amplitude == 2
    y = x.replace(dtype=torch.float64)
    assert (y.dtype, y.count.dtype, y.count.requires_grad) == (torch.float64, torch.float64, True)
    y = x.replace(bits=torch.zeros_like(x.bits))
    assert y.carried_value is None
    assert not y.count.any()
    assert x.replace(bits=torch.zeros_like(x.bits), count=count).count is count
    assert x.replace(bits=x.bits[:1], time_steps=8).time_steps == 8
    assert x.replace(count=None).carried_value is None
    for changes, error, message in (
        (
            {"steps": 3},
            TypeError,
            "changes must be among bits, time_steps, count, dtype, amplitude, pair_dim, value and radix, got steps",
        ),
        ({"bits": x.bits[:1]}, ValueError, r"bits must have ceil\(time_steps / 8\) = 2 planes"),
        ({"count": x.count[:1]}, ValueError, "count must be"),
        ({"amplitude": 0}, ValueError, "amplitude must be positive"),
        ({"pair_dim": True}, TypeError, "pair_dim must be 1, -1 or None, got bool"),
        ({"pair_dim": 2}, ValueError, "pair_dim must be 1, -1 or None, got 2"),
        ({"pair_dim": 1}, ValueError, r"bits of pairs must be \[P, N, 2 \* C, ...\], got \[2, 2, 3, 4, 5\]"),
        ({"pair_dim": -1}, ValueError, r"bits of pairs must be \[P, N, ..., 2 \* F\], got \[2, 2, 3, 4, 5\]"),
        ({"dtype": torch.float16}, TypeError, ".* must be float32 or float64"),
    ):
        with pytest.raises(error, match=f"SpikeTrain.*: {message}"):
            x.replace(**changes)


# --- batches of trains -----------------------------------------------------------------------------------------------


def recordings(n=6, time_steps=13):
    """Trains of one sample, [1, 2, 4, 5], as event cameras give them, with their labels."""
    return [
        (
            SpikeTrain.from_events(
                *torch.randint(0, 4, (3, 50), generator=generator(i)).unbind(),
                torch.randint(0, 2, (50,), generator=generator(i)),
                time_steps=time_steps,
                size=(4, 5),
            ).replace(amplitude=3.0),
            i,
        )
        for i in range(n)
    ]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_data_loader_batches_trains(workers):
    data = recordings()
    loaded = list(DataLoader(data, batch_size=4, num_workers=workers))
    assert [labels.tolist() for _, labels in loaded] == [[0, 1, 2, 3], [4, 5]]
    for x, labels in loaded:
        assert (x.shape, x.time_steps, x.amplitude, x.dtype) == ((len(labels), 2, 4, 5), 13, 3.0, torch.float32)
        same(x.to_dense(), torch.cat([data[i][0].to_dense() for i in labels], 1))
        assert x.bits.stride(2) == 1  # channels innermost, as those of the recordings
    assert sum(x.count.sum() for x, _ in loaded) > 0


@pytest.mark.gpu
@pytest.mark.usefixtures("cuda")
def test_a_data_loader_pins_trains():
    ((x, _),) = DataLoader(recordings(), batch_size=6, pin_memory=True)
    assert x.bits.is_pinned()
    assert (x.time_steps, x.amplitude) == (13, 3.0)


@pytest.mark.parametrize(
    ("function", "advice"),
    [
        (nn.Dropout(), "dropout: input must be a Tensor, got a SpikeTrain; use TandemDropout"),
        (nn.ReLU(), "relu: .*; leave it out, since the neurons"),
        (torch.relu_, "relu_: .*; leave it out"),
        (nn.LeakyReLU(), "leaky_relu: .*; Decode"),
        (nn.MaxPool2d(2), "max_pool2d.*; use SpikingMaxPool2d"),
        (nn.AvgPool2d(2), "avg_pool2d.*; use SpikingAvgPool2d"),
        (lambda x: nn.functional.batch_norm(x, None, None, training=True), "batch_norm.*; pass norm='batch'"),
        (nn.Conv2d(3, 4, 1), "conv2d: .*; use TandemConv2d"),
        (nn.Linear(4, 4), "linear: .*; use TandemLinear, or Decode"),
        (lambda x: torch.cat([x, x], 1), "cat: .*; use SpikeCat"),
        (lambda x: torch.add(x, x), "add: .*; use TandemAdd"),
        (torch.sigmoid, r"sigmoid: .*; Decode\(\) makes real numbers"),
    ],
)
def test_functions_of_torch_are_refused(function, advice):
    with pytest.raises(TypeError, match=advice):
        function(SpikeTrain(planes(4, 2, 3, 4, 4, seed=0), 4))


def test_torch_flatten():
    x = SpikeTrain(planes(4, 2, 3, 4, 5, seed=0), 4)
    for dims in ((1,), (2,), (1, 2), (-2, -1)):
        same(torch.flatten(x, *dims).bits, nn.Flatten(*dims)(x).bits)
    same(torch.flatten(x, start_dim=1).bits, x.flatten().bits)
    with pytest.raises(ValueError, match=r"SpikeTrain\.flatten: "):
        torch.flatten(x)


def test_cat_carries_gradients():
    a, b = (example(n, 5, amplitude=3.0) for n in (2, 3))
    leaves = [x.count.clone().requires_grad_() for x in (a, b)]
    a, b = (x.replace(count=leaf) for x, leaf in zip((a, b), leaves, strict=True))
    x = SpikeTrain.cat([a, b])
    same(x.count.detach(), torch.cat([y.detach() for y in leaves]))
    for grad in torch.autograd.grad(x.count.sum(), leaves):
        same(grad, torch.ones_like(grad))
    assert SpikeTrain.cat([a, b.replace(count=None)]).carried_value is None


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (lambda x: x.window(0, 12), "same time_steps, got 13 and, for train 1, 12"),
        (lambda x: x.replace(amplitude=2), r"same amplitude, got 3\.0 and, for train 1, 2"),
        (lambda x: x.replace(pair_dim=1), "same pair_dim, got None and, for train 1, 1"),
        (lambda x: x.replace(dtype=torch.float64), "same dtype, got torch.float32 and, for train 1, torch.float64"),
        (lambda x: x.flatten(), r"same neurons, got \[1, 2, 4, 5\] and, for train 1, \[1, 40\]"),
        (lambda x: x.to("meta"), "same device, got cpu and, for train 1, meta"),
    ],
)
def test_trains_that_differ_make_no_batch(changed, message):
    (x, _), (y, _) = recordings(2)
    for cat, name in ((SpikeTrain.cat, "SpikeTrain.cat"), (default_collate, "default_collate")):
        with pytest.raises(ValueError, match=f"{name}: trains must have the {message}"):
            cat([x, changed(y)])


def test_what_else_makes_no_batch():
    x = recordings(1)[0][0]
    with pytest.raises(ValueError, match="trains must hold at least one train, got none"):
        SpikeTrain.cat([])
    with pytest.raises(TypeError, match="must be SpikeTrains, got Tensor"):
        SpikeTrain.cat([x, x.bits])
    with pytest.raises(ValueError, match=r"one sample each, \[1, \.\.\.\], got \[2, 2, 4, 5\] for train 1"):
        default_collate([x, SpikeTrain.cat([x, x])])
