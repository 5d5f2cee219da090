"""The torchmetrics metrics against synops, and in Lightning and two processes."""

import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from anns import Net
from exact import imported_without
from tandem_cuda import Decode, Encode, SpikeTrain, TandemAdd, TandemConv2d, TandemLinear, record_activity, synops
from tandem_cuda.analysis import ActivityTable

IMAGES = torch.rand(10, 2, 8, 10, generator=torch.Generator().manual_seed(0))


def small_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        Encode(5),
        TandemConv2d(2, 6, 3, padding=1, norm="batch"),
        TandemConv2d(6, 4, 3, stride=2, padding=1),
        nn.Flatten(),
        TandemLinear(80, 7),
        Decode(),
        nn.Linear(7, 3),
        nn.ReLU(),
        nn.Linear(3, 2),
    ).eval()


def total(activities: ActivityTable, share: str) -> float:
    rates = [(getattr(a, share), a.neurons) for a in activities if a.firing_rate is not None]
    return sum(rate * neurons for rate, neurons in rates) / sum(neurons for _, neurons in rates)


@pytest.fixture
def metrics() -> ModuleType:
    """Imported by the tests that use it: torchmetrics takes seconds."""
    pytest.importorskip("torchmetrics", reason="pip install tandem_cuda[metrics]")
    return importlib.import_module("tandem_cuda.analysis.metrics")


WANTED: dict[str, Callable[[ActivityTable], float]] = {
    "FiringRate": lambda table: total(table, "firing_rate"),
    "SaturatedNeurons": lambda table: total(table, "saturation"),
    "SilentNeurons": lambda table: total(table, "silent"),
    "SynOps": lambda table: sum(a.synops for a in table),
    "OperationsRatio": lambda table: sum(a.synops + a.macs * a.analogue for a in table) / sum(a.macs for a in table),
    "Energy": lambda table: sum(a.snn_energy_pj for a in table),
    "EnergyRatio": lambda table: sum(a.snn_energy_pj for a in table) / sum(a.ann_energy_pj for a in table),
}


def test_every_metric_is_tested(metrics: ModuleType) -> None:
    assert {*WANTED, "ActivityMetric"} == set(metrics.__all__)


def updated(metric, net, batches):
    for batch in batches:
        with record_activity(net) as record, torch.no_grad():
            net(batch)
        metric.update(record)
    return metric


@pytest.mark.parametrize("name", WANTED)
def test_equal_to_synops(metrics: ModuleType, name: str) -> None:
    net = small_net()
    metric = updated(getattr(metrics, name)(), net, IMAGES.split(4))
    assert metric.compute().item() == pytest.approx(WANTED[name](synops(net, IMAGES)), rel=1e-6)
    metric.reset()
    updated(metric, net, [IMAGES[:3]])
    assert metric.compute().item() == pytest.approx(WANTED[name](synops(net, IMAGES[:3])), rel=1e-6)


def test_one_layer(metrics: ModuleType) -> None:
    net = small_net()
    activity = synops(net, IMAGES)[1]
    rate = updated(metrics.FiringRate(layer="2"), net, [IMAGES])
    assert rate.compute().item() == pytest.approx(activity.firing_rate, rel=1e-6)
    operations = updated(metrics.SynOps(layer="2"), net, [IMAGES])
    assert operations.compute().item() == pytest.approx(activity.synops, rel=1e-6)


def test_collection(metrics: ModuleType) -> None:
    import torchmetrics

    net = small_net()
    chosen = [getattr(metrics, name)() for name in WANTED]
    collection = updated(torchmetrics.MetricCollection(chosen), net, IMAGES.split(3))
    table = synops(net, IMAGES)
    assert {key: x.item() for key, x in collection.compute().items()} == pytest.approx(
        {name: want(table) for name, want in WANTED.items()}, rel=1e-6
    )
    assert len(collection.compute_groups) == 1  # their states are equal: updated once for all


def test_states_are_sums(metrics: ModuleType) -> None:
    metric = metrics.SynOps()
    assert len(metric._reductions) == 10
    assert all(f is torch.sum or f.__name__ == "dim_zero_sum" for f in metric._reductions.values())


def test_bad_input(metrics: ModuleType) -> None:
    with pytest.raises(TypeError, match="FiringRate: layer must be a str or None, got int"):
        metrics.FiringRate(3)
    with pytest.raises(TypeError, match="FiringRate: record must be an ActivityRecord, got Tensor"):
        metrics.FiringRate().update(IMAGES)
    net = small_net()
    with pytest.raises(ValueError, match=r"FiringRate: record must contain layer 'x', got \['1', '2', '4', '6', '8'\]"):
        updated(metrics.FiringRate("x"), net, [IMAGES])
    with record_activity(net) as record:
        pass
    with pytest.raises(ValueError, match=r"FiringRate: record must contain a layer, got \[\]"):
        metrics.FiringRate().update(record)


def test_missing_extra_is_named(metrics: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ImportError, match=r"pip install tandem_cuda\[metrics\]"):
        imported_without(monkeypatch, "tandem_cuda.analysis.metrics", "torchmetrics")


PROCESS = """
import sys
import torch
import torch.distributed as dist
sys.path.insert(0, sys.argv[1])
from test_metrics import IMAGES, small_net, updated
from tandem_cuda import synops
from tandem_cuda.analysis import metrics

rank = int(sys.argv[2])
dist.init_process_group("gloo", init_method="file://" + sys.argv[3], rank=rank, world_size=2)
net = small_net()
share = IMAGES[:3] if rank == 0 else IMAGES[3:]
metric = updated(metrics.SynOps(), net, [share])
got, want = metric.compute().item(), sum(a.synops for a in synops(net, IMAGES))
assert abs(got - want) < 1e-6 * want, (got, want)
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes(metrics: ModuleType, tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", PROCESS, str(Path(__file__).parent)]
    processes = [
        subprocess.Popen([*arguments, str(rank), str(tmp_path / "meeting")], stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    for process in processes:
        _, stderr = process.communicate(timeout=240)
        assert process.returncode == 0, stderr


@pytest.mark.slow
def test_lightning_logs(metrics: ModuleType, tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning", reason="pip install tandem_cuda[examples]")

    class Training(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = small_net()
            self.rate = metrics.FiringRate()

        def training_step(self, images: torch.Tensor, index: int) -> torch.Tensor:
            with record_activity(self.net) as record:
                loss = self.net(images).square().mean()
            self.rate.update(record)
            self.log("firing rate", self.rate, on_step=False, on_epoch=True)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.0)

    training = Training()
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    loader = torch.utils.data.DataLoader(IMAGES, batch_size=4)
    trainer.fit(training.eval(), loader)
    want = WANTED["FiringRate"](synops(training.net.to("cpu"), IMAGES))
    assert trainer.callback_metrics["firing rate"].item() == pytest.approx(want, rel=1e-5)


def test_no_multiplications(metrics: ModuleType) -> None:
    """Joins of identities have operations and no MACs: the ratios are infinite, not an error."""
    net = Net(lambda n, x: n.join(x, x), join=TandemAdd(nn.Identity(), nn.Identity()))
    with record_activity(net) as record:
        net(SpikeTrain.from_dense(torch.ones(4, 2, 3)))
    for name in ("OperationsRatio", "EnergyRatio"):
        metric = getattr(metrics, name)()
        metric.update(record)
        assert metric.compute().item() == float("inf")
