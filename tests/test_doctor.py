"""``python -m tandem_cuda`` beyond the facts that it shows (test_build.py): its verdict, and its benchmark."""

import time

import pytest
import torch
from torch import nn

from tandem_cuda import __main__, benchmark, build_info, doctor, models, ops

# ---- The verdict


def test_all_is_well():
    """As the build and the machine permit: with or without CUDA kernels and a device."""
    info = build_info()
    if info["cuda_usable"]:
        line = "All is well: in a spot check, the CPU and CUDA kernels compute what the reference computes."
    elif torch.cuda.is_available():
        line = f"The CPU kernels pass the spot check. The CUDA device cannot be used: {info['cuda_unusable_because']}."
    else:
        line = "All is well: in a spot check, the CPU kernels compute what the reference computes; "
        line += "no CUDA device was found."
    assert doctor.verdict() == (True, line)


def test_no_device(monkeypatch):
    facts = {**build_info(), "cuda_usable": False, "cuda_unusable_because": "torch finds no CUDA device"}
    monkeypatch.setattr(doctor, "build_info", lambda: facts)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    well, line = doctor.verdict()
    assert well
    assert line.endswith("; no CUDA device was found.")


CUDA_BUILD = {
    "cuda_toolkit": "13.0.88",
    "cuda_architectures": ["sm_80", "compute_90"],
    "cuda_not_built_because": None,
    "cuda_driver": None,
    "cuda_usable": False,
    "cuda_unusable_because": "torch finds no CUDA device",
}
CPU_BUILD = {
    "cuda_toolkit": None,
    "cuda_architectures": [],
    "cuda_not_built_because": "TANDEM_CUDA=OFF",
    "cuda_driver": None,
    "cuda_usable": False,
    "cuda_unusable_because": "the kernels were not compiled: TANDEM_CUDA=OFF",
}


@pytest.mark.parametrize(
    ("build", "lines"),
    [
        (CPU_BUILD, ["CUDA kernels  not usable: the kernels were not compiled: TANDEM_CUDA=OFF"]),
        (
            CUDA_BUILD,
            [
                "CUDA kernels  not usable: torch finds no CUDA device",
                "compiled by CUDA 13.0.88 for sm_80 compute_90",
                "driver: none",
            ],
        ),
        (
            {**CUDA_BUILD, "cuda_driver": "13.1", "cuda_usable": True, "cuda_unusable_because": None},
            ["CUDA kernels  usable", "compiled by CUDA 13.0.88 for sm_80 compute_90", "driver: 13.1"],
        ),
    ],
    ids=["CPU build", "no driver", "usable"],
)
def test_facts_about_cuda(monkeypatch, build, lines):
    monkeypatch.setattr(__main__, "build_info", lambda: {**build_info(), **build})
    shown = [line.strip() for line in __main__.report().splitlines()]
    assert shown[-len(lines) :] == lines


def test_the_verdict_comes_last(capsys):
    assert __main__.main([]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == doctor.verdict()[1]


@pytest.mark.parametrize("weights", ["float32", "int8"])
def test_a_wrong_kernel_is_found(monkeypatch, capsys, weights):
    right = ops.spiking_conv2d

    def wrong(bits, weight, *others, **named):
        spikes, total, state = right(bits, weight, *others, **named)
        if str(weight.dtype) == f"torch.{weights}":
            spikes[0, 0, 0, 0, 0] ^= 1
        return spikes, total, state

    monkeypatch.setattr(ops, "spiking_conv2d", wrong)
    assert __main__.main([]) == 1
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith(
        f"Something is wrong on cpu: spiking_conv2d with {weights} weights differs from the reference."
    )
    assert "Reinstall" in line


def test_a_kernel_that_fails_is_found(monkeypatch):
    def fails(bits):
        raise RuntimeError("pack_spikes: out of memory")

    monkeypatch.setattr(ops, "pack_spikes", fails)
    well, line = doctor.verdict()
    assert not well
    assert line.startswith("Something is wrong on cpu: RuntimeError: pack_spikes: out of memory.")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ((), "RuntimeError"),
        (("",), "RuntimeError"),
        ((" \n",), "RuntimeError"),
        (("\nno compiler:\nmore",), "RuntimeError: no compiler:"),
    ],
)
def test_summary_of_an_error(monkeypatch, text, said):
    def fails(*args, **named):
        raise RuntimeError(*text)

    monkeypatch.setattr(ops, "pack_spikes", fails)
    assert doctor.verdict()[1].startswith(f"Something is wrong on cpu: {said}. Reinstall")
    monkeypatch.setattr(torch, "compile", fails)
    assert benchmark.ann_sides(settled(), torch.rand(2, 3, 8, 8))[1] == [
        f"torch.compile does not work here, so it is not measured: {said}"
    ]


def test_a_device_that_is_not_used(monkeypatch):
    facts = {**build_info(), "cuda_usable": False, "cuda_unusable_because": "update the driver"}
    monkeypatch.setattr(doctor, "build_info", lambda: facts)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert doctor.verdict() == (
        True,
        "The CPU kernels pass the spot check. The CUDA device cannot be used: update the driver.",
    )


def test_the_device_is_checked_too(monkeypatch):
    monkeypatch.setattr(doctor, "build_info", lambda: {**build_info(), "cuda_usable": True})
    checked = []
    monkeypatch.setattr(doctor, "_problem", lambda device: checked.append(device))
    assert doctor.verdict() == (
        True,
        "All is well: in a spot check, the CPU and CUDA kernels compute what the reference computes.",
    )
    assert checked == ["cpu", "cuda"]


def test_unknown_commands(capsys):
    with pytest.raises(SystemExit):
        __main__.main(["benhc"])
    assert "invalid choice: 'benhc'" in capsys.readouterr().err


# ---- The benchmark


def small():
    return models.small_cifarnet(size=8)


def settled(seed=0):
    """An ANN with statistics of its own."""
    torch.manual_seed(seed)
    ann = small()
    ann(torch.rand(4, 3, 8, 8))
    return ann.eval()


def no_compiler(*args, **named):
    raise RuntimeError("no C++ compiler\nmore about it")


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(benchmark, "NETWORKS", {"small": (small, (2, 3, 8, 8))})
    monkeypatch.setattr(benchmark, "TIME_STEPS", (4,))
    monkeypatch.setattr(benchmark, "SECONDS", 0.05)
    monkeypatch.setattr(benchmark, "TURN", 0.001)


def rows_of(report):
    lines = [line for line in report.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def check_table(report, ways):
    header, rule, *rows = rows_of(report)
    assert header == ["network, batch", "inference", "firing rate", "median ms", "time / best ANN"]
    assert rule == ["---"] * 5
    assert [row[1] for row in rows] == ["SNN, T = 4, float32", "SNN, T = 4, int8", *ways]
    times = {row[1]: float(row[3]) for row in rows}
    best = min(times[way] for way in ways)
    for name, way, rate, milliseconds, ratio in rows:
        assert name == "small, 2"
        assert (rate != "") == way.startswith("SNN")
        assert float(ratio) == pytest.approx(float(milliseconds) / best, rel=0.2, abs=0.02)
    assert min(float(row[4]) for row in rows if row[1] in ways) == 1


@pytest.mark.usefixtures("quick")
def test_bench_without_a_compiler(monkeypatch, capsys):
    monkeypatch.setattr(torch, "compile", no_compiler)
    assert __main__.main(["bench"]) == 0
    report = capsys.readouterr().out
    check_table(report, ["ANN", "ANN, channels last"])
    assert "torch.compile does not work here, so it is not measured: RuntimeError: no C++ compiler\n" in report
    for fact in ("version", "torch", "processor", "cpu_isa"):
        assert str(build_info()[fact]) in report


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_bench():
    report = benchmark.report()
    check_table(report, ["ANN", "ANN, channels last", "ANN, channels last, compiled"])
    assert "does not work" not in report


@pytest.mark.slow
def test_networks_of_the_benchmark_fire_like_trained_ones():
    build, (_, *shape) = benchmark.NETWORKS["MNIST"]
    _, rates, _ = benchmark.network_sides(build, (4, *shape))
    assert 0.03 < rates["SNN, T = 8, float32"] < 0.07
    assert rates["SNN, T = 8, int8"] == pytest.approx(rates["SNN, T = 8, float32"], rel=0.1)


def test_sides_compute_their_own_network(monkeypatch):
    monkeypatch.setattr(torch, "compile", no_compiler)
    monkeypatch.setattr(benchmark, "TIME_STEPS", (4,))
    sides, _, _ = benchmark.network_sides(small, (2, 3, 8, 8))
    assert not torch.equal(sides["SNN, T = 4, int8"](), sides["SNN, T = 4, float32"]())
    assert torch.equal(sides["SNN, T = 4, float32"](), sides["SNN, T = 4, float32"]())


def test_a_side_that_computes_something_else_is_not_timed(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda net, **named: lambda x: net(x) + 1)
    with pytest.raises(RuntimeError, match="'ANN, channels last, compiled' differs from the ANN's output by"):
        benchmark.ann_sides(settled(), torch.rand(2, 3, 8, 8))


def test_folded():
    ann, x = settled(), torch.rand(2, 3, 8, 8)
    folded = benchmark.folded(ann)
    assert not any(isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d, nn.Dropout)) for layer in folded)
    with torch.no_grad():
        torch.testing.assert_close(folded(x), ann(x))


def test_medians():
    def sleep(seconds):
        return lambda: time.sleep(seconds) or torch.empty(0)

    times = benchmark.medians("test", {"long": sleep(0.02), "short": sleep(0.005)}, 0.0, 3)
    assert list(times) == ["long", "short"]
    assert times["short"] >= 0.005
    assert times["long"] >= 0.02
