"""Levels of least error, levels of channels, and corrections of biases."""

import copy
import dataclasses
import functools
import importlib
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from anns import Net, Pair, Residual, cnn, inputs, per_layer, whole
from exact import same
from pairwise import each, pairs
from tandem_cuda import IF, RadixIF, SpikingMaxPool2d, TandemAdd, convert, freeze, quantise
from tandem_cuda.convert import Calibration, corrections
from tandem_cuda.convert.values import SpikingLayer
from test_convert_layers import LEVELS, NEURONS, TELLING, converted, made

TWO = NEURONS["two phases"]
BOTH = LEVELS["levels of channels"]
every_neuron = pytest.mark.parametrize("neuron", NEURONS.values(), ids=NEURONS)


def trained(make=Residual):
    """A network with batch statistics of its own, in eval mode and double precision, and images."""
    torch.manual_seed(0)
    ann = make().double()
    for seed in range(3):
        ann(inputs(32, seed).double())
    return ann.eval(), inputs(32).double()


def small():
    """A network without batch norm, with layers that can be recomputed by hand."""
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 5)
    return nn.Sequential(*layers).double().eval(), torch.randn(16, 3, 8, 8, dtype=torch.float64)


def rounding_error(values, level, steps, initial):
    """Of each channel [C, M]: the squared error of whole spikes."""
    threshold = torch.as_tensor(level).reshape(-1, 1) / steps
    count = torch.clamp(torch.floor(values / threshold + initial), 0, steps)
    return (values - count * threshold).square().sum(1)


@pairs(per_channel=[False, True], steps=[1, 4, 15], initial=[0.0, 0.5])
def test_levels_have_the_least_error(per_channel, steps, initial):
    ann, x = small()
    snn = convert(ann, steps, calibrate=x, neuron=IF(initial=initial), per_channel=per_channel)
    for name, last in (("0", 1), ("2", 3)):
        values = ann[: last + 1](x).detach().movedim(1, 0).flatten(1)
        values = values if per_channel else values.reshape(1, -1)
        found = rounding_error(values, snn.levels[name], steps, initial)
        top = values.amax(1)
        for k in range(84):
            assert (found <= 1.01 * rounding_error(values, top * 2 ** (-k / 12), steps, initial)).all()


def test_forms_of_one_batch():
    torch.manual_seed(0)
    ann, x = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6)), torch.rand(16, 6)
    more, labels = x[:8] * 3, torch.zeros(16, dtype=torch.long)

    def levels(data, ann=ann):
        return convert(ann, 8, calibrate=data).levels

    want = levels(x)
    loaded = next(iter(torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, labels), 16)))
    for batch in ((x, labels), [x, labels], loaded, {"input": x}, {"input": x, "labels": labels}, (x, "")):
        assert levels(batch) == want
        assert levels([batch]) == want
    assert levels([x, more]) == levels((x, more)) == levels(iter([x, more])) != want
    assert (
        levels([x, (more, labels)]) == levels([(more, labels), x]) == levels([x, {"input": more}]) == levels([x, more])
    )
    y = torch.rand(16, 4)
    two = Pair(
        lambda n, x, y: n.out(F.relu(n.a(x) + n.b(y))), a=nn.Linear(6, 8), b=nn.Linear(4, 8), out=nn.Linear(8, 3)
    )
    want = levels([(x, y)], two)
    for batch in ((x, y), [x, y], {"x": x, "y": y}, (x, y, labels), ((x, y), labels)):
        assert levels(batch, two) == want


def repeated(last=lambda n, h: n.out(F.relu(n.b(h)))):
    """Calls a layer twice."""
    torch.manual_seed(0)
    layers = {"a": nn.Linear(6, 8), "b": nn.Linear(8, 8), "out": nn.Linear(8, 3)}
    return Net(lambda n, x: last(n, F.relu(n.b(F.relu(n.a(x))))), **layers)


@pytest.mark.parametrize("weights", ["int8"])
def test_integer_weights_of_a_layer_that_is_called_twice(weights):
    """The two calls read spikes of different levels of channels, which its weights cannot both contain."""
    x = torch.rand(16, 6)
    with pytest.raises(
        ValueError, match=r"convert: per_channel must be False with weights='int8', .* called twice: b$"
    ):
        convert(repeated(), 8, calibrate=x, weights=weights, per_channel=True)
    snn = convert(repeated(), 8, calibrate=x, weights=weights)
    same(freeze(snn)(x), snn(x).detach())
    again = convert(snn.ann(), 8, calibrate=snn.calibration, weights=weights, example=x)
    same(again(x), snn(x))


def test_corrections_make_up_for_rounded_weights():
    """The spikes have the means of the ANN that was given, whose small weights the integers lose."""
    ann, x = nn.Sequential(nn.Linear(65, 3), nn.ReLU(), nn.Linear(3, 2)).eval(), torch.rand(64, 65)
    with torch.no_grad():
        ann[0].weight.fill_(0.49 / 127)[:, 0] = 1
    given = ann[:2](x).mean(0).detach()
    snn = convert(ann, 8, calibrate=x, weights="int8")
    assert (ann[:2](x).mean(0) < 0.9 * given).all()
    trains = []
    snn.snn.get_submodule("0").register_forward_hook(lambda module, args, train: trains.append(train))
    snn(x)
    torch.testing.assert_close((trains[0].value * trains[0].amplitude).mean(0), given, rtol=1e-3, atol=0)


def test_integer_weights_of_a_read_out_that_is_called_twice():
    ann, x = repeated(lambda n, h: n.out(h) + n.out(2 * h)), torch.rand(16, 6)
    snn = convert(ann, 8, calibrate=x, weights="int8", per_channel=True)
    assert all(torch.is_tensor(level) for level in snn.levels.values())


def test_levels_of_several_batches_are_those_of_all():
    ann, x = small()
    whole_levels, parts = (
        convert(ann, 4, calibrate=data).levels for data in (x, [(part, None) for part in x.split(5)])
    )
    torch.testing.assert_close(parts, whole_levels, rtol=0, atol=0)


def test_batches_share_a_sample_from_different_places():
    """Or else a few pixels alone would decide, where there are many small batches."""
    module = importlib.import_module("tandem_cuda.convert.calibrate")
    layer = SpikingLayer("a", None)
    measure = module.LeastErrors([layer], 4, RadixIF())
    for _ in range(2):
        measure.add(layer, torch.arange(2.0**19).view(1, 1, -1), 0.5)
    one, other = (sample.flatten() for sample in measure.samples["a"])
    assert len(one) == len(other) == 2**17
    assert (one == other).float().mean() < 0.01


@each(dim=[1, -1])
def test_places_are_the_same_in_the_ann_and_in_the_layer(dim):
    """In values by channel, and in what neurons integrate, with batches and pixels of every number."""
    for shape in ((2, 3, 50, 40), (3, 700), (1, 5, 300), (2, 2, 7, 90, 9)):
        values = torch.randn(shape).movedim(1, dim)
        layer = SpikingLayer("a", None, channels=shape[1], dim=dim % len(shape))
        by_channel = layer.by_channel(values)
        places = corrections.Places.drawn(by_channel, share=0.001, seed=3)
        assert (places.chosen is None) == (len(shape) == 2)
        found = places.of_layer(values, dim)
        assert found.dim() == values.dim()
        same(found.movedim(dim, 0).flatten(1), places.of_channels(by_channel).flatten(1))


def test_corrections_from_a_sample():
    """They are near the corrections from all values, where images have too many for all to be used."""
    torch.manual_seed(0)
    ann = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    x = F.interpolate(torch.randn(4, 3, 20, 20), size=160, mode="bilinear")
    found = []
    for limit in (18, 30):
        with mock.patch.object(corrections, "_SAMPLE", 2**limit):
            found.append(convert(ann, 3, calibrate=x).calibration.corrections)
    for one, other in zip(*(x.values() for x in found), strict=True):
        assert 0 < (one - other).norm() < 0.5 * other.norm()


def test_corrections_of_a_quantised_ann(monkeypatch):
    """Its means are those of its weights as they are in the end: their rounding depends on what the spikes weigh."""
    found = []
    for patch in (False, True):
        ann, x = made("cat")
        ann, x = ann.float(), x.float()
        quantise(ann, 2)
        if patch:
            monkeypatch.setattr(importlib.import_module("tandem_cuda.convert.graph").Graph, "rounded", frozenset())
        found.append(convert(ann, 4, calibrate=x).calibration.corrections)
    assert any((one - other).abs().max() > 1e-3 for one, other in zip(*(x.values() for x in found), strict=True))


def test_percentiles_of_channels():
    ann, x = small()
    snn = convert(ann, 4, calibrate=x, percentile=90, per_channel=True)
    values = ann[:2](x).detach().movedim(1, 0).flatten(1)
    want = torch.quantile(values, 0.9, dim=1, interpolation="higher")
    torch.testing.assert_close(snn.levels["0"], torch.where(want > 0, want, values.amax(1)))


def test_channels_that_are_never_active_get_the_largest_level():
    ann, x = small()
    with torch.no_grad():
        ann[0].bias[2] = -1e3
    for percentile in (None, 99.0):
        level = convert(ann, 4, calibrate=x, percentile=percentile, per_channel=True).levels["0"]
        assert level[2] == level.max()
        assert len(level.unique()) == 5


@each(
    neuron=NEURONS,
    how={"": {}, "corrected": {"correct_bias": True}, "channels": {"per_channel": True}, "both": BOTH},
    make=[Residual, cnn],
)
def test_least_error_approaches_the_ann(make, how, neuron):
    ann, x = trained(make)
    with torch.no_grad():
        want = whole(ann(x))
        snn = convert(ann, 256, calibrate=x, **{**per_layer(neuron), **how})
        error = (whole(snn(x)) - want).norm()
        assert error < 0.02 * want.norm()
        snn.set_time_steps(4)
        assert error < (whole(snn(x)) - want).norm()


@each(weights=["int8", "int16"], neuron=NEURONS)
def test_integer_weights(neuron, weights):
    ann, x = trained()
    ann, x = ann.float(), x.float()
    nets = [
        convert(copy.deepcopy(ann), 6, calibrate=x, neuron=neuron, weights=weights, engine=e, **BOTH)
        for e in ("event", "dense")
    ]
    with torch.no_grad():
        want = nets[0](x)
        assert torch.equal(nets[1](x), want)
        assert torch.equal(freeze(nets[0])(x), want)
        assert (want - nets[0].ann()(x)).norm() < 0.3 * want.norm()
    assert torch.equal(nets[0](x), want)


@each(name=TELLING, neuron=NEURONS, training=[False, True])
def test_channels_of_one_level_are_a_layer_of_that_level(name, neuron, training):
    """In outputs and gradients, with corrections, if poolings with neurons fire at the thresholds of their input."""
    ann, x = made(name)
    snn = converted(name, ann, 8, calibrate=x, correct_bias=True)
    found = snn.calibration
    levels = {layer: found.levels[layer] for layer in snn.spiking_layers}
    channels = {layer: torch.full_like(found.corrections[layer], levels[layer]) for layer in found.corrections}
    results = []
    for of in (levels, {**levels, **channels}):
        twin = copy.deepcopy(ann)
        calibration = Calibration(8, of, found.corrections)
        snn = converted(name, twin, 8, calibrate=calibration, neuron=neuron).train(training)
        torch.manual_seed(0)  # of dropout
        out = snn(x)
        results.append([out, *torch.autograd.grad(out.square().sum(), list(twin.parameters()), allow_unused=True)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def decoded(snn, x):
    """The mean activation of each channel that the spikes of each layer stand for."""
    means = {}

    def see(name, layer):
        def hook(module, args, out):
            branch = layer.branches[0] if isinstance(layer, TandemAdd) else layer
            value = out.count.mean([0, *range(2, out.count.dim())]) * out.amplitude
            means[name] = value if branch.thresholds is None else value * branch.thresholds

        return hook

    layers = {name: snn.snn.get_submodule(name) for name in snn.spiking_layers}
    hooks = [layer.register_forward_hook(see(name, layer)) for name, layer in layers.items()]
    with torch.no_grad():
        snn(x)
    for hook in hooks:
        hook.remove()
    return means


@every_neuron
@pytest.mark.parametrize("per_channel", [False, True])
def test_corrections_match_means_and_leave_the_ann_alone(per_channel, neuron):
    ann, x = small()
    state, output = copy.deepcopy(ann.state_dict()), ann(x).detach()
    want = {name: ann[: int(name) + 2](x).detach().mean((0, 2, 3)) for name in ("0", "2")}
    how = {"calibrate": x, "neuron": neuron, "per_channel": per_channel}
    plain, corrected = (convert(ann, 4, correct_bias=correct, **how) for correct in (False, True))
    for name, mean in want.items():
        before, after = ((decoded(snn, x)[name] - mean).norm() / mean.norm() for snn in (plain, corrected))
        assert after < 0.01
        assert before > 2 * after
    same(ann(x).detach(), output)
    assert corrected.state_dict().keys() - {"_extra_state"} == state.keys()
    for name, tensor in ann.state_dict().items():
        same(tensor, state[name])


def test_corrections_of_several_batches():
    ann, x = small()
    one, many = (convert(ann, 4, calibrate=data, neuron=TWO, **BOTH) for data in (x, x.split(4)))
    for name, correction in one.calibration.corrections.items():
        torch.testing.assert_close(many.calibration.corrections[name], correction)


class LastConvolutions(TorchDispatchMode):
    """Collects the numbers of images that the ANN's last convolution of 3 x 3 is called with, in Residual."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.convolution.default and args[1].shape == (8, 8, 3, 3):
            self.sizes += [size for size in args[0].shape[:1] if isinstance(size, int)]  # no symbols of torch.export
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(("bits", "weights", "times"), [(None, None, 1), (None, "int8", 1), (8, None, 2)])
def test_the_ann_sees_each_batch_once(bits, weights, times):
    """A quantised ANN sees it twice: its integers may be rounded differently once levels are known."""
    ann, x = trained()
    ann, x = ann.float(), x.float()
    if bits:
        quantise(ann, bits)
    with LastConvolutions() as convolutions:
        convert(ann, 4, calibrate=[x[:5], x[5:]], weights=weights)
    assert convolutions.sizes.count(len(x) - 5) == times


@each(
    name=["residual without ReLU", "PReLU of a sum", "blurred"],
    neuron=[RadixIF(), TWO],
    learn=[False, True],
)
def test_corrections_are_those_of_whole_forward_passes(name, neuron, learn, monkeypatch):
    """Neurons that integrate all input before they fire need one product for all steps of a correction."""

    def fired(module, run, node, places, most):
        anew = functools.partial(run.run_node, node)
        return anew, lambda: corrections._decoded(anew())

    found = []
    for whole_passes in (False, True):
        if whole_passes:
            monkeypatch.setattr(corrections, "_fired", fired)
        snn = converted(name, *made(name)[:1], 3, calibrate=made(name)[1], neuron=neuron, learn_thresholds=learn)
        found.append(snn.calibration.corrections)
    assert found[0].keys() == found[1].keys()
    for one, other in zip(*(x.values() for x in found), strict=True):
        torch.testing.assert_close(one, other)
    assert any(correction.any() for correction in found[0].values())


def test_a_sum_of_spikes_has_no_correction():
    """Where there is no weight layer to hold it."""
    ann = Net(
        lambda n, x: n.fc(F.relu(n.c(F.relu(F.relu(n.a(x)) + F.relu(n.b(x))))).mean((2, 3))),
        a=nn.Conv2d(2, 4, 1), b=nn.Conv2d(2, 4, 1), c=nn.Conv2d(4, 4, 1), fc=nn.Linear(4, 2),
    )  # fmt: skip
    snn = convert(ann.eval(), 4, calibrate=inputs())
    assert len(snn.calibration.corrections) == len(snn.spiking_layers) - 1


@pytest.mark.parametrize("how", [{}, BOTH], ids=["layers", "channels"])
def test_calibration_can_be_used_again(how):
    ann, x = trained()
    snn = convert(ann, 6, calibrate=x, neuron=TWO, **{"correct_bias": True, **how})
    with torch.no_grad():
        want = snn(x)
        other = convert(copy.deepcopy(ann), 6, calibrate=snn.calibration, neuron=TWO, example=x)
        same(other(x), want)
        assert other.calibration.time_steps == 6
        snn.set_time_steps(11)
        assert (snn(x) != want).any()
        same(convert(ann, 11, calibrate=snn.calibration, neuron=TWO, example=x)(x), snn(x))
        snn.set_time_steps(6)
        same(snn(x), want)
        # levels alone have no corrections
        levels = convert(ann, 6, calibrate=snn.levels, neuron=TWO, example=x)
        assert not levels.calibration.corrections
        assert (levels(x) != want).any()


def test_corrections_shrink_with_the_thresholds():
    ann, x = small()
    snn = convert(ann, 4, calibrate=x, correct_bias=True, neuron=TWO)
    before = snn.snn.get_submodule("0").correction
    snn.set_time_steps(16)
    torch.testing.assert_close(snn.snn.get_submodule("0").correction * 4, before)


def test_networks_move_with_their_calibration():
    ann, x = trained()
    snn = convert(ann, 6, calibrate=x, neuron=TWO, **BOTH).float()
    snn.set_time_steps(7)
    assert {buffer.dtype for name, buffer in snn.named_buffers() if "num_batches" not in name} == {torch.float32}
    with torch.no_grad():
        snn(x.float())


def test_hybrids():
    ann, x, k = *trained(), 2
    with torch.no_grad():
        want = ann(x)
        snn = convert(ann, 256, calibrate=x, neuron=TWO, spiking_layers=k, **BOTH)
        assert len(snn.calibration.corrections) == len(snn.levels) == k
        assert (snn(x) - want).norm() < 0.02 * want.norm()
        same(freeze(snn)(x), snn(x))


def test_thresholds_of_channels_can_learn():
    ann, x = trained()
    snn = convert(ann, 6, calibrate=x, neuron=TWO, learn_thresholds=True, **BOTH)
    with torch.no_grad():
        for name in snn.spiking_layers:
            snn.snn.get_submodule(name).log_threshold.fill_(0.1)
    snn(x).sum().backward()
    assert all(snn.snn.get_submodule(name).log_threshold.grad != 0 for name in snn.spiking_layers)
    with torch.no_grad():
        same(freeze(snn)(x), snn(x))


def test_max_pooling_between_weights_and_relu():
    """Its neurons come before the pooling, so they are measured there."""
    torch.manual_seed(0)
    ann = nn.Sequential(nn.Conv2d(3, 6, 3), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(54, 4)).double().eval()
    x = torch.randn(32, 3, 8, 8, dtype=torch.float64)
    snn = convert(ann, 4, calibrate=x, neuron=TWO, **BOTH)
    assert any(isinstance(module, SpikingMaxPool2d) for module in snn.modules())
    want = ann[0](x).relu().mean((0, 2, 3)).detach()
    assert (decoded(snn, x)["0"] - want).norm() < 0.02 * want.norm()


def test_reports_compare_channels_in_units_of_the_ann():
    ann, x = trained()
    coarse, fine = (convert(ann, steps, calibrate=x, neuron=TWO, percentile=100, **BOTH).report() for steps in (4, 64))
    for one, other in zip(coarse.layers, fine.layers, strict=True):
        if one.spiking:
            assert one.threshold is None
            assert other.error < one.error / 3


def test_nir():
    from tandem_cuda.exchange import from_nir, to_nir

    ann, x = small()
    ann, x = ann.float(), x.float()
    for per_channel in (False, True):
        snn = convert(ann, 8, calibrate=x, neuron=IF(), correct_bias=True, per_channel=per_channel)
        with torch.no_grad():
            torch.testing.assert_close(from_nir(to_nir(snn, x[:1]))(x), snn(x), rtol=1e-4, atol=1e-5)


def test_quantise_a_network_with_thresholds_of_channels():
    ann, x = trained()
    snn = convert(ann.float(), 6, calibrate=x.float(), per_channel=True)
    quantise(snn, 8)
    snn.set_time_steps(6)
    with torch.no_grad():
        assert (snn(x.float()) - ann(x.float())).norm() < 0.5 * ann(x.float()).norm()


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"correct_bias": "yes"}, TypeError, "convert: correct_bias must be True, False or None, got str"),
        ({"calibrate": {"0": 1.0}, "correct_bias": True}, ValueError, "got the result of an earlier calibration"),
        ({"calibrate": {"0": torch.ones(6), "2": torch.zeros(8)}}, ValueError, r"calibrate\['2'\] must be positive"),
        (
            {"calibrate": {"0": torch.ones(6), "2": torch.full([8], torch.nan)}},
            ValueError,
            r"calibrate\['2'\] must be finite, got nan",
        ),
    ],
)
def test_errors(settings, error, message):
    ann, x = small()
    with pytest.raises(error, match=message):
        convert(ann, 4, **{"calibrate": x, "example": x, **settings})


def test_levels_of_layers_and_channels_can_be_mixed():
    ann, x = small()
    snn = convert(ann, 4, calibrate={"0": 1.0, "2": torch.full([8], 2.0)}, neuron=TWO, example=x)
    plain = convert(ann, 4, calibrate={"0": 1.0, "2": 2.0}, neuron=TWO, example=x)
    with torch.no_grad():
        torch.testing.assert_close(snn(x), plain(x))


def test_a_calibration_is_not_changed_by_the_network():
    ann, x = small()
    found = convert(ann, 4, calibrate=x, **BOTH).calibration
    kept = {field.name: copy.deepcopy(getattr(found, field.name)) for field in dataclasses.fields(found)}
    convert(ann, 7, calibrate=found, example=x).set_time_steps(3)
    assert found.time_steps == kept["time_steps"]
    for name in ("levels", "corrections"):
        for key, value in getattr(found, name).items():
            same(value, kept[name][key])
