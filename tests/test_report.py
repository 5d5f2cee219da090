"""What a converted network reports about itself: every figure recomputed, every note and warning provoked."""

import copy
import dataclasses
import io
import math
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from anns import Functional, Net, Pair, Residual, TwoHeads, cnn, per_layer
from anns import inputs as images
from exact import generator, same
from tandem_cuda import IF, LIF, SpikeTrain, convert, synops
from test_convert_layers import between, conv, converted, made


def named(report):
    return {layer.name: layer for layer in report.layers}


def trains_of(snn, x):
    """The output of each module of the spiking twin."""
    found = {}
    hooks = [
        module.register_forward_hook(lambda m, args, out, name=name: found.__setitem__(name, out))
        for name, module in snn.snn.named_modules()
    ]
    with torch.no_grad():
        snn(*x) if isinstance(x, tuple) else snn(x)
    for hook in hooks:
        hook.remove()
    return found


def errors(value, amplitude, wanted):
    """Relative, and in spikes."""
    error = (value - wanted.detach()).abs()
    return float(error.sum() / wanted.detach().abs().sum()), float((error / amplitude).mean())


def small():
    torch.manual_seed(0)
    ann = nn.Sequential(
        conv(2, 4), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), conv(4, 6), nn.ReLU(), nn.Dropout(0.2),
        nn.Flatten(), nn.Linear(96, 7), nn.ReLU(), nn.Linear(7, 5),
    ).double()  # fmt: skip
    ann[1].running_mean.uniform_(-0.1, 0.1)
    return ann.eval(), images(20).double()


# --- figures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("neuron", [IF(), IF(initial=0.5, two_phase=True)])
def test_every_figure(neuron):
    """20 samples, which are more than are run at a time."""
    ann, x = small()
    snn = convert(ann, 6, calibrate=x, percentile=99, **per_layer(neuron))
    report = snn.report()
    found, costs = trains_of(snn, x), {layer.name.removeprefix("snn."): layer for layer in synops(snn, x)}
    activations = {"0": ann[:3](x), "4": ann[:6](x), "8": ann[:10](x)}
    assert (report.ann, report.time_steps, report.calibrated, report.samples) == ("Sequential", 6, True, 20)
    assert [layer.name for layer in report.layers] == ["0", "max_pool2d", "4", "dropout", "8"]
    assert (report.unchanged, report.analogue, report.replaced, report.notes) == (("10",), (), (), ())
    words = ["Conv2d, BatchNorm2d, ReLU", "MaxPool2d", "Conv2d, ReLU", "Dropout", "Linear, ReLU"]
    kinds = ["TandemConv2d", "SpikingMaxPool2d", "TandemConv2d", "TandemDropout", "TandemLinear"]
    assert [layer.ann for layer in report.layers] == words
    assert [layer.snn for layer in report.layers] == kinds
    names = [("0", "1", "2"), ("3",), ("4", "5"), ("6",), ("8", "9")]
    assert [layer.ann_names for layer in report.layers] == names
    for name, layer in named(report).items():
        assert (layer.signed, layer.bound) == (False, None)
        if name not in activations:
            assert not layer.spiking
            assert {layer.threshold, layer.neurons, layer.firing_rate, layer.synops, layer.error} == {None}
            continue
        assert layer.spiking
        count, threshold = found[name].count, snn.levels[name] / 6
        assert layer.threshold == threshold == found[name].amplitude
        assert layer.neurons == count[0].numel()
        assert layer.firing_rate == pytest.approx(float(count.mean()) / 6)
        assert layer.saturation == pytest.approx(float((count == 6).double().mean()))
        assert layer.dead == pytest.approx(float((count == 0).all(0).double().mean()))
        error, in_spikes = errors(count * threshold, threshold, activations[name])
        assert (layer.error, layer.error_in_spikes) == (pytest.approx(error), pytest.approx(in_spikes))
        assert 0.01 < error < 1
        of = costs[name]
        assert (layer.firing_rate, layer.saturation) == pytest.approx((of.firing_rate, of.saturation))
        assert (layer.dead, layer.synops, layer.macs) == pytest.approx((of.dead, of.synops, of.macs))
    assert named(report)["0"].synops == 0 < named(report)["4"].synops
    agreement = (snn(x).argmax(1) == ann(x).argmax(1)).double().mean()
    assert report.agreement == pytest.approx(float(agreement))


def test_pooling_before_the_relu():
    """The ANN's activation is that behind the pooling, and so are the spikes that are compared with it."""
    torch.manual_seed(0)
    ann, x = Functional().eval(), images(6)
    snn = convert(ann, 8, calibrate=x, **per_layer())
    report, found = snn.report(), trains_of(snn, x)
    with torch.no_grad():
        wanted = F.relu(ann.conv1((x - ann.mean) / 0.5))
        wanted = F.relu(F.max_pool2d(ann.conv2(wanted), 2, padding=1))
    pooled = found["max_pool2d"]
    layer = named(report)["conv2"]
    error, in_spikes = errors(pooled.count * layer.threshold, layer.threshold, wanted)
    assert (layer.error, layer.error_in_spikes) == (pytest.approx(error), pytest.approx(in_spikes))
    assert layer.firing_rate == pytest.approx(float(found["conv2"].count.mean()) / 8)
    assert layer.ann == "Conv2d, relu"
    assert layer.ann_names == ("conv2", "relu_1")


def test_values_of_both_signs():
    ann, x = made("no ReLU")
    snn = convert(ann, 8, calibrate=x, **per_layer())
    report, found = snn.report(), trains_of(snn, x)
    with torch.no_grad():
        wanted = ann.norm_b(ann.b(F.relu(ann.a(F.relu(ann.norm(ann.first(x)))))))
    layer, count = named(report)["b"], found["b"].count
    error, in_spikes = errors((count[:, ::2] - count[:, 1::2]) * layer.threshold, layer.threshold, wanted)
    assert (layer.error, layer.error_in_spikes) == (pytest.approx(error), pytest.approx(in_spikes))
    assert layer.signed
    assert layer.neurons == 2 * wanted[0].numel()
    assert [other.name for other in report.layers if other.signed] == ["b"]
    assert report.notes == (
        "values of both signs travel as the difference of two spike trains, of neurons for either sign: b",
    )
    assert "TandemConv2d, both signs " in str(report)


def test_averages_of_spikes_of_different_weight():
    """Each channel has the weight of the layer that it comes from."""

    def middle(net, x):
        x = F.adaptive_avg_pool2d(torch.cat([x, F.relu(F.relu(net.a(x)) * 2)], 1), 4)
        return F.relu(net.b(x))

    torch.manual_seed(0)
    ann, x = between(middle, 6, a=conv(8, 4), b=conv(12, 6)).double().eval(), torch.randn(8, 3, 8, 8).double()
    snn = convert(ann, 16, calibrate=x, **per_layer())
    report, found = snn.report(), trains_of(snn, x)
    pool = found["adaptive_avg_pool2d"]
    with torch.no_grad():
        first = F.relu(ann.norm(ann.first(x)))
        wanted = F.adaptive_avg_pool2d(torch.cat([first, 2 * F.relu(ann.a(first))], 1), 4)
    weights = [snn.levels["first"] / 16] * 8 + [snn.levels["mul"] / 16] * 4
    weights = torch.tensor(weights).double().view(12, 1, 1) * pool.amplitude
    layer = named(report)["adaptive_avg_pool2d"]
    error, in_spikes = errors(pool.count * weights, weights, wanted)
    assert (layer.error, layer.error_in_spikes) == (pytest.approx(error), pytest.approx(in_spikes))
    assert (layer.threshold, layer.synops, layer.snn) == (None, None, "SpikingAdaptiveAvgPool2d")
    assert "averages with neurons of their own, which round once more: adaptive_avg_pool2d" in report.notes


def test_averages_with_neurons():
    ann, x = made("mean of rows")
    snn = convert(ann, 8, calibrate=x, **per_layer())
    layers = named(snn.report())
    assert layers["mean"].threshold == snn.levels["mean"] / 8
    assert layers["mean"].synops is None
    with torch.no_grad():
        wanted = F.relu(ann.first(x)).mean(3)
    train = trains_of(snn, x)["mean"]
    error, in_spikes = errors(train.count[..., 0] * train.amplitude, train.amplitude, wanted)
    assert (layers["mean"].error, layers["mean"].error_in_spikes) == (pytest.approx(error), pytest.approx(in_spikes))


def test_an_ann_that_overwrites_its_activations():
    def middle(net, x):
        y = F.relu(net.a(x), inplace=True)
        y += F.relu(net.b(y), inplace=True)
        return y

    torch.manual_seed(0)
    ann, x = between(middle, 8, a=conv(8, 8), b=conv(8, 8)).double().eval(), torch.randn(8, 3, 8, 8).double()
    kept = x.clone()
    report = convert(ann, 2048, calibrate=x, percentile=100, neuron=IF(initial=0.5, two_phase=True)).report(x)
    assert all(layer.error < 0.01 for layer in report.layers if layer.spiking)
    same(x, kept)


def test_an_ann_that_overwrites_its_input():
    """Both networks get what is passed, and it stays as it is."""
    torch.manual_seed(0)
    ann = nn.Sequential(conv(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 3)).eval()
    wild = Net(lambda n, x: n.layers(x.mul_(0.5)), layers=ann).eval()
    snn = convert(wild, 6, calibrate=images(20), **per_layer())
    x, kept = images(20), images(20)
    report = snn.report(x)
    same(x, kept)
    assert snn.report() == report
    wanted = convert(ann, 6, neuron=IF(), calibrate={"0": snn.levels["layers.0"]}, example=kept).report(kept / 2)
    figures = [(layer.firing_rate, layer.error, layer.synops) for layer in report.layers]
    assert figures == [(layer.firing_rate, layer.error, layer.synops) for layer in wanted.layers]


def test_layers_of_timm():
    """Which are several layers of torch.nn in one."""
    layers = pytest.importorskip("timm.layers")
    torch.manual_seed(0)
    ann = nn.Sequential(conv(2, 4), layers.BatchNormAct2d(4), conv(4, 4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 3))
    report = convert(ann.eval(), 2048, calibrate=images(), neuron=IF(initial=0.5, two_phase=True)).report()
    layer = named(report)["0"]
    assert (layer.ann, layer.ann_names) == ("Conv2d, BatchNorm2d, ReLU", ("0", "1.act"))
    assert layer.error < 0.05
    assert report.unchanged == ("5",)


def test_thresholds_that_learn():
    ann, x = small()
    snn = convert(ann, 6, calibrate=x, learn_thresholds=True, **per_layer())
    assert not snn.report().notes
    with torch.no_grad():
        snn.snn.get_submodule("4").log_threshold.fill_(0.5)
    layer = named(snn.report())["4"]
    assert layer.threshold == pytest.approx(snn.levels["4"] / 6 * math.exp(0.5))
    assert any("thresholds have learned" in note for note in snn.report().notes)


def test_other_numbers_of_steps():
    ann, x = small()
    snn = convert(ann, 6, calibrate=x, **per_layer())
    coarse = snn.report()
    snn.set_time_steps(60)
    fine = snn.report()
    assert (coarse.time_steps, fine.time_steps) == (6, 60)
    assert named(fine)["4"].threshold == snn.levels["4"] / 60
    assert named(fine)["4"].error < named(coarse)["4"].error / 2


# --- notes and warnings ----------------------------------------------------------------------------------------------


def test_saturation():
    ann, x = small()
    assert not [w for w in convert(ann, 6, calibrate=x).report().warnings if "saturated" in w]
    how = {"calibrate": x, "percentile": 50, **per_layer()}
    report = convert(ann, 6, **how).report()
    assert report.saturated
    assert not [w for w in report.warnings if "saturated" in w]  # for it still answers like its ANN
    with torch.no_grad():
        ann[10].bias -= ann(x).mean(0)  # so that it finds several classes
    report = convert(ann, 6, **how).report()
    assert report.is_unlike
    layers = [layer for layer in report.layers if (layer.saturation or 0) > 0.05]
    assert layers == [*report.saturated]
    assert layers
    (warning,) = [w for w in report.warnings if "saturated" in w]
    assert all(f"{layer.name} ({layer.saturation:.1%})" in warning for layer in layers)
    assert "a higher percentile" in warning
    # Whose spikes are always as many as there are steps.
    assert not [w for w in convert(ann, 1, **how).report().warnings if "saturated" in w]


def test_layers_that_saturate_with_the_ann():
    torch.manual_seed(0)
    ann = nn.Sequential(conv(2, 4), nn.ReLU6(), conv(4, 4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 3)).eval()
    with torch.no_grad():
        ann[0].weight.mul_(50)
    report = convert(ann, 8, calibrate=images(20)).report()
    assert named(report)["0"].saturation > 0.2
    assert named(report)["0"].bound == 6
    assert not [w for w in report.warnings if "saturated" in w]


def test_dead_layers_and_one_class():
    torch.manual_seed(0)
    ann = nn.Sequential(conv(2, 4), nn.ReLU(), conv(4, 4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 3)).eval()
    x = images(12)
    with torch.no_grad():
        ann[5].bias -= ann(x).mean(0)  # so that it finds several classes
    levels = convert(ann, 8, calibrate=x).levels
    snn = convert(ann, 8, calibrate={**levels, "2": 1e6 * levels["2"]}, example=x)
    report = snn.report(x)
    assert named(report)["2"].firing_rate == 0
    assert named(report)["2"].error == 1
    answers = ann(x).argmax(1)
    share = float(answers.bincount().max()) / 12
    assert share <= 0.75
    dead, one = report.warnings
    assert dead == "dead, no neuron spikes: 2; try a lower level: calibrate={**snn.levels, '2': LEVEL}"
    lower = convert(ann, 8, calibrate={**snn.levels, "2": levels["2"]}, example=x).report(x)
    assert named(lower)["2"].firing_rate > 0
    top = int(ann[5].bias.argmax())
    assert (
        one == f"the network answers class {top} for 100.0% of the samples, the ANN no class for more than {share:.1%}"
    )
    assert f"Warning: {dead}\nWarning: {one}" in str(report)
    assert report.agreement == pytest.approx(float((answers == top).double().mean()))
    assert len(snn.report(x[:7]).warnings) == 1  # too few samples
    with torch.no_grad():
        ann[5].bias[0] += 100  # now both answer one class
    assert len(snn.report(x).warnings) == 1


def test_errors_of_layers_whose_ann_is_silent():
    """The sum of the second layer ends below 0. Its first input spikes at t = 1, 2, 3, 4, the other at 2, 4."""
    ann = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1), nn.ReLU(), nn.Linear(1, 2)).eval()
    with torch.no_grad():
        for layer, weight in ((ann[0], [[1.0], [0.5]]), (ann[2], [[1.0, -2.5]])):
            layer.weight.copy_(torch.tensor(weight))
            layer.bias.zero_()
    x = torch.ones(1, 1)
    for level, spikes in ((1.0, 1), (4.0, 0)):
        layers = named(convert(ann, 4, neuron=IF(), calibrate={"0": 1.0, "2": level}, example=x).report(x))
        assert layers["0"].error == layers["0"].error_in_spikes == 0
        assert layers["2"].firing_rate == spikes / 4
        assert layers["2"].error == (math.inf if spikes else 0)
        assert layers["2"].error_in_spikes == spikes


def test_analogue_calls():
    ann, x = made("gate in a residual block")
    snn = converted("gate in a residual block", ann, 8, calibrate=x)
    report = snn.report()
    assert [(call.what, call.place, call.why) for call in report.analogue] == [
        ("sigmoid", "gate", "it has no rule"),
        ("mul", "gate", "it multiplies values that depend on the input"),
    ]
    line = "1 sigmoid, 1 mul are computed on real values"
    assert any(note.startswith(line) for note in report.notes)
    assert 0.5 < report.spiking_macs < 1
    assert f"Note: {line}" in str(report)
    hybrid = converted("gate in a residual block", ann, 8, calibrate=x, spiking_layers=1).report()
    assert hybrid.analogue == ()


def test_replaced_activations():
    torch.manual_seed(0)
    ann = nn.Sequential(conv(2, 4), nn.SiLU(), nn.Sequential(conv(4, 4), nn.GELU()), nn.Flatten(), nn.Linear(256, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        snn = convert(ann.eval(), 4, replace={"silu": "relu", "gelu": "relu6"}, calibrate=images())
    report = snn.report()
    assert report.replaced == ("silu -> relu", "gelu -> relu6")
    assert f"it wants fine-tuning: {', '.join(report.replaced)}" in str(report)
    assert report.samples == 6


def test_sums_and_their_parts():
    layers = [
        named(converted(name, made(name)[0], 8).report()) for name in ("ReLU6", "one minus", "norm before weights")
    ]
    assert [layers[0][name].ann for name in ("a", "mul")] == ["Conv2d", "9 * spikes, ReLU6"]
    assert layers[1]["rsub"].ann == "-0.5 * spikes +1, relu"
    assert layers[2]["bn"].ann == "BatchNorm2d"
    torch.manual_seed(0)
    layers = named(convert(Residual().eval(), 8, example=images()).report())
    assert layers["blocks.0.add"].ann == "Conv2d, BatchNorm2d + spikes, ReLU"
    assert layers["blocks.1.add"].ann == "Conv2d, BatchNorm2d + Conv2d, BatchNorm2d, ReLU"
    names = "blocks.1.shortcut.0", "blocks.1.shortcut.1", "blocks.1.conv2", "blocks.1.bn2", "blocks.1.relu"
    assert layers["blocks.1.add"].ann_names == names
    assert named(convert(TwoHeads().eval(), 8, example=images()).report())["add"].ann == "spikes + spikes"


# --- inputs ----------------------------------------------------------------------------------------------------------


def test_without_samples():
    ann, x = small()
    levels = convert(ann, 6, calibrate=x, **per_layer()).levels
    snn = convert(ann, 6, calibrate=levels, neuron=IF(), example=x)
    report = snn.report()
    assert report.samples == 0
    assert report.agreement is None
    assert {layer.firing_rate for layer in report.layers} == {None}
    assert report.notes == ("no rates, errors and operations without samples: call report(input)",)
    assert "threshold" in str(report)
    assert "firing rate" not in str(report)
    assert named(report)["8"].threshold == levels["8"] / 6
    calibrated = convert(ann, 6, calibrate=x, **per_layer()).report()
    assert snn.report(x) == dataclasses.replace(calibrated, warnings=())


def test_uncalibrated():
    ann, x = small()
    report = convert(ann, 6, neuron=IF(0.25), example=x).report(x)
    assert not report.calibrated
    assert report.samples == 20
    for layer in report.layers:
        assert layer.error is layer.error_in_spikes is None
        assert layer.threshold == (0.25 if layer.spiking else None)
        assert (layer.firing_rate is not None) == layer.spiking
    assert report.agreement is None
    assert "no errors: without calibrate" in str(report)
    assert "in spikes" not in str(report)
    saturated = [w for w in report.warnings if "saturated" in w]
    assert all("calibrate=" in warning for warning in saturated)
    assert saturated


def test_leaky_and_refractory_neurons():
    """Of which the largest count differs from T."""
    ann, x = small()
    snn = convert(ann, 9, neuron=IF(0.05, refractory=2), example=x)
    layer, count = named(snn.report(x))["0"], trains_of(snn, x)["0"].count
    assert count.max() == 3
    assert layer.saturation == pytest.approx(float((count >= 3).double().mean()))
    assert named(convert(ann, 9, neuron=LIF(0.25, 0.9), example=x).report(x))["0"].threshold == 0.25


def test_first_samples_of_the_first_batch():
    ann, _ = small()
    data = images(100).double()
    loader = DataLoader(TensorDataset(data, torch.zeros(100)), batch_size=70)
    snn = convert(ann, 6, calibrate=loader)
    (kept,) = snn._record.sample.inputs
    same(kept, data[:64])
    assert kept.untyped_storage().nbytes() == data[:64].numel() * 8
    levels = snn.levels
    assert snn.report().samples == 64
    assert snn.report() == snn.report(data[:64])
    assert convert(ann, 6, calibrate=(data[i : i + 50] for i in (0, 50))).report().samples == 50
    assert snn.levels == levels
    report = snn.report()
    data.zero_()
    assert snn.report() == report


def test_in_another_precision():
    ann, x = small()
    snn = convert(ann, 6, calibrate=x).float()
    assert named(snn.report())["0"].error == pytest.approx(named(snn.report(x.float()))["0"].error)


def test_recorded_spikes():
    torch.manual_seed(0)
    ann = nn.Sequential(conv(2, 4), nn.ReLU(), conv(4, 4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 3)).eval()
    x = SpikeTrain.from_dense((torch.rand(9, 20, 2, 8, 8, generator=generator(1)) < 0.5).float())
    snn = convert(ann, 9, mode="spikes", calibrate=x.count, **per_layer())
    report = snn.report()
    assert report.samples == 0  # counts do not tell when the spikes come
    assert "call report(input), spike trains" in str(report)
    report, found = snn.report(x), trains_of(snn, x)
    for name, wanted in {"0": ann[:2](x.count), "2": ann[:4](x.count)}.items():
        layer = named(report)[name]
        error, in_spikes = errors(found[name].count * layer.threshold, layer.threshold, wanted)
        assert (layer.error, layer.error_in_spikes) == (pytest.approx(error), pytest.approx(in_spikes))
        assert layer.synops > 0
    with pytest.raises(ValueError, match=r"report: inputs must have T = 9, .*, got T = \[4\]"):
        snn.report(x.window(0, 4))
    assert convert(ann, 9, mode="spikes", example=x.count).report(x.window(0, 4)).time_steps == 4


def test_several_inputs():
    torch.manual_seed(0)
    ann = Pair(lambda n, x, y: n.c(F.relu(n.a(x)) + F.relu(n.b(y))), a=conv(2, 4), b=conv(3, 4), c=conv(4, 4)).eval()
    left, right = images(20), torch.rand(20, 3, 8, 8)
    snn = convert(ann, 6, example=(left, right))
    assert "call report((x, y))" in str(snn.report())
    report = snn.report((left, right))
    found = trains_of(snn, (left, right))
    for name in ("a", "b"):
        assert named(report)[name].firing_rate == pytest.approx(float(found[name].count.mean()) / 6)
    assert report.agreement is None
    levels = dict.fromkeys(snn.spiking_layers, 1.0)
    assert convert(ann, 2048, calibrate=levels, example=(left, right)).report((left, right)).layers[0].error < 0.05
    with pytest.raises(TypeError, match="report: inputs must be one batch for each of x, y, got 1"):
        snn.report(left)
    with pytest.raises(ValueError, match=r"report: inputs must have the same number of samples, got \[20, 3\]"):
        snn.report((left, right[:3]))


def test_several_outputs():
    torch.manual_seed(0)
    ann, x = TwoHeads().eval(), images(20)
    snn = convert(ann, 8, calibrate=x)
    with torch.no_grad():
        agree = [float((s.argmax(1) == a.argmax(1)).double().mean()) for s, a in zip(snn(x), ann(x), strict=True)]
        assert snn.report().agreement == pytest.approx(min(agree))
        ann.heads[1].bias -= ann(x)[1].mean(0)
    silent = convert(ann, 8, calibrate=dict.fromkeys(snn.spiking_layers, 1e6), example=x)
    share = float(ann(x)[1].argmax(1).bincount().max()) / 20
    assert share <= 0.75
    (warning,) = [w for w in silent.report(x).warnings if "of output 1" in w]
    assert warning.endswith(f"for 100.0% of the samples, the ANN no class for more than {share:.1%}")


def test_wrong_inputs():
    ann, x = small()
    snn = convert(ann, 6, example=x)
    for inputs, error, message in (
        ("images", TypeError, "inputs must be Tensors or SpikeTrains, got str"),
        ([torch.zeros(2, 2, 8, 8), torch.zeros(2)], TypeError, "inputs must be one batch for each of input, got 2"),
        (torch.zeros(0, 2, 8, 8), ValueError, r"inputs must have at least one sample, got \[0, 2, 8, 8\]"),
        (torch.tensor(1.0), ValueError, r"inputs must have at least one sample, got \[\]"),
    ):
        with pytest.raises(error, match=f"report: {message}"):
            snn.report(inputs)


# --- the network afterwards ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [Functional, TwoHeads])
def test_copies_and_files(make):
    torch.manual_seed(0)
    ann, x = make().eval(), images(20)
    snn = convert(ann, 8, calibrate=x)
    report = snn.report()
    copied, pickled = copy.deepcopy(snn), pickle.loads(pickle.dumps(snn))
    assert copied.report() == report
    assert copied._record.sample is snn._record.sample
    assert pickled.report().samples == 0
    assert pickled.report(x) == report
    small_file, large_file = (io.BytesIO() for _ in range(2))
    torch.save(snn, large_file)
    torch.save(convert(ann, 8, calibrate=snn.levels, example=x), small_file)
    assert abs(large_file.tell() - small_file.tell()) < x.numel() * 4 / 2  # the samples are in none


@pytest.mark.parametrize("training", [False, True])
def test_nothing_changes(training):
    torch.manual_seed(0)
    ann = cnn()
    ann(images())
    ann.train(training)
    ann[1].eval()  # a frozen part
    snn = convert(ann, 8, calibrate=images(20))
    x = images()
    snn(x).sum().backward()
    state = {name: value.clone() for name, value in snn.state_dict().items()}
    gradients = [p.grad.clone() for p in snn.parameters()]
    modes = [module.training for module in (*snn.modules(), *ann.modules())]
    attributes, random = {*vars(ann)}, torch.get_rng_state()
    first = snn.report()
    assert snn.report() == first
    assert list(snn.state_dict()) == list(state) == [*ann.state_dict(), "_extra_state"]
    same(tuple(snn.state_dict().values()), tuple(state.values()))
    same(tuple(p.grad for p in snn.parameters()), tuple(gradients))
    assert [module.training for module in (*snn.modules(), *ann.modules())] == modes
    assert {*vars(ann)} == attributes
    same(torch.get_rng_state(), random)
    assert torch.is_grad_enabled()


def test_an_ann_that_does_something_else_now():
    torch.manual_seed(0)
    ann = between(lambda n, x: F.relu(n.a(x)), 8, a=conv(8, 8)).eval()
    snn = convert(ann, 8, calibrate=torch.rand(8, 3, 8, 8))
    run = ann.run
    ann.run = lambda net, x: net.fc(net.last(net.a(net.first(x))).mean((2, 3)))
    with pytest.raises(RuntimeError, match="run"):
        snn.report()
    ann.run = run
    assert snn.report().samples == 8
    ann.first = conv(3, 8)
    with pytest.raises(RuntimeError, match="first"):
        snn.report()


@pytest.mark.parametrize("layers", [1, 2])
def test_hybrids(layers):
    ann, x = small()
    whole, hybrid = (convert(ann, 6, calibrate=x, spiking_layers=k).report() for k in (None, layers))
    names = list(named(whole))
    assert list(named(hybrid)) == names[: names.index("4") + 1 if layers == 2 else 1]
    for name, layer in named(hybrid).items():
        assert layer == named(whole)[name]
    assert hybrid.unchanged == (("8", "10") if layers == 2 else ("4", "8", "10"))
    assert hybrid.samples == 20
