"""Average pooling in converted networks."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from anns import assert_no_leak, inputs, kinds, per_layer, whole
from exact import generator, same
from tandem_cuda import (
    IF,
    SpikeTrain,
    SpikingAdaptiveAvgPool2d,
    SpikingAvgPool2d,
    TandemDropout,
    TandemDropout2d,
    convert,
    freeze,
)
from tandem_cuda.nn import SpikeWindows


def pooled_conv():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(),
        nn.AvgPool2d(3, 2, 1, divisor_override=8), nn.Dropout2d(0.5), nn.ConvTranspose2d(4, 4, 2, 2), nn.ReLU(),
        nn.AvgPool2d((2, 1)), nn.Flatten(), nn.Dropout(0.5), nn.Linear(32, 8), nn.ReLU(), nn.Linear(8, 3),
    )  # fmt: skip


def pooled_line():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2, divisor_override=2), nn.Flatten(2),
        nn.Conv1d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(56, 3),
    )  # fmt: skip


def pooled_read_out():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.AvgPool2d(3, ceil_mode=True), nn.AdaptiveAvgPool2d((2, 1)),
        nn.Flatten(), nn.Dropout(0.5), nn.Linear(8, 3),
    )  # fmt: skip


class PooledJoin(nn.Module):
    """A shortcut that averages, as in ResNet-D, and two uses of one average."""

    def __init__(self):
        super().__init__()
        self.stem, self.body = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 6, 3, 2, 1)
        self.short, self.hidden = nn.Conv2d(4, 6, 1), nn.Linear(24, 8)
        self.heads = nn.ModuleList([nn.Linear(8, 3), nn.Linear(24, 2)])

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = torch.relu(self.body(x) + self.short(F.avg_pool2d(x, 2)))
        x = F.avg_pool2d(x, 2)
        x = x.view(x.size(0), -1)
        return self.heads[0](torch.relu(self.hidden(x))), self.heads[1](x)


def dyadic(ann):
    for p in ann.parameters():
        with torch.no_grad():
            p.copy_(torch.randint(-4, 7, p.shape, generator=generator(p.numel())) / 16)
    return ann


class Integrating(nn.Module):
    """A ReLU in discrete time: IF neurons whose spikes weigh the threshold."""

    def __init__(self, threshold):
        super().__init__()
        self.threshold, self.potential, self.spikes = threshold, 0.0, 0.0

    def forward(self, v):
        self.potential = self.potential + v - self.spikes
        self.spikes = self.threshold * (self.potential >= self.threshold).to(v.dtype)
        return self.spikes


def stepped(ann, x, steps, levels):
    """The mean output of the ANN in discrete time, averages as real numbers; layers are those of an nn.Sequential."""
    places = [name for name, module in ann.named_children() if isinstance(module, nn.ReLU)]
    net = copy.deepcopy(ann)
    for place, level in zip(places, levels, strict=True):
        net[int(place)] = Integrating(level)
    return torch.stack([net(x) for _ in range(steps)]).mean(0)


def averaged_line():
    return nn.Sequential(
        nn.Flatten(2), nn.Conv1d(2, 4, 3, padding=1), nn.ReLU(), nn.AvgPool1d(2), nn.Conv1d(4, 4, 3), nn.ReLU(),
        nn.AvgPool1d(2), nn.Flatten(), nn.Linear(60, 3), nn.ReLU(), nn.Linear(3, 3),
    )  # fmt: skip


@pytest.mark.parametrize("make", [pooled_conv, pooled_line, averaged_line, pooled_read_out])
def test_calibrated_averages_need_no_neurons(make):
    """They lose nothing: the outputs are those of a simulation that averages spikes as real numbers."""
    ann = dyadic(make()).double().eval()
    x = torch.randint(0, 8, (6, 2, 8, 8), generator=generator(0)).double() / 8
    names = [
        name
        for name, module in ann.named_children()
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d, nn.Linear))
    ]
    levels = dict(zip(names[:-1], (1.0, 0.5, 0.25, 0.25), strict=False))
    snn = convert(ann, 4, calibrate=levels, neuron=IF(), example=x)
    for steps in (4, 16):
        snn.set_time_steps(steps)
        assert not {SpikingAvgPool2d, SpikingAdaptiveAvgPool2d} & set(kinds(snn))
        assert snn.levels == levels
        with torch.no_grad():
            got, want = snn(x), stepped(ann, x, steps, levels.values())
        assert len(want.unique()) > 5
        torch.testing.assert_close(got, want, rtol=0, atol=1e-14)
        same(freeze(snn)(x), got)


@pytest.mark.parametrize("make", [pooled_conv, pooled_line, pooled_read_out, PooledJoin])
def test_calibrated_averages_converge_to_the_ann(make):
    torch.manual_seed(0)
    ann, x = make().eval(), inputs(32)
    snn = convert(ann, 512, calibrate=x, percentile=100)
    assert_no_leak(snn)
    want = whole(ann(x))
    assert (whole(snn(x)) - want).norm() < 0.01 * want.norm()
    weights = torch.randn(want.shape, generator=generator(1))
    parameters = list(ann.parameters())
    got, want = (torch.autograd.grad((whole(net(x)) * weights).sum(), parameters) for net in (snn, ann))
    for mine, theirs in zip(got, want, strict=True):
        assert (mine - theirs).norm() < 0.1 * theirs.norm()


def test_dropout_of_an_average():
    """All that an average is of is dropped together, or kept."""
    ann = pooled_conv().eval()
    snn = convert(ann, 8, calibrate=inputs(), percentile=100).train()
    windows = [module for module in snn.snn.modules() if isinstance(module, SpikeWindows)][1]
    of_image, of_features = (m for m in snn.snn.modules() if isinstance(m, (TandemDropout, TandemDropout2d)))
    ones = SpikeTrain.from_dense(torch.ones(8, 6, 4, 4, 4))
    dropped = of_image(windows(ones))
    assert dropped.amplitude == 2 / 8
    whole_channels = dropped.count.view(6, 9, 4, 2, 2)[:, 4]  # the middle of each window, which no padding covers
    assert set(whole_channels.unique().tolist()) == {0.0, 8.0}
    kept = whole_channels.amax((2, 3)) > 0
    assert ((dropped.count.view(6, 9, 4, -1).amax(3) > 0) <= kept.unsqueeze(1)).all()
    flat = of_features(SpikeTrain.from_dense(torch.ones(8, 6, 64))).count
    same(flat[:, :32], flat[:, 32:])
    assert 0 < flat.mean() < 8


def pooled_adaptively():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(36, 8), nn.ReLU(),
        nn.Linear(8, 3),
    )  # fmt: skip


POOL = "adaptive_avg_pool2d"


def test_averages_with_neurons_are_calibrated():
    """Where the image decides on the windows, the average fires; at a level of its own."""
    torch.manual_seed(0)
    ann, x = pooled_adaptively().eval(), inputs(32)
    want = ann(x)
    snn = convert(ann, 64, calibrate=x, percentile=99.9, **per_layer())
    assert SpikingAdaptiveAvgPool2d in kinds(snn)
    assert snn.spiking_layers == ("0", "4")
    assert list(snn.levels) == ["0", "4", POOL]
    pooled = ann[:3](x).detach().flatten()
    assert snn.levels[POOL] == pytest.approx(torch.quantile(pooled, 0.999, interpolation="higher").item())
    assert snn.levels[POOL] < snn.levels["0"]
    pool = snn.snn.get_submodule(POOL)
    assert pool.threshold == pool.amplitude == snn.levels[POOL] / snn.levels["0"]
    assert (snn(x) - want).norm() < 0.03 * want.norm()
    same(convert(ann, 64, calibrate=snn.levels, neuron=IF(), example=x)(x).detach(), snn(x).detach())
    same(freeze(snn)(x), snn(x).detach())
    earlier = {name: snn.levels[name] for name in snn.spiking_layers}  # levels that know of no pools
    pool = convert(ann, 64, calibrate=earlier, example=x).snn.get_submodule(POOL)
    assert pool.threshold == pool.amplitude == 1
    pool = convert(ann, 64, example=x).snn.get_submodule(POOL)
    assert pool.threshold == pool.amplitude == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("error:tandem_cuda")
@pytest.mark.parametrize("make", [pooled_conv, PooledJoin])
def test_compiled_averages(make):
    torch.manual_seed(0)
    snn, x = convert(make().eval(), 8, calibrate=inputs()), inputs()
    compiled = torch.compile(copy.deepcopy(snn), backend="aot_eager", fullgraph=True)
    same(whole(compiled(x)).detach(), whole(snn(x)).detach())


def test_averages_of_recorded_spikes():
    ann = dyadic(nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)).double())
    spikes = (torch.rand(8, 6, 2, 8, 8, generator=generator(1)) < 0.3).double()
    snn = convert(ann, 8, mode="spikes", neuron=IF(), calibrate={"1": 8.0}, example=spikes.sum(0))
    neurons, total = Integrating(1.0), 0
    for step in spikes:
        total = total + neurons(ann[:2](step) + ann[1].bias.view(-1, 1, 1) * (1 / 8 - 1))
    same(snn(SpikeTrain.from_dense(spikes)).detach(), ann[3:](total).detach())


def test_averages_of_lines_of_features():
    """Pairs along the last dimension move once, to the channels of the line."""
    ann = nn.Sequential(nn.Linear(8, 6), nn.LeakyReLU(0.1), nn.AvgPool1d(2), nn.Linear(3, 2))
    snn = convert(ann, time_steps=4, example=torch.zeros(1, 5, 8))
    assert [name for name, _ in snn.snn.named_children() if name.startswith("pairs")] == ["pairs"]
