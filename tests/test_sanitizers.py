"""The whole library under AddressSanitizer and UndefinedBehaviorSanitizer, and its threads under ThreadSanitizer.

Every operator of cases.py is called with every instruction set of this machine, every engine and dtype, in one thread
and in two. Left to `make sanitize` is what takes longer: UndefinedBehaviorSanitizer in the CPU kernels, all other quick
tests of operators, and minutes of fuzzing. The threads' tests are the same there.
"""

import pytest

from fuzz.sanitize import ADDRESS, EVERY_PATH, THREAD, build, check_planted_bug, obstacle, run_tests


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", [ADDRESS, THREAD], ids=lambda sanitizer: sanitizer.name)
def test_every_operator(sanitizer):
    if reason := obstacle(sanitizer):
        pytest.skip(reason)
    build(sanitizer)
    check_planted_bug(sanitizer)
    assert run_tests(sanitizer, EVERY_PATH, "-n", "2")
