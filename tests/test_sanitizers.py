"""The library under AddressSanitizer and UndefinedBehaviorSanitizer, and its threads under ThreadSanitizer.

Every operator of cases.py is called with every engine and dtype, in one thread and in two; under AddressSanitizer with
the scalar kernels and those of this machine's best instruction set, under ThreadSanitizer with every instruction set.
Left to `make sanitize` is what takes longer: AddressSanitizer with every instruction set, UndefinedBehaviorSanitizer in
the CPU kernels, all other quick tests of operators, and minutes of fuzzing. The threads' tests are the same there.
"""

import pytest

from exact import ISAS
from fuzz.sanitize import ADDRESS, EVERY_PATH, THREAD, build, check_planted_bug, obstacle, run_tests


@pytest.mark.nightly
@pytest.mark.parametrize("sanitizer", [ADDRESS, THREAD], ids=lambda sanitizer: sanitizer.name)
def test_every_operator(sanitizer):
    if reason := obstacle(sanitizer):
        pytest.skip(reason)
    best = [isa for isa in ISAS[-1:] if isa.startswith("avx")]
    build(sanitizer, best if sanitizer is ADDRESS else None)
    check_planted_bug(sanitizer)
    assert run_tests(sanitizer, EVERY_PATH, "-n", "2")
