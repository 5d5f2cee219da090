"""Frozen networks with plain PyTorch in front of Encode and behind Decode, several inputs and outputs."""

import contextlib
import copy
import json
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import anns
from exact import FLOATS, generator, nightly, same, slow
from freezable import in_chunks, paths_in, randomised
from tandem_cuda import IF, Decode, Encode, FrozenNetwork, SpikeTrain, TandemLinear, convert, freeze, synops
from tandem_cuda.freeze import file as artefact
from tandem_cuda.freeze import plain
from tandem_cuda.freeze.functions import FUNCTIONS, FrozenFunction
from tandem_cuda.freeze.plain import FrozenModule
from test_frozen_files import changed, write

safetensors = pytest.importorskip("safetensors")


class Net(nn.Module):
    """Layers that convert, between a front and a head that stay as they are."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 6, 3, 1, 1), nn.BatchNorm2d(6)
        self.hidden = nn.Conv2d(6, 8, 3, 2, 1)
        nn.init.uniform_(self.norm.running_mean, -0.5, 0.5)

    def body(self, x):
        return torch.relu(self.hidden(torch.relu(self.norm(self.conv(x)))))


class SoftmaxHead(Net):
    def __init__(self):
        super().__init__()
        self.last, self.softmax = nn.Linear(8 * 16, 5), nn.Softmax(dim=1)

    def forward(self, x):
        return self.softmax(self.last(torch.flatten(self.body(x), 1)))


class FunctionalHead(SoftmaxHead):
    def forward(self, x):
        x = self.last(self.body(x).flatten(1))
        return F.log_softmax(x, -1)


class VggHead(Net):
    """As torchvision's, in place."""

    def __init__(self):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d((2, 2))
        self.classifier = nn.Sequential(
            nn.Linear(32, 12), nn.ReLU(True), nn.Dropout(), nn.Linear(12, 9), nn.ReLU(True), nn.Linear(9, 5)
        )

    def forward(self, x):
        return self.classifier(torch.flatten(self.pool(self.body(x)), 1))


class ConvolutionalHead(Net):
    """Of SqueezeNet: a convolution, and a mean over all pixels."""

    def __init__(self):
        super().__init__()
        self.classifier = nn.Sequential(
            nn.Dropout(), nn.Conv2d(8, 5, 1), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1)
        )

    def forward(self, x):
        return torch.flatten(self.classifier(self.body(x)), 1)


class MeanHead(Net):
    def __init__(self):
        super().__init__()
        self.last = nn.Conv2d(8, 5, 3)

    def forward(self, x):
        return self.last(self.body(x)).mean([2, 3])


class Normalised(Net):
    """Statistics of the data set in the network, as buffers; batch norm of the input; a view in front."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.1, 0.3]).view(2, 1, 1))
        self.scale = nn.Parameter(torch.tensor([0.5, 2.0]).view(1, 2, 1, 1))
        self.input_norm, self.last = nn.BatchNorm2d(2), nn.Linear(8 * 16, 5)
        nn.init.uniform_(self.input_norm.running_var, 0.5, 2)

    def forward(self, x):
        x = x.view(-1, 2, 8, 8)
        x = self.input_norm((x - self.mean) / self.scale)
        x = F.pad(x, (1, 1, 1, 1))[..., 1:-1, 1:-1]
        return self.last(torch.flatten(self.body(x), 1)) * 2.0


class Digits(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(128, 20), nn.Linear(20, 5)

    def forward(self, x):
        return self.last(F.relu(self.first(x.view(x.size(0), -1))))


class Several(Net):
    """Two images in, two answers out."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8 * 16, 5), nn.Linear(8 * 16, 3)

    def forward(self, x, y):
        z = torch.flatten(self.body(torch.cat([x, y], 1)), 1)
        return self.a(z), {"other": self.b(z), "sum": self.a(z) + self.a(z)}


class Skip(Net):
    """A real side input behind the read-out."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(8 * 16, 5)

    def forward(self, x, offset):
        return self.last(torch.flatten(self.body(x), 1)) + offset


NETWORKS = (SoftmaxHead, FunctionalHead, VggHead, ConvolutionalHead, MeanHead, Normalised, Digits, Several, Skip)
every_network = pytest.mark.parametrize("make", NETWORKS)


def inputs_of(make, batch=4, dtype=torch.float32):
    shapes = {Several: [(1, 8, 8)] * 2, Skip: [(2, 8, 8), (5,)], Normalised: [(128,)]}.get(make, [(2, 8, 8)])
    return tuple(torch.randn(batch, *s, generator=generator(i), dtype=dtype) for i, s in enumerate(shapes))


def converted(make, mode="constant", time_steps=7, dtype=torch.float32, **named):
    torch.manual_seed(0)
    ann = make().to(dtype).eval()
    calibrate = None if make in (Several, Skip) else inputs_of(make, dtype=dtype)[0]
    return convert(ann, time_steps, mode=mode, neuron=IF(), calibrate=calibrate, **named)  # which can stream


def outputs(out):
    """The tensors of an output, in order."""
    if isinstance(out, torch.Tensor):
        return (out,)
    parts = out.values() if isinstance(out, dict) else out
    return tuple(x for part in parts for x in outputs(part))


def spec(out):
    """Its structure."""
    return torch.utils._pytree.tree_structure(out)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("mode", ["constant", "impulse"])
@every_network
def test_it_computes_what_eval_mode_does(make, mode, dtype, tmp_path):
    """Whole, from a file, in chunks, and copied."""
    net, x = converted(make, mode, dtype=dtype), inputs_of(make, dtype=dtype)
    frozen = freeze(net)
    with torch.no_grad():
        want = net(*x)
    assert all(y.std() > 0 for y in outputs(want))
    assert spec(frozen(*x)) == spec(want)
    same(outputs(frozen(*x)), outputs(want))
    frozen.save(tmp_path / "net.safetensors")
    loaded = FrozenNetwork.load(tmp_path / "net.safetensors")
    for twin in (loaded, copy.deepcopy(loaded), pickle.loads(pickle.dumps(loaded)), loaded.train()):
        same(outputs(twin(*x)), outputs(want))
    assert not list(loaded.parameters())
    for sizes in ((1,), (3, 2)):
        got = in_chunks(loaded.stream(x if len(x) > 1 else x[0]), sizes)
        assert spec(got) == spec(want)
        same(outputs(got), outputs(want), str(sizes))


@pytest.mark.parametrize("make", [Several, *(slow(n) for n in NETWORKS if n is not Several)])
def test_export_and_compile(make):
    frozen, x = freeze(converted(make)), inputs_of(make)
    want = outputs(frozen(*x))
    same(outputs(torch.export.export(frozen, x).module()(*x)), want)
    same(outputs(torch.compile(frozen, backend="aot_eager", fullgraph=True)(*x)), want)


@pytest.mark.parametrize("make", [SoftmaxHead, Several, Skip])
def test_export_with_a_dynamic_batch(make):
    """The first input has its own entry in dynamic_shapes; the further ones share a tuple."""
    frozen, batch = freeze(converted(make)), {0: torch.export.Dim("batch")}
    _, *others = example = inputs_of(make)
    shapes = (batch, (batch,) * len(others)) if others else (batch,)
    exported = torch.export.export(frozen, example, dynamic_shapes=shapes).module()
    for size in (4, 1, 9):
        x = inputs_of(make, size)
        same(outputs(exported(*x)), outputs(frozen(*x)))


@pytest.mark.parametrize("make", [SoftmaxHead, FunctionalHead, ConvolutionalHead, MeanHead, Normalised, Skip])
def test_predict(make):
    """Samples leave; the heads look at every look; a softmax at the end is not applied twice."""
    net, x = converted(make, dtype=torch.float64, time_steps=9), inputs_of(make, 30, torch.float64)
    frozen = freeze(net)
    given = x if len(x) > 1 else x[0]
    stream, history = frozen.stream(given), []
    while stream.remaining:
        y = stream.advance()
        history.append((y if make is SoftmaxHead else y.softmax(1), y))
    threshold = float(history[3][0].amax(1).median())
    got = frozen.predict(given, threshold)
    assert len(got.steps.unique()) > 1
    for n in range(30):
        steps = [t for t in range(9) if history[t][0][n].amax() >= threshold or t == 8]
        assert got.steps[n] == steps[0] + 1
        torch.testing.assert_close(got.logits[n], history[steps[0]][1][n], rtol=0, atol=1e-9)
        torch.testing.assert_close(got.confidence[n], history[steps[0]][0][n].amax(), rtol=0, atol=1e-9)
    labels = torch.zeros(30, dtype=torch.int64)
    curve = frozen.accuracy_curve([(given, labels)], [threshold])
    assert curve.over_confidence[0].steps == pytest.approx(float(got.steps.double().mean()))


@pytest.mark.parametrize("make", [SoftmaxHead, VggHead, ConvolutionalHead, MeanHead])
def test_synops_of_the_read_out(make):
    """The weights behind Decode are added once for each spike and output that they reach."""
    net, (x,) = converted(make), inputs_of(make, 3)
    decoded: list[SpikeTrain] = []
    (decode,) = (module for module in net.snn.modules() if isinstance(module, Decode))
    hook = decode.register_forward_hook(lambda module, args, output: decoded.append(args[0]))
    layers = sum(layer.synops for layer in synops(net, x) if layer.firing_rate is not None)
    hook.remove()
    count = decoded[0].count.double()
    outputs = 5.0
    if make is MeanHead:  # of the 2 x 2 windows of 3 x 3, each of the 4 x 4 pixels is in as many
        along = torch.tensor([1.0, 2.0, 2.0, 1.0], dtype=torch.float64)
        outputs = 5 * along[:, None] * along
    curve = freeze(net).accuracy_curve([(x, torch.zeros(3, dtype=torch.int64))])
    assert curve.over_time[-1].synops == pytest.approx(layers + float((count * outputs).sum()) / 3)


def test_what_stands_in_front_runs_once():
    net, (x,) = converted(Normalised), inputs_of(Normalised)
    frozen = freeze(net)
    calls: list[str] = []
    for name, layer in zip(frozen.names, frozen.layers, strict=True):
        layer.register_forward_hook(lambda *args, name=name: calls.append(name))
    stream = frozen.stream(x)
    while stream.remaining:
        stream.advance()
    kinds = {node.name: node.layer for node in frozen.nodes}
    once = [name for name in frozen.names if calls.count(name) == 1]
    assert {kinds[name].kind for name in once} == {"BatchNorm2d", "Encode", "Function"}
    assert len(once) == 7
    assert all(calls.count(name) == 7 for name in frozen.names if name not in once)


def test_a_hybrid():
    """The ANN behind the cut is plain PyTorch."""
    net, (x,) = converted(VggHead, spiking_layers=1), inputs_of(VggHead)
    with torch.no_grad():
        same(freeze(net)(x), net(x))


def test_spikes_and_real_numbers():
    net, (x,) = convert(MeanHead().eval(), 6, mode="spikes"), inputs_of(MeanHead)
    train = SpikeTrain.from_dense((x > 0).float().expand(6, *x.shape))
    with torch.no_grad():
        want = net(train)
    frozen = freeze(net)
    same(frozen(train), want)
    same(in_chunks(frozen.stream(train), (4,)), want)
    same(in_chunks(frozen.stream(time_steps=6), (2,), train), want)


@pytest.mark.parametrize(
    "head",
    [
        lambda net, y: y * net.factor.exp(),
        lambda net, y: y @ net.rows.t(),
        lambda net, y: F.linear(y, net.rows[:3].flip(1), net.factor.view(1).expand(3)),
        lambda net, y: y.view(-1, net.rows.size(1)) + net.rows.chunk(4)[1],
        lambda net, y: F.normalize(y, dim=1) * F.softplus(net.factor.clamp(min=0.5)),
    ],
)
def test_functions_of_constants_alone(head, tmp_path):
    class Network(Net):
        def __init__(self):
            super().__init__()
            self.last = nn.Linear(8 * 16, 5)
            self.factor, self.rows = nn.Parameter(torch.tensor(1.5)), nn.Parameter(torch.rand(4, 5))

        def forward(self, x):
            return head(self, self.last(torch.flatten(self.body(x * self.factor.reciprocal()), 1)))

    net, x = convert(Network().eval(), 4), torch.rand(3, 2, 8, 8)
    frozen = freeze(net)
    with torch.no_grad():
        want = net(x)
    same(frozen(x), want)
    frozen.save(tmp_path / "net")
    same(FrozenNetwork.load(tmp_path / "net")(x), want)


def test_it_shares_nothing():
    net, (x,) = converted(Normalised), inputs_of(Normalised)
    frozen = freeze(net)
    want = frozen(x)
    with torch.no_grad():
        for tensor in (*net.ann().parameters(), *net.ann().buffers()):
            tensor.zero_()
    same(frozen(x), want)


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
        "num_features": 4, "in_channels": 4, "out_channels": 6, "kernel_size": 2, "normalized_shape": 8, "size": 3,
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


def test_every_name_is_a_function():
    for name, function in FUNCTIONS.items():
        assert callable(function), name
    for forbidden in ("eval", "exec", "getattr", "open", "__import__", "torch.load", "Tensor.__class__"):
        with pytest.raises(ValueError, match="setting function must be"):
            FrozenFunction(forbidden, [{"input": 0}], {}, {})


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (lambda self, x: torch.linalg.norm(self.last(self.relu(self.first(x)))), "is not supported by freeze"),
        (lambda self, x: self.last(self.relu(self.first(x))).cuda(), "cuda: is not supported by freeze"),
        (lambda self, x: self.last(self.relu(self.first(x))).grad, "getattr: reads grad, which cannot be"),
        (lambda self, x: F.dropout(self.last(self.relu(self.first(x))), training=self.training), None),
        (lambda self, x: F.dropout(self.last(self.relu(self.first(x)))), "dropout: was traced in training mode"),
        (lambda self, x: (self.last(self.relu(self.first(x))), 3), r"output \(3 of type int\)"),
        (
            lambda self, x: self.ignored(self.last(self.relu(self.first(x)))),
            "relu_: writes in place, but its result is not used",
        ),
        (
            lambda self, x: self.after_dropout(self.last(self.relu(self.first(x)))),
            "writes in place to a tensor that is used",
        ),
        (
            lambda self, x: self.twice(self.last(self.relu(self.first(x)))),
            "relu_: writes in place to a tensor that is used elsewhere; use the out-of-place",
        ),
        (
            lambda self, x: self.behind_idle_dropout(self.last(self.relu(self.first(x)))),
            "relu_: writes in place to a tensor that is used elsewhere; use the out-of-place",
        ),
    ],
)
def test_what_cannot_be_frozen_is_named(forward, message):
    class Ann(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.relu, self.last = nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)
            self.block = nn.Sequential(nn.Dropout(), nn.ReLU(inplace=True))

        def ignored(self, x):
            x.relu_()
            return x + 1

        def after_dropout(self, x):
            return self.block(x) + x

        def twice(self, x):
            return x.relu_() + x

        def behind_idle_dropout(self, x):
            return F.dropout(x, training=False).relu_() + x

        def forward(self, x):
            return forward(self, x)

    net = convert(Ann(), 4)
    if message is None:
        freeze(net)
        return
    with pytest.raises(ValueError, match=f"freeze: model must contain only .*{message}"):
        freeze(net)


def test_in_place_where_nobody_else_looks():
    def run(n, x):
        y = n.last(n.relu(n.first(x))).view(-1, 2, 3).relu_()
        return F.leaky_relu(y - 0.5, inplace=True).flatten(1)

    ann = anns.Net(run, first=nn.Linear(4, 5), relu=nn.ReLU(), last=nn.Linear(5, 6))
    net, x = convert(ann, 4), torch.randn(5, 4, generator=generator(0))
    with torch.no_grad():
        same(freeze(net)(x), net(x))


def test_batch_norm_without_statistics():
    net = nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False), Encode(3), TandemLinear(3, 4), Decode())
    with pytest.raises(ValueError, match="BatchNorm1d: norm must keep running statistics"):
        freeze(net)


def test_bad_inputs():
    frozen, (x, y) = freeze(converted(Several)), inputs_of(Several)
    for call, error, message in (
        (lambda: frozen(x), TypeError, "FrozenNetwork: number of inputs must be 2, got 1"),
        (lambda: frozen(x, None), TypeError, "FrozenNetwork: input <y> must be a Tensor, got NoneType"),
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


ODD = (None, True, -1, 0, 2, 7, 2**62, 1e300, "same", "torch.load", [], [1, 2], {}, {"input": 5}, {"tensor": "9"})


LARGER = [nightly(make) for make in (ConvolutionalHead, Several, Normalised)]


@pytest.mark.parametrize("make", [Digits, *LARGER])
def test_every_setting_replaced(make, tmp_path):
    """A ValueError, or a network; whatever its functions are given, nothing else happens."""
    frozen = freeze(converted(make))
    frozen.save(tmp_path / "good")
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
