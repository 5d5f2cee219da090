"""The graph of an ANN, as torch.export gives it: what converts, for which inputs, and what is refused."""

import warnings
from collections import namedtuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils._pytree import tree_flatten, tree_leaves

from anns import Net, Pair
from exact import generator, same
from tandem_cuda import convert
from tandem_cuda.convert.graph import exported

IMAGES = torch.rand(7, 3, 8, 8, generator=generator(0))
OTHERS = torch.rand(7, 3, 8, 8, generator=generator(1))
Outputs = namedtuple("Outputs", "logits hidden")


def conv(inputs=3, outputs=4, **settings):
    return nn.Conv2d(inputs, outputs, 3, padding=1, **settings)


def between(step, **modules):
    """A network with ``step(net, h)`` between two weight layers."""
    torch.manual_seed(0)

    def run(n, x):
        return n.fc(F.relu(n.last(step(n, n.first(x)))).mean((2, 3)))

    return Net(run, first=conv(), last=conv(4, 4), fc=nn.Linear(4, 5), **modules).eval()


def leaves(net, *inputs, **named):
    with torch.no_grad():
        return tree_leaves(net(*inputs, **named))


def assert_like(snn, ann, *inputs, **named):
    """The outputs have the structure of the ANN's, and are near them."""
    with torch.no_grad():
        assert tree_flatten(snn(*inputs, **named))[1] == tree_flatten(ann(*inputs, **named))[1]
    for mine, theirs in zip(leaves(snn, *inputs, **named), leaves(ann, *inputs, **named), strict=True):
        if not isinstance(theirs, torch.Tensor):
            assert mine == theirs
            continue
        assert (mine - theirs).norm() < 0.03 * theirs.norm()


# -- parameters and names


def test_parameters_are_the_anns_own():
    ann = between(lambda n, x: F.relu(n.norm(x)), norm=nn.BatchNorm2d(4))
    names = {str(node.target) for node in exported(ann, (IMAGES,)).graph.nodes if node.op == "get_attr"}
    assert names == {name for name in ann.state_dict() if "num_batches" not in name}
    snn = convert(ann, 8, example=IMAGES)
    assert {id(x) for x in snn.parameters()} == {id(x) for x in ann.parameters()}
    assert list(snn.state_dict()) == list(ann.state_dict())
    assert snn.spiking_layers == ("first", "last")


def test_names_that_graph_modules_have_themselves():
    layers = {"code": conv(), "graph": nn.Linear(4, 6), "train_": nn.Linear(6, 5), "encode": nn.Linear(5, 3)}
    ann = Net(lambda n, x: n.encode(F.relu(n.train_(F.relu(n.graph(F.relu(n.code(x)).mean((2, 3))))))), **layers).eval()
    assert_like(convert(ann, 8, calibrate=IMAGES), ann, IMAGES)


def test_tied_weights():
    """Two modules with one weight, and one module that is called twice."""
    ann = between(lambda n, x: F.relu(n.tied(F.relu(n.tied(F.relu(x))))), tied=conv(4, 4))
    ann.last.weight = ann.tied.weight
    snn = convert(ann, 8, calibrate=IMAGES)
    assert_like(snn, ann, IMAGES)
    assert len(snn.spiking_layers) == 4
    snn(IMAGES).square().sum().backward()
    assert ann.tied.weight.grad.abs().sum() > 0
    assert list(snn.state_dict()) == [*ann.state_dict(), "_extra_state"]


def test_padding_in_words():
    ann = nn.Sequential(
        *(
            nn.Conv2d(3, 4, (3, 4), padding="same", dilation=2),
            nn.ReLU(),
            nn.Conv2d(4, 4, 3, padding="valid"),
            nn.ReLU(),
        ),
        *(nn.Flatten(2), nn.Conv1d(4, 3, 4, padding="same"), nn.ReLU(), nn.Flatten(), nn.Linear(108, 5)),
    ).eval()
    assert_like(convert(ann, 8, calibrate=IMAGES), ann, IMAGES)


# -- calls that write in place


def through_a_chain(n, x):
    x[:, 1:][:, :, 2].mul_(0.5)
    return x


def through_a_slice(n, x):
    x[:, 1:3] = x[:, :2] * 2
    return x


def through_a_select(n, x):
    x[:, 0] += 1
    x[:, :, 0, 1:].zero_()
    return x


def through_a_view(n, x):
    x.view(x.size(0), -1)[:, ::3].clamp_(min=0.25)
    return x


def through_a_transpose(n, x):
    x.transpose(1, 3)[:, 1:4].neg_()
    x.permute(0, 2, 3, 1)[..., 0] = 0.5
    return x


def to_a_shared_value(n, x):
    y = x.relu_()
    y.add_(0.25)
    return x + y


def read_by_an_older_view(n, x):
    head = x[:, :1]
    x.mul_(2)
    return F.relu(x) + head


def to_new_tensors(n, x):
    y = torch.zeros_like(x)
    y[:, :2] = x[:, 2:]
    y[:, 2:].copy_(x[:, :1])
    return y


def where_a_mask_is_true(n, x):
    x[x < 0] = 0.125
    return x.masked_fill_(x > 1, 1.0)


def by_augmented_operators(n, x):
    x *= 2
    x -= 0.5
    x /= 4
    return F.relu(x, inplace=True)


WRITES = [
    through_a_chain, through_a_slice, through_a_select, through_a_view, through_a_transpose,
    to_a_shared_value, read_by_an_older_view, to_new_tensors, where_a_mask_is_true, by_augmented_operators,
]  # fmt: skip


@pytest.mark.parametrize("step", WRITES)
def test_writes_in_place(step):
    """The graph computes what forward does, without a write."""
    ann = between(step)
    graph = exported(ann, (IMAGES[:1],))
    assert not [n for n in graph.graph.nodes if getattr(getattr(n.target, "_schema", None), "is_mutable", False)]
    for n in (1, 2, 7):
        same(graph.run((IMAGES[:n],), lambda *_: None), ann(IMAGES[:n]))


def test_names_do_not_depend_on_writes_in_place():
    """They are the keys of a calibration: F.relu_ in place of F.relu keeps it valid."""
    names = []
    for relu in (F.relu, F.relu_):
        net = between(lambda n, h, relu=relu: F.silu(relu(F.gelu(h))) * torch.sigmoid(F.relu(h)))
        names.append([node.name for node in exported(net, (IMAGES,)).graph.nodes])
    assert names[0] == names[1]
    assert {"relu", "relu_1", "relu_2"} <= {*names[0]}


@pytest.mark.parametrize("step", [through_a_slice, to_a_shared_value, by_augmented_operators])
def test_networks_that_write_in_place(step):
    ann = between(step)
    snn = convert(ann, 8, calibrate=IMAGES)
    assert_like(snn, ann, IMAGES)
    snn(IMAGES).square().sum().backward()
    assert all(x.grad is not None for x in ann.parameters())


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (lambda n, x: n.mean.add_(x.detach().mean()) + x, "it writes in place to mean; write to a copy"),
        (lambda n, x: setattr(n, "mean", n.mean + 1) or x, "it writes in place to mean"),
        (lambda n, x: x + n.first.weight.data.mul_(0.5).sum(), "torch.export cannot export forward of Net"),
    ],
    ids=["a buffer", "a replaced buffer", "a parameter"],
)
def test_forwards_that_change_the_network_are_refused(step, message):
    ann = between(step)
    ann.register_buffer("mean", torch.zeros(()))
    before = {name: x.clone() for name, x in ann.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        convert(ann, 8, example=IMAGES)
    for name, x in ann.state_dict().items():
        same(x, before[name])


def test_writes_to_inputs():
    """The spiking twin leaves its input as it is."""
    ann = Net(lambda n, x: n.layers(x.mul_(2)), layers=nn.Sequential(conv(), nn.ReLU(), conv(4, 2))).eval()
    x = IMAGES.clone()
    snn = convert(ann, 8, calibrate=x).eval()
    same(x, IMAGES)
    want = ann(IMAGES.clone())
    assert (snn(x) - want).norm() < 0.05 * want.norm()
    same(x, IMAGES)


# -- regions without gradients


def test_parts_without_gradients():
    def run(n, x):
        with torch.no_grad():
            h = F.relu(n.second(F.relu(n.first(x))))
        return n.fc(F.relu(n.last(h)).mean((2, 3)))

    torch.manual_seed(0)
    ann = Net(run, first=conv(), second=conv(4, 4), last=conv(4, 4), fc=nn.Linear(4, 5)).eval()
    snn = convert(ann, 8, calibrate=IMAGES)
    assert_like(snn, ann, IMAGES)
    snn.train()(IMAGES).square().sum().backward()
    assert [name for name, x in ann.named_parameters() if x.grad is None] == [
        "first.weight", "first.bias", "second.weight", "second.bias"
    ]  # fmt: skip


# -- batches and sizes


@pytest.mark.filterwarnings("ignore:convert. 1 sum is computed on real values")
def test_batches_of_any_size():
    ann = between(
        lambda n, x: F.relu(x).reshape(-1, 2, 2, *x.shape[2:]).sum(1) @ n.square, square=nn.Parameter(torch.eye(8))
    )
    ann.last = conv(2, 4)
    snn = convert(ann, 8, calibrate=IMAGES)
    for n in (1, 2, 7):
        assert_like(snn, ann, IMAGES[:n])
    for wrong in (IMAGES[:, :, :4], IMAGES[:, :2], IMAGES[0]):
        with pytest.raises(ValueError, match=r"TandemNetwork: x must be \[N, 3, 8, 8\], the sizes of the example"):
            snn(wrong)


@pytest.mark.parametrize(
    ("step", "wanted"),
    [
        (lambda n, x: x.view(3, 4, 8, 8), "x to be 3"),
        (lambda n, x: x + torch.ones(3, 4, 8, 8), "x to be 3"),
        (lambda n, x: x if x.shape[0] < 5 else 2 * x, "x, N, to obey N < 5"),
        (lambda n, x: x if x.shape[0] % 2 else 2 * x, r"x, N, to obey Ne\(Mod\(N, 2\), 0\)"),
    ],
)
def test_batch_sizes_that_matter_are_refused(step, wanted):
    message = f"forward of Net must take any number of samples, but it wants the batch size of {wanted} "
    with pytest.raises(ValueError, match=message):
        convert(between(step), 8, example=IMAGES)


def test_other_results_for_one_sample_are_refused():
    """torch.export does not see them."""
    with pytest.raises(ValueError, match="but for one sample it computes something else than for several"):
        convert(between(lambda n, x: x if x.shape[0] > 1 else -x), 8, example=IMAGES)


# -- inputs and outputs


class Inputs(nn.Module):
    """Takes inputs in many ways, and returns nested outputs."""

    def __init__(self):
        super().__init__()
        self.first, self.other, self.last, self.fc = conv(), conv(), conv(4, 4), nn.Linear(4, 5)

    def network(self, x, y):
        h = F.relu(self.last(F.relu(self.first(x) + self.other(y)))).mean((2, 3))
        return self.fc(h), h


class Keywords(Inputs):
    def forward(self, x, scale=None, *, y, doubled=False):
        logits, hidden = self.network(x, 2 * y if doubled else y)
        return Outputs(logits if scale is None else scale * logits, [hidden])


class Many(Inputs):
    def forward(self, *images):
        logits, hidden = self.network(*images)
        return {"logits": logits, "more": (hidden, None, 3)}


class Batch(Inputs):
    def forward(self, batch, kind="sum"):
        return self.network(batch["images"][0], batch["images"][1])[0]


def test_inputs_by_keyword_and_defaults():
    torch.manual_seed(0)
    ann = Keywords().eval()
    snn = convert(ann, 8, calibrate=[{"x": IMAGES, "y": OTHERS}])
    assert_like(snn, ann, IMAGES, y=OTHERS)
    same(leaves(snn, x=IMAGES, y=OTHERS, scale=None, doubled=False), leaves(snn, IMAGES, None, y=OTHERS))
    for wrong in ({"scale": 2.0}, {"doubled": True}):
        with pytest.raises(ValueError, match=f"TandemNetwork: {next(iter(wrong))} must keep its default"):
            snn(IMAGES, y=OTHERS, **wrong)
    for args, kwargs in (
        ((), {}),
        ((IMAGES, OTHERS), {}),
        ((IMAGES,), {"x": IMAGES, "y": OTHERS}),
        ((IMAGES,), {"z": OTHERS}),
    ):
        with pytest.raises(TypeError, match=r"TandemNetwork: inputs must match the ANN's forward\("):
            snn(*args, **kwargs)
    scaled = convert(ann, 8, example={"x": IMAGES, "y": OTHERS, "scale": torch.ones(7, 1)})
    same(scaled(IMAGES, torch.full((7, 1), 2.0), y=OTHERS)[0], 2 * scaled(IMAGES, torch.ones(7, 1), y=OTHERS)[0])


def test_inputs_in_tuples_and_dicts():
    torch.manual_seed(0)
    ann = Many().eval()
    assert_like(convert(ann, 8, calibrate=[(IMAGES, OTHERS)], example=(IMAGES, OTHERS)), ann, IMAGES, OTHERS)
    ann, batch = Batch().eval(), {"images": [IMAGES, OTHERS]}
    snn = convert(ann, 8, example=(batch,))
    assert snn(batch).shape == (7, 5)
    with pytest.raises(TypeError, match="TandemNetwork: inputs must have the structure of the example"):
        snn({"images": [IMAGES]})
    with pytest.raises(ValueError, match=r"TandemNetwork: batch\['images'\]\[1\] must be \[N, 3, 8, 8\]"):
        snn({"images": [IMAGES, OTHERS[:, :, 1:]]})


@pytest.mark.parametrize(
    ("example", "error", "message"),
    [
        (None, ValueError, "convert: example must be given: the arguments of forward"),
        ((IMAGES,), ValueError, "convert: example must have a value for each input of forward, x, y, got 1"),
        ({"x": IMAGES, "z": IMAGES}, ValueError, "convert: example must"),
        ((IMAGES, IMAGES[:0]), ValueError, "convert: example must have at least one sample"),
        ("text", TypeError, "convert: example must be"),
    ],
)
def test_wrong_examples(example, error, message):
    ann = Pair(lambda n, x, y: n.b(F.relu(n.a(x + y))), a=conv(), b=conv(4, 2))
    with pytest.raises(error, match=message):
        convert(ann, 8, example=example)


# -- wrappers


class Wrapper(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, *args, **kwargs):
        return self.model(*args, **kwargs)


def compiled(net):
    return torch.compile(net, backend="eager")


@pytest.mark.parametrize(
    "wrap", [nn.DataParallel, AveragedModel, compiled, Wrapper, lambda n: Wrapper(nn.DataParallel(n))]
)
def test_wrappers(wrap):
    net = between(lambda n, x: F.relu(x))
    ann = wrap(net).eval()
    snn = convert(ann, 8, example=IMAGES)
    same(snn(IMAGES), convert(net, 8, example=IMAGES)(IMAGES))
    inner = snn.ann()
    assert (inner is ann) == isinstance(ann, Wrapper)
    assert {id(x) for x in snn.parameters()} == {id(x) for x in ann.parameters()}


def test_exported_programs():
    net = between(lambda n, x: F.relu(x))
    program = torch.export.export(net, (IMAGES,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    snn = convert(program, 8, example=IMAGES)
    same(snn(IMAGES), convert(net, 8, example=IMAGES)(IMAGES))


# -- what torch.export cannot take


def on_values(n, x):
    return x if x.mean() > 0 else -x


def on_items(n, x):
    return x * x.max().item() if x.max().item() > 0 else x


def on_sizes_that_depend_on_values(n, x):
    return x if len(x[x > 0]) > 3 else -x


def failing(n, x):
    raise KeyError("no such thing")


@pytest.mark.parametrize("step", [on_values, on_items, on_sizes_that_depend_on_values, failing])
def test_what_torch_cannot_export_is_named(step, capfd):
    """In one line, with the line of forward."""
    with pytest.raises(ValueError, match=r"^convert: torch.export cannot export forward of Net: ") as error:
        convert(between(step), 8, example=IMAGES)
    text = str(error.value)
    assert "\n" not in text
    assert "test_convert_graph.py" in text
    assert capfd.readouterr() == ("", "")  # nor does torch print the graph
    assert f"in {step.__name__}" in text or f"line {step.__code__.co_firstlineno + 1}" in text


@pytest.mark.parametrize("make", [torch.jit.script, lambda net: torch.jit.trace(net, IMAGES)])
def test_script_modules_are_refused(make):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        scripted = make(nn.Sequential(conv(), nn.ReLU(), conv(4, 2)))
    with pytest.raises(
        ValueError, match=r"convert: ann must be a module of Python, got .*: pass the module it was made of"
    ):
        convert(scripted, 8, example=IMAGES)


def test_what_tracing_once_refused():
    """Questions about types and sizes, loops over samples' sizes, hooks, and attributes."""

    def step(n, x):
        assert isinstance(x, torch.Tensor)
        assert type(x.shape) is torch.Size
        torch._assert(x.dim() == 4, "images")
        for i in range(x.shape[1] // 2):
            x = x + n.shifts[i] if len(x.shape) == 4 and hasattr(x, "mean") else -x
        return F.relu(x) if x.size(2) > 4 and not isinstance(x, tuple) else x

    ann, seen = between(step), []
    ann.shifts = [0.5, -0.25]
    ann.first.register_forward_hook(lambda module, inputs, out: out * 2)
    ann.last.register_forward_pre_hook(lambda module, inputs: seen.append(0))
    snn = convert(ann, 8, calibrate=IMAGES)
    assert_like(snn, ann, IMAGES)
