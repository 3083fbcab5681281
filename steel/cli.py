"""The `steel` command: dispatch and nothing else. Each command is a function where its work is done."""

import importlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

from steel.errors import InputError

# Command -> the module and function that it runs; the order is that of the work.
_COMMANDS = {
    "demo": "steel.demo:demo",
    "info": "steel.versions:info",
    "synth": "steel.data.synthetic:synth",
    "convert": "steel.data.convert:convert",
    "check": "steel.data.quality:check",
    "explore": "steel.data.explore:explore",
    "split": "steel.data.splits:split",
    "audit": "steel.data.audit:audit",
    "fit": "steel.training.fit:run_cli",
    "validate": "steel.training.fit:run_cli",
    "test": "steel.training.fit:run_cli",
    "tune": "steel.evaluation.tune:tune",
    "evaluate": "steel.evaluation.evaluate:evaluate",
    "relabel": "steel.evaluation.relabel:relabel",
    "score": "steel.evaluation.score:score",
    "export": "steel.export.export:export",
    "inspect": "steel.inspection.inspect:inspect",
    "serve": "steel.desk.server:serve",
}

_CONFIG_HELP = "File with options of this command, in the form that --print_config shows."

_HELP = """\
usage: steel COMMAND [options]      steel COMMAND --help says more

Finds and outlines surface defects on rolled steel.

See it work
  demo       the whole way on a synthetic data set, in a few minutes on a CPU
  info       versions and devices

From a folder with train.csv and train_images/ to two trained networks
  synth      write a synthetic data set
  convert    bring labels from COCO, YOLO or PNG masks, or take them there
  check      everything that is wrong with a data set
  explore    what is in a data set, as a page of pictures
  split      divide it into train, val and test, over images
  audit      leaks and balance of any given split
  fit        train a network: --config conf/classifier.yaml, or segmenter.yaml
  validate   scores of a trained network on val
  test       scores of a trained network on test

From two trained networks to decisions
  tune       choose the operating point: thresholds, calibration, smallest sizes
  evaluate   judge both stages together on unseen images
  relabel    rank the images whose labels look wrong
  score      score any submission.csv against the labels
  export     write both and the decision as one file
  inspect    run that file over images
  serve      the same over HTTP, with a page for the people at the line
"""


def main(args: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        args: What stands behind `steel`; by default what was typed.

    Returns:
        The exit status: 0; 1 where a command that looks for faults has found some; 2 where something given is wrong
        and a sentence on stderr says what; 130 after Ctrl-C.
    """
    args = list(sys.argv[1:] if args is None else args)
    if not args or args[0] in ("-h", "--help", "help"):
        print(_HELP, end="")
        return 0 if args else 2
    if args[0] == "--version":
        from steel.versions import read_version

        print(f"steel {read_version()}")
        return 0
    if args[0] not in _COMMANDS:
        from steel.options import suggest

        hint = suggest(args[0], [*_COMMANDS, "--help", "--version"]) or f"; commands: {', '.join(_COMMANDS)}"
        print(f'steel: there is no command "{args[0]}"{hint}', file=sys.stderr)
        return 2
    try:
        return _run(args)
    except InputError as error:
        print(f"steel: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        # The disk, a folder or a right, not our arithmetic: strerror and file name say it all.
        print(f"steel: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("steel: stopped", file=sys.stderr)
        return 130


def _run(args: list[str]) -> int:
    module, _, name = _COMMANDS[args[0]].partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    if name == "run_cli":
        function(args)
        return 0
    import argparse
    import inspect

    from jsonargparse import ArgumentError, auto_cli, auto_parser

    from steel.options import HelpFormatter, describe, expand_flags, explain, list_options

    flags = {f"--{name}" for name, it in inspect.signature(function).parameters.items() if it.annotation is bool}
    settings: dict[str, Any] = {"prog": f"steel {args[0]}", "allow_abbrev": False, "exit_on_error": False}
    settings |= {"formatter_class": HelpFormatter, "config_help": _CONFIG_HELP} | describe(function.__doc__)
    try:
        status = auto_cli(function, args=expand_flags(args[1:], flags), **settings)
    except (ArgumentError, argparse.ArgumentError) as error:
        options = list_options(auto_parser(function, **settings))
        raise InputError(explain(str(error), options, args[0])) from error
    return status if isinstance(status, int) else 0
