"""The paper's networks: plain ANNs and their spiking twins."""

import pytest
import torch
from torch import nn

from tandem_cuda import SpikeTrain, TandemDropout, TandemLinear, convert, models

# Small ones of every network: name -> what makes it, the shape of a sample, the shape of an output.
NETWORKS = {
    "mnist_cnn": (lambda: models.mnist_cnn(size=8), (1, 8, 8), (10,)),
    "small_cifarnet": (lambda: models.small_cifarnet(classes=3, size=(8, 12)), (3, 8, 12), (3,)),
    "cifarnet": (lambda: models.cifarnet(size=4), (3, 4, 4), (10,)),
    "alexnet": (lambda: models.alexnet(size=4), (3, 4, 4), (10,)),
    "vgg11": (lambda: models.vgg11(size=8), (3, 8, 8), (10,)),
    "nmnist_net": (lambda: models.nmnist_net(classes=11, size=9, channels=(4, 6), hidden=7), (2, 9, 9), (11,)),
    "autoencoder": (lambda: models.autoencoder(16, (8, 4, 8)), (1, 4, 4), (1, 4, 4)),
    "autoencoder of vectors": (lambda: models.autoencoder(16, (8, 4, 8)), (16,), (16,)),
}
networks = pytest.mark.parametrize(("make", "sample", "output"), NETWORKS.values(), ids=NETWORKS)


def settled(net, sample):
    """Batch norm's statistics after a few batches; the next one."""
    with torch.no_grad():
        for _ in range(4):
            net(torch.rand(16, *sample))
    return torch.rand(16, *sample)


def sums(ann):
    """The sum of the absolute gradients of every parameter."""
    return {name: float(p.grad.abs().sum()) for name, p in ann.named_parameters()}


@networks
def test_ann(make, sample, output):
    torch.manual_seed(0)
    ann = make()
    out = ann(torch.rand(4, *sample))
    assert out.shape == (4, *output)
    out.square().sum().backward()
    assert all(value > 0 for value in sums(ann).values())


@networks
def test_spiking_twin(make, sample, output):
    torch.manual_seed(0)
    ann = make()
    net = convert(ann, 8, example=torch.zeros(1, *sample))
    assert {id(p) for p in net.parameters()} == {id(p) for p in ann.parameters()}
    assert list(net.state_dict()) == list(ann.state_dict())
    for time_steps in (8, 9, 1):
        net.set_time_steps(time_steps)
        net.zero_grad()
        out = net(settled(net, sample))
        assert out.shape == (16, *output)
        out.square().sum().backward()
        assert all(torch.isfinite(p.grad).all() for p in ann.parameters())
        assert all(value > 0 for value in sums(ann).values())


@pytest.mark.parametrize("name", ["nmnist_net", "mnist_cnn"])
def test_takes_recorded_spikes(name):
    make, sample, output = NETWORKS[name]
    torch.manual_seed(0)
    ann = make()
    net = convert(ann, 8, mode="spikes", example=torch.zeros(1, *sample))
    for time_steps in (1, 8, 9):
        train = SpikeTrain.from_dense((torch.rand(time_steps, 4, *sample) < 0.3).float())
        assert net(train).shape == (4, *output)
        assert ann(train.count).shape == (4, *output)


def test_width_of_cifarnet():
    def shapes(net):
        return {name: tuple(p.shape) for name, p in net.named_parameters()}

    with torch.device("meta"):
        quarter, whole = models.cifarnet(width=0.25), models.cifarnet()
        assert shapes(models.cifarnet(width=1 / 16)) == shapes(models.small_cifarnet())
    assert [quarter.get_submodule(f"conv{i}").out_channels for i in range(1, 6)] == [32, 64, 128, 256, 128]
    assert quarter.hidden.out_features == 256
    assert models.cifarnet(width=1 / 256).conv1.out_channels == 1
    assert whole.conv4.out_channels == 1024


@pytest.mark.parametrize("name", ["mnist_cnn", "small_cifarnet", "vgg11", "nmnist_net", "autoencoder"])
def test_untrained_layers_fire(name):
    """After four batches, whatever the depth: batch norm's momentum is high."""
    make, sample, _ = NETWORKS[name]
    torch.manual_seed(0)
    net = convert(make(), 8, example=torch.zeros(1, *sample))
    x, rates = settled(net, sample), []
    for module in net.modules():
        if hasattr(module, "neuron"):
            module.register_forward_hook(lambda module, args, train: rates.append(float(train.firing_rate())))
    net(x)
    assert len(rates) >= 3
    assert all(0.005 < rate < 0.3 for rate in rates), rates


def test_full_sizes():
    """The published CifarNet has as many weights, but for the biases that batch norm makes superfluous."""
    with torch.device("meta"):
        weights = {
            name: sum(p.numel() for n, p in getattr(models, name)().named_parameters() if "norm" not in n)
            for name in ("mnist_cnn", "cifarnet", "alexnet", "vgg11", "nmnist_net", "autoencoder")
        }
    conv = 9 * (3 * 128 + 128 * 256 + 256 * 512 + 512 * 1024 + 1024 * 512)
    assert weights["cifarnet"] == conv + 8 * 8 * 512 * 1024 + 1024 * 10 + 10
    assert weights["mnist_cnn"] == 9 * (32 + 32 * 64 + 64 * 64) + 3136 * 128 + 1290
    assert weights["nmnist_net"] == 9 * (64 + 32 * 64 + 64 * 64) + 9 * 9 * 64 * 128 + 1290
    assert weights["autoencoder"] == 2 * (784 * 128 + 128 * 64 + 64 * 32) + 784
    conv = 9 * (3 * 96 + 96 * 256 + 256 * 384 + 384 * 384 + 384 * 256)
    assert weights["alexnet"] == conv + 8 * 8 * 256 * 1024 + 10250
    conv = 9 * (3 * 64 + 64 * 128 + 128 * 256 + 256**2 + 256 * 512 + 3 * 512**2)
    assert weights["vgg11"] == conv + 2 * 2 * 512 * 1024 + 10250


def test_names():
    """Checkpoints hold these names."""
    with torch.device("meta"):
        assert [n for n, _ in models.mnist_cnn().named_parameters()] == [
            *(
                f"{kind}{i}.{x}"
                for i in (1, 2, 3)
                for kind, x in (("conv", "weight"), ("norm", "weight"), ("norm", "bias"))
            ),
            "hidden.weight",
            "hidden_norm.weight",
            "hidden_norm.bias",
            "readout.weight",
            "readout.bias",
        ]
        assert [n for n, _ in models.autoencoder().named_parameters()] == [
            *(
                f"layers.{kind}{i}.{x}"
                for i in range(1, 6)
                for kind, x in (("fc", "weight"), ("norm", "weight"), ("norm", "bias"))
            ),
            "layers.readout.weight",
            "layers.readout.bias",
        ]


def test_dropout_is_for_training():
    net = convert(models.mnist_cnn(size=4, dropout=0.5), 8, example=torch.zeros(1, 1, 4, 4))
    x, amplitudes = settled(net, (1, 4, 4)), []
    (dropout,) = (module for module in net.modules() if isinstance(module, TandemDropout))
    dropout.register_forward_hook(lambda module, args, train: amplitudes.append(train.amplitude))
    net(x)
    net.eval()
    assert torch.equal(net(x), net(x))
    assert amplitudes == [2, 1, 1]


def test_last_layer_of_the_autoencoder_is_analogue():
    net = convert(models.autoencoder(), 8, example=torch.zeros(1, 1, 28, 28))
    assert type(net.snn.layers.readout) is nn.Linear
    assert type(net.snn.layers.fc5) is TandemLinear
    assert (net(torch.rand(4, 1, 28, 28)) < 0).any()  # no spikes


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: models.mnist_cnn(0), ValueError, "mnist_cnn: in_channels must be at least 1, got 0"),
        (lambda: models.cifarnet(classes=1.5), TypeError, "cifarnet: classes must be an int, got float"),
        (lambda: models.cifarnet(width="1"), TypeError, "cifarnet: width must be a number, got str"),
        (lambda: models.cifarnet(width=0), ValueError, "cifarnet: width must be from 1/256 to 256, got 0"),
        (lambda: models.cifarnet(width=float("nan")), ValueError, "cifarnet: width must be from 1/256 to 256, got nan"),
        (lambda: models.vgg11(size=(1, 2, 3)), TypeError, "vgg11: size must be an int or a pair of ints"),
        (lambda: models.alexnet(size=0), ValueError, "alexnet: size must be at least 1, got 0"),
        (lambda: models.small_cifarnet(dropout=1), ValueError, r"small_cifarnet: dropout must be in \[0, 1\), got 1"),
        (lambda: models.nmnist_net(channels=3), TypeError, "nmnist_net: channels must be a sequence of ints, got 3"),
        (lambda: models.nmnist_net(channels=()), ValueError, "nmnist_net: channels must have at least one layer"),
        (lambda: models.nmnist_net(channels=(4, 0)), ValueError, "nmnist_net: channels must be at least 1, got 0"),
        (lambda: models.autoencoder(hidden=8), TypeError, "autoencoder: hidden must be a sequence of ints, got 8"),
        (lambda: models.autoencoder(True), TypeError, "autoencoder: features must be an int, got bool"),
    ],
)
def test_bad_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()
