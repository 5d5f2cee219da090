"""A process of its own that measures the peak extra memory of one training step: python memory.py SIDE T THREADS."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

BATCH = 32
NETWORK = f"CifarNet with 64 hidden neurons, batch {BATCH}"
CLEAR = Path("/proc/self/clear_refs")
MEASURABLE = CLEAR.exists()


def environment() -> dict[str, str]:
    """The allocator hands memory back at once: what was freed before the step is not taken for the step's."""
    return {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}


def status(key: str) -> int:
    """A value of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":"))


def main() -> None:
    import torch

    import tandem_cuda as tc
    from networks import ann_twin, cifar_net, inputs, reference_twin, settle, training_step

    side, time_steps, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    (x,) = inputs(BATCH, 3, 32, 32, batches=1)

    def build(layers: object) -> torch.nn.Sequential:
        # So few hidden neurons that the gradients of the weights do not hide the activations.
        return cifar_net(layers, time_steps, hidden=64)

    net = settle(build(tc), [x[:4]])
    rates = [f"{layer.firing_rate:.1%}" for layer in tc.synops(net, x[:4]) if layer.firing_rate is not None]
    net.train()
    if side == "ann":
        net = ann_twin(net)
    elif side == "reference":
        net = reference_twin(net, build, "folded")
    step = training_step(net, x)
    step()
    for parameter in net.parameters():
        parameter.grad = None
    before = status("VmRSS")
    CLEAR.write_text("5")  # resets the peak, VmHWM
    step()
    print(json.dumps({"peak_extra": status("VmHWM") - before, "rates": ", ".join(rates)}))


if __name__ == "__main__":
    main()
