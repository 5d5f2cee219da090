"""What a network does: activity and cost, agreement of the twins, metrics, and penalties to train with."""
