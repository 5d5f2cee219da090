"""Activity and cost of a network as torchmetrics metrics, for training logs.

Needs ``pip install tandem_cuda[metrics]``.

Update them with what :func:`tandem_cuda.record_activity` has recorded of a forward pass. In a LightningModule::

    self.activity = MetricCollection([FiringRate(), SynOps(), EnergyRatio()])  # in __init__
    ...
    with record_activity(self.net) as record:  # in training_step
        logits = self.net(images)
    self.activity.update(record)
    ...
    self.log_dict(self.activity.compute())  # in on_train_epoch_end, then self.activity.reset()

States are sums, so distributed processes add theirs up. All count as :func:`tandem_cuda.synops` does; what it cannot
count is in no metric, and named in ``record.not_counted``.
"""

from .analysis.metrics import ActivityMetric as ActivityMetric
from .analysis.metrics import Energy, EnergyRatio, FiringRate, OperationsRatio, SaturatedNeurons, SilentNeurons, SynOps

__all__ = ["Energy", "EnergyRatio", "FiringRate", "OperationsRatio", "SaturatedNeurons", "SilentNeurons", "SynOps"]
