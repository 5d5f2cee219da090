"""What torch's convolution gets wrong, or rounds, and engine "dense" and the layers must not."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import tandem_cuda as tc
from exact import ENGINES, FLOATS, HALVES, SEEDS, dyadic, examples, planes, same
from tandem_cuda import ops
from tandem_cuda import reference as ref


def plain(x):
    """The same values in memory that nothing can be said against."""
    return x.clone(memory_format=torch.contiguous_format)


@st.composite
def odd_strides(draw, x):
    """The same values, contiguous or features last, with any strides in dimensions of size 1."""
    if draw(st.booleans()):
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    strides = [
        draw(st.sampled_from((0, 1, 2, x.stride(d), x.stride(d - 1), x.numel()))) if x.shape[d] == 1 else x.stride(d)
        for d in range(x.dim())
    ]
    return x.as_strided(x.shape, strides)


def test_weights_of_height_1():
    """Features last, but for a height of 1 whose stride is that of the width."""
    bits = planes(8, 2, 36, 4, 5, seed=0)
    weight = dyadic(32, 9, 1, 2, seed=1).permute(0, 3, 2, 1).contiguous().permute(0, 3, 2, 1)
    want = ref.spiking_conv2d(bits, plain(weight), groups=4, time_steps=8)
    same(ops.spiking_conv2d(bits, weight, groups=4, time_steps=8, engine="dense"), want)
    same(ref.spiking_conv2d(bits, weight, groups=4, time_steps=8), want)


@examples(300)
@given(
    data=st.data(),
    groups=st.sampled_from((1, 2, 4)),
    channels=st.sampled_from((1, 2, 9, 16)),
    outputs=st.sampled_from((1, 2, 8)),
    kernel=st.tuples(st.sampled_from((1, 1, 2, 3)), st.sampled_from((1, 1, 2, 3))),
    batch=st.integers(1, 2),
    dtype=st.sampled_from((*FLOATS, *HALVES)),
    engine=st.sampled_from(ENGINES),
    seed=SEEDS,
)
def test_any_strides_of_size_1(data, groups, channels, outputs, kernel, batch, dtype, engine, seed):
    bits = planes(8, batch, groups * channels, kernel[0] + 1, kernel[1], seed=seed)
    weight = dyadic(groups * outputs, channels, *kernel, seed=seed + 1, dtype=dtype)
    odd = data.draw(odd_strides(weight))
    named = {"groups": groups}
    want = ref.spiking_conv2d(bits, plain(weight), time_steps=8, **named)
    same(ops.spiking_conv2d(bits, odd, time_steps=8, engine=engine, **named), want)
    same(ref.spiking_conv2d(bits, odd, time_steps=8, **named), want)
    same(ops.count_conv2d(bits, odd, engine=engine, **named), ref.count_conv2d(bits, plain(weight), **named))


@examples(150)
@given(
    data=st.data(),
    groups=st.sampled_from((1, 2, 4)),
    channels=st.sampled_from((1, 2, 9, 16)),
    outputs=st.sampled_from((1, 2, 8)),
    kernel=st.tuples(st.sampled_from((1, 1, 2, 3)), st.sampled_from((1, 1, 2, 3))),
    twice=st.booleans(),
    seed=SEEDS,
)
def test_gradients_of_any_strides_of_size_1(data, groups, channels, outputs, kernel, twice, seed):
    count = dyadic(2, groups * channels, kernel[0] + 1, kernel[1], seed=seed, span=8).abs().ceil()
    weight = dyadic(groups * outputs, channels, *kernel, seed=seed + 1)
    out = F.conv2d(count, weight, groups=groups)
    grad = dyadic(*out.shape, seed=seed + 2)
    settings = (None, [1, 1], [0, 0], [1, 1], False, [0, 0], groups, [True, True, False])
    want = torch.ops.aten.convolution_backward(grad.double(), count.double(), weight.double(), *settings)
    grad, count, weight = (data.draw(odd_strides(x)) for x in (grad, count, weight))
    leaves = count.requires_grad_(), weight.requires_grad_()
    bits = torch.zeros(1, *count.shape, dtype=torch.uint8)
    product = ops.count_conv2d(bits, weight, groups=groups, count=count)
    got = torch.autograd.grad(product, leaves, grad, create_graph=twice)  # True: a gradient that has one itself
    same(tuple(x.detach() for x in got), tuple(x.float() for x in want[:2]))


@examples(100)
@given(data=st.data(), dims=st.sampled_from((1, 2)), transposed=st.booleans(), seed=SEEDS)
def test_layers(data, dims, transposed, seed):
    """With real input, which torch convolves."""
    groups, sizes = data.draw(st.sampled_from((1, 2, 4))), data.draw(st.tuples(*[st.sampled_from((1, 2))] * dims))
    kind = {1: tc.TandemConv1d, 2: tc.TandemConv2d}[dims]
    kind, function = (tc.TandemConvTranspose2d, F.conv_transpose2d) if transposed and dims == 2 else (kind, F.conv2d)
    if kind is tc.TandemConv1d:
        function = F.conv1d
    layer = kind(9 * groups, 8 * groups, sizes, groups=groups, bias=False)
    x = dyadic(2, 9 * groups, *[4] * dims, seed=seed)
    weight = dyadic(*layer.weight.shape, seed=seed + 1)
    layer.weight.data = data.draw(odd_strides(weight))
    got = layer.synapses.dense_product(x, layer.weights.floats(), None)
    same(got.detach(), function(x.double(), plain(weight).double(), groups=groups).float())


@pytest.fixture
def without_onednn():
    """torch's convolutions without oneDNN: of 16 images and more they are NNPACK's, where torch was built with it."""
    with torch.backends.mkldnn.flags(enabled=False):
        yield


@pytest.mark.parametrize("engine", ["auto", "dense"])
@pytest.mark.parametrize("time_steps", [1, 8, 16, 33])
@pytest.mark.parametrize(("channels", "outputs"), [(16, 16), (3, 8), (32, 33)])
@pytest.mark.usefixtures("without_onednn")
def test_exact_without_onednn(channels, outputs, time_steps, engine):
    bits, weight = planes(time_steps, 17, channels, 8, 9, seed=0), dyadic(outputs, channels, 3, 3, seed=1)
    named = {"padding": 1, "engine": engine}
    # Double: the reference's convolution must not be NNPACK's either.
    want = ref.spiking_conv2d(bits, weight.double(), padding=1, time_steps=time_steps)
    got = ops.spiking_conv2d(bits, weight, time_steps=time_steps, **named)
    same(got, (want[0], want[1].float(), want[2].float()))
    same(ops.count_conv2d(bits, weight, **named), ref.count_conv2d(bits, weight.double(), padding=1).float())


@pytest.mark.parametrize("engine", ENGINES)
def test_one_channel_into_one_column(engine):
    """Channels last and with a stride over columns, torch takes other pixels for the window's."""
    bits, weight = planes(8, 8, 1, 5, 3, seed=0), dyadic(2, 1, 3, 3, seed=1)
    geometry = {"stride": (1, 2), "padding": (1, 0), "time_steps": 8}
    same(ops.spiking_conv2d(bits, weight, engine=engine, **geometry), ref.spiking_conv2d(bits, weight, **geometry))
    layer = tc.TandemConv2d(1, 2, 3, stride=(1, 2), padding=(1, 0), engine=engine)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(dyadic(2, seed=2))
        x = dyadic(8, 1, 5, 3, seed=3)
        want = ref.integrate_and_fire(
            F.conv2d(x.double(), weight.double(), layer.bias.double() / 8, (1, 2), (1, 0)).float(), 8
        )
        same(layer(tc.Encode(8)(x)).bits, want[0])
