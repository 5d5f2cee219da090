"""The public names of :mod:`tandem_cuda.analysis.activity`."""

from .analysis.activity import record_activity, synops
from .analysis.activity_record import ActivityRecord
from .analysis.activity_table import ActivityTable, LayerActivity

__all__ = ["ActivityRecord", "ActivityTable", "LayerActivity", "record_activity", "synops"]
