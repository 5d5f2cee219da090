"""Calls without a spiking form are computed on real values, and neurons encode what a weight layer reads of them."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune

from anns import Net
from exact import generator, same
from tandem_cuda import IF, RadixIF, TandemNeurons, convert, freeze

pytestmark = pytest.mark.filterwarnings("ignore:convert. .* computed on real values:UserWarning")
IMAGES = torch.randn(12, 3, 8, 8, generator=generator(0))
ROWS = torch.randn(12, 6, 8, generator=generator(1))


def conv(inputs=4, outputs=4, size=3):
    return nn.Conv2d(inputs, outputs, size, padding=size // 2)


def between(step, **modules):
    """Images: ``step`` between two convolutions."""

    def run(n, x):
        return n.fc(F.relu(n.last(step(n, n.first(x)))).mean((2, 3)))

    return Net(run, first=conv(3), last=conv(), fc=nn.Linear(4, 5), **modules), IMAGES


def of_rows(step, outputs=8, **modules):
    """Sequences: ``step`` between two linear layers."""

    def run(n, x):
        return n.fc(F.relu(n.last(step(n, n.first(x)))).mean(1))

    return Net(run, first=nn.Linear(8, 8), last=nn.Linear(outputs, 8), fc=nn.Linear(8, 5), **modules), ROWS


def excited(n, x):
    return x * torch.sigmoid(n.up(F.relu(n.down(F.adaptive_avg_pool2d(x, 1)))))


def attention_by_hand(n, x):
    q, k, v = n.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
    return n.out((torch.softmax(q @ k.transpose(-2, -1) / 2, -1) @ v).transpose(1, 2).flatten(2))


def attention_by_function(n, x):
    q, k, v = n.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
    return n.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


QKV = {"qkv": lambda: nn.Linear(8, 24), "out": lambda: nn.Linear(8, 8)}
NETS = {
    "silu": lambda: between(lambda n, x: F.silu(x)),
    "gelu": lambda: between(lambda n, x: n.act(x), act=nn.GELU("tanh")),
    "mish": lambda: between(lambda n, x: n.act(x), act=nn.Mish()),
    "tanh": lambda: between(lambda n, x: torch.tanh(x)),
    "softmax": lambda: between(lambda n, x: 4 * torch.softmax(x, 1)),
    "group norm": lambda: between(lambda n, x: F.relu(n.norm(x)), norm=nn.GroupNorm(2, 4)),
    "layer norm": lambda: of_rows(lambda n, x: F.gelu(n.norm(x)), norm=nn.LayerNorm(8)),
    "product": lambda: between(lambda n, x: F.relu(x) * F.relu(n.other(F.relu(x))), other=conv()),
    "maximum": lambda: between(lambda n, x: torch.maximum(F.relu(x), n.other(F.relu(x))), other=conv()),
    "excitation": lambda: between(
        lambda n, x: excited(n, F.relu(n.other(F.relu(x)))), other=conv(), down=conv(4, 2, 1), up=conv(2, 4, 1)
    ),
    "attention by hand": lambda: of_rows(attention_by_hand, **{k: make() for k, make in QKV.items()}),
    "attention by function": lambda: of_rows(attention_by_function, **{k: make() for k, make in QKV.items()}),
    "attention by module": lambda: of_rows(
        lambda n, x: n.attention(x, x, x, need_weights=False)[0],
        attention=nn.MultiheadAttention(8, 2, batch_first=True),
    ),
    "lstm": lambda: of_rows(lambda n, x: n.lstm(F.relu(x))[0], outputs=5, lstm=nn.LSTM(8, 5, batch_first=True)),
    "gru": lambda: of_rows(
        lambda n, x: n.gru(F.relu(x))[1].transpose(0, 1), outputs=5, gru=nn.GRU(8, 5, batch_first=True)
    ),
}
WORDS = {
    "silu": ["silu"], "gelu": ["GELU"], "mish": ["Mish"], "tanh": ["tanh"], "group norm": ["GroupNorm"],
    "excitation": ["sigmoid", "mul"], "attention by function": ["scaled_dot_product_attention"], "lstm": ["LSTM"],
}  # fmt: skip


def made(name):
    torch.manual_seed(1)
    ann, x = NETS[name]()
    for p in ann.parameters():
        p.data = p.data * 2  # so that functions are not almost linear
    return ann.eval(), x


def gradients(net, x):
    net.zero_grad()
    net(x).square().sum().backward()


@pytest.mark.parametrize("name", NETS)
def test_outputs_and_gradients_are_near_the_anns(name):
    ann, x = made(name)
    snn = convert(ann, 8, calibrate=x, percentile=100)
    with torch.no_grad():
        assert (snn(x) - ann(x)).norm() < 0.03 * ann(x).norm()
    gradients(ann, x)
    want = {key: p.grad.clone() for key, p in ann.named_parameters()}
    gradients(snn, x)
    for key, p in ann.named_parameters():
        scale = max(want[key].norm(), 1e-3 * max(g.norm() for g in want.values()))
        assert (p.grad - want[key]).norm() < 0.12 * scale, key
    report = snn.report()
    whats = [call.what for call in report.analogue]
    assert all(call.why and call.name for call in report.analogue)
    assert all(any(word.lower() == what.lower() for what in whats) for word in WORDS.get(name, whats[:1]))
    assert 0 < report.spiking_macs < 1
    assert f"computed on real values; spikes carry {report.spiking_macs:.0%} of the multiply-accumulates" in str(report)


def several():
    def step(n, x):
        return F.silu(n.two(n.act(n.one(F.silu(x))))) * torch.sigmoid(F.silu(x))

    return between(step, one=conv(), two=conv(), act=nn.GELU())


def test_calls_are_listed_in_one_message():
    ann, x = several()
    with pytest.raises(ValueError, match="must have a spiking form for each call with analogue=False") as error:
        convert(ann, 8, example=x, analogue=False)
    lines = str(error.value).splitlines()
    assert [line.split(" (")[0].strip() for line in lines[1:]] == ["silu", "GELU", "silu", "silu", "sigmoid", "mul"]
    assert all(": it has no rule" in line or ": it" in line for line in lines[1:])
    convert(
        nn.Sequential(conv(3), nn.ReLU(), conv(), nn.ReLU(), nn.Flatten(), nn.Linear(256, 3)),
        8,
        example=x,
        analogue=False,
    )


def test_the_warning_has_one_line():
    ann, x = several()
    with pytest.warns(UserWarning, match=r"^convert: .* are computed on real values; spikes carry \d+% of") as warned:
        snn = convert(ann.eval(), 8, calibrate=x)
    (text,) = [str(w.message) for w in warned if "real values" in str(w.message)]
    assert "\n" not in text
    assert "3 silu, 1 GELU, 1 sigmoid, 1 mul" in text
    assert text.endswith("(analogue=False refuses such calls)")
    assert any("computed on real values" in note for note in snn.report().notes)
    with pytest.warns(UserWarning, match="1 silu is computed on real values"):
        convert(made("silu")[0], 8, example=x)


def test_what_is_behind_the_last_layer_is_not_analogue(recwarn):
    ann, x = between(lambda n, x: F.relu(x))
    run = ann.run
    ann.run = lambda n, x: F.log_softmax(F.silu(run(n, F.gelu(x))), 1)
    snn = convert(ann.eval(), 8, calibrate=x, analogue=False)
    assert not snn.report().analogue
    assert not [w for w in recwarn if "real values" in str(w.message)]


def test_the_share_of_products_that_spikes_carry():
    """Not the first layer's, which reads real input, and not the last one's, which reads decoded spikes."""
    ann = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    assert convert(ann, 8, example=ROWS[:, 0]).report().spiking_macs == 16 / (32 + 16 + 8)


@pytest.mark.parametrize(
    ("step", "signed"),
    [
        (lambda n, x: F.silu(x), True),
        (lambda n, x: torch.tanh(x), True),
        (lambda n, x: torch.sigmoid(x), False),
        (lambda n, x: F.relu(x) * torch.sigmoid(x), False),
        (lambda n, x: torch.softmax(x, 1) + F.relu(x), False),
        (lambda n, x: F.relu(n.norm(x)), False),
        (lambda n, x: x.exp(), False),
        (lambda n, x: (x * x).sqrt(), False),
        (lambda n, x: -F.softplus(x), True),
    ],
)
def test_neurons_of_both_signs_only_where_values_may_be_negative(step, signed):
    torch.manual_seed(0)
    ann, x = between(step, norm=nn.GroupNorm(2, 4))
    snn = convert(ann.eval(), 8, calibrate=x)
    neurons = [m for m in snn.snn.modules() if isinstance(m, TandemNeurons)]
    assert neurons[-1].signed == signed
    with torch.no_grad():
        assert (snn(x) - ann(x)).norm() < 0.05 * ann(x).norm()


@pytest.mark.parametrize(
    ("steps", "how", "bound"),
    [
        (1, {}, 1.0),
        (8, {"neuron": RadixIF()}, 0.03),
        (64, {}, 0.05),
        (64, {"neuron": IF(), "percentile": 100}, 0.3),
        (64, {"neuron": IF(initial=0.5), "mode": "constant", "percentile": 100}, 0.3),
        (8, {"learn_thresholds": True, "per_channel": False}, 0.05),
    ],
)
def test_time_steps_and_neurons(steps, how, bound):
    ann, x = made("gelu")
    snn = convert(ann, steps, calibrate=x, **how)
    with torch.no_grad():
        error = (snn(x) - ann(x)).norm() / ann(x).norm()
        assert error < bound
        for other in (2, 4):
            snn.set_time_steps(other)
            assert snn(x).isfinite().all()
        snn.set_time_steps(steps)
        assert (snn(x) - ann(x)).norm() / ann(x).norm() == error
    gradients(snn.train(), x)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in snn.parameters())


def test_thresholds_of_channels_and_features():
    ann, x = made("layer norm")
    snn = convert(ann, 8, calibrate=x, per_channel=True)
    neurons = snn.snn.get_submodule("gelu")
    assert neurons.features
    assert neurons.thresholds.shape == (8,)
    assert all(layer.error < 0.05 for layer in snn.report().layers)


def test_other_dtypes_and_copies():
    ann, x = made("silu")
    snn = convert(ann, 8, calibrate=x)
    want = snn(x)
    same(copy.deepcopy(snn)(x), want)
    doubled = snn.double()(x.double())
    assert doubled.dtype == torch.float64
    assert (doubled - want).norm() < 0.02 * want.norm()
    other = convert(ann, 8, calibrate=snn.calibration, example=x.double())
    same(other(x.double()), doubled)


def test_images_of_one_sample_and_without_calibration():
    ann, x = made("excitation")
    snn = convert(ann, 8, example=x[:1])
    assert snn(x).shape == (12, 5)
    calibrated = convert(ann, 8, calibrate=x)
    same(torch.cat([calibrated(x[i : i + 1]) for i in range(3)]), calibrated(x[:3]))


class Halves(nn.Module):
    """One half of a batch norm's output is read by spikes, the other one on real values."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 1), nn.Conv2d(4, 4, 1)
        self.norm, self.head = nn.BatchNorm2d(8), nn.Linear(4, 3)

    def forward(self, x):
        first, second = self.norm(self.b(F.relu(self.a(x)))).chunk(2, 1)
        return self.head(F.relu(self.c(first) * second.softmax(1)).mean((2, 3)))


def test_parts_of_a_batch_norm():
    """Its statistics move once a step, as in the ANN."""
    torch.manual_seed(0)
    ann, x = Halves().eval(), torch.rand(16, 3, 6, 6)
    snn = convert(ann, 8, calibrate=x)
    with torch.no_grad():
        want = ann(x)
        assert (snn(x) - want).norm() < 0.05 * want.norm()
    snn.train()(x)
    assert ann.norm.num_batches_tracked == 1
    with torch.no_grad():
        assert torch.equal(freeze(snn.eval())(x), snn(x))


def test_a_layer_that_the_data_never_activate():
    torch.manual_seed(0)
    ann, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), torch.rand(16, 4)
    nn.init.constant_(ann[2].bias, -9.0)
    with pytest.warns(UserWarning, match="the calibration data never make the output of 2 positive") as warned:
        snn = convert(ann, 8, calibrate=x)
    assert [str(x.message).startswith("convert: the calibration") for x in warned].count(True) == 1
    assert all(x.filename == __file__ for x in warned)
    assert snn.levels["2"] == 1.0


def test_a_pruned_last_layer_reads_spikes():
    """Its weight is computed from parameters; what it reads is the same as without pruning."""
    torch.manual_seed(0)
    ann, x = nn.Sequential(nn.Linear(4, 6), nn.SiLU(), nn.Linear(6, 3)).eval(), torch.rand(16, 4)
    pruned = copy.deepcopy(ann)
    prune.l1_unstructured(pruned[2], "weight", 0.5)
    with torch.no_grad():
        ann[2].weight.copy_(pruned[2].weight)
        want, got = (convert(net, 8, calibrate=x)(x) for net in (ann, pruned))
    assert torch.equal(got, want)
    snn = convert(ann, 8, calibrate=x)
    prune.l1_unstructured(ann[0], "weight", 0.5)
    with torch.no_grad():
        assert torch.equal(snn(x), convert(ann, 8, calibrate=snn.calibration, example=x)(x))
