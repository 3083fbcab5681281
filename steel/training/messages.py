"""Messages of `steel fit`, `validate` and `test`: errors about the task, and Lightning's messages to suppress."""

import logging
import re
import warnings

from steel.options import suggest
from steel.training.checkpoints import TASKS, import_task
from steel.training.rebuilding import list_parameters

# What `Summary` and config.yaml show, and advertisements.
_IGNORED_LOGS = (
    "Tip:|TPU|GPU available: |Loading `train_dataloader`|`weights_only` was not set|Seed set to|"
    "`Trainer.fit` stopped: `max_epochs"
)
_IGNORED_WARNINGS = (
    r".*LeafSpec.* is deprecated",
    "LightningCLI's args parameter is intended",
    # Expected when a run is resumed. If the checkpoint was moved, the run gets a new folder.
    "(Experiment logs|Checkpoint) directory .* exists and is not empty",
    "The dirpath has changed from",
    # `LossLog` counts the steps of all epochs.
    "The number of training batches .* is smaller than the logging interval",
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


def explain_model(message: str) -> str | None:
    """Rewrite jsonargparse's report of an error about the task as one sentence; return None for other errors."""
    message = " ".join(message.split())
    if match := re.search(
        r"class_path '([\w.]+)': (No module named '[\w.]+'|module '.+?' has no attribute '\w+')", message
    ):
        return f"cannot import --model {match[1]} ({match[2]}); add the folder of its module to PYTHONPATH"
    if not (match := re.search(r"class_path '([\w.]+)': Option '(\w+)' is not accepted", message)):
        return None
    task, option = import_task(match[1], "model is"), match[2]
    own = [f"--model.{parameter.name}" for parameter in list_parameters(task)]
    others = [name for name, other in TASKS.items() if option in {one.name for one in list_parameters(other)}]
    if others and not issubclass(task, TASKS[others[0]]):
        remedy = "give --model.encoder" if option == "backbone" else "leave it out"
        return f"{option} is an option of {others[0]}, but the config is for {match[1].rpartition('.')[2]}; {remedy}"
    hint = suggest(option, own) or f"; see steel fit --model.help {match[1].rpartition('.')[2]}"
    return f'unknown setting "{option}" (option or config file key){hint}'
