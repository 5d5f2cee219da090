"""examples/model_coverage.py: networks of other libraries, and the table in docs/coverage.md."""

import sys
from pathlib import Path

import pytest
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import model_coverage
from model_coverage import CoverageError, Network, Result, check

ROWS = [*model_coverage.known(model_coverage.PAGE.read_text())]
EVERY = -(-len(ROWS) // 6)
EACH = [pytest.param(row, id=row[0], marks=[pytest.mark.nightly] * bool(i % EVERY)) for i, row in enumerate(ROWS)]


@pytest.mark.slow
@pytest.mark.parametrize("row", EACH)
def test_networks_do_what_the_page_says(row):
    """Six in every run, all networks every night. Errors and times differ between machines."""
    network = Network(*row[0].split())
    try:
        network.make()
    except (CoverageError, RuntimeError, ValueError) as error:  # timm raises RuntimeError for names that it lacks
        pytest.skip(str(error))
    _, converts, error, macs, _, freezes, why = check(network).row(network)
    assert (converts, macs, freezes) == (row[1], row[3], row[5]), why
    assert float(error or 0) < 2 * float(row[2] or 0) + 0.01


def test_the_draw_of_the_page():
    """Of each family one network at most."""
    try:
        families = model_coverage.families()
    except CoverageError as error:
        pytest.skip(str(error))
    assert len(families) > 50
    assert {"timm vision_transformer", "torchvision swin_transformer"} <= {*families}
    found = {network.title: family for family, networks in families.items() for network in networks}
    titles = [row[0] for row in ROWS]
    assert {*titles} <= {*found}
    assert len({found[title] for title in titles}) == len(titles)


def test_draws(monkeypatch):
    sizes = {"small": 1, "large": 10**9, "huge": 2 * 10**9}
    monkeypatch.setattr(model_coverage, "parameters", lambda network: sizes[network.name.rstrip("0123456789")])
    every = {
        f"family {i}": [Network("timm", f"{name}{i}") for name in (["large", "huge"] if i else ["small", "huge"])]
        for i in range(9)
    }
    monkeypatch.setattr(model_coverage, "families", lambda: every)
    drawn = model_coverage.drawn(0, 100)
    assert sorted(network.name for network in drawn) == [*(f"large{i}" for i in range(1, 9)), "small0"]
    assert drawn == model_coverage.drawn(0, 9)
    few = model_coverage.drawn(0, 4)
    assert len(few) == 4
    assert any(few != model_coverage.drawn(seed, 4) for seed in range(1, 5))


class Small(Network):
    def make(self):
        if self.name == "silent":  # whose forward depends on values
            return Branches()
        layers = nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Conv2d(4, 4, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4, 10))


class Branches(nn.Conv2d):
    def __init__(self):
        super().__init__(3, 4, 3)

    def forward(self, x):
        return super().forward(x) if x.sum() > 0 else x


def test_what_is_checked(monkeypatch):
    small = Small("torch", "small")
    result = check(small)
    assert (result.converts, result.freezes, result.reason, result.spiking_macs > 0) == ("yes", "yes", "", True)
    assert 0 < result.error < 0.2
    assert 0 < result.seconds < 60
    result = check(Small("torch", "silent"))
    assert (result.converts, result.freezes) == ("no", "-")
    assert result.reason.startswith("convert: torch.export cannot export forward of Branches: ")
    monkeypatch.setattr(model_coverage, "freeze", lambda snn: lambda x: snn(x) + 0.1)
    result = check(small)
    assert (result.converts, result.freezes, result.reason) == ("yes", "no", "the frozen network differs by 1.0e-01")


def test_networks_without_a_size():
    with pytest.raises(ValueError, match="it takes no images of 64, 96, "):
        model_coverage.images(nn.Linear(5, 3))


def test_page(tmp_path, monkeypatch):
    monkeypatch.setattr(model_coverage, "families", lambda: dict.fromkeys(range(9)))
    page = tmp_path / "page.md"
    page.write_text(f"before\n{model_coverage.BEGIN}\nold\n{model_coverage.END}\nafter\n")
    rows = [
        Result("yes", 0.1234, 1.0, 1.24, "no", "a | b").row(Network("timm", "one")),
        Result("yes", 0.021, 0.5, 3, "yes").row(Network("timm", "two")),
        Result("no", seconds=0.1, reason="convert: no").row(Network("torchvision", "three")),
    ]
    model_coverage.write_page(page, rows, 5)
    text = page.read_text()
    assert [*model_coverage.known(text)] == rows
    assert rows[0] == ["timm one", "yes", "0.123", "100%", "1.2", "no", "a | b"]
    assert rows[2] == ["torchvision three", "no", "", "", "0.1", "-", "convert: no"]
    assert text.startswith(f"before\n{model_coverage.BEGIN}\n\nSeed 5, 3 of 9 families; ")
    assert text.endswith(f"{model_coverage.END}\nafter\n")
    for sentence in (
        "Convert by the plain call: 2 of 3 (67%).",
        "Relative error of the outputs: 0.072 in the median, 0.123 at most.",
        "Spikes carry at least 90% of the multiply-accumulates: 1 of 2 (50%).",
        "Freeze to the bit: 1 of 2 (50%).",
        "Conversion takes 2.1 s in the median, 3 s at most.",
    ):
        assert sentence in text
    (tmp_path / "empty.md").write_text("")
    with pytest.raises(CoverageError, match="has no lines"):
        model_coverage.write_page(tmp_path / "empty.md", rows, 5)


def test_missing_libraries():
    with pytest.raises(
        CoverageError, match=r"no_such_library cannot be imported .*pip install 'tandem_cuda\[examples\]'"
    ):
        model_coverage.imported("no_such_library")
