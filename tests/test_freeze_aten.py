"""Frozen networks whose real parts are ATen calls: to the bit, from files, moved, exported; and what is refused."""

import copy
import operator
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from aten_graphs import Spliced
from exact import generator, same
from freezable import in_chunks
from tandem_cuda import IF, Decode, Encode, FrozenNetwork, RadixIF, TandemLinear, freeze
from tandem_cuda.freeze import file as artefact
from tandem_cuda.freeze.aten import FrozenAten, FrozenConstant, operator_of
from test_frozen_files import write

pytest.importorskip("safetensors")
aten = torch.ops.aten


class Tensors(nn.Module):
    """What the functions take, beside their input."""

    def __init__(self):
        super().__init__()
        self.register_buffer("row", torch.linspace(-1, 1, 8))
        self.register_buffer("matrix", torch.linspace(-9, 9, 64).view(8, 8).sin())
        self.register_buffer("index", torch.tensor([2, 0]))
        self.register_buffer("mask", torch.arange(8) > 4)
        self.register_buffer("causal", torch.full((4, 4), -torch.inf).triu(1))
        self.register_buffer("kernel", torch.tensor([[[[1.0, -0.5], [0.25, 2.0]]]]))
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
        self.lstm, self.gru = nn.LSTM(2, 3, batch_first=True), nn.GRU(2, 3, 2, batch_first=True, bidirectional=True)
        self.attention = nn.MultiheadAttention(2, 1, batch_first=True)
        self.encoder = nn.TransformerEncoderLayer(2, 1, 4, batch_first=True, activation="gelu")
        self.norm = nn.BatchNorm1d(8)
        nn.init.uniform_(self.norm.running_var, 0.5, 2)


def image(x):
    return x.view(-1, 1, 2, 4)


def tokens(x):
    return x.view(-1, 4, 2)


HEADS = {
    "max of a dimension": lambda n, x: x.max(1)[0],
    "indices": lambda n, x: torch.min(x, 1).indices,
    "topk": lambda n, x: x.topk(2).values,
    "slices": lambda n, x: x[:, 1::2, None],
    "resized": lambda n, x: F.interpolate(image(x), scale_factor=2, mode="bilinear"),
    "a constant": lambda n, x: torch.lerp(x, n.row, 0.25) * n.row + 1,
    "constants alone": lambda n, x: x * n.row.exp().sum() + n.matrix.mean(0),
    "a part of a constant": lambda n, x: (x[:, None, :4] * n.matrix.chunk(2, 1)[1]).sum(2),
    "a computed weight": lambda n, x: n.normed(x),
    "an index": lambda n, x: x[:, n.index] + x.index_select(1, n.index),
    "a mask": lambda n, x: torch.where(n.mask, x, -x).masked_fill(x < 0, -torch.inf),
    "other dtypes": lambda n, x: (x > 0).float() + (x.abs() >= 1).to(x.dtype) + x.to(torch.float64),
    "standardised": lambda n, x: (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True),
    "einsum": lambda n, x: torch.einsum("nf,fg->ng", x, n.matrix),
    "a transposed matrix": lambda n, x: x @ n.matrix.t(),
    "a matrix with gaps": lambda n, x: x[:, :4] @ n.matrix[::2, 1::3],
    "a row for each sample": lambda n, x: torch.cat([x, n.row.expand(x.shape[0], -1), x.new_zeros(x.size(0), 1)], 1),
    "sizes": lambda n, x: x.view(x.shape[0] * 2, -1).reshape(x.shape[0], 8) * (x.shape[0] // 2 + 1) / x.numel(),
    "zeros and ones": lambda n, x: x + torch.zeros(x.shape[0], 8, device=x.device) + torch.ones_like(x).to(x.device),
    "positions": lambda n, x: x + torch.arange(x.shape[1], device=x.device),
    "activations": lambda n, x: F.gelu(x) + F.gelu(x, approximate="tanh") + F.silu(x) + F.hardswish(x) + F.mish(x),
    "softmax": lambda n, x: x.softmax(1) + F.log_softmax(x, -1),
    "chunks": lambda n, x: x.chunk(2, 1)[1] + x.split([4, 4], 1)[0] + x.unbind(1)[2][:, None],
    "convolution": lambda n, x: F.conv_transpose2d(image(x), n.kernel, stride=2),
    "norms": lambda n, x: F.group_norm(x, 2) + F.rms_norm(x, (8,)) + F.layer_norm(x, (8,), n.row, n.row),
    "batch norm": lambda n, x: n.norm(x),
    "padded": lambda n, x: F.pad(image(x), (1, 1), value=-torch.inf).amax(2),
    "dropout": lambda n, x: F.dropout(x, training=n.training),
    "LSTM": lambda n, x: n.lstm(tokens(x))[0],
    "GRU": lambda n, x: n.gru(tokens(x))[1],
    "attention": lambda n, x: n.attention(tokens(x), tokens(x), tokens(x), need_weights=False)[0],
    "masked attention": lambda n, x: F.scaled_dot_product_attention(tokens(x), tokens(x), tokens(x), n.causal),
    "an encoder": lambda n, x: n.encoder(tokens(x)).mean(1),
    "unused results": lambda n, x: x + x.max(1).values[:, None].to(x.dtype),
}


def network(head, dtype=torch.float32, neuron=IF(), time_steps=4):
    torch.manual_seed(0)
    net = Spliced()
    layers = {"first": TandemLinear(6, 9, neuron=neuron), "decode": Decode(), "last": nn.Linear(9, 8)}
    x = net.layers(net.inputs[0], encode=Encode(time_steps, "impulse"), **layers)
    example = torch.randn(3, 8)
    return net.returning(net.aten(head, [x], [example], Tensors().eval())).to(dtype)


def inputs(batch=5, dtype=torch.float32):
    return torch.randn(batch, 6, generator=generator(0), dtype=dtype)


@pytest.mark.parametrize("name", HEADS)
def test_heads(name, tmp_path):
    """Whole, from a file, copied, pickled and in chunks; of one sample; and in another dtype and back."""
    net, x = network(HEADS[name]), inputs()
    with torch.no_grad():
        want, of_one = net(x), net(x[:1])
    frozen = freeze(net)
    assert not list(frozen.parameters())
    same(frozen(x), want)
    frozen.save(tmp_path / "net.safetensors")
    loaded = FrozenNetwork.load(tmp_path / "net.safetensors")
    for twin in (loaded, copy.deepcopy(loaded), pickle.loads(pickle.dumps(loaded)), loaded.train()):
        same(twin(x), want)
        same(twin(x[:1]), of_one)
    same(in_chunks(loaded.stream(x), (1, 3)), want)
    torch.testing.assert_close(loaded.double()(x.double()), want, rtol=1e-4, atol=1e-5, check_dtype=False)
    same(loaded.float()(x), want)


def test_dtypes_of_the_network_follow_it():
    zeros = lambda n, x: torch.cat([x, torch.zeros(x.shape[0], 2, dtype=x.dtype), n.row.expand(x.shape[0], -1)], 1)  # noqa: E731
    frozen, x = freeze(network(zeros)), inputs()
    assert [y.dtype for y in (frozen(x), copy.deepcopy(frozen).double()(x.double()))] == [torch.float32, torch.float64]
    other = freeze(network(lambda n, x: x.to(torch.float64).sum(1)))
    assert other(x).dtype == other.double()(x.double()).dtype == other.float()(x).dtype == torch.float64
    assert all(x.is_meta for x in frozen.to("meta").buffers())


@pytest.mark.parametrize("name", ["sizes", "zeros and ones", "LSTM", "masked attention"])
def test_export_with_a_dynamic_batch(name):
    frozen = freeze(network(HEADS[name], neuron=RadixIF(level=3)))
    exported = torch.export.export(frozen, (inputs(),), dynamic_shapes=({0: torch.export.Dim("batch")},)).module()
    for batch in (5, 2, 9):
        same(exported(inputs(batch)), frozen(inputs(batch)))
    same(torch.compile(frozen, backend="aot_eager", fullgraph=True)(inputs()), frozen(inputs()))


@pytest.mark.slow
def test_compiled_ahead_of_time(tmp_path):
    """A package for programs without Python, of any batch."""
    frozen = freeze(network(HEADS["masked attention"], neuron=RadixIF(level=3)))
    exported = torch.export.export(frozen, (inputs(),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    package = torch._inductor.aoti_compile_and_package(exported, package_path=str(tmp_path / "net.pt2"))
    run = torch._inductor.aoti_load_package(package)
    for batch in (5, 2, 9):
        torch.testing.assert_close(run(inputs(batch)), frozen(inputs(batch)))


def several():
    """Two inputs, of which one meets the read-out; a tuple in a dict."""
    net = Spliced(2)
    x, y = net.inputs
    front = net.aten(
        lambda x, y: (torch.cat([x, y], 1) - 0.5) * x.shape[1], [x, y], [torch.rand(3, 2), torch.rand(3, 1)]
    )
    spikes = net.layers(front, encode=Encode(4), first=TandemLinear(3, 9), decode=Decode())
    heads = net.layer("a", nn.Linear(9, 3), spikes), net.layer("b", nn.Linear(9, 3), spikes), y
    examples = torch.rand(3, 3), torch.rand(3, 3), torch.rand(3, 1)
    return net.returning(net.aten(lambda a, b, y: {"sum": a + b, "both": (a, b * y)}, heads, examples))


def test_several_inputs_and_outputs(tmp_path):
    net, x = several(), (torch.rand(5, 2), torch.rand(5, 1))
    with torch.no_grad():
        want = net(*x)
    freeze(net).save(tmp_path / "net")
    frozen = FrozenNetwork.load(tmp_path / "net")
    spec = torch.utils._pytree.tree_structure(want)
    for got in (frozen(*x), in_chunks(frozen.stream(x), (1, 3))):
        assert torch.utils._pytree.tree_structure(got) == spec
        same(torch.utils._pytree.tree_leaves(got), torch.utils._pytree.tree_leaves(want))


def test_what_stands_in_front_runs_once():
    frozen, x = freeze(several()), (torch.rand(5, 2), torch.rand(5, 1))
    calls = []
    for name, layer in zip(frozen.names, frozen.layers, strict=True):
        layer.register_forward_hook(lambda *args, name=name: calls.append(name))
    stream = frozen.stream(x)
    while stream.remaining:
        stream.advance()
    kinds = {node.name: node.layer.kind for node in frozen.nodes}
    assert sorted(kinds[name] for name in frozen.names if calls.count(name) == 1) == ["Aten"] * 3 + ["Encode"]
    assert {calls.count(name) for name in frozen.names} == {1, 4}


def test_constants_are_shared_and_may_be_outputs():
    net = network(lambda n, x: (x @ n.matrix, x + n.row, x * n.row, n.row * 2))
    frozen = freeze(net)
    assert [node.layer.kind for node in frozen.nodes].count("Constant") == 3
    with torch.no_grad():
        for got, want in zip(frozen(inputs()), net(inputs()), strict=True):
            same(got, want)


@pytest.mark.parametrize("head", [lambda n, x: x.softmax(1), lambda n, x: x.softmax(-1)])
def test_probabilities_and_operations_that_are_not_counted(head):
    frozen, x = freeze(network(head)), inputs()
    assert frozen.probabilities
    same(frozen.predict(x, exit_confidence=1.0).logits, frozen(x))
    curve = freeze(network(lambda n, x: x @ n.matrix)).accuracy_curve([(x, torch.zeros(5, dtype=torch.int64))])
    assert curve.not_counted == ("matmul (Aten)",)


def test_operations_behind_views():
    """The first weights behind Decode are those behind the moves of its values."""
    net = Spliced()
    spikes = net.layers(net.inputs[0], encode=Encode(4), first=TandemLinear(6, 9), decode=Decode())
    moved = net.aten(lambda x: x.flip(1)[:, None, :3].permute(0, 2, 1), [spikes], [torch.rand(3, 9)])
    moved = net.graph.call_function(aten.reshape.default, (moved, [-1, 3]))
    frozen = freeze(net.returning(net.layer("last", nn.Linear(3, 5), moved)))
    curve = frozen.accuracy_curve([(inputs(), torch.zeros(5, dtype=torch.int64))])
    assert curve.not_counted == ("last (Linear)",)  # flip is no view
    assert sum(node.layer.only_moves for node in frozen.nodes) == 5


# --- what is refused -------------------------------------------------------------------------------------------------


def called(op, *args, **kwargs):
    """A network that ends in a call."""
    net = Spliced()
    x = net.layers(net.inputs[0], encode=Encode(4), first=TandemLinear(6, 9), decode=Decode())
    return net.returning(net.graph.call_function(op, (x, *args), kwargs))


@pytest.mark.parametrize(
    ("op", "args", "message"),
    [
        (aten.dropout.default, (0.5, True), "aten.dropout.default must not train"),
        (aten.bernoulli.p, (0.5,), "operator must be functional and safe"),
        (aten.rand_like.default, (), "aten.rand_like.default must not be random"),
        (aten.native_dropout.default, (0.5, None), "must not be random"),
        (aten.feature_dropout.default, (0.5, True), "must not train"),
        (aten.batch_norm.default, (None, None, None, None, True, 0.1, 1e-5, False), "must not train"),
        (aten.relu_.default, (), "functional and safe"),
        (aten.new_empty.default, ([3],), "functional and safe"),
        (aten.as_strided.default, ([3], [1]), "functional and safe"),
        (aten._softmax.default, (1, False), "operator must be one of ATen's in torch"),
        (aten.to.dtype, (torch.complex64,), "an argument must be of a type that files have, got torch.complex64"),
        (torch.relu, (), "only ATen operators can be frozen, .* convert the ANN, or put layers into an nn.Sequential"),
        (torch.add, (1,), "only ATen operators can be frozen"),
        (F.dropout, (), "only ATen operators can be frozen"),
        (operator.add, (1,), "inputs of operator.add must be sizes, got a Tensor; only ATen operators"),
        (operator.getitem, (0,), "inputs of operator.getitem must be sizes, got a Tensor"),
        (getattr, ("shape",), "only ATen operators can be frozen"),
    ],
    ids=lambda x: x if isinstance(x, str) else getattr(x, "__name__", "args"),
)
def test_calls_that_cannot_be_frozen(op, args, message):
    with pytest.raises(ValueError, match=f"freeze: .*{message}"):
        freeze(called(op, *args))


def test_calls_that_neither_train_nor_drop():
    for op, *args in ((aten.dropout.default, 0.5, False), (aten.feature_dropout.default, 0.5, False)):
        net = called(op, *args)
        with torch.no_grad():
            same(freeze(net)(inputs()), net(inputs()))


def test_methods_and_in_place_functions_are_refused():
    for call in (lambda x: x.relu(), lambda x: x.add_(1), lambda x: (x.mul_(2), x)[1], lambda x: x + x):

        class Ann(nn.Module):
            def __init__(self, call=call):
                super().__init__()
                self.body, self.call = nn.Sequential(Encode(4), TandemLinear(6, 9), Decode()), call

            def forward(self, x):
                return self.call(self.body(x))

        with pytest.raises(ValueError, match="only ATen operators can be frozen"):
            freeze(traced(Ann()))


def traced(net):
    class Leaves(fx.Tracer):
        def is_leaf_module(self, module, name):
            return not isinstance(module, nn.Sequential) and module is not net

    return fx.GraphModule(net, Leaves().trace(net))


def test_flatten_and_clone():
    class Ann(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.decode = nn.Sequential(Encode(4), TandemLinear(6, 9)), Decode()

        def forward(self, x):
            return torch.flatten(self.decode(self.body(x.flatten(1)).flatten(1)), 1).clone().flatten(1, -1)

    net = traced(Ann())
    with torch.no_grad():
        same(freeze(net)(inputs()), net(inputs()))


@pytest.mark.parametrize(
    ("modules", "users", "fits"),
    [
        ([nn.ReLU(inplace=True)], 2, False),
        ([nn.Dropout(), nn.ReLU(inplace=True)], 2, False),
        ([nn.Linear(3, 3), nn.ReLU(inplace=True)], 2, True),
        ([nn.Dropout(inplace=True)], 2, True),
        ([nn.ReLU()], 2, True),
        ([nn.ReLU(inplace=True)], 1, True),
    ],
)
@pytest.mark.parametrize("used", [True, False])
def test_modules_that_write_in_place(modules, users, fits, used):
    """Where another call reads their input, whether or not their own result is used."""
    net = Spliced()
    x = net.layers(net.inputs[0], encode=Encode(4), first=TandemLinear(6, 9), decode=Decode(), last=nn.Linear(9, 3))
    y = net.layer("block", nn.Sequential(*modules), x)
    others = [net.layer("other", nn.Softmax(1), x)] if users > 1 else []
    net = net.returning((y, *others) if used or not others else (others[0],))
    if not fits:
        with pytest.raises(
            ValueError, match="may write in place to a tensor that is used elsewhere; set inplace=False"
        ):
            freeze(net)
        return
    with torch.no_grad():
        for got, want in zip(freeze(net)(inputs()), net(inputs()), strict=True):
            same(got, want)


def test_modules_that_write_in_place_to_views():
    net = Spliced()
    x = net.layers(net.inputs[0], encode=Encode(4), first=TandemLinear(6, 9), decode=Decode(), last=nn.Linear(9, 4))
    y = net.layer("relu", nn.ReLU(inplace=True), net.graph.call_function(aten.view.default, (x, [-1, 2, 2])))
    with pytest.raises(ValueError, match="set inplace=False"):
        freeze(net.returning((x, y)))


# --- files -----------------------------------------------------------------------------------------------------------

HOSTILE = (
    *("aten::from_file", "aten::save", "aten::manual_seed", "aten::set_grad_enabled", "aten::backward", "aten::wait"),
    *("aten::empty", "aten::empty_like", "aten::new_empty", "aten::as_strided", "aten::resize", "aten::_pin_memory"),
    *("aten::fbgemm_linear_int8_weight", "aten::quantized_lstm_cell", "aten::mkldnn_linear", "aten::cudnn_convolution"),
    *("aten::relu_", "aten::add.out", "aten::__class__", "aten::name", "aten::convolution_backward", "aten::nothing"),
    *("aten::sparse_coo_tensor", "aten::segment_reduce", "aten::qscheme", "aten::get_gradients", "aten::set"),
    *("torch.load", "prim::Print", "tandem_cuda::pack_spikes", "operator.pow", "operator.methodcaller", "eval", "", 3),
)


@pytest.mark.parametrize("name", HOSTILE)
def test_operators_that_files_must_not_name(name):
    for overload in ("default", "", "out", "Tensor", None, ["default"]):
        with pytest.raises(ValueError, match="operator must be"):
            operator_of(name, overload)


def test_every_operator_that_files_may_name_is_functional():
    allowed = []
    for full in torch._C._dispatch_get_all_op_names():
        name, _, overload = full.partition(".")
        try:
            op = operator_of(name, overload or "default")
        except ValueError:
            continue
        allowed.append(full)
        assert op.namespace == "aten"
        assert not op._schema.is_mutable
        assert not {"filename", "unsafe"} & {x.name for x in op._schema.arguments}
        assert not any("empty" in part for part in full.split("_"))
    assert 900 < len(allowed) < 1200


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"operator": "aten::from_file"}, "node 'mul': operator must be"),
        ({"overload": "Scalar_out"}, "node 'mul': operator must be"),
        (
            {"operator": "operator.mul", "overload": ""},
            "Aten 'mul': inputs of operator.mul must be sizes, got a Tensor",
        ),
        ({"args": [{"input": 0}, 2]}, "Aten 'mul': number of inputs must be 1, as in args, got 2"),
        ({"args": [{"input": 0}]}, "aten.mul.Tensor must be called with its arguments, each given once"),
        ({"args": [{"input": 0}, [{"input": 1}]]}, "aten.mul.Tensor: other must be Tensor, got "),
        ({"args": [{"input": 0}, {"input": 2}]}, r"args and kwargs must name every input, got \[0, 2\]"),
        ({"args": [{"input": 0}, {"tensor": "value"}]}, "an argument must be of a known form, got {'tensor': 'value'}"),
        ({"args": [{"input": 0}, {"own": "like"}]}, "an argument must be of a known form"),
        ({"args": {}}, "args and kwargs must be a list and an object"),
        (
            {"operator": "aten::full_like", "overload": "default", "kwargs": {"device": "cuda"}},
            "aten.full_like.default must be called for the device of the network",
        ),
        ({"args": [{"input": 0}, {"input": 1}, {"dtype": "complex64"}]}, "an argument must be of a known form"),
    ],
)
def test_files_that_were_changed(changes, message, tmp_path):
    freeze(network(lambda n, x: x * n.row)).save(tmp_path / "good")
    description, tensors = artefact.read(tmp_path / "good")
    (node,) = (node for node in description["nodes"] if node["name"] == "mul")
    assert node["settings"] == {
        "operator": "aten::mul", "overload": "Tensor", "args": [{"input": 0}, {"input": 1}], "kwargs": {}
    }  # fmt: skip
    node["settings"] |= changes
    write(tmp_path / "net", description, tensors)
    with pytest.raises(ValueError, match=message):
        FrozenNetwork.load(tmp_path / "net")


def test_constants_of_files(tmp_path):
    freeze(network(lambda n, x: x * n.row)).save(tmp_path / "good")
    description, tensors = artefact.read(tmp_path / "good")
    (name,) = (node["name"] for node in description["nodes"] if node["kind"] == "Constant")
    for wrong, message in (
        (torch.full((8,), torch.nan), f"Constant {name!r}: value must be finite, got nan"),
        (torch.ones(8, dtype=torch.complex64), f"node {name!r}: a constant must have one of the dtypes float64, "),
    ):
        write(tmp_path / "net", description, {**tensors, f"{name}/value": wrong})
        with pytest.raises(ValueError, match=message):
            FrozenNetwork.load(tmp_path / "net")
    inputs_of_constant = copy.deepcopy(description)
    for node in inputs_of_constant["nodes"]:
        node["inputs"] = ["<input>"] if node["kind"] == "Constant" else node["inputs"]
    write(tmp_path / "net", inputs_of_constant, tensors)
    with pytest.raises(ValueError, match=f"inputs of {name!r} must be none"):
        FrozenNetwork.load(tmp_path / "net")


def test_repr():
    call = FrozenAten("aten::gelu", "default", [{"input": 0}], {"approximate": "tanh"})
    assert str(call) == "FrozenAten(aten::gelu.default)"
    assert str(FrozenAten("operator.mul", "", [{"input": 0}, 2], {})) == "FrozenAten(operator.mul)"
    assert FrozenConstant(torch.ones(2)).settings() == {}
