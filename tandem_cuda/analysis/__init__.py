"""Analysis of networks: activity and cost, agreement of the twins, and penalties for training.

The torchmetrics metrics are in :mod:`tandem_cuda.analysis.metrics`.
"""

from .activity import record_activity, synops
from .activity_record import ActivityRecord
from .activity_table import ActivityTable, LayerActivity
from .diagnostics import AgreementTable, LayerAgreement, counts_and_activations, diagnose
from .penalties import ActivePenalty, FiringRatePenalty, SynOpsPenalty

__all__ = [
    "ActivePenalty",
    "ActivityRecord",
    "ActivityTable",
    "AgreementTable",
    "FiringRatePenalty",
    "LayerActivity",
    "LayerAgreement",
    "SynOpsPenalty",
    "counts_and_activations",
    "diagnose",
    "record_activity",
    "synops",
]
