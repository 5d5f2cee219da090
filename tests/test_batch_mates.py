"""What a sample gives does not depend on the other samples of its batch, to the bit, for float weights too."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from exact import FLOATS, SEEDS, THREADS, examples, generator, same
from tandem_cuda import ops

# Of the samples of a batch: from almost silent ones, of which lists are made, to ones that torch multiplies.
RATES = (0.0, 0.02, 0.2, 0.5, 0.95, 1.0)


def mates(rates, time_steps, *shape, seed):
    """Bits [P, N, *shape], one sample for each rate."""
    chances = torch.tensor(rates).view(1, -1, *[1] * len(shape))
    spikes = torch.rand(time_steps, len(rates), *shape, generator=generator(seed)) < chances
    return ops.pack_spikes(spikes)


def check(product, bits, batch_dim):
    """Assert that every sample alone gives what it gives among the others, with every number of threads.

    batch_dim: where the samples of each result are.
    """
    for threads in THREADS:
        torch.set_num_threads(threads)
        together = product(bits)
        for n in range(bits.shape[1]):
            alone = product(bits[:, n : n + 1])
            for dim, all_of_them, one in zip(batch_dim, together, alone, strict=True):
                same(all_of_them.narrow(dim, n, 1), one, f"{threads} threads, sample {n}")


def operands(*shape, seed, dtype):
    """Weights whose sums depend on the order of additions, and biases."""
    weight = torch.randn(shape, generator=generator(seed), dtype=dtype) / 4
    return weight, torch.randn(shape[0], generator=generator(seed + 1), dtype=dtype) / 8


def check_conv2d(rates, time_steps, channels, size, shape, named, engine, dtype, seed):
    bits = mates(rates, time_steps, channels, *size, seed=seed)
    weight, bias = operands(*shape, seed=seed + 1, dtype=dtype)
    named = {**named, "engine": engine}
    check(lambda x: ops.spiking_conv2d(x, weight, bias, time_steps=time_steps, **named), bits, (1, 0, 1))
    check(lambda x: (ops.count_conv2d(x, weight, bias, **named),), bits, (0,))
    radix = min(time_steps, 8)
    check(lambda x: (ops.count_conv2d(x, weight, bias, **named, radix=radix),), bits[:1], (0,))


BATCHES = st.lists(st.sampled_from(RATES), min_size=2, max_size=6)
REPRODUCIBLE = st.sampled_from(("auto", "event"))


@examples(60)
@given(
    rates=BATCHES,
    time_steps=st.sampled_from((1, 4, 8, 9, 20)),
    groups=st.sampled_from((1, 1, 2)),
    channels=st.sampled_from((1, 2, 3, 16, 33, 64)),
    outputs=st.sampled_from((1, 2, 8, 16, 48, 64)),
    kernel=st.sampled_from((1, 2, 3, 5)),
    room=st.tuples(st.integers(0, 9), st.integers(0, 9)),
    stride=st.integers(1, 2),
    engine=REPRODUCIBLE,
    dtype=st.sampled_from(FLOATS),
    seed=SEEDS,
)
def test_conv2d(rates, time_steps, groups, channels, outputs, kernel, room, stride, engine, dtype, seed):
    size, shape = [kernel + more for more in room], (groups * outputs, channels, kernel, kernel)
    named = {"stride": stride, "padding": kernel // 2, "groups": groups}
    check_conv2d(rates, time_steps, groups * channels, size, shape, named, engine, dtype, seed)


@pytest.mark.parametrize(
    ("channels", "outputs", "size"),
    [
        (64, 128, 16),  # torch adds up one image of this layer in another order than eight
        (64, 64, 14),
        (33, 96, 37),  # inputs of which every seventh cache line is counted
        (80, 8, 33),
    ],
)
def test_larger_conv2d(channels, outputs, size):
    rates = (0.05, 1.0, 0.9, 0.1, 0.95, 0.4, 0.9, 0.0)
    shape, named = (outputs, channels, 3, 3), {"padding": 1}
    check_conv2d(rates, 4, channels, (size, size), shape, named, "auto", torch.float32, 0)


@examples(40)
@given(
    rates=BATCHES,
    time_steps=st.sampled_from((1, 8, 17)),
    features=st.sampled_from((1, 3, 64, 130, 700)),
    outputs=st.sampled_from((1, 8, 70, 256)),
    rows=st.sampled_from(((), (3,))),
    engine=REPRODUCIBLE,
    dtype=st.sampled_from(FLOATS),
    seed=SEEDS,
)
def test_linear(rates, time_steps, features, outputs, rows, engine, dtype, seed):
    bits = mates(rates, time_steps, *rows, features, seed=seed)
    weight, bias = operands(outputs, features, seed=seed + 1, dtype=dtype)
    named = {"engine": engine}
    check(lambda x: ops.spiking_linear(x, weight, bias, time_steps=time_steps, **named), bits, (1, 0, 1))
    check(lambda x: (ops.count_linear(x, weight, bias, **named),), bits, (0,))
    radix = min(time_steps, 8)
    check(lambda x: (ops.count_linear(x, weight, bias, **named, radix=radix),), bits[:1], (0,))


@pytest.mark.parametrize("engine", ["auto", "event"])
@pytest.mark.parametrize(("channels", "multiplier"), [(5, 3), (40, 1)])
def test_depthwise(channels, multiplier, engine):
    shape, named = (channels * multiplier, 1, 3, 3), {"padding": 1, "groups": channels}
    check_conv2d((0.0, 1.0, 0.1, 0.7), 9, channels, (6, 7), shape, named, engine, torch.float32, 0)
