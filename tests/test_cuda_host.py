"""CUDA kernels, run on the host: without a device, under sanitizers, in several orders of threads."""

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from call_files import SPIKES
from exact import nightly
from host_programs import TESTS, VARIANTS
from product_calls import check_calls, product_calls, value_calls
from tandem_cuda.ops.pack_weight import packed_like

ORDERS = ["asc", "desc", "rand"]
# The quick tests have one of each: the sanitizers' builds take minutes.
every_order = pytest.mark.parametrize("order", [*(nightly(order) for order in ORDERS[:2]), "rand"])
every_variant = pytest.mark.parametrize("variant", ["plain", nightly("asan"), nightly("tsan")])

ASAN, UBSAN, RACE = "ERROR: AddressSanitizer", "runtime error", "WARNING: ThreadSanitizer: data race"
WRONG = "wrong result"
# What the plain, the asan and the tsan build say of each bug; None where they cannot know: what is out of bounds is for
# one sanitizer, races are for the other, and a race that changes no result while fibers take turns is for it alone.
BUGS = {
    "missing_barrier": (WRONG, WRONG, RACE),
    "write_after_read": (WRONG, WRONG, RACE),
    "lost_update": (None, None, RACE),
    "warp_race": (WRONG, WRONG, RACE),
    "divergent_barrier": ("divergent barrier",) * 3,
    "deadlock": ("deadlock",) * 3,
    "wrong_mask": ("__shfl_sync: the mask names a lane that has ended",) * 3,
    "foreign_lane": ("a lane reads from one that the mask does not name",) * 3,
    "shared_index": (None, UBSAN, None),
    "shared_pointer": (None, ASAN, None),
    "shared_in_template": (None, ASAN, None),
    "dynamic_shared": (None, ASAN, None),
    "global": (None, ASAN, None),
    "uninitialised": (WRONG, WRONG, WRONG),
    "uninitialised_in_template": (WRONG, WRONG, WRONG),
    "uninitialised_dynamic": (WRONG, WRONG, WRONG),
    "race_between_blocks": (None, None, RACE),
    "copy_without_wait": (WRONG, WRONG, RACE),
    "copy_waits_for_too_few": (WRONG, WRONG, RACE),
    "copy_too_early": (WRONG, WRONG, RACE),
    "copy_misaligned": ("cp.async: an address is no multiple of 16",) * 3,
    "product_of_unfenced_copy": ("wgmma: shared memory without fence.proxy.async",) * 3,
    "product_of_unfenced_matrix": ("wgmma: shared memory without fence.proxy.async",) * 3,
    "product_unfenced": ("wgmma: no wgmma.fence since registers were last written",) * 3,
    "product_without_wait": (WRONG,) * 3,
    "product_waits_for_too_few": (WRONG,) * 3,
    "product_of_some_warps": ("wgmma: not all warps of a warpgroup",) * 3,
    "product_of_registers_written": ("wgmma: registers that a product reads have changed",) * 3,
    "product_overwritten": ("wgmma: shared memory that a product reads has changed",) * 3,
    "trap": ("__trap()",) * 3,
}
GOOD = ["good", "copies", "product"]


def test_there_are_tests():
    assert {"integer_fragments_test", "integrate_and_fire_test"} <= set(TESTS)


@every_order
@pytest.mark.parametrize("name", TESTS)
def test_in_every_order(host, name, order):
    result = host.run(name, "plain", order=order)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.nightly
@pytest.mark.parametrize(("order", "seed"), [("asc", 0), ("rand", 2), ("rand", 3)])
@pytest.mark.parametrize("variant", ["asan", "tsan"])
@pytest.mark.parametrize("name", TESTS)
def test_under_sanitizers(host, name, variant, order, seed):
    result = host.run(name, variant, order=order, seed=str(seed))
    assert (result.returncode, result.stderr) == (0, ""), result.stdout + result.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("order", "seed"), [nightly("asc", 11), nightly("desc", 12), ("rand", 13)])
def test_whole_weights_of_many_shapes(host, order, seed):
    result = host.run("integer_product_test", "plain", str(seed), "300", order=order)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.nightly
def test_whole_weights_of_the_most_inputs(host):
    result = host.run("integer_product_test", "plain", "1", "0")
    assert result.returncode == 0, result.stdout + result.stderr


DIGITS = {torch.int8: 1, torch.int16: 2, torch.float32: 4, torch.float16: 4, torch.bfloat16: 4}


@pytest.mark.parametrize("dtype", DIGITS)
@pytest.mark.parametrize(
    ("groups", "shape"),
    [
        (1, (16, 16, 3, 3)),
        (1, (64, 33)),
        (2, (130, 100, 1, 2)),
        (3, (96, 17, 5, 5)),
        (1, (15, 16, 1, 1)),
        (1, (16, 4096)),
    ],
)
def test_size_of_packed_weights(host, groups, shape, dtype):
    """Python knows without a device how many elements pack_weight returns on one."""
    with FakeTensorMode():
        weight = torch.empty(shape, dtype=dtype, device="cuda")
        (size,), packed_dtype = packed_like(weight, groups)
        rows = min(packed_like(torch.empty(shape, dtype=dtype), groups)[0])
    kernel = shape[2:] or (1, 1)
    digits, units = DIGITS[dtype], shape[0] if dtype.is_floating_point else 0
    result = host.run(
        "integer_product_test", "plain", *map(str, [groups, shape[1] * groups, shape[0], *kernel, digits])
    )
    assert (size - rows - units) * packed_dtype.itemsize == int(result.stdout)
    assert packed_dtype == (torch.int32 if units else dtype)


# ---- Products, against the library's own on the CPU


@pytest.fixture(scope="session")
def calls():
    return product_calls()


@pytest.fixture(scope="session")
def radix_calls():
    return value_calls()


def runs(every):
    """All calls, or one of so many in the quick tests."""
    others = [nightly("plain", "desc", 1), *(nightly(variant, "asc", 1) for variant in ("asan", "tsan"))]
    return pytest.mark.parametrize(("variant", "order", "every"), [("plain", "rand", every), *others])


@runs(every=8)  # of the 49 calls of a shape always others
def test_products_of_the_cpu(host, calls, tmp_path, variant, order, every):
    """All engines and every kind of weight make what the CPU's kernels make, to the bit.

    But for the sign of zero, which whole numbers do not have and nothing depends on.
    """
    calls = calls[::every]
    check_calls(host, calls, tmp_path, variant, order)
    spikes = [np.unpackbits(expected[1].numpy()).sum() for call, expected in calls if call.multiplied == SPIKES]
    assert sum(spikes) > 15 * len(calls)  # silence would prove little


@runs(every=5)  # likewise of 22
def test_values_of_radix_spikes(host, radix_calls, tmp_path, variant, order, every):
    """All engines and every kind of weight multiply them exactly."""
    calls = radix_calls[::every]
    check_calls(host, calls, tmp_path, variant, order)
    assert {call.steps for call, _ in calls} == set(range(1, 9))
    bytes_of_eight = [call.bits for call, _ in calls if call.steps == 8 and call.bits.numel()]
    assert min(bits.max() for bits in bytes_of_eight) > 128  # which a sign would turn negative
    assert max(bits.min() for bits in bytes_of_eight) == 255


# ---- The harness itself


def test_table_names_every_kernel(host):
    assert sorted(host.run("seeded_bugs", "plain").stdout.split()) == sorted([*GOOD, *BUGS])


@every_order
@every_variant
@pytest.mark.parametrize("name", GOOD)
def test_nothing_is_found_where_nothing_is_wrong(host, name, variant, order):
    result = host.run("seeded_bugs", variant, name, order=order)
    assert (result.returncode, result.stdout, result.stderr) == (0, f"{name}: right\n", "")


@pytest.mark.parametrize(
    ("variant", "order"),
    [
        ("plain", "asc"),
        *(nightly("plain", order) for order in ("desc", "rand")),
        *(nightly(variant, order) for variant in ("asan", "tsan") for order in ("asc", "rand")),
    ],
)
@pytest.mark.parametrize("name", BUGS)
def test_seeded_bug_is_found(host, name, variant, order):
    result = host.run("seeded_bugs", variant, name, order=order)
    said = result.stdout + result.stderr
    expected = BUGS[name][list(VARIANTS).index(variant)]
    if expected is None:
        # The table is to be mended, and gladly, where a build learns to find more.
        assert (result.returncode, result.stdout, result.stderr) == (0, f"{name}: right\n", "")
    else:
        assert result.returncode != 0, said
        assert expected in said


def test_environment_is_checked(host):
    result = host.run("seeded_bugs", "plain", "good", order="sideways")
    assert result.returncode != 0
    assert "TANDEM_HOST_ORDER must be asc, desc or rand" in result.stderr
