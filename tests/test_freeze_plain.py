"""Frozen networks with PyTorch's modules in front of Encode and behind Decode."""

import contextlib
import copy
import json
import pickle

import pytest
import torch
from torch import nn

from exact import FLOATS, generator, same
from freezable import in_chunks, paths_in, randomised
from tandem_cuda import Decode, Encode, FrozenNetwork, SpikeTrain, TandemConv2d, TandemLinear, freeze, synops
from tandem_cuda.freeze import file as artefact
from tandem_cuda.freeze import plain
from tandem_cuda.freeze.plain import FrozenModule
from test_freeze_aten import HEADS as FUNCTIONS
from test_freeze_aten import network as with_functions
from test_freeze_aten import several
from test_frozen_files import changed, write

safetensors = pytest.importorskip("safetensors")
HEADS = {
    "softmax": lambda: (nn.Flatten(), nn.Linear(128, 5), nn.Softmax(dim=1)),
    "as VGG's": lambda: (
        *(nn.AdaptiveAvgPool2d((2, 2)), nn.Flatten(), nn.Linear(32, 12), nn.ReLU(True), nn.Dropout()),
        *(nn.Linear(12, 9), nn.ReLU(True), nn.Linear(9, 5)),
    ),
    "as SqueezeNet's": lambda: (
        *(nn.Dropout(), nn.Conv2d(8, 5, 1), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    ),
    "overlapping": lambda: (nn.Conv2d(8, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
}
every_head = pytest.mark.parametrize("head", HEADS)


def network(head, mode="constant", time_steps=7, dtype=torch.float32):
    torch.manual_seed(0)
    front = () if mode == "spikes" else (nn.BatchNorm2d(2), Encode(time_steps, mode))
    body = TandemConv2d(2, 6, 3, padding=1, norm="batch"), TandemConv2d(6, 8, 3, 2, 1)
    return randomised(nn.Sequential(*front, *body, Decode(), *HEADS[head]())).to(dtype).eval()


def images(batch=4, dtype=torch.float32):
    return torch.randn(batch, 2, 8, 8, generator=generator(0), dtype=dtype)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("mode", ["constant", "impulse"])
@every_head
def test_it_computes_what_eval_mode_does(head, mode, dtype, tmp_path):
    """Whole, from a file, in chunks, and copied."""
    net, x = network(head, mode, dtype=dtype), images(dtype=dtype)
    frozen = freeze(net)
    with torch.no_grad():
        want = net(x)
    assert want.std() > 0
    same(frozen(x), want)
    frozen.save(tmp_path / "net.safetensors")
    loaded = FrozenNetwork.load(tmp_path / "net.safetensors")
    for twin in (loaded, copy.deepcopy(loaded), pickle.loads(pickle.dumps(loaded)), loaded.train()):
        same(twin(x), want)
    assert not list(loaded.parameters())
    for sizes in ((1,), (3, 2)):
        same(in_chunks(loaded.stream(x), sizes), want, str(sizes))


@every_head
def test_export_and_compile(head):
    frozen, x = freeze(network(head)), images()
    exported = torch.export.export(frozen, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},)).module()
    for size in (4, 1, 9):
        same(exported(images(size)), frozen(images(size)))
    same(torch.compile(frozen, backend="aot_eager", fullgraph=True)(x), frozen(x))


@every_head
def test_predict(head):
    """Samples leave; the heads look at every look; a softmax at the end is not applied twice."""
    frozen, x = freeze(network(head, time_steps=9, dtype=torch.float64)), images(30, torch.float64)
    stream, history = frozen.stream(x), []
    while stream.remaining:
        y = stream.advance()
        history.append((y if head == "softmax" else y.softmax(1), y))
    threshold = float(history[3][0].amax(1).median())
    got = frozen.predict(x, threshold)
    assert len(got.steps.unique()) > 1
    for n in range(30):
        steps = [t for t in range(9) if history[t][0][n].amax() >= threshold or t == 8]
        assert got.steps[n] == steps[0] + 1
        torch.testing.assert_close(got.logits[n], history[steps[0]][1][n], rtol=0, atol=1e-9)
        torch.testing.assert_close(got.confidence[n], history[steps[0]][0][n].amax(), rtol=0, atol=1e-9)
    labels = torch.zeros(30, dtype=torch.int64)
    curve = frozen.accuracy_curve([(x, labels)], [threshold])
    assert curve.over_confidence[0].steps == pytest.approx(float(got.steps.double().mean()))


@pytest.mark.parametrize("head", ["softmax", "as SqueezeNet's", "overlapping"])
def test_synops_of_the_read_out(head):
    """The weights behind Decode are added once for each spike and output that they reach."""
    net, x = network(head), images(3)
    decoded = []
    (decode,) = (module for module in net if isinstance(module, Decode))
    hook = decode.register_forward_hook(lambda module, args, output: decoded.append(args[0]))
    layers = sum(layer.synops for layer in synops(net, x) if layer.firing_rate is not None)
    hook.remove()
    count = decoded[0].count.double()
    outputs = 5.0
    if head == "overlapping":  # of the 2 x 2 windows of 3 x 3, each of the 4 x 4 pixels is in as many
        along = torch.tensor([1.0, 2.0, 2.0, 1.0], dtype=torch.float64)
        outputs = 5 * along[:, None] * along
    curve = freeze(net).accuracy_curve([(x, torch.zeros(3, dtype=torch.int64))])
    assert curve.over_time[-1].synops == pytest.approx(layers + float((count * outputs).sum()) / 3)


def test_spikes_and_real_numbers():
    net = network("overlapping", "spikes")
    train = SpikeTrain.from_dense((images() > 0).float().expand(6, 4, 2, 8, 8))
    with torch.no_grad():
        want = net(train)
    frozen = freeze(net)
    same(frozen(train), want)
    same(in_chunks(frozen.stream(train), (4,)), want)
    same(in_chunks(frozen.stream(time_steps=6), (2,), train), want)


def test_input_is_not_written_into():
    net = nn.Sequential(nn.ReLU(inplace=True), Encode(3), TandemLinear(3, 4), Decode(), nn.Linear(4, 2))
    frozen, x = freeze(net), torch.randn(5, 3, generator=generator(0))
    before = x.clone()
    got = frozen(x)
    same(x, before)
    with torch.no_grad():
        same(got, net(x.clone()))


@pytest.mark.parametrize("module_class", plain.MODULES, ids=lambda c: c.__name__)
def test_every_module(module_class, tmp_path):
    """As it computes in eval mode, in a file and out of it."""
    required = {
        "num_features": 4, "in_channels": 4, "in_features": 8, "out_features": 3, "out_channels": 6, "kernel_size": 2,
        "normalized_shape": 8, "size": 3,
        "num_groups": 2, "num_channels": 4, "norm_type": 2.0, "output_size": 2, "dim": 1, "unflattened_size": (2, 2),
        "upscale_factor": 2, "downscale_factor": 2, "padding": 1, "value": 0.5, "scale_factor": 2, "threshold": 0.25,
    }  # fmt: skip
    names = plain._parameters(module_class)
    wanted = [
        name for name in names if name in required and not (name in ("padding", "dim", "size") and name != names[0])
    ]
    if module_class in (nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d):
        wanted = ["scale_factor"]
    if module_class in (nn.ConstantPad1d, nn.ConstantPad2d):
        wanted = ["padding", "value"]
    if module_class is nn.ChannelShuffle:
        required, wanted = {"groups": 2}, ["groups"]
    if module_class is nn.Fold:
        required, wanted = {"output_size": (3, 5), "kernel_size": (2, 2)}, ["output_size", "kernel_size"]
    if module_class is nn.ZeroPad2d or ("dim" in names and module_class is not nn.GLU):
        wanted += [name for name in ("dim", "padding") if name in names and name not in wanted]
    torch.manual_seed(0)
    module = module_class(**{name: required[name] for name in wanted})
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point():
            nn.init.uniform_(tensor, 0.5, 2)
    dims = 3 if "1d" in module_class.__name__ or module_class is nn.Fold else 5 if "3d" in module_class.__name__ else 4
    x = torch.randn(3, 4, *[8] * (dims - 2), generator=generator(0))
    want = module.eval()(x)
    layer = FrozenModule.of(module, False)
    settings = json.loads(json.dumps(layer.settings()))
    loaded = FrozenModule.load(module_class, settings, layer.tensors())
    for frozen in (layer, loaded, copy.deepcopy(loaded).train()):
        same(frozen(None, None, x)[0], want.detach())
        assert not list(frozen.parameters())


def test_batch_norm_without_statistics():
    net = nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False), Encode(3), TandemLinear(3, 4), Decode())
    with pytest.raises(ValueError, match="BatchNorm1d: norm must keep running statistics"):
        freeze(net)


def test_bad_inputs():
    frozen, x, y = freeze(several()), torch.rand(4, 2), torch.rand(4, 1)
    for call, error, message in (
        (lambda: frozen(x), TypeError, "FrozenNetwork: number of inputs must be 2, got 1"),
        (lambda: frozen(x, None), TypeError, "FrozenNetwork: input <x1> must be a Tensor, got NoneType"),
        (lambda: frozen.stream(x), TypeError, "stream: x must be a tuple of 2 inputs, got Tensor"),
        (
            lambda: frozen.stream((x, y[:1])),
            ValueError,
            r"stream: inputs must have the same number of samples, got \[4, 1\]",
        ),
        (lambda: frozen.stream(), TypeError, "stream: x must be given"),
        (lambda: frozen.predict((x, y)), ValueError, "predict: the network must end in a read-out"),
    ):
        with pytest.raises(error, match=message):
            call()
    with pytest.raises(ValueError, match="the network must take spikes or contain Encode, got neither"):
        freeze(nn.Linear(3, 4))


# --- files -----------------------------------------------------------------------------------------------------------


ODD = (None, True, -1, 0, 2, 7, 2**62, 1e300, "same", "torch.load", [], [1, 2], {}, {"input": 5}, {"own": "dtype"})


@pytest.mark.parametrize("make", [lambda: network("as SqueezeNet's"), lambda: with_functions(FUNCTIONS["sizes"])])
def test_every_setting_replaced(make, tmp_path):
    """A ValueError, or a network; whatever its operators are given, nothing else happens."""
    freeze(make()).save(tmp_path / "good")
    description, tensors = artefact.read(tmp_path / "good")
    for at in paths_in(description):
        for value in ODD:
            edit = changed(description, at, value)
            if edit is not None:
                write(tmp_path / "net", edit, tensors)
                with contextlib.suppress(ValueError):  # no other error
                    FrozenNetwork.load(tmp_path / "net")


def test_settings_that_do_not_fit_are_refused(tmp_path):
    """Where sizes are known, what follows of them is found when the file is read."""
    net = randomised(
        nn.Sequential(
            nn.Flatten(), Encode(3), TandemLinear(3, 12), Decode(), nn.Unflatten(1, (3, 2, 2)),
            nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 3), nn.Softmax(1),
        )
    )  # fmt: skip
    freeze(net).save(tmp_path / "good")
    description, tensors = artefact.read(tmp_path / "good")
    assert [node["kind"] for node in description["nodes"]][4:7] == ["Unflatten", "Conv2d", "BatchNorm2d"]
    for node, setting, value, message in (
        (4, "unflattened_size", [3, 2, 3], "Unflatten '4': settings must fit inputs of"),
        (5, "padding", [5, 5], "in_features must be 484, got 4"),
        (5, "kernel_size", [3, 3], "node '5': Conv2d: weight must be"),
        (5, "stride", [0, 1], "Conv2d"),
        (5, "padding", [None, 0], "Conv2d: setting padding must be an int from 0 to .*, got None"),
        (5, "padding", [1, 2, 3], r"Conv2d: setting padding must have 2 ints, got \[1, 2, 3\]"),
        (5, "dilation", [[], 1], r"Conv2d: setting dilation must be an int from 1 to .*, got \[\]"),
        (6, "num_features", 5, "node '6': BatchNorm2d: .* must be"),
        (9, "dim", 7, "Softmax '9': settings must fit inputs of"),
    ):
        write(tmp_path / "net", changed(description, ("nodes", node, "settings", setting), value), tensors)
        with pytest.raises(ValueError, match=message):
            FrozenNetwork.load(tmp_path / "net")
