"""Runs cases: in worker processes whose crashes and hangs are failures like others, or one case alone."""

import contextlib
import datetime
import importlib
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from pathlib import Path

# Beside this package, whether it is imported as fuzz or as tests.fuzz.
processors = importlib.import_module(f"{__package__.removesuffix('fuzz')}processors")

# The function of each kind, which draws a case and checks it.
KINDS = {
    "trains": "operators",
    "neurons": "operators",
    "radix": "operators",
    "products": "operators",
    "coupling": "operators",
    "norms": "operators",
    "networks": "networks",
    "files": "files",
    "nir_graphs": "nir_graphs",
    "conversions": "conversions",
    "radix_networks": "radix_networks",
    "radix_conversions": "radix_conversions",
}
DIFFERENTIAL = ("trains", "neurons", "radix", "products", "products", "coupling", "norms", "networks", "conversions")
RADIX = ("radix_networks", "radix_conversions")
MUTATORS = ("files", "nir_graphs")

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parents[1 + __package__.count(".")]  # where this package is imported from
CASE_SECONDS = 20  # of processor time; a case takes milliseconds
SILENT_SECONDS = 300  # of a worker, until it is taken for hung
MEMORY = 16 << 30  # of address space


class TooSlow(Exception):
    """A case took more time than any may."""


def seed_of_the_day():
    """The first seed of today's cases, with room for a day of them."""
    return int(datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%d")) * 10**9


def reproduction(kind, seed, processor=()):
    """The command that runs one case; of an instrumented library one that builds and loads it."""
    variables = "".join(f"{name}={value} " for name, value in dict(processor).items())
    return f"{variables}python -m tests.fuzz{'.sanitize' if sanitized() else ''} {kind} --seed {seed}"


def run_case(kind, seed):
    """Run one case; returns (None or the exception, what was drawn)."""
    from .draw import Draw

    check = getattr(importlib.import_module(f".{KINDS[kind]}", __package__), kind)
    draw = Draw(seed)

    def too_slow(*_):
        raise TooSlow(f"took more than {CASE_SECONDS} s of processor time")

    before = signal.signal(signal.SIGPROF, too_slow)
    signal.setitimer(signal.ITIMER_PROF, CASE_SECONDS)
    try:
        with draw.path():
            check(draw)
    except Exception as error:
        return error, draw.notes
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
    return None, draw.notes


def described(error):
    """An exception in one line, with the place in this repository that raised it."""
    frames = [
        f for f in traceback.extract_tb(error.__traceback__) if str(ROOT) in f.filename and "/.venv/" not in f.filename
    ]
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{place}"


# ---- A worker: says on its output which case it begins, and what it found


def sanitized():
    return "libasan" in os.environ.get("LD_PRELOAD", "")


def work(kinds, first, stride, seconds):
    """Run cases first, first + stride, ..., each of a kind that its seed picks, until the time is over."""
    import resource
    import warnings

    import torch

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if not sanitized():  # whose shadow memory takes terabytes
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    say = _reporter()
    end, number = None, 0
    while end is None or time.monotonic() < end:
        seed = first + number * stride
        kind = kinds[seed // stride % len(kinds)]
        say(f"begin {kind} {seed}")
        error, _ = run_case(kind, seed)
        if error is not None:
            say(f"fail {kind} {seed} {described(error)}")
        end = end or time.monotonic() + seconds  # the first case pays for imports
        number += 1
    say("end")


def _reporter():
    """Print to the parent alone: what libraries print must not look like a report."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return lambda line: print(line, file=out, flush=True)


# ---- The parent


class Run:
    """Workers, and what they have found so far."""

    def __init__(self, kinds, minutes, workers, seed, command=(sys.executable, "-m", __package__)):
        self.kinds, self.seconds, self.workers, self.seed = kinds, minutes * 60, workers, seed
        self.command = command
        self.cases, self.failures = Counter(), []
        self.processes = {}
        self.stopped = False

    def run(self):
        """Until the time is over, or control-C; then the summary."""
        self.begun = time.monotonic()
        threads = [threading.Thread(target=self._worker, args=(i,), daemon=True) for i in range(self.workers)]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                while thread.is_alive():
                    thread.join(0.2)
        except KeyboardInterrupt:
            self.stopped = True
            for process in [*self.processes.values()]:
                process.kill()
            for thread in threads:
                thread.join(10)
        return self

    def _worker(self, index):
        """Run a worker, and another one from the next case on where it ends before its time."""
        first = self.seed + index
        end = None
        while not self.stopped:
            left = self.seconds if end is None else end - time.monotonic()
            if left <= 0:
                return
            last = self._one_process(index, first, left)
            if last is None:
                return
            seed, began = last
            end = end or began + self.seconds
            first = seed + self.workers

    def _one_process(self, index, first, seconds):
        """None, or of the case that killed it (seed, time of the first case)."""
        command = [*self.command, "--worker", str(first), str(self.workers), str(seconds)]
        processor = self.processor(index)
        environment = {"OMP_WAIT_POLICY": "passive", **os.environ, **processor}
        with tempfile.TemporaryFile("w+", errors="replace") as errors:
            process = subprocess.Popen(
                [*command, *self.kinds],
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=environment,
                cwd=HERE,
                start_new_session=True,  # control-C is the parent's
            )
            self.processes[index] = process
            kind, seed, began, ended = None, first, time.monotonic(), False
            watch = _Watch(process)
            for line in process.stdout:
                watch.reset()
                word, *rest = line.rstrip("\n").split(" ", 3)
                if word == "begin":
                    if kind is None:
                        began = time.monotonic()
                    kind, seed = rest[0], int(rest[1])
                    self.cases[kind] += 1
                elif word == "fail":
                    self._failed(rest[0], int(rest[1]), processor, rest[2])
                elif word == "end":
                    ended = True
            process.wait()
            process.stdout.close()
            watch.stop()
            if ended or self.stopped:
                return None
            errors.seek(0)
            tail = errors.read()[-6000:]
            what = "hangs" if watch.fired else f"the process ends with {_status(process.returncode)}"
            sys.stderr.write(tail + "\n")
            self._failed(kind or self.kinds[0], seed, processor, f"{what}: {_telling(tail)}")
            return seed, began if kind else -math.inf  # no use in starting another where none begins

    def processor(self, index):
        """The environment in which a worker takes this processor for another one."""
        if sanitized():
            return {}
        return processors.environment(processors.SETTINGS[(self.seed // 10**9 + index) % len(processors.SETTINGS)])

    def _failed(self, kind, seed, processor, what):
        line = reproduction(kind, seed, processor)
        self.failures.append((line, what))
        print(f"FAILED {line}  # {what}", flush=True)

    def summary(self):
        """Cases of each kind, and every failure's reproduction."""
        took = time.monotonic() - self.begun
        lines = [f"fuzz: {sum(self.cases.values())} cases in {took:.0f} s, {self.workers} processes, seed {self.seed}"]
        for kind in dict.fromkeys(self.kinds):
            bad = sum(f" {kind} " in line for line, _ in self.failures)
            lines.append(f"  {kind:12}{self.cases[kind]:9} cases {bad:6} failures")
        lines += [f"FAILED {line}  # {what}" for line, what in self.failures]
        return "\n".join(lines)


class _Watch:
    """Kills a process that has said nothing for too long."""

    def __init__(self, process):
        self.process, self.fired, self.timer = process, False, None
        self.reset()

    def reset(self):
        self.last = time.monotonic()
        if self.timer is None:
            self._arm(SILENT_SECONDS)

    def _arm(self, seconds):
        self.timer = threading.Timer(seconds, self._check)
        self.timer.daemon = True
        self.timer.start()

    def _check(self):
        left = self.last + SILENT_SECONDS - time.monotonic()
        if left > 0:
            self._arm(left)
            return
        self.fired = True
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()

    def stop(self):
        self.timer.cancel()


def _status(code):
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _telling(text):
    """The line of a report that says what it is about."""
    lines = [line.strip() for line in text.replace(str(ROOT) + "/", "").splitlines() if line.strip()]
    for mark in ("runtime error", "ERROR: AddressSanitizer", "Error"):
        for line in lines:
            if mark in line:
                return line
    return lines[-1] if lines else "nothing said"
