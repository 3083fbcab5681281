"""From files to batches: formats, splits, augmentation and the DataModule. Knows nothing of networks."""
