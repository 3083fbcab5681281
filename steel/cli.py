"""The `steel` command. It only dispatches: each command is a function in the module that does its work."""

import errno
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from steel.errors import InputError

# Commands by group, in the order of a typical workflow: module and function, and the line in `steel --help`.
_GROUPS = {
    "Get started": {
        "demo": ("steel.demo:demo", "Run the whole workflow on a synthetic dataset (minutes on a CPU)"),
        "info": ("steel.versions:info", "Show versions and devices"),
    },
    "Prepare a dataset and train": {
        "synth": ("steel.data.synthetic:synth", "Create a synthetic dataset"),
        "convert": ("steel.data.convert:convert", "Convert labels from or to COCO, YOLO or PNG masks"),
        "check": ("steel.data.quality:check", "List every error in a dataset"),
        "explore": ("steel.data.explore:explore", "Summarise a dataset in a page of figures"),
        "split": ("steel.data.splits:split", "Split the images into train, val and test"),
        "audit": ("steel.data.audit:audit", "Check a split for leaks and imbalance"),
        "fit": ("steel.training.fit:run_cli", "Train the classifier or the segmenter"),
        "validate": ("steel.training.fit:run_cli", "Compute the scores of a trained network on val"),
        "test": ("steel.training.fit:run_cli", "Compute the scores of a trained network on test"),
    },
    "Turn two trained networks into an inspector": {
        "tune": ("steel.evaluation.tune:tune", "Choose thresholds, calibration and minimum sizes"),
        "evaluate": ("steel.evaluation.evaluate:evaluate", "Evaluate both networks together on unseen images"),
        "relabel": ("steel.evaluation.relabel:relabel", "Rank the images whose labels look wrong"),
        "score": ("steel.evaluation.score:score", "Score a submission.csv against the labels"),
        "novelty": ("steel.evaluation.novelty:novelty", "Learn clean steel, to find defects that nobody labelled"),
        "export": ("steel.export.export:export", "Write both networks and the operating point to one file"),
        "inspect": ("steel.inspection.inspect:inspect", "Run an exported file on images"),
        "suggest": ("steel.inspection.suggest:suggest", "Choose the images that are most worth labelling next"),
        "serve": ("steel.desk.server:serve", "Run an exported file as an HTTP service with a web page"),
    },
}
COMMANDS = {name: target for group in _GROUPS.values() for name, (target, _) in group.items()}

# Commands whose threads sleep while they wait for each other. By default they spin, which takes the processor away from
# whatever runs beside them, such as a camera's software. With two busy neighbours on two cores, `inspect` of 60 small
# images took 20 to 23 s, and 7 to 10 s with this; on an idle machine it takes as long for strip, and 6.5 s instead of
# 5.7 for these small images. Training on an idle machine would be 10 to 15 % slower.
_SHARING = ("inspect", "suggest", "serve")

_CONFIG_HELP = "File with options for this command, in the format that --print_config prints."

# Options that continue after a full disk.
_RESUME = {"inspect": " with --resume", "suggest": " with --resume", "fit": " with --ckpt_path last"}


def _print_help() -> None:
    print("usage: steel COMMAND [options]\n\nFind and outline surface defects on rolled steel strip.")
    print('Run "steel COMMAND --help" for the options and examples of a command.')
    for title, group in _GROUPS.items():
        print(f"\n{title}", *(f"  {name:10} {text}" for name, (_, text) in group.items()), sep="\n")
    print("\nShell completion: steel --print_shtab bash, or zsh")
    print("Exit status: 0 success, 1 errors in the data (check, audit), 2 invalid input or")
    print("full disk or memory, 130 Ctrl-C, 141 output closed by its reader.")


def main(args: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        args: Command and options; by default those of the command line.

    Returns:
        Exit status: 0 on success; 1 if a command that checks data has found errors; 2 after invalid input or if disk
        or memory is full, with a message on stderr; 130 after Ctrl-C; 141 if the reader of the output has closed it,
        as `head` does.
    """
    _prepare_output()
    try:
        try:
            return _dispatch(list(sys.argv[1:] if args is None else args))
        finally:
            _flush_stdout()  # a full disk or a closed pipe is found here, not after the exit status is known
    except BrokenPipeError:
        status, sentence = 141, None
    except SystemExit as error:
        if not isinstance(error.__context__, BrokenPipeError):  # rich exits with status 1 then
            raise
        status, sentence = 141, None
    except KeyboardInterrupt:
        status, sentence = 130, "interrupted"
    # An OSError names the file and the cause, such as a full disk or a missing permission.
    except (InputError, OSError) as error:
        status, sentence = 2, str(error)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            command = next(iter(sys.argv[1:] if args is None else args), "")
            if error.filename is None:
                sentence = f"the output or a file cannot be written ({error.strerror})"
            sentence += f"; free some space and repeat the command{_RESUME.get(command, '')}"
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        status, sentence = 2, f"out of memory ({reason}); use smaller batches, crops or images"
    with suppress(OSError):
        if sentence is not None:
            print(f"steel: {sentence}", file=sys.stderr)
    _discard_unwritable_output()
    return status


def _prepare_output() -> None:
    """Escape characters that the terminal's encoding lacks, and discard the output if there is no stdout or stderr."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, open until the process ends
            setattr(sys, name, stream)
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _flush_stdout() -> None:
    try:
        sys.stdout.flush()
    except OSError as error:  # does not name the file
        raise OSError(error.errno, error.strerror, "<stdout>") from error


def _discard_unwritable_output() -> None:
    """Discard what cannot be written to stdout or stderr; Python would try again at exit and print a traceback."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _is_out_of_memory(error: Exception) -> bool:
    # torch is not imported here. Its CPU allocator raises a plain RuntimeError.
    is_torch = type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in str(error)
    return isinstance(error, MemoryError) or is_torch


def _dispatch(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help", "help"):
        _print_help()
        return 0 if args else 2
    if args[0] == "--version":
        from steel.versions import read_version

        print(f"steel {read_version()}")
        return 0
    if args[0].partition("=")[0] == "--print_shtab":
        from steel.completion import format_completion

        shell = args[0].partition("=")[2] or "".join(args[1:2])
        print(format_completion(shell, {name: entry for group in _GROUPS.values() for name, entry in group.items()}))
        return 0
    return _run(args[0], args[1:])


def _run(command: str, args: list[str]) -> int:
    if command not in COMMANDS:
        from steel.options import suggest

        hint = suggest(command, [*COMMANDS, "--help", "--version", "--print_shtab"]) or "; see steel --help"
        raise InputError(f'unknown command "{command}"{hint}')
    from steel.data.images import silence_opencv

    silence_opencv()
    if command in _SHARING:
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is imported
    module, _, name = COMMANDS[command].partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    if name == "run_cli":
        function([command, *args])
        return 0
    import argparse
    import inspect

    from jsonargparse import ArgumentError, auto_cli, auto_parser

    from steel.options import HelpFormatter, check_numbers, describe, expand_flags, explain, list_options

    flags = {f"--{name}" for name, it in inspect.signature(function).parameters.items() if it.annotation is bool}
    settings: dict[str, Any] = {"prog": f"steel {command}", "allow_abbrev": False, "exit_on_error": False}
    settings |= {"formatter_class": HelpFormatter, "config_help": _CONFIG_HELP} | describe(function.__doc__)
    try:
        status = auto_cli(check_numbers(function), args=expand_flags(args, flags), **settings)
    except (ArgumentError, argparse.ArgumentError) as error:
        options = list_options(auto_parser(function, **settings))
        raise InputError(explain(str(error), options, command)) from error
    return status if isinstance(status, int) else 0
