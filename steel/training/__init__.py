"""From batches to checkpoints: networks, losses, scores and the Lightning tasks. Knows nothing of thresholds."""
