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

The metrics' states are sums, so those of distributed processes are added up. Operations are counted as by
:func:`tandem_cuda.synops`. What it cannot count is in no metric; ``record.not_counted`` names it.
"""

from .analysis.metrics import ActivityMetric as ActivityMetric
from .analysis.metrics import Energy, EnergyRatio, FiringRate, OperationsRatio, SaturatedNeurons, SilentNeurons, SynOps

__all__ = ["Energy", "EnergyRatio", "FiringRate", "OperationsRatio", "SaturatedNeurons", "SilentNeurons", "SynOps"]
