"""The comparison of two versions of the library, tests/same: what it sees, what it forgives, what it runs."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tandem_cuda import SpikeTrain

pytest.importorskip("nir", reason="pip install tandem_cuda[nir]")
from same import __main__ as tool
from same import layers, messages, networks, operators
from same.digest import attempt, digest, refusal

ROOT = Path(__file__).resolve().parents[1]


def test_digests_tell_bits_apart():
    x = torch.tensor([0.0, 1.0, 2.0])
    others = [-x, x + 1e-7, x.double(), x[None], x.to(torch.int32)]
    assert len({digest(x), *map(digest, others)}) == 6
    assert digest(x) == digest(x.repeat(2)[:3]) == digest(torch.stack([x, x], 1)[:, 0])
    assert digest({"a": [x, None], "b": 2.5}) == f"{{a: [{digest(x)}, None], b: 2.5}}"
    assert digest(torch.empty(0, 2)) != digest(torch.empty(2, 0))


def test_digests_of_trains():
    bits = torch.tensor([[[3]]], dtype=torch.uint8)
    one = SpikeTrain(bits, 2)
    different = [SpikeTrain(bits, 3), SpikeTrain(bits, 2, amplitude=0.5), SpikeTrain(bits & 1, 2)]
    assert len({digest(one), *map(digest, different)}) == 4
    assert digest(one) == digest(SpikeTrain(bits.clone(), 2))


def test_errors_without_addresses_and_base_classes():
    assert refusal(TypeError("<object at 0x7f12>  is\nwrong")) == "TypeError: <object at 0x> is wrong"
    assert refusal(TypeError("Layer.forward() takes 2")) == refusal(TypeError("Base.forward() takes 2"))
    assert attempt(int, "x").startswith("ValueError: invalid literal")


def test_what_differs():
    old = {"a": {"x": "1", "y": "2"}, "b": {"x": "1"}}
    new = {"a": {"x": "1", "y": "3"}, "c": {"x": "1"}}
    assert list(tool.different(old, new)) == [("a", "y", "2", "3"), ("b", "x", "1", None), ("c", "x", None, "1")]


def test_only_listed_differences_pass(monkeypatch, capsys):
    found = [("layers: layer 1", "eval", "1", "2"), ("layers: layer 2", "state", "1", "2")]
    results = {"layers: layer 1": {"eval": "2"}, "layers: layer 2": {"state": "2"}}
    assert tool.summary(results, []) == 0
    assert tool.summary(results, found) == 1
    assert "2 values of 2 cases: 2 differ, 2 of them not listed" in capsys.readouterr().out
    entries = [{"cases": ["layers: layer ?"], "aspects": ["eval*"], "reason": "rounds"}]
    monkeypatch.setattr(tool, "listed", lambda: entries)
    assert tool.summary(results, found) == 1
    printed = capsys.readouterr().out
    assert "layers: layer 2, state:\n  old: 1\n  new: 2" in printed
    assert "layer 1" not in printed
    assert "  1 rounds" in printed
    entries.append({"cases": ["*"], "aspects": ["*"], "reason": "all"})
    assert tool.summary(results, found) == 0


def test_listed_differences_have_reasons():
    for entry in tool.listed():
        assert entry.keys() == {"cases", "aspects", "reason"}
        assert all(entry.values())


@pytest.mark.parametrize("kind", [operators, layers, networks, messages], ids=tool.KINDS)
def test_a_case_repeats(kind):
    name = {"layers": "layer 3", "networks": "network 11"}.get(kind.__name__.split(".")[-1], kind.names()[0])
    assert name in kind.names()
    found = [kind.run(name) for _ in range(2)]
    assert found[0] == found[1]
    assert len(found[0]) > 10


def test_networks_are_almost_all_converted():
    """A case that is refused compares one message."""
    refusals = [x["conversion"] for x in map(networks.run, networks.names()[:40]) if "conversion" in x]
    drawn = [x for x in refusals if "no other parametrisations" in x]  # integers of weights that are computed
    assert len(drawn) < 10
    assert len(refusals) - len(drawn) < 3


@pytest.mark.slow
def test_a_changed_library_is_found(tmp_path):
    """Both processes, one with a library that has another message."""
    shutil.copytree(ROOT / "tandem_cuda", tmp_path / "tandem_cuda")
    file = tmp_path / "tandem_cuda" / "nn" / "encode.py"
    text = file.read_text()
    file.write_text(text.replace("mode must be one of", "mode must be any of"))
    assert file.read_text() != text
    results = []
    for library in (ROOT, tmp_path):
        folder = tmp_path / library.name / "out"
        command = [sys.executable, "tests/same/worker.py", library, folder, "--kinds", "messages", "--names"]
        subprocess.run([*map(str, command), "arguments of Encode"], cwd=ROOT, check=True)
        results.append(json.loads((folder / "results.json").read_text()))
    differences = list(tool.different(*results))
    assert 10 < len(differences) < 20
    assert all(aspect.startswith("mode, ") for _, aspect, *_ in differences)
