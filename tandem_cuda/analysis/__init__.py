"""Analysis of networks: activity and cost, agreement of the twins, metrics, and penalties for training."""
