"""from_qcfs: spiking networks whose counts are the levels of QCFS activations."""

import copy
import pickle
import re
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tandem_cuda
from pairwise import each
from qcfs_anns import IF, VGG, MyFloor, ResNet, dyadic, images
from tandem_cuda import RadixIF, freeze
from tandem_cuda.nn.modes import evaluating


def from_qcfs(*args, **how):
    """With an example, unless there are data."""
    return tandem_cuda.from_qcfs(*args, **({} if "calibrate" in how else {"example": images(1)}), **how)


ONE_PHASE, TWO_PHASE = tandem_cuda.IF(initial=0.5), tandem_cuda.IF(initial=0.5, two_phase=True)
NETWORKS = {
    "average pooling": VGG,
    "max pooling": lambda kind: VGG(kind, nn.MaxPool2d),
    "residual": ResNet,
}


def activations(ann, x, kind=IF):
    """What the ANN's QCFS activations return, in order of execution."""
    found = []
    handles = [
        module.register_forward_hook(lambda _, __, y: found.append(y))
        for module in ann.modules()
        if type(module) is kind
    ]
    with evaluating(ann), torch.no_grad():
        ann(x)
    for handle in handles:
        handle.remove()
    return found


def decoded(snn, x):
    """What the counts of the spiking layers stand for."""
    found = []
    handles = [
        snn.snn.get_submodule(name).register_forward_hook(lambda _, __, y: found.append(y.value * y.amplitude))
        for name in snn.spiking_layers
    ]
    with evaluating(snn), torch.no_grad():
        snn(x)
    for handle in handles:
        handle.remove()
    return found


def with_levels(ann, levels):
    other = copy.deepcopy(ann)
    for module in other.modules():
        if type(module) is IF:
            module.L = levels
    return other


def same_in_every_layer(snn, ann, x, kind=IF):
    expected, found = activations(ann, x, kind), decoded(snn, x)
    assert len(found) == len(expected) > 2
    for values, wanted in zip(found, expected, strict=True):
        assert len(wanted.unique()) > 1
        assert torch.equal(values, wanted)
    with torch.no_grad():
        assert torch.equal(snn(x), ann(x))


# --- counts are levels ----------------------------------------------------------------------------------------------


@each(network=list(NETWORKS), levels=[1, 2, 4, 8, 16], mode=["impulse", "constant"])
def test_every_count_is_the_level(network, levels, mode):
    ann, x = dyadic(NETWORKS[network](lambda: IF(levels)), seed=levels), images()
    snn = from_qcfs(ann, IF, mode=mode)
    assert snn.time_steps == levels
    assert [*snn.levels.values()] == [module.thresh.item() for module in ann.modules() if type(module) is IF]
    same_in_every_layer(snn, ann, x)


@each(network=list(NETWORKS), steps=[2, 3, 4])
def test_radix_spikes_have_a_power_of_two_less_one_levels(network, steps):
    ann, x = dyadic(NETWORKS[network](lambda: IF(2**steps - 1)), seed=steps), images()
    snn = from_qcfs(ann, IF, neuron=RadixIF())
    assert snn.time_steps == steps
    same_in_every_layer(snn, ann, x)


@each(network=list(NETWORKS), steps=[2, 8])
def test_another_time_is_another_number_of_levels(network, steps):
    """Of the same range: the SNN is the ANN with L = T."""
    ann, x = dyadic(NETWORKS[network](IF)), images()
    other = with_levels(ann, steps)
    same_in_every_layer(from_qcfs(ann, IF, steps), other, x)
    snn = from_qcfs(ann, IF)
    snn.set_time_steps(steps)
    same_in_every_layer(snn, other, x)


@each(levels=[1, 2, 3, 5, 16], unit=[0.25, 1.0, 2.0])
def test_halves_and_bounds(levels, unit):
    """At every half between two levels, below zero and beyond the threshold."""
    ann = nn.Sequential(nn.Linear(1, 1), IF(levels, levels * unit), nn.Linear(1, 1)).eval()
    for module in (ann[0], ann[2]):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
    x = torch.arange(-4, 2 * levels + 4).view(-1, 1) / 2 * unit
    snn = tandem_cuda.from_qcfs(ann, IF, example=x)
    expected = (x / unit + 0.5).floor().clamp(0, levels) * unit
    assert torch.equal(ann(x), expected)
    assert torch.equal(snn(x), expected)


def test_floats_differ_where_rounding_decides():
    """Of random weights few counts may differ, and by one."""
    torch.manual_seed(0)
    ann, x = VGG(lambda: IF(5, 1.3)).eval(), torch.rand(64, 1, 16, 16)
    snn = from_qcfs(ann, IF)
    expected, found = activations(ann, x), decoded(snn, x)
    for values, wanted in zip(found, expected, strict=True):
        differs = (values - wanted).abs() > 1e-4
        assert differs.float().mean() < 1e-3
        assert (values - wanted).abs().max() < 1.3 / 5 + 1e-4


def test_one_phase_neurons_approximate():
    """An even current makes the exact count, spikes that come unevenly do not."""
    ann, x = dyadic(VGG()), images(64)
    snn = from_qcfs(ann, IF, 64, neuron=ONE_PHASE)
    expected, found = activations(with_levels(ann, 64), x), decoded(snn, x)
    assert torch.equal(found[0], expected[0])
    for values, wanted in zip(found[1:], expected[1:], strict=True):
        assert 0 < (values - wanted).abs().mean() < 0.1 * wanted.mean()


@pytest.mark.parametrize("how", [{"per_channel": True, "calibrate": images()}, {"learn_thresholds": True}], ids=str)
def test_other_arguments_of_convert(how):
    ann, x = dyadic(VGG(pool=nn.MaxPool2d)), images()
    with torch.no_grad():
        assert torch.equal(from_qcfs(ann, IF, **how)(x), ann(x))


def test_pooling_before_the_activation():
    layers = nn.Conv2d(1, 4, 3), nn.MaxPool2d(2), IF(), nn.Conv2d(4, 4, 3), IF(), nn.Dropout(), nn.Flatten()
    ann, x = dyadic(nn.Sequential(*layers, nn.Linear(100, 3))), images()
    with torch.no_grad():
        assert torch.equal(from_qcfs(ann, IF)(x), ann(x))


def test_hybrid():
    ann, x = dyadic(VGG()), images()
    snn = from_qcfs(ann, IF, spiking_layers=2)
    assert len(snn.spiking_layers) == 2
    with torch.no_grad():
        assert torch.equal(snn(x), ann(x))


def test_mixed_with_relu():
    """Other layers are calibrated, the levels of QCFS are not."""
    ann, x = (
        dyadic(nn.Sequential(VGG().layer1, nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))),
        images(),
    )
    with pytest.raises(ValueError, match=r"calibrate must hold a level for each spiking layer, got none for \['1'\]"):
        from_qcfs(ann, IF)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        snn = from_qcfs(ann, IF, calibrate=x)
    assert snn.levels["0.0"] == ann[0][2].thresh.item()
    assert torch.equal(decoded(snn, x)[0], activations(ann, x)[0])
    assert snn.levels["1"] != 1


def test_no_advice_to_leave_out_what_from_qcfs_sets():
    ann = dyadic(ResNet())
    words = r"To change that: time_steps=\d+ \(.*% of \d+ samples, in place of .*%\); or train"
    with pytest.warns(UserWarning, match=words) as said:
        from_qcfs(ann, IF, 1, calibrate=images(64))
    assert "leave out" not in str(said[0].message)


# --- what is shared -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", [VGG, ResNet])
def test_checkpoint(network, tmp_path):
    """Plain load_state_dict, with the keys of the authors' checkpoints."""
    trained, x = dyadic(network()), images()
    torch.save(trained.state_dict(), tmp_path / "checkpoint.pth")
    state = torch.load(tmp_path / "checkpoint.pth")
    last = "classifier.2.thresh" if network is VGG else "conv3_x.0.act.thresh"
    first = "layer1.2.thresh" if network is VGG else "conv3_x.0.residual_function.2.thresh"
    assert {first, last} <= state.keys()
    assert state[last].shape == (1,)
    ann = network().eval()
    ann.load_state_dict(state)
    for module in ann.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-300
    snn = from_qcfs(ann, IF)
    assert torch.equal(snn(x), trained(x))
    assert snn.state_dict().keys() == state.keys() | {"_extra_state"}
    network().load_state_dict(snn.ann().state_dict())
    snn.load_state_dict(state)  # the same thresholds
    assert torch.equal(snn(x), trained(x))


def test_earlier_names():
    """The authors' first checkpoints have "up", and their modules t."""
    ann, x = VGG(MyFloor).eval(), images()
    assert "layer1.2.up" in ann.state_dict()
    snn = from_qcfs(dyadic(ann), MyFloor, threshold="up", levels="t")
    same_in_every_layer(snn, ann, x, MyFloor)


def test_other_thresholds_are_noticed():
    ann, x = dyadic(VGG()), images()
    snn = from_qcfs(ann, IF)
    state = copy.deepcopy(ann.state_dict())
    state["layer2.2.thresh"] *= 2
    ann.load_state_dict(state)
    with pytest.raises(RuntimeError, match=r"layer2\.2\.thresh changed\. Call convert on the ANN again"):
        snn(x)
    with pytest.raises(RuntimeError, match=r"layer2\.2\.thresh changed"):
        freeze(snn)
    assert torch.equal(from_qcfs(ann, IF)(x), ann(x))


def test_loading_other_thresholds_into_the_spiking_network():
    ann, other, x = dyadic(VGG()), dyadic(VGG(), seed=1), images()
    other.layer1[2].thresh.data = 2 * ann.layer1[2].thresh.data
    snn = from_qcfs(ann, IF)
    for state in (other.state_dict(), from_qcfs(other, IF).state_dict()):
        snn.load_state_dict(state)
        with pytest.raises(RuntimeError, match=r"layer1\.2\.thresh.* changed"):
            snn(x)
        assert torch.equal(from_qcfs(ann, IF)(x), other(x))
        ann.load_state_dict(dyadic(VGG()).state_dict())
        snn = from_qcfs(ann, IF)


@pytest.mark.parametrize("change", [("L", 8), ("T", 4)])
def test_settings_that_change_are_noticed(change):
    ann, x = dyadic(VGG()), images()
    snn = from_qcfs(ann, IF)
    setattr(ann.classifier[2], *change)
    with pytest.raises(RuntimeError, match=rf"classifier\.2\.{change[0]} changed"):
        snn(x)


def test_training_leaves_thresholds():
    torch.manual_seed(0)
    ann, x = VGG(), images(32)
    snn = from_qcfs(ann, IF).train()
    before = copy.deepcopy(ann.state_dict())
    optimiser = torch.optim.SGD(ann.parameters(), 0.1, weight_decay=0.1)
    for _ in range(3):
        optimiser.zero_grad()
        F.cross_entropy(snn(x), torch.arange(32) % 5).backward()
        optimiser.step()
    assert {name for name, x in ann.named_parameters() if torch.equal(x, before[name])} == {
        name for name in before if name.endswith("thresh")
    }
    snn.eval()
    ann.eval()
    torch.testing.assert_close(snn(x), ann(x))


def test_training_the_ann_moves_thresholds():
    ann, x = VGG(), images()
    snn = from_qcfs(ann, IF)
    ann(x).square().mean().backward()
    torch.optim.SGD(ann.parameters(), 0.1).step()
    with pytest.raises(RuntimeError, match=r"thresh.* changed"):
        snn(x)


def test_copies():
    ann, x = dyadic(ResNet()), images()
    snn = from_qcfs(ann, IF)
    for again in (copy.deepcopy(snn), pickle.loads(pickle.dumps(snn))):
        assert torch.equal(again(x), snn(x))
        again.ann().load_state_dict(dyadic(ResNet(), seed=3).state_dict())
        with pytest.raises(RuntimeError, match="thresh"):
            again(x)


@each(network=list(NETWORKS), exact=[True, False])
def test_frozen(network, exact, tmp_path):
    pytest.importorskip("safetensors")
    torch.manual_seed(0)
    ann, x = NETWORKS[network](lambda: IF(6, 1.1)).eval(), images()
    ann = dyadic(ann) if exact else ann
    snn = from_qcfs(ann, IF)
    frozen = freeze(snn)
    frozen.save(tmp_path / "net.safetensors")
    again = tandem_cuda.FrozenNetwork.load(tmp_path / "net.safetensors")
    with torch.no_grad():
        assert torch.equal(frozen(x), snn(x))
        assert torch.equal(again(x), snn(x))


def test_report():
    ann, x = dyadic(ResNet()), images()
    report = from_qcfs(ann, IF).report(x)
    assert report.output_error == 0
    assert [layer.error for layer in report.layers if layer.spiking] == [0] * 5
    assert "Conv2d, BatchNorm2d, " in str(report)


# --- what is refused ------------------------------------------------------------------------------------------------


def wrong(**settings):
    ann = dyadic(VGG())
    for name, value in settings.items():
        setattr(ann.layer2[2], name, value)
    return ann


class Other(IF):
    def forward(self, x):
        return torch.relu(x).clamp(max=2.0)


class Failing(IF):
    def forward(self, x):
        raise KeyError("spikes")


@pytest.mark.parametrize(
    ("ann", "message"),
    [
        (wrong(thresh=nn.Parameter(torch.tensor([0.0]))), "it must have a positive threshold, got thresh = 0"),
        (wrong(thresh=nn.Parameter(torch.tensor([torch.inf]))), "it must have a positive threshold, got thresh = inf"),
        (wrong(thresh=nn.Parameter(torch.ones(2))), r"hold one threshold .*: its thresh is of shape \[2\]"),
        (wrong(L=0), "it must have a whole number of levels, got L = 0"),
        (wrong(L="4"), "the number of levels: its L is '4'"),
    ],
)
def test_what_is_no_qcfs(ann, message):
    with pytest.raises(ValueError, match=message):
        from_qcfs(ann, IF)


@pytest.mark.parametrize(("kind", "message"), [(Other, "it returns"), (Failing, "it raises KeyError: 'spikes'")])
def test_what_computes_something_else(kind, message):
    with pytest.raises(ValueError, match=rf"layer1.2 \({kind.__name__}\): let it compute .* and no spikes: {message}"):
        from_qcfs(VGG(kind).eval(), kind)


def test_different_levels_need_a_time():
    ann, x = wrong(L=8), images()
    message = r"time_steps must be given if L differs, .*, got 4 \(layer1.2\), 8 \(layer2.2\), 4 \(classifier.2\)"
    with pytest.raises(ValueError, match=message):
        from_qcfs(ann, IF)
    snn = from_qcfs(ann, IF, 8)
    assert snn(x).isfinite().all()
    assert not torch.equal(snn(x), ann(x))


def test_radix_spikes_of_other_levels():
    ann, x = dyadic(VGG()), images()
    message = (
        r"L must be 7, the levels of 3 radix spikes, got 4 \(layer1.2\), .*; pass neuron=IF\(initial=0.5, two_phase"
    )
    with pytest.raises(ValueError, match=message):
        from_qcfs(ann, IF, neuron=RadixIF())
    assert torch.equal(from_qcfs(ann, IF, neuron=TWO_PHASE)(x), ann(x))


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        (
            nn.ReLU,
            ValueError,
            "activation must be the class of modules in ann, got ReLU; it has AvgPool2d, BatchNorm2d",
        ),
        (IF(), TypeError, "activation must be a class of modules, got IF()"),
    ],
)
def test_activation_must_be_a_class_of_the_ann(kind, error, message):
    ann = VGG()
    with pytest.raises(error, match=re.escape(message)):
        from_qcfs(ann, kind)


def test_other_arguments():
    with pytest.raises(TypeError, match=r"from_qcfs: ann must be an nn.Module, got function"):
        from_qcfs(F.relu, IF)
    with pytest.raises(TypeError, match=r"from_qcfs: neuron must be IF\(\.\.\.\), .*, got str"):
        from_qcfs(VGG(), IF, neuron="IF")
