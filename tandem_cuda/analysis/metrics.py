"""Activity and cost of a network as torchmetrics metrics, for training logs.

Needs ``pip install tandem_cuda[metrics]``.

Update the metrics with the record of a forward pass that :func:`tandem_cuda.record_activity` yields. In a
LightningModule::

    self.activity = MetricCollection([FiringRate(), SynOps(), EnergyRatio()])  # in __init__
    ...
    with record_activity(self.net) as record:  # in training_step
        logits = self.net(images)
    self.activity.update(record)
    ...
    self.log_dict(self.activity.compute())  # in on_train_epoch_end, then self.activity.reset()

The metrics' states are sums, so the states of distributed processes are added up. Operations are counted as by
:func:`tandem_cuda.synops`. What it cannot count is in no metric; ``record.not_counted`` names it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .activity_record import ActivityRecord
from .activity_table import ADDITION_PJ, MAC_PJ

try:
    from torchmetrics import Metric
except ImportError as error:
    raise ImportError(
        f"tandem_cuda.analysis.metrics needs torchmetrics ({error}): pip install tandem_cuda[metrics]"
    ) from error

__all__ = [
    "ActivityMetric",
    "Energy",
    "EnergyRatio",
    "FiringRate",
    "OperationsRatio",
    "SaturatedNeurons",
    "SilentNeurons",
    "SynOps",
]


class ActivityMetric(Metric):
    """The base class of all metrics here. It sums activity over the layers of the records it is updated with.

    Args:
        layer: qualified name of a single layer to measure, as in ``named_modules``; by default the whole network.
        kwargs: arguments of ``torchmetrics.Metric``.

    Examples:
        >>> from tandem_cuda.analysis.metrics import ActivityMetric, FiringRate
        >>> metric = FiringRate(layer="conv1")
        >>> isinstance(metric, ActivityMetric), metric.layer
        (True, 'conv1')
    """

    full_state_update = False
    # int64, summed over samples.
    samples: Tensor
    spikes: Tensor
    chances: Tensor  # neurons times time steps
    neurons: Tensor  # of spiking layers
    saturated: Tensor
    silent: Tensor
    additions: Tensor  # synaptic operations of spiking layers
    readout: Tensor  # operations on counts that are not zero
    macs: Tensor  # of the spiking network, on real values
    ann_macs: Tensor

    def __init__(self, layer: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if layer is not None and not isinstance(layer, str):
            raise TypeError(f"{type(self).__name__}: layer must be a str or None, got {type(layer).__name__}")
        self.layer = layer
        counts = ("spikes", "chances", "neurons", "saturated", "silent", "additions", "readout", "macs", "ann_macs")
        for name in ("samples", *counts):
            self.add_state(name, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, record: ActivityRecord) -> None:
        """Add a record.

        Args:
            record: the record that :func:`tandem_cuda.record_activity` yields, of forward passes not yet added.

        Raises:
            TypeError: ``record`` is not an ActivityRecord.
            ValueError: ``record`` has no layers, or not the layer to measure.
        """
        name = type(self).__name__
        if not isinstance(record, ActivityRecord):
            raise TypeError(f"{name}: record must be an ActivityRecord, got {type(record).__name__}")
        layers = [layer for layer in record.layers if self.layer in (None, layer.name)]
        if not layers:
            wanted = "a layer" if self.layer is None else f"layer {self.layer!r}"
            raise ValueError(f"{name}: record must contain {wanted}, got {sorted({x.name for x in record.layers})}")
        self.samples += layers[0].samples
        for layer in layers:
            spikes, saturated, silent, operations = layer.totals.to(self.spikes.device).unbind()
            if layer.spiking:
                self.spikes += spikes
                self.saturated += saturated
                self.silent += silent
                self.additions += operations
                self.neurons += layer.samples * layer.neurons
                self.chances += layer.samples * layer.neurons * layer.time_steps
            else:
                self.readout += operations
            if layer.analogue:
                self.macs += layer.multiplications
            self.ann_macs += layer.multiplications

    def _snn_energy(self) -> Tensor:
        return ADDITION_PJ * self.additions + MAC_PJ * (self.readout + self.macs)


class FiringRate(ActivityMetric):
    """Spikes per neuron and time step, in [0, 1].

    Examples:
        >>> from tandem_cuda.analysis.metrics import FiringRate
        >>> net = nn.Sequential(Encode(4), TandemLinear(2, 2, bias=False), Decode(), nn.Linear(2, 2))
        >>> _ = nn.init.eye_(net[1].weight)
        >>> with record_activity(net) as record:
        ...     logits = net(torch.tensor([[1.0, 0.0]]))  # one neuron spikes at every step, one never
        >>> FiringRate()(record)
        tensor(0.5000)
    """

    def compute(self) -> Tensor:
        return self.spikes / self.chances


class SaturatedNeurons(ActivityMetric):
    """Share of neurons that spike as often as they can. Their counts cannot grow with the ANN any further.

    Examples:
        >>> from tandem_cuda.analysis.metrics import SaturatedNeurons
        >>> net = nn.Sequential(Encode(4), TandemLinear(2, 2, bias=False), Decode(), nn.Linear(2, 2))
        >>> _ = nn.init.eye_(net[1].weight)
        >>> with record_activity(net) as record:
        ...     logits = net(torch.tensor([[1.0, 0.0]]))  # one neuron spikes at every step, one never
        >>> SaturatedNeurons()(record)
        tensor(0.5000)
    """

    def compute(self) -> Tensor:
        return self.saturated / self.neurons


class SilentNeurons(ActivityMetric):
    """Share of neurons that do not spike for a sample.

    Examples:
        >>> from tandem_cuda.analysis.metrics import SilentNeurons
        >>> net = nn.Sequential(Encode(4), TandemLinear(2, 2, bias=False), Decode(), nn.Linear(2, 2))
        >>> _ = nn.init.eye_(net[1].weight)
        >>> with record_activity(net) as record:
        ...     logits = net(torch.tensor([[1.0, 0.0]]))  # one neuron spikes at every step, one never
        >>> SilentNeurons()(record)
        tensor(0.5000)
    """

    def compute(self) -> Tensor:
        return self.silent / self.neurons


class SynOps(ActivityMetric):
    """Synaptic operations per sample. Includes operations on counts, but not operations on real values (MACs).

    Examples:
        >>> from tandem_cuda.analysis.metrics import SynOps
        >>> net = nn.Sequential(Encode(4), TandemLinear(2, 2, bias=False), Decode(), nn.Linear(2, 2))
        >>> _ = nn.init.eye_(net[1].weight)
        >>> with record_activity(net) as record:
        ...     logits = net(torch.tensor([[1.0, 0.0]]))  # one neuron spikes at every step, one never
        >>> SynOps()(record)
        tensor(2.)
    """

    def compute(self) -> Tensor:
        return (self.additions + self.readout) / self.samples


class OperationsRatio(ActivityMetric):
    """Operations of the spiking network (SynOps, and MACs on real values) per MAC of the ANN; inf if it has no MACs.

    Examples:
        >>> from tandem_cuda.analysis.metrics import OperationsRatio
        >>> net = nn.Sequential(Encode(4), TandemLinear(2, 2, bias=False), Decode(), nn.Linear(2, 2))
        >>> _ = nn.init.eye_(net[1].weight)
        >>> with record_activity(net) as record:
        ...     logits = net(torch.tensor([[1.0, 0.0]]))  # one neuron spikes at every step, one never
        >>> OperationsRatio()(record)
        tensor(0.7500)
    """

    def compute(self) -> Tensor:
        return (self.additions + self.readout + self.macs) / self.ann_macs


class Energy(ActivityMetric):
    """Estimated energy per sample of the spiking network's arithmetic, in picojoules; see ``tandem_cuda.synops``.

    Examples:
        >>> from tandem_cuda.analysis.metrics import Energy
        >>> net = nn.Sequential(Encode(4), TandemLinear(2, 2, bias=False), Decode(), nn.Linear(2, 2))
        >>> _ = nn.init.eye_(net[1].weight)
        >>> with record_activity(net) as record:
        ...     logits = net(torch.tensor([[1.0, 0.0]]))  # one neuron spikes at every step, one never
        >>> Energy()(record)
        tensor(27.6000)
    """

    def compute(self) -> Tensor:
        return self._snn_energy() / self.samples


class EnergyRatio(ActivityMetric):
    """Estimated energy of the spiking network's arithmetic divided by the ANN's; inf if the ANN has no MACs.

    Examples:
        >>> from tandem_cuda.analysis.metrics import EnergyRatio
        >>> net = nn.Sequential(Encode(4), TandemLinear(2, 2, bias=False), Decode(), nn.Linear(2, 2))
        >>> _ = nn.init.eye_(net[1].weight)
        >>> with record_activity(net) as record:
        ...     logits = net(torch.tensor([[1.0, 0.0]]))  # one neuron spikes at every step, one never
        >>> EnergyRatio()(record)
        tensor(0.7500)
    """

    def compute(self) -> Tensor:
        return self._snn_energy() / (MAC_PJ * self.ann_macs)
