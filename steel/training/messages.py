"""Lightning's messages that `steel fit`, `validate` and `test` suppress."""

import logging
import re
import warnings

# What `Summary` and config.yaml show, and advertisements.
_IGNORED_LOGS = "Tip:|TPU|GPU available: |Loading `train_dataloader`|`weights_only` was not set|Seed set to"
_IGNORED_WARNINGS = (
    r".*LeafSpec.* is deprecated",
    "LightningCLI's args parameter is intended",
    # Expected when a run is resumed. If the checkpoint was moved, the run gets a new folder.
    "(Experiment logs|Checkpoint) directory .* exists and is not empty",
    "The dirpath has changed from",
    # Validation and test have no checkpoint callbacks.
    "Be aware that when using `ckpt_path`, callbacks used to create",
    # The scores are computed over all processes before they are logged.
    r"It is recommended to use `self\.log\('(val|test)/",
    # The loader needs no state, because the sampler asks the trainer for its position.
    "You're resuming from a checkpoint that ended before the epoch ended",
    "You're using the WeightAveraging callback with a model that overrides",
)


def filter_messages() -> None:
    """Suppress Lightning's warnings and log messages that require no action."""
    for message in _IGNORED_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    rank_zero, connector = "utilities.rank_zero", "trainer.connectors.checkpoint_connector"
    for name in (f"pytorch_lightning.{rank_zero}", f"pytorch_lightning.{connector}", "lightning_fabric.utilities.seed"):
        logging.getLogger(name).addFilter(_is_relevant)


def _is_relevant(record: logging.LogRecord) -> bool:
    return re.search(_IGNORED_LOGS, record.getMessage()) is None
