"""What convert does without further arguments: forms of data, how well it went, and what is saved of it."""

import copy
import io
import itertools
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from anns import Pair, Residual, cnn, inputs
from exact import same
from tandem_cuda import (
    IF,
    Decode,
    RadixIF,
    SpikeTrain,
    SpikingMaxPool2d,
    TandemConv2d,
    TandemLinear,
    convert,
    freeze,
    quantise,
)
from tandem_cuda.convert import Calibration


def relative_error(snn, ann, x):
    with torch.no_grad():
        want = ann(x)
        return ((snn(x) - want).norm() / want.norm()).item()


def linear(*sizes):
    torch.manual_seed(0)
    layers = [layer for pair in itertools.pairwise(sizes) for layer in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


# -- average pooling whose divisor is smaller than its window


def divided(divisor, pool=nn.AvgPool2d, **how):
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 3), nn.ReLU(), pool(2, divisor_override=divisor, **how), nn.BatchNorm2d(4)),
        *(nn.Flatten(), nn.LazyLinear(8), nn.ReLU(), nn.Linear(8, 4)),
    )


@pytest.mark.parametrize("how", [{}, {"neuron": IF(), "per_channel": False, "correct_bias": False, "percentile": 100}])
@pytest.mark.parametrize("divisor", [1, 3, 9])
def test_averages_with_small_divisors_do_not_saturate(divisor, how):
    ann, x = divided(divisor).eval(), torch.rand(32, 1, 8, 8)
    ann(x)
    errors = [relative_error(convert(ann, steps, calibrate=x, **how), ann, x) for steps in (64, 1024)]
    assert errors[1] < 0.02
    assert errors[1] < errors[0]


def test_averages_with_small_divisors_do_not_saturate_without_calibration():
    ann = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(), nn.AvgPool2d(2, divisor_override=1), nn.Conv2d(1, 1, 1))
    pool = convert(ann, 4, example=torch.rand(1, 1, 4, 4)).snn.get_submodule("avg_pool2d")
    out = pool(SpikeTrain.from_dense(torch.ones(4, 1, 1, 4, 4)))
    assert (out.count * out.amplitude == 16).all()


# -- what is saved


def kept(state, how):
    if how == "torch.save":
        file = io.BytesIO()
        torch.save(state, file)
        file.seek(0)
        return torch.load(file, weights_only=True)
    if how == "safetensors":
        safetensors = pytest.importorskip("safetensors.torch")
        return safetensors.load(safetensors.save(state))
    return dict(state)


@pytest.mark.parametrize(
    ("how", "nested", "neuron"),
    [("torch.save", False, None), ("safetensors", True, None), ("dict", True, IF(initial=0.25, clip=True))],
)
def test_a_saved_network_comes_back_whole(how, nested, neuron):
    torch.manual_seed(0)
    ann, x = Residual().eval(), inputs(16)
    snn = convert(ann, 8, calibrate=x, neuron=neuron, learn_thresholds=True)
    with torch.no_grad():
        for p in snn.parameters():
            p.mul_(1.01)
    prefix = "net." if nested else ""
    state = kept((nn.ModuleDict({"net": snn}) if nested else snn).state_dict(), how)
    calibration = Calibration.of_state(state, prefix)
    assert calibration.neuron == (neuron or RadixIF())
    fresh = convert(Residual().eval(), 8, calibrate=calibration, example=x, learn_thresholds=True)
    (nn.ModuleDict({"net": fresh}) if nested else fresh).load_state_dict(state)
    assert torch.equal(fresh(x), snn(x))


def test_loading_takes_over_the_calibration():
    x = inputs(16)
    one = convert(Residual().eval(), 8, calibrate=x)
    torch.manual_seed(1)
    other = convert(Residual().eval(), 4, calibrate=2 * inputs(16, 1))
    other.load_state_dict(one.state_dict())
    other.set_time_steps(8)
    assert torch.equal(other(x), one(x))


def test_a_calibrated_state_does_not_load_into_other_networks():
    ann, x = Residual().eval(), inputs(16)
    state = convert(ann, 8, calibrate=x, per_channel=True).state_dict()
    plain = convert(Residual().eval(), 8, example=inputs())
    with pytest.raises(RuntimeError, match=r"calibrated network.*calibrate=Calibration.of_state\(state\)"):
        plain.load_state_dict(state)
    convert(Residual().eval(), 8, calibrate=Calibration.of_state(state), example=x).load_state_dict(state)  # the advice
    layers = convert(Residual().eval(), 8, calibrate=x)
    with pytest.raises(RuntimeError, match="thresholds for other channels"):
        layers.load_state_dict(state)
    one_phase = convert(Residual().eval(), 8, calibrate=x, neuron=IF(), per_channel=True)
    with pytest.raises(RuntimeError, match="the state is of a network with RadixIF"):
        one_phase.load_state_dict(state)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        Residual().load_state_dict(state)


def test_a_state_without_calibration_does_not_load_into_a_calibrated_network():
    x = inputs(16)
    snn = convert(Residual().eval(), 8, calibrate=x)
    state = convert(Residual().eval(), 8, example=inputs()).state_dict()
    with pytest.raises(RuntimeError, match=r"without calibration.*snn.ann\(\)"):
        snn.load_state_dict(state)
    snn.ann().load_state_dict(state)  # the advice
    snn.load_state_dict(Residual().state_dict())  # the ANN's own state has no thresholds
    convert(Residual().eval(), 8, example=inputs()).load_state_dict(state)


def test_states_that_are_not_of_a_calibration():
    with pytest.raises(ValueError, match="must be that of a calibrated TandemNetwork, got one without '_extra_state'"):
        Calibration.of_state(convert(Residual().eval(), 8, example=inputs()).state_dict())
    for state in (torch.zeros(3, dtype=torch.uint8), "text", {"levels": {}}, torch.tensor(list(b"{}"))):
        with pytest.raises(ValueError, match="must be that of a TandemNetwork"):
            Calibration.of_state({"_extra_state": state})


# -- the forms of calibration data


def two_inputs():
    return Pair(
        lambda n, x, y: n.last(F.relu(F.relu(n.a(x)) + F.relu(n.b(y)))),
        a=nn.Linear(4, 5), b=nn.Linear(3, 5), last=nn.Linear(5, 2),
    )  # fmt: skip


class Numbered(torch.utils.data.Dataset):
    def __init__(self, *parts):
        self.parts = parts

    def __len__(self):
        return len(self.parts[0])

    def __getitem__(self, i):
        return tuple(part[i] for part in self.parts)


def two():
    torch.manual_seed(0)
    return torch.rand(20, 4), torch.rand(20, 3), torch.arange(20)


FORMS = {
    "tuples": lambda x, y, z: [(x, y)],
    "tuples with labels": lambda x, y, z: [(x, y, z)],
    "lists": lambda x, y, z: [[x, y, z]],
    "nested": lambda x, y, z: [((x, y), z)],
    "nested dicts": lambda x, y, z: [({"y": y, "x": x}, z)],
    "a Dataset": Numbered,
    "a DataLoader": lambda x, y, z: torch.utils.data.DataLoader(Numbered(x, y, z), 20),
    "an iterator": lambda x, y, z: iter([(x, y)]),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_forms_of_calibration_data(form):
    x, y, z = two()
    ann = two_inputs().eval()
    want = convert(ann, 8, calibrate=[(x, y)])
    snn = convert(ann, 8, calibrate=form(x, y, z))
    assert snn.levels == want.levels
    with torch.no_grad():
        assert (snn(x, y) - ann(x, y)).norm() < 0.2 * ann(x, y).norm()
    assert snn.report().agreement > 0.8


@pytest.mark.parametrize(
    ("data", "got"),
    [
        (lambda x, y: x, "Tensors x and y, or dicts with them, got Tensor in batch 0"),
        (lambda x, y: [(x,)], "got a tuple of Tensor in batch 0"),
        (lambda x, y: [(x, y), (x, 3)], "got a tuple of Tensor, int in batch 1"),
        (lambda x, y: [{"x": x, "z": y}], "got a dict with x, z in batch 0"),
        (lambda x, y: [(x, y * torch.nan)], "finite, got NaN or infinity in batch 0"),
        (lambda x, y: [(x[:0], y[:0])], r"at least one sample, got \[0, 4\] in batch 0"),
        (lambda x, y: ["text"], "got str in batch 0"),
    ],
)
def test_unusable_calibration_data(data, got):
    x, y, _ = two()
    with pytest.raises(ValueError, match=got):
        convert(two_inputs(), 8, calibrate=data(x, y))


# -- the plain call, and how well it went


def deep(depth=6):
    """A trained-like network of many layers, on which one-phase neurons fail at few time steps."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU()]
    for _ in range(depth - 1):
        layers += [nn.Linear(32, 32), nn.BatchNorm1d(32), nn.ReLU()]
    ann = nn.Sequential(*layers, nn.Linear(32, 4))
    optimiser = torch.optim.Adam(ann.parameters(), 0.01)
    x = torch.randn(256, 16)
    labels = x[:, :4].argmax(1)
    for _ in range(100):
        F.cross_entropy(ann(x), labels).backward()
        optimiser.step()
        optimiser.zero_grad()
    return ann.eval(), x


def test_the_plain_call_has_the_best_settings(recwarn):
    ann, x = deep()
    plain = convert(ann, 4, calibrate=x)
    assert not [w for w in recwarn if "convert" in str(w.message)]
    best = convert(ann, 4, calibrate=x, neuron=RadixIF(), per_channel=False, correct_bias=True)
    assert torch.equal(plain(x), best(x))
    assert plain.report().agreement >= 0.9


@pytest.mark.parametrize(("T", "how"), [(9, {}), (8, {"mode": "constant"})])
def test_the_plain_call_where_radix_spikes_are_impossible(T, how):
    ann, x = deep()
    plain = convert(ann, T, calibrate=x, **how)
    best = convert(ann, T, calibrate=x, neuron=IF(initial=0.5, two_phase=True), **how)
    assert torch.equal(plain(x), best(x))
    assert plain.calibration.neuron == IF(initial=0.5, two_phase=True)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"neuron": IF()}, "leave out neuron ("),
        ({"neuron": IF(), "mode": "constant"}, "leave out mode and neuron ("),
        (
            {"neuron": IF(), "per_channel": True, "correct_bias": False, "percentile": 50.0},
            "leave out neuron and percentile and per_channel and correct_bias (",
        ),
    ],
)
def test_a_conversion_that_went_badly_warns(how, said):
    ann, x = deep()
    with pytest.warns(UserWarning, match=r"for \d+.\d% of \d+ samples, .*shows the error of each layer") as warned:
        snn = convert(ann, 2, calibrate=x, **how)
    text = str(warned[0].message)
    assert said in text
    assert "time_steps=8 (" in text
    assert warned[0].filename == __file__
    report = snn.report()
    assert report.is_unlike
    assert report.agreement < 0.9
    assert str(report).splitlines()[1].startswith("The network gives the class of its ANN for")
    assert f"the error starts at {report.error_starts.name} (" in str(report)
    # the advice, one piece after another
    better = convert(ann, 2, calibrate=x).report()
    assert better.agreement > report.agreement
    more = convert(ann, 8, calibrate=x, **how).report()
    assert more.agreement > report.agreement


@pytest.mark.parametrize("scales", [2.0 ** torch.arange(8), torch.ones(8)], ids=["channels of all sizes", "alike"])
def test_levels_of_channels_are_advised_where_they_are_better(scales):
    torch.manual_seed(0)
    ann, x = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)), torch.randn(256, 8)
    with torch.no_grad():
        ann[0].weight.copy_(torch.eye(8) * scales.unsqueeze(1))
        ann[2].weight.div_(scales)
    with pytest.warns(UserWarning, match="the network gives the class of its ANN") as warned:
        worse = convert(ann, 2, calibrate=x)
    better = convert(ann, 2, calibrate=x, per_channel=True)
    advised = "per_channel=True (" in str(warned[0].message)
    assert advised == (better.report().agreement > worse.report().agreement) == (len(scales.unique()) > 1)


@pytest.mark.parametrize(("bits", "weights"), [(4, None), (None, "int8")])
def test_advice_for_integer_weights_is_measured_with_them(bits, weights):
    """The trials leave the ANN's rounding alone, and are what a user who follows the advice gets."""
    torch.manual_seed(0)
    ann, x = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)).eval(), torch.randn(64, 8)
    with torch.no_grad():
        scales = 2.0 ** torch.arange(8)
        ann[0].weight.copy_(torch.eye(8) * scales.unsqueeze(1))
        ann[2].weight.div_(scales)
    if bits:
        quantise(ann, bits)
    given = copy.deepcopy(ann)
    with pytest.warns(UserWarning, match="the network gives the class of its ANN") as warned:
        worse = convert(ann, 2, calibrate=x, weights=weights)
    want = worse(x).detach()
    advised = copy.deepcopy(given)
    better = convert(advised, 2, calibrate=x[:16], per_channel=True, weights=weights)
    share = (better(x[16:32]).argmax(1) == given(x[16:32]).argmax(1)).float().mean()
    assert f"per_channel=True ({share:.1%} of 16 samples, in place of " in str(warned[0].message)
    assert all(layer.parametrizations.weight[0].input_scale is None for layer in (ann[0], ann[2]))
    same(freeze(worse)(x), want)


def test_no_advice_to_use_more_radix_spikes_than_there_are():
    ann, x = deep()
    with pytest.warns(UserWarning, match="the network gives the class of its ANN") as warned:
        convert(ann, 8, calibrate=x, percentile=50.0)
    measured = r"100\.0% of \d+ samples, in place of \d+\.\d%"
    advice = rf"To change that: leave out percentile \({measured}\); or train the network further\."
    assert re.search(advice, str(warned[0].message))


def test_outputs_that_are_no_classes_are_compared_too():
    torch.manual_seed(0)
    ann = nn.Sequential(*[m for _ in range(8) for m in (nn.Conv2d(1, 1, 3, padding=1), nn.ReLU())], nn.Conv2d(1, 1, 1))
    with torch.no_grad():
        for p in ann.parameters():
            p.abs_()
    x = torch.rand(8, 1, 6, 6)
    with pytest.warns(UserWarning, match="the outputs differ from the ANN's by"):
        snn = convert(ann, 1, calibrate=x, neuron=IF(), percentile=100, correct_bias=False)
    assert snn.report().agreement is None
    assert snn.report().output_error > 0.5
    assert convert(ann, 64, calibrate=x).report().output_error < 0.1


def test_neurons_of_a_calibration_are_used_again():
    ann, x = linear(6, 5, 4, 3).eval(), torch.rand(16, 6)
    first = convert(ann, 8, calibrate=x, neuron=IF(initial=0.25))
    again = convert(ann, 8, calibrate=first.calibration, example=x)
    assert torch.equal(again(x), first(x))
    radix = convert(ann, 8, calibrate=x)
    assert radix.calibration.neuron == RadixIF()
    with pytest.raises(ValueError, match=r"got 16; pass neuron=IF\(initial=0.5, two_phase=True\) for more"):
        convert(ann, 16, calibrate=radix.calibration, example=x)
    counting = convert(
        ann, 16, calibrate=radix.calibration, example=x, neuron=IF(initial=0.5, two_phase=True)
    )  # the advice
    assert not counting.report(x).is_unlike


def test_conversions_without_calibration_have_the_neurons_of_the_paper():
    snn = convert(linear(6, 5, 3), 8, example=torch.rand(1, 6))
    assert snn.snn.get_submodule("0").neuron == IF()


def test_a_loader_may_use_its_memory_again():
    ann, batches = linear(6, 5, 3).eval(), [torch.rand(8, 6), 3 * torch.rand(8, 6)]

    def loader():
        memory = torch.empty(8, 6)
        for batch in batches:
            yield memory.copy_(batch)

    assert convert(ann, 8, calibrate=loader()).levels == convert(ann, 8, calibrate=batches).levels


def test_nested_lenient_loads_leave_thresholds_out():
    x = inputs(16)
    state = nn.ModuleDict({"net": convert(Residual().eval(), 8, calibrate=x)}).state_dict()
    outer = nn.ModuleDict({"net": convert(Residual().eval(), 8, example=inputs())})
    with pytest.raises(RuntimeError, match=r"net._extra_state \(the state is of a calibrated network"):
        outer.load_state_dict(state)
    outer.load_state_dict(state, strict=False)
    averaged = {k: v * 0.5 if v.is_floating_point() else v for k, v in state.items()}
    averaged["net._extra_state"] = averaged["net._extra_state"] * 0.5
    again = nn.ModuleDict({"net": convert(Residual().eval(), 8, calibrate=x)})
    with pytest.raises(RuntimeError, match="the extra state must be that of a TandemNetwork"):
        again.load_state_dict(averaged)


# -- arguments


def test_recorded_spikes():
    """The spikes themselves, pooled and convolved; the same as layers put together by hand."""
    torch.manual_seed(0)
    ann = nn.Sequential(
        nn.MaxPool2d(2),
        nn.Conv2d(2, 6, 3),
        nn.ReLU(),
        nn.Dropout(),
        nn.Flatten(),
        nn.Linear(96, 5),
        nn.ReLU(),
        nn.Linear(5, 3),
    ).eval()
    net = convert(ann, 11, mode="spikes", example=torch.rand(1, 2, 12, 12))
    by_hand = nn.Sequential(
        SpikingMaxPool2d(2), TandemConv2d(2, 6, 3), nn.Flatten(), TandemLinear(96, 5), Decode(), nn.Linear(5, 3)
    ).eval()
    for mine, theirs in ((1, 1), (3, 5), (5, 7)):
        by_hand[mine].load_state_dict(ann[theirs].state_dict())
    spikes = (torch.rand(11, 4, 2, 12, 12, generator=torch.Generator().manual_seed(1)) < 0.7).float()
    x = SpikeTrain.from_dense(spikes)
    assert torch.equal(net(x), by_hand(x))
    net(x).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in ann.parameters())
    calibrated = convert(ann, 11, mode="spikes", calibrate=x.count)
    assert net.ann() is calibrated.ann() is ann
    assert (calibrated(x) - ann(x.count)).abs().max() < 0.5 * ann(x.count).abs().max()


def test_networks_that_spike_already():
    ann, x = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)), torch.rand(6, 4)
    snn = convert(ann, 4, calibrate=x)
    for net, got in (
        (snn, "a TandemNetwork"),
        (snn.snn, r"encode \(Encode\)"),
        (freeze(snn), r"layers.0.layer \(Encode\)"),
        (nn.Sequential(nn.Flatten(), TandemLinear(4, 5)), r"1 \(TandemLinear\)"),
    ):
        with pytest.raises(ValueError, match=f"^convert: ann must be an ANN, got {got}, which belongs to a spiking"):
            convert(net, 4, calibrate=x)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_calibration_must_be_finite(value):
    x = inputs()
    x[1, 0, 2, 3] = value
    with pytest.raises(ValueError, match="calibrate must be finite, got NaN or infinity in batch 1"):
        convert(cnn(), 8, calibrate=[inputs(), x])
    ann = cnn()
    with torch.no_grad():
        ann[4].weight[0, 0, 0, 0] = abs(value)  # of minus infinity nothing is left behind the ReLU
    with pytest.raises(ValueError, match="activations of the ANN must be finite, got NaN or infinity after 4"):
        convert(ann, 8, calibrate=inputs())
    with pytest.raises(ValueError, match=r"calibrate\['0'\] must be finite"):
        convert(cnn(), 8, calibrate={"0": value, "4": 1.0, "9": 1.0}, example=inputs())


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: convert(cnn(), 8.0), TypeError, "time_steps must be an int, got float"),
        (lambda: convert(cnn(), 0), ValueError, "time_steps must be at least 1, got 0"),
        (lambda: convert(cnn(), 8, neuron=1.0), TypeError, "neuron must be IF"),
        (lambda: convert(cnn(), 8, percentile="99"), TypeError, "percentile must be a number"),
    ],
)
def test_bad_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()
