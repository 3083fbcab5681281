"""Shell completion: the script for bash or zsh that `steel --print_shtab` prints."""

import argparse
import importlib
from argparse import Action
from collections.abc import Callable, Iterator, Mapping
from typing import Any, get_args

import shtab
from jsonargparse import auto_parser

from steel.errors import InputError
from steel.training.help import FLAGS, list_groups

SHELLS = ("bash", "zsh")


def format_completion(shell: str, commands: Mapping[str, tuple[str, str]]) -> str:
    """Return the script that completes commands, options, choices and file names.

    Args:
        shell: bash or zsh.
        commands: By name: the module and function of each command, and a line about it.

    Raises:
        InputError: There is no completion for this shell.
    """
    if shell not in SHELLS:
        raise InputError(f"--print_shtab must be one of {', '.join(SHELLS)}, got {shell or 'no shell'}")
    parser = argparse.ArgumentParser(prog="steel")
    children = parser.add_subparsers()
    for command, (target, text) in commands.items():
        child = children.add_parser(command, help=text, description=text)
        for action in _list_actions(command, target):
            child._add_action(action)
    return shtab.complete(parser, shell)


def _list_actions(command: str, target: str) -> Iterator[Action]:
    """Yield the arguments of a command as plain argparse actions."""
    module, _, name = target.partition(":")
    if name == "run_cli":  # the parser of LightningCLI has hundreds of options
        options = {option: text for group in list_groups(command).values() for option, text in group.items()}
        for option, text in options.items():
            if option != "--help":  # argparse has it already
                yield _build([option], text, str, takes_value=option not in FLAGS)
        return
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    for action in auto_parser(function)._actions:
        if action.dest not in ("help", "print_config") and action.help != argparse.SUPPRESS:
            # "--classifier+" appends to a list.
            names = [name for name in action.option_strings if not name.endswith("+")]
            yield _build(names, str(action.help or ""), getattr(action, "_typehint", str), action.dest)


def _build(names: list[str], text: str, hint: object, dest: str = "value", takes_value: bool = True) -> Action:
    """Build an option, or a positional argument without names, that completes the values of its type."""
    parts = ("true", "false") if hint is bool else get_args(hint)
    choices = list(parts) if parts and all(isinstance(part, str) for part in parts) else None
    help_text = " ".join(text.split()).replace("%", "%%")
    action = Action(names, dest, nargs=None if takes_value else 0, choices=choices, help=help_text)
    if takes_value and not choices and "str" in str(hint):
        action.complete = shtab.FILE  # type: ignore[attr-defined]
    return action
