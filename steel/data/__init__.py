"""From files to batches: formats, splits, augmentation and the DataModule. Imports no network code."""
