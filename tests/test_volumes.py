"""Networks of volumes [N, C, D, H, W]: converted, trained, frozen, quantised, and what they refuse."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tandem_cuda as tc
from anns import kinds
from exact import generator, same
from freezable import in_chunks
from tandem_cuda import IF, Decode, Encode, SpikeTrain, convert, freeze, ops, quantise, synops
from tandem_cuda import reference as ref

SHAPE = (2, 4, 8, 8)


def volumes(n=8, dtype=torch.float32):
    return torch.rand(n, *SHAPE, generator=generator(0), dtype=dtype)


def c3d():
    """The layers of C3D (arXiv:1412.0767), with batch norm."""
    return nn.Sequential(
        nn.Conv3d(2, 8, 3, padding=1), nn.BatchNorm3d(8), nn.ReLU(), nn.MaxPool3d((1, 2, 2)),
        nn.Conv3d(8, 12, 3, padding=1), nn.BatchNorm3d(12), nn.ReLU(), nn.MaxPool3d(2),
        nn.Dropout3d(0.5), nn.Flatten(), nn.Linear(96, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 5),
    )  # fmt: skip


def averaged():
    return nn.Sequential(
        nn.Conv3d(2, 8, (1, 3, 3), stride=(1, 2, 1), padding="valid"), nn.ReLU(), nn.AvgPool3d(2, 1),
        nn.Conv3d(8, 8, (3, 1, 1), padding=(1, 0, 0), groups=2), nn.ReLU(),
        nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(8, 5),
    )  # fmt: skip


class Residual(nn.Module):
    """The blocks of R3D (arXiv:1711.11248); pooling as functions, and batch norm before the weights."""

    def __init__(self):
        super().__init__()
        self.stem, self.stem_norm = nn.Conv3d(2, 6, 3, padding=1, bias=False), nn.BatchNorm3d(6)
        self.a, self.norm_a = nn.Conv3d(6, 8, 3, 2, 1, bias=False), nn.BatchNorm3d(8)
        self.b, self.norm_b = nn.Conv3d(8, 8, 3, padding=1, bias=False), nn.BatchNorm3d(8)
        self.short, self.norm, self.fc = nn.Conv3d(6, 8, 1, 2), nn.BatchNorm3d(8), nn.Linear(8, 5)

    def forward(self, x):
        x = torch.relu(self.stem_norm(self.stem(x)))
        y = torch.relu(self.norm_a(self.a(x)))
        x = torch.relu(self.norm_b(self.b(y)) + self.short(x))
        x = F.max_pool3d(F.avg_pool3d(torch.relu(self.norm(x)), (1, 2, 2)), (2, 1, 1))
        return self.fc(F.dropout3d(x, 0.1, self.training).mean((2, 3, 4)))


def signed():
    """Values without a ReLU between convolutions: neurons for both signs, whose weights stand side by side."""
    return nn.Sequential(
        nn.Conv3d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv3d(4, 4, (2, 1, 1)), nn.BatchNorm3d(4),
        nn.Conv3d(4, 6, 2, stride=2, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(96, 5),
    )  # fmt: skip


NETWORKS = [c3d, averaged, signed, Residual]


def trained(make):
    """The ANN with statistics of its input."""
    torch.manual_seed(0)
    ann = make()
    for _ in range(20):
        ann(volumes())
    return ann.eval()


@pytest.mark.parametrize("make", NETWORKS)
def test_networks_converge_to_their_ann(make):
    ann, x = trained(make), volumes()
    snn = convert(ann, 512, calibrate=x, percentile=100)
    with torch.no_grad():
        want = ann(x)
        assert (snn(x) - want).norm() < 0.02 * want.norm()


@pytest.mark.parametrize("make", NETWORKS)
def test_networks_train_and_freeze(make, tmp_path):
    snn, x = convert(trained(make), 9, neuron=IF(), learn_thresholds=True, example=volumes(1)), volumes()
    optimizer = torch.optim.Adam(snn.parameters(), 0.01)
    target, losses = torch.randint(5, (8,), generator=generator(1)), []
    snn.train()
    for _ in range(15):
        optimizer.zero_grad()
        loss = F.cross_entropy(snn(x), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in snn.parameters())
    assert losses[-1] < losses[0]
    snn.eval()
    with torch.no_grad():
        want = snn(x)
    frozen = freeze(snn)
    frozen.save(tmp_path / "network.safetensors")
    for network in (frozen, tc.FrozenNetwork.load(tmp_path / "network.safetensors")):
        same(network(x), want)
        same(in_chunks(network.stream(x), (2,)), want)
        same(network.predict(x, exit_confidence=1.0).classes, want.argmax(1))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["r3d_18", "mc3_18", "r2plus1d_18"])
def test_networks_of_torchvision(name):
    """Their convolutions are subclasses of nn.Conv3d that have only a constructor of their own."""
    video = pytest.importorskip("torchvision.models.video")
    torch.manual_seed(0)
    ann, x = getattr(video, name)(num_classes=5), torch.rand(2, 3, 4, 32, 32, generator=generator(0))
    snn = convert(ann.eval(), 4, example=x)
    snn.train()(x).sum().backward()
    with torch.no_grad():
        same(freeze(snn.eval())(x), snn(x))


def test_early_exit_drops_samples():
    """State has a row for each sample, also where a layer computes with an image for each sample and depth."""
    torch.manual_seed(0)  # weights with which the last layer fires
    net = nn.Sequential(
        Encode(9), tc.TandemConv3d(2, 4, 3, padding=1), tc.SpikingMaxPool3d(2), tc.SpikingAvgPool3d((2, 1, 1)),
        tc.TandemConv3d(4, 3, (1, 2, 2)),
    ).eval()  # fmt: skip
    x, kept = 3 * volumes(), torch.tensor([1, 4, 6])
    with torch.no_grad():
        want = net(x)
    stream = freeze(net).stream(x)
    stream.advance(3)
    stream.select(kept)
    got = torch.cat([stream.advance(2).to_dense(), stream.advance(4).to_dense()])
    same(got, want.to_dense()[3:, kept])
    assert got.any()


def test_layers_of_a_network():
    snn = convert(trained(c3d), 8, example=volumes(1))
    assert kinds(snn)[:7] == [
        Encode, tc.TandemConv3d, tc.SpikingMaxPool3d, tc.TandemConv3d, tc.SpikingMaxPool3d, tc.TandemDropout3d,
        tc.TandemLinear,
    ]  # fmt: skip
    table = str(snn.report(volumes()))
    assert "Conv3d, BatchNorm3d, ReLU" in table


@pytest.mark.parametrize("bits", [8, 16])
def test_quantised_weights(bits):
    """The sums of integers are those of the floats that they stand for."""
    layer = tc.TandemConv3d(3, 6, (2, 3, 1), padding=1, groups=3, norm="batch").eval()
    quantise(layer, bits)
    plain = ref.TandemConv3d(3, 6, (2, 3, 1), padding=1, groups=3, norm="batch").double().eval()
    plain.load_state_dict({name: x.double() for name, x in layer.state_dict().items()})
    with torch.no_grad():
        plain.weight.copy_(layer.weight.double())
    spikes = (torch.rand(8, 4, 3, 4, 5, 3, generator=generator(2)) < 0.4).float()
    x = SpikeTrain.from_dense(spikes)
    for engine in ("auto", "event", "dense"):
        layer.engine = engine
        with torch.no_grad():
            same(layer(x).to_dense().double(), plain(ref.DenseTrain(spikes.double())).spikes)
    frozen = freeze(nn.Sequential(layer, Decode()))
    assert next(iter(frozen.buffers())).dtype in (torch.int8, torch.int16)
    with torch.no_grad():
        same(frozen(x), layer(x).count)


def test_operations():
    """The fan-out counts the taps inside the volume; so do the ANN's products."""
    layer = tc.TandemConv3d(2, 4, 3, stride=(1, 2, 1), padding=1, groups=2)
    x = torch.ones(1, *SHAPE)
    ones = torch.ones_like(layer.weight).double()
    reached = F.conv_transpose3d(
        torch.ones(1, *layer.synapses.output_shape((1, *SHAPE))[1:]).double(), ones, None, (1, 2, 1), 1, (0, 1, 0), 2
    )
    same(layer.synapses.fan_out(SHAPE, x.device), reached[0])
    (of_layer,) = synops(nn.Sequential(layer, Decode()), SpikeTrain.from_dense(torch.ones(3, 1, *SHAPE)))
    assert of_layer.synops == 3 * reached.sum()
    assert of_layer.macs == reached.sum()


def test_autocast():
    """Products of spikes keep the precision of the weights."""
    layer = tc.TandemConv3d(2, 4, 3, padding=1, norm="batch").eval()
    x = SpikeTrain.from_dense((torch.rand(8, 2, *SHAPE, generator=generator(3)) < 0.4).float())
    want = layer(x).bits
    with torch.autocast("cpu", torch.bfloat16):
        same(layer(x).bits, want)
        layer(Encode(8)(volumes(2))).count.sum().backward()
    assert layer.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("backend", ["aot_eager"])
def test_compiled(backend):
    net = nn.Sequential(
        Encode(8), tc.TandemConv3d(2, 4, 3, padding=1, norm="batch"), tc.SpikingMaxPool3d((1, 2, 2)),
        tc.TandemConv3d(4, 4, 3, stride=2, padding=(1, 0, 1)), tc.SpikingAvgPool3d(1, 2), Decode(),
    )  # fmt: skip
    x = volumes(3)
    compiled = torch.compile(net, backend=backend, fullgraph=True)
    for module in (net, compiled):
        module.train()
    want = net(x)
    wanted = torch.autograd.grad(want.square().sum(), list(net.parameters()))
    got = compiled(x)
    same(got.detach(), want.detach())
    found = torch.autograd.grad(got.square().sum(), list(net.parameters()))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def spikes(*shape):
    return SpikeTrain.from_dense(torch.ones(4, *shape))


def test_integers_of_numpy():
    two = np.int64(2)
    assert tc.TandemConv2d(2, 3, two, stride=(two, 1), padding=two)(spikes(1, 2, 4, 4)).shape == (1, 3, 4, 7)
    assert tc.SpikingMaxPool2d(two)(spikes(1, 2, 4, 4)).shape == (1, 2, 2, 2)
    assert tc.SpikingAvgPool2d(two, divisor_override=two)(spikes(1, 2, 4, 4)).shape == (1, 2, 2, 2)
    assert tc.SpikingAdaptiveAvgPool2d(two)(spikes(1, 2, 4, 4)).shape == (1, 2, 2, 2)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: tc.TandemConv3d(2, 3, 2, stride=0), ValueError, r"stride must be at least 1, got \(0, 0, 0\)"),
        (lambda: tc.TandemConv3d(2, 3, 2, dilation=(1, 2)), TypeError, "dilation must be an int or three ints, got"),
        (lambda: tc.TandemConv3d(2, 3, 2, padding=-1), ValueError, r"padding must be at least 0, got \(-1, -1, -1\)"),
        (lambda: tc.TandemConv1d(2, 3, 2, stride=(1, 2)), TypeError, "stride must be an int or a tuple of one, got"),
        (
            lambda: tc.TandemConv1d(2, 3, (2, 2)),
            TypeError,
            r"kernel_size must be an int or a tuple of one, got \(2, 2\)",
        ),
        (
            lambda: tc.TandemConv2d(2, 3, (2, 2, 2)),
            TypeError,
            r"kernel_size must be an int or a pair of ints, got \(2, ",
        ),
        (
            lambda: tc.TandemConvTranspose2d(2, 3, 2, padding=-1),
            ValueError,
            r"padding must be at least 0, got \(-1, -1",
        ),
        (lambda: tc.TandemConv3d(2, 3, 2)(torch.ones(1, 2, 3, 3, 3)), TypeError, "must be a SpikeTrain, got Tensor"),
        (lambda: tc.TandemConv3d(2, 3, 2)(spikes(1, 2, 3, 3)), ValueError, r"must be \[N, 2, D, H, W\], got \[1, 2, 3"),
        (lambda: tc.TandemConv3d(2, 3, 2)(spikes(1, 3, 3, 3, 3)), ValueError, r"\[N, 2, D, H, W\], got \[1, 3, 3, 3"),
        (lambda: tc.TandemConv3d(2, 3, 3)(spikes(1, 2, 2, 3, 3)), ValueError, "padded input along the depth: got wei"),
        (lambda: tc.TandemConv3d(2, 3, 3)(spikes(1, 2, 3, 3, 2)), ValueError, "padded input along the width: got wei"),
        (
            lambda: tc.TandemConv3d(2, 3, 3)(Encode(4)(torch.ones(1, 2, 2, 3, 3))),
            ValueError,
            r"along the depth: got weight \[3, 2, 3, 3, 3\], input \[1, 2, 2, 3, 3\]",
        ),
        (
            lambda: tc.TandemConv3d(2, 3, 3, padding=2, padding_mode="reflect")(spikes(1, 2, 2, 3, 3)),
            ValueError,
            "padding_mode 'reflect': padding must be at most 1 for 2 pixels, got 2",
        ),
        (lambda: tc.SpikingMaxPool3d(2, (1, 1)), TypeError, r"stride must be an int or three ints, got \(1, 1\)"),
        (lambda: tc.SpikingMaxPool3d(0), ValueError, "kernel_size must be at least 1, got 0"),
        (lambda: tc.SpikingMaxPool2d(2, dilation=0), ValueError, "dilation must be at least 1, got 0"),
        (
            lambda: tc.SpikingMaxPool2d(2, padding=2),
            ValueError,
            "padding must be at most half of the kernel size 2, go",
        ),
        (lambda: tc.SpikingAvgPool3d(-1), ValueError, "kernel_size must be at least 1, got -1"),
        (lambda: tc.SpikingAvgPool2d(2, stride=-1), ValueError, "stride must be at least 1, got -1"),
        (lambda: tc.SpikingAvgPool2d(2, divisor_override=0), ValueError, "divisor_override must be at least 1, got 0"),
        (lambda: tc.SpikingAdaptiveAvgPool2d(0), ValueError, "output_size must be at least 1, got 0"),
        (lambda: tc.SpikingMaxPool3d(2, return_indices=True), ValueError, "return_indices must be False"),
        (lambda: tc.SpikingMaxPool3d(3)(spikes(1, 2, 2, 3, 3)), ValueError, "window of 3 is larger than the padded"),
        (lambda: tc.SpikingAvgPool2d(2, (1, 1, 1)), TypeError, r"stride must be an int or a pair of ints, got \(1, "),
        (lambda: tc.SpikingAvgPool3d(3)(spikes(1, 2, 2, 3, 3)), ValueError, "window of 3 is larger than the padded"),
        (lambda: tc.SpikingAvgPool3d(2)(spikes(1, 2, 3, 3)), ValueError, r"\[N, C, D, H, W\], got \[1, 2, 3, 3\]"),
        (lambda: tc.SpikingAdaptiveAvgPool3d((1, 1)), ValueError, r"output_size must be one number or 3, got \(1, 1\)"),
        (lambda: tc.TandemDropout3d()(spikes(1, 2, 3, 3)), ValueError, r"\[N, C, D, H, W\], got \[1, 2, 3, 3\]"),
        (
            lambda: tc.TandemAdd(tc.TandemConv3d(2, 2, 1), nn.Identity())(spikes(1, 2, 3, 3, 3), spikes(1, 2, 3, 3, 2)),
            ValueError,
            "branches must agree in shape",
        ),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_nir_has_no_volumes():
    exchange = pytest.importorskip("tandem_cuda.exchange")
    pytest.importorskip("nir")
    net = nn.Sequential(
        Encode(4), tc.TandemConv3d(2, 3, 3), tc.SpikingAvgPool3d(2), Decode(), nn.Flatten(), nn.Linear(27, 2)
    )
    with pytest.raises(ValueError, match="no three-dimensional convolution") as error:
        exchange.to_nir(net, volumes(1))
    assert "2 (SpikingAvgPool3d): NIR has no three-dimensional pooling" in str(error.value)


def test_the_slices_of_a_kernel():
    """Channels of the images: those of a group side by side, slice by slice."""
    layer = tc.TandemConv3d(4, 2, (2, 1, 1), stride=(2, 1, 1), dilation=(2, 1, 1), groups=2)
    bits = torch.arange(4 * 5).view(1, 1, 4, 5, 1, 1).to(torch.uint8)  # channel c and depth d have 5 * c + d
    rearrange, _ = layer.synapses.image()
    assert rearrange(bits).flatten(2).tolist() == [[[0, 5, 2, 7, 10, 15, 12, 17], [2, 7, 4, 9, 12, 17, 14, 19]]]
    weight = layer.weight.detach()
    kernel = layer.weights.floats().detach()
    assert kernel.flatten(1).tolist() == weight.transpose(1, 2).flatten(1).tolist()
    same(layer.synapses.from_kernel(kernel), weight)
    x = SpikeTrain(bits & 15, 4)
    same(ops.unpack_spikes(layer(x).bits, 4, torch.float32).shape, torch.Size((4, 1, 2, 2, 1, 1)))
