"""Layers beside their specification, on the same exact parameters and inputs."""

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

import tandem_cuda
from exact import VANISHING, dyadic, every_path, generator, same
from tandem_cuda import Encode, SpikeTrain
from tandem_cuda import reference as ref


def exact(layer, time_steps):
    """Dyadic parameters, also after norm is folded, whose share per time step is dyadic."""
    with torch.no_grad():
        for i, module in enumerate(layer.modules()):
            if isinstance(module, (_ConvNd, nn.Linear)):
                module.weight.copy_(dyadic(*module.weight.shape, seed=10 * i))
                if module.bias is not None:
                    module.bias.copy_(time_steps * dyadic(len(module.bias), seed=10 * i + 1) / 4)
            if isinstance(module, _BatchNorm):
                power = torch.randint(-1, 2, module.weight.shape, generator=generator(10 * i + 2))
                module.eps = VANISHING
                module.running_var.copy_(4.0**power)
                module.weight.copy_(2.0**power * (1 - 2 * (power == 0).int()))
                module.running_mean.copy_(time_steps * dyadic(len(power), seed=10 * i + 3))
                module.bias.copy_(time_steps * dyadic(len(power), seed=10 * i + 4) / 4)
    return layer


def twins(case, time_steps, dtype=torch.float64, **named):
    """The same exact layer of both packages; `named` are keywords beside those of the case."""
    ours, theirs = (case.make(package, **named, dtype=dtype).eval() for package in (tandem_cuda, ref))
    exact(ours, time_steps)
    theirs.load_state_dict(ours.state_dict())
    for module in theirs.modules():
        if isinstance(module, _BatchNorm):
            module.eps = VANISHING
    return ours, theirs


def fronts(spikes, amplitude=1.0, radix=False):
    """The same train with a differentiable value for both packages."""
    train = SpikeTrain.from_dense(spikes, radix=radix)
    ours = train.replace(value=train.value.clone().requires_grad_(), amplitude=amplitude)
    return ours, ref.DenseTrain(spikes, train.value.clone().requires_grad_(), amplitude, radix)


def agree(ours, theirs, inputs, inputs_ref, *, tolerance=None):
    """The same spikes and counts on every path, with and without gradients; and the same gradients."""
    want = theirs(*inputs_ref)
    assert len(want.spikes) == 1 or want.spikes.numel() == 0 or want.spikes.any()
    for path, got in every_path(ours, *inputs):
        same((got.to_dense(), got.value.detach()), (want.spikes, want.value.detach()), path)
        assert (got.amplitude, got.radix) == (want.amplitude, want.radix)
    with torch.no_grad():
        for _ in range(2):  # what is kept from the first serves the second
            same(ours(*inputs).to_dense(), want.spikes)
    seed_grad = dyadic(*want.shape, seed=3, dtype=want.value.dtype)
    leaves = [
        ([x.value for x in trains] + list(module.parameters()))
        for trains, module in ((inputs, ours), (inputs_ref, theirs))
    ]
    got = torch.autograd.grad(ours(*inputs).value, leaves[0], seed_grad)
    expected = torch.autograd.grad(want.value, leaves[1], seed_grad)
    if tolerance is None:
        same(got, expected)
    else:
        torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)
    return got


# --- life in torch ---------------------------------------------------------------------------------------------------


class Everything(nn.Module):
    """One of each."""

    def __init__(self):
        super().__init__()
        self.encode = Encode(8)
        self.first = tandem_cuda.TandemConv2d(2, 6, 3, padding=1, padding_mode="circular", norm="batch")
        self.max = tandem_cuda.SpikingMaxPool2d(3, 2, 1)
        self.drop = tandem_cuda.TandemDropout2d(0.25)
        self.second = tandem_cuda.TandemConv2d(6, 6, 3, padding=1, norm="batch")
        self.join = tandem_cuda.TandemAdd(tandem_cuda.TandemConv2d(6, 6, 3, padding=1, norm="batch"), nn.Identity())
        self.up = tandem_cuda.TandemConvTranspose2d(6, 4, 2, stride=2, norm="batch")
        self.mean = tandem_cuda.SpikingAdaptiveAvgPool2d((3, 2), threshold=0.5)
        self.line = tandem_cuda.TandemConv1d(4, 5, 3)
        self.decode = tandem_cuda.Decode()

    def forward(self, x):
        x = self.drop(self.max(self.first(self.encode(x))))
        x = self.mean(self.up(self.join(self.second(x), x)))
        return self.decode(self.line(x.flatten(2)))
