"""Converted networks and their ANNs share parameters and statistics: copies, files, replaced and compiled parts."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from anns import MODELS, Functional, Residual, TwoHeads, inputs, made, whole
from exact import same
from pairwise import each
from tandem_cuda import convert, quantise


@each(make=MODELS, calibrated=[False, True])
def test_copies(make, calibrated):
    """Copies compute the same, share nothing with the original, and everything with their own twin."""
    ann, snn = made(make, calibrate=inputs() if calibrated else None)
    snn.eval()
    x = inputs()
    want = whole(snn(x)).detach()
    file = io.BytesIO()
    torch.save(snn, file)
    file.seek(0)
    for other in (copy.deepcopy(snn), pickle.loads(pickle.dumps(snn)), torch.load(file, weights_only=False)):
        same(whole(other(x)).detach(), want)
        same(whole(other.ann()(x)).detach(), whole(ann(x)).detach())
        assert not set(other.parameters()) & set(snn.parameters())
        assert set(other.parameters()) <= set(other.ann().parameters())
        with torch.no_grad():
            for p in other.ann().parameters():
                p.zero_()
        assert (whole(other(x)) != want).any()
        same(whole(snn(x)).detach(), want)


@each(make=MODELS, nested=[False, True])
def test_state_dicts_are_the_anns(make, nested):
    ann, snn = made(make)
    torch.manual_seed(1)
    trained = make()
    trained.train()(inputs())
    state = trained.state_dict()
    if nested:
        outer = nn.ModuleDict({"net": snn})
        state = {f"net.{k}": v for k, v in state.items()}
    else:
        outer = snn
    assert list(outer.state_dict()) == list(state)
    outer.load_state_dict(state)
    for module in (outer, nn.ModuleDict({"net": ann}) if nested else ann):
        same(tuple(module.state_dict().values()), tuple(state.values()))
    same(whole(snn.eval()(inputs())).detach(), whole(convert(trained.eval(), 8, example=inputs())(inputs())).detach())
    trained.load_state_dict(snn.state_dict())
    with pytest.raises(RuntimeError, match="Missing key"):
        outer.load_state_dict({k: v for k, v in state.items() if "weight" not in k})
    with pytest.raises(RuntimeError, match="Unexpected key"):
        outer.load_state_dict({**state, "net.other.weight" if nested else "other.weight": torch.ones(1)})


def test_state_is_shared_after_it_was_replaced():
    """By load_state_dict(assign=True), and by a conversion that cannot be done in place."""
    ann, snn = made(Residual)
    state = {k: v.clone() for k, v in made(Residual)[0].state_dict().items()}
    snn.load_state_dict(state, assign=True)
    assert set(snn.parameters()) == set(ann.parameters())
    snn.to("meta")
    assert {x.device.type for x in [*ann.parameters(), *ann.buffers()]} == {"meta"}
    assert set(snn.parameters()) == set(ann.parameters())
    _, snn = made(TwoHeads)
    snn.double()
    assert {x.dtype for x in snn.ann().parameters()} == {torch.float64}
    assert snn(inputs().double())[0].dtype == torch.float64


def assigned(ann):
    ann.load_state_dict({k: v.clone() for k, v in ann.state_dict().items()}, assign=True)


def another_parameter(ann):
    ann.blocks[1].conv2.weight = nn.Parameter(ann.blocks[1].conv2.weight.detach().clone())


def pruned(ann):
    prune.l1_unstructured(ann.blocks[0].conv2, "weight", 0.5)


def parametrised(ann):
    parametrizations.weight_norm(ann.stem)


def another_norm(ann):
    ann.blocks[0].bn1 = nn.BatchNorm2d(6)


def another_block(ann):
    ann.blocks[1] = copy.deepcopy(ann.blocks[1])


def bias_given(ann):
    ann.blocks[0].conv1.bias = nn.Parameter(torch.ones(6))


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (assigned, "stem.weight"),
        (another_parameter, "blocks.1.conv2.weight"),
        (pruned, "blocks.0.conv2.weight"),
        (parametrised, "stem.weight"),
        (another_norm, "blocks.0.bn1 was"),
        (another_block, "blocks.1 was"),
        (bias_given, "blocks.0.conv1.bias was"),
        (lambda ann: quantise(ann, 4), "stem.weight"),
    ],
)
def test_twins_that_come_apart_are_noticed(change, name):
    ann, snn = made(Residual, calibrate=inputs())
    snn(inputs())
    change(ann)
    compiled = torch.compile(snn, backend="eager")
    for use in (
        lambda: snn(inputs()),
        snn.eval,
        snn.train,
        snn.state_dict,
        snn.double,
        lambda: snn.load_state_dict({}, strict=False),
        compiled.eval,
    ):
        with pytest.raises(RuntimeError, match=f"TandemNetwork: .*{name}.* replaced .*Call convert on the ANN again"):
            use()
    if change not in (parametrised, pruned):  # which cannot be shared
        assert set(convert(ann, 8, calibrate=snn.levels, example=inputs()).parameters()) == set(ann.parameters())


@pytest.mark.parametrize("change", [lambda x: prune.l1_unstructured(x, "weight", 0.5), parametrizations.weight_norm])
def test_parameters_replaced_in_the_spiking_twin_are_noticed(change):
    ann, snn = made(Residual, calibrate=inputs())
    change(snn.snn.get_submodule("stem"))
    with pytest.raises(RuntimeError, match=r"TandemNetwork: the spiking twin .* stem\.weight was .* Prune the ANN"):
        snn(inputs())
    prune.l1_unstructured(ann.stem, "weight", 0.5)  # the advice
    prune.remove(ann.stem, "weight")
    again = convert(ann, 8, calibrate=snn.calibration, example=inputs())
    assert again.snn.get_submodule("stem").weight is ann.stem.weight
    again(inputs())


class Tied(nn.Module):
    """A weight, a module or the read-out's weight in two places."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4)
        self.again, self.last, self.unused = self.norm, nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight, self.unused.weight = self.first.weight, self.last.weight

    def forward(self, x):
        return self.last(torch.relu(self.again(self.second(torch.relu(self.norm(self.first(x)))))))


@pytest.mark.parametrize("calibrated", [False, True])
def test_state_of_tied_weights(calibrated):
    x = torch.rand(32, 4)
    settings = {"calibrate": x} if calibrated else {"example": x}
    snn, other = (convert(Tied().eval(), 4, **settings) for _ in range(2))
    assert [*snn.state_dict()][: len(snn.ann().state_dict())] == [*snn.ann().state_dict()]
    for state in (snn.state_dict(), copy.deepcopy(snn).state_dict()):
        other.load_state_dict(state)
        same(other(x), snn(x))
    other.load_state_dict(snn.ann().state_dict(), strict=not calibrated)
    with pytest.raises(RuntimeError, match="Missing key"):
        other.load_state_dict({name: x for name, x in snn.state_dict().items() if not name.startswith("second.")})


def test_twins_that_stay_together():
    """What moves or loads in place, or lends the spiking twin other tensors, does not part them."""
    ann, snn = made(Functional, calibrate=inputs())
    snn.eval()
    x = inputs()
    want = snn(x).detach()
    lent = {name: 2 * p.detach() for name, p in snn.named_parameters()}
    assert (torch.func.functional_call(snn, lent, x) != want).any()
    same(snn(x).detach(), want)
    ann.double()  # its buffer is a new tensor then
    assert snn(x.double()).dtype == torch.float64
    ann.float()
    same(snn(x).detach(), want)
    ann.mean = ann.mean + 1  # a buffer assigned: the spiking twin has it too
    assert (snn(x) != want).any()
    assert snn.snn.mean is ann.mean
    before = snn(x).detach()
    prune.l1_unstructured(ann.fc2, "weight", 0.5)  # the read-out is one module in both
    assert (snn(x) != before).any()


@pytest.mark.parametrize("make", [Functional, Residual, TwoHeads])
def test_assigned_in_a_larger_model(make):
    """load_state_dict(assign=True) of what the network is a part of gives the ANN the same tensors, unused ones too."""
    with torch.device("meta"):
        ann, example = make(), inputs(1)
    snn = convert(ann, 8, example=example.to("meta"))
    torch.manual_seed(1)
    other = make()
    outer = nn.ModuleDict({"net": snn})
    outer.load_state_dict({f"net.{k}": v for k, v in other.state_dict().items()}, assign=True)
    for mine, theirs in zip(ann.state_dict().values(), other.state_dict().values(), strict=True):
        same(mine, theirs)
    assert {id(p) for p in snn.parameters()} <= {id(p) for p in ann.parameters()}
    assert all(isinstance(p, nn.Parameter) for p in ann.parameters())
    same(whole(snn.eval()(inputs())).detach(), whole(convert(other.eval(), 8, example=inputs())(inputs())).detach())


def test_state_of_unused_layers_is_checked():
    net = nn.ModuleDict({"net": convert(TwoHeads(), 8, example=inputs(1))})
    state = net.state_dict()
    with pytest.raises(RuntimeError, match=r"size mismatch for net\.unused\.bias: got"):
        net.load_state_dict({**state, "net.unused.bias": torch.ones(1)})
    del state["net.unused.bias"]
    with pytest.raises(RuntimeError, match=r"Missing key.*net\.unused\.bias"):
        net.load_state_dict(state)


@pytest.mark.slow
@pytest.mark.filterwarnings("error:tandem_cuda")
def test_compile():
    torch.compiler.reset()
    _, snn = made(Residual)
    x = inputs()
    compiled = torch.compile(copy.deepcopy(snn), backend="aot_eager", fullgraph=True)
    outputs = snn(x), compiled(x)
    same(outputs[1].detach(), outputs[0].detach())
    grads = [torch.autograd.grad(y.sum(), list(m.parameters())) for y, m in zip(outputs, (snn, compiled), strict=True)]
    torch.testing.assert_close(grads[1], grads[0])
