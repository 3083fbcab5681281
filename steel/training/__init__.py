"""Training, from batches to checkpoints: networks, losses, scores and Lightning tasks. Thresholds are not used here."""
