"""The public names of :mod:`tandem_cuda.analysis.activity`."""

from .analysis.activity import record_activity, synops
from .analysis.activity_record import ActivityRecord
from .analysis.activity_table import ActivityTable, LayerActivity
from .nn.operations import branches_of as branches_of  # which tandem_cuda.anytime takes from here
from .nn.operations import fan_out as fan_out

__all__ = ["ActivityRecord", "ActivityTable", "LayerActivity", "record_activity", "synops"]
