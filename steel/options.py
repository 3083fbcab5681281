"""The layout of `--help` and the error messages for invalid options, shared by all commands."""

import difflib
import functools
import inspect
import re
from argparse import Action
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from jsonargparse import ArgumentParser, DefaultHelpFormatter

from steel.errors import InputError

# No option needs a larger number, and sums and products of smaller ones overflow neither int64 nor float64.
_LARGEST = 10**15


class HelpFormatter(DefaultHelpFormatter):
    """Help formatter that keeps indented lines and lists required options first, --help and --print_config last."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = text.split("\n\n")
        return "\n\n".join(
            paragraph if "\n    " in paragraph else super(HelpFormatter, self)._fill_text(paragraph, width, indent)
            for paragraph in paragraphs
        )

    def add_arguments(self, actions: Iterable[Action]) -> None:
        """Add the options of one group, given in the order of the signature."""
        last = ("help", "print_config")
        super().add_arguments(sorted(actions, key=lambda action: (action.dest in last, not action.required)))


def describe(docstring: str | None) -> dict[str, str]:
    """Return the text of `--help` before the options ("description") and after them ("epilog").

    They are the docstring of the command up to its first section, and its section `Example:`.
    """
    description, *sections = re.split(r"\n\n(?=[A-Z]\w+:\n)", inspect.cleandoc(docstring or ""))
    examples = [section for section in sections if section.startswith("Example:")]
    return {"description": description, "epilog": "\n\n".join(examples)}


def list_options(parser: ArgumentParser) -> list[str]:
    """Return the long options of a parser, such as --seed."""
    return [name for action in parser._actions for name in action.option_strings if name.startswith("--")]


def expand_flags(args: Sequence[str], flags: Collection[str]) -> list[str]:
    """Replace each boolean option of `flags` that has no value by `--flag=true`: jsonargparse requires a value."""
    return [
        f"{arg}=true" if arg in flags and following.lower() not in ("true", "false") else arg
        for arg, following in zip(args, [*args, ""][1:], strict=True)
    ]


def require_numbers(options: Mapping[str, object]) -> None:
    """Check the numbers among the values of options.

    Raises:
        InputError: A number is infinite, NaN or beyond 1e15.
    """
    for name, value in options.items():
        for number in value if isinstance(value, list | tuple) else [value]:
            if isinstance(number, int | float) and not -_LARGEST <= number <= _LARGEST:
                raise InputError(f"--{name} must be between -1e15 and 1e15, got {number}")


def check_numbers(command: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a command so that it checks the numbers among its options first."""

    @functools.wraps(command)
    def checked(**options: Any) -> Any:
        require_numbers(options)
        return command(**options)

    return checked


def suggest(name: str, names: Iterable[str]) -> str:
    """Return a suggestion such as `; did you mean --data.root?`, or an empty string if no name is similar.

    Only the part after the last dot is compared, so that a missing `data.` is found as well.
    """
    tails = {known.rpartition(".")[2].lstrip("-"): known for known in names}
    near = difflib.get_close_matches(name.rpartition(".")[2].lstrip("-").lower(), tails, n=1)
    return f"; did you mean {tails[near[0]]}?" if near else ""


_UNKNOWN_KEY = re.compile(
    r"""(?:Option|Key|key) ['"](\S+)['"] is not (?:accepted|expected)|does not accept option '(\S+)'"""
)
# A report on a union has a part for each branch; the first branch is the one users mean.
_WRONG_VALUE = re.compile(
    r'Parser key "([^"]+)": (?:(?!Parser key).)*?'
    r"Expected an? (?:<class '(\w+)'>|typing\.Literal\[(.+?)\]|(\w+ with \d+ elements)|dot import path string:)"
    r".*?(?:Given|Got) value: (.+?)(?: - Expected|$)"
)


def explain(message: str, options: Sequence[str], command: str) -> str:
    """Rewrite jsonargparse's error report as one sentence, given all options of the command, such as --seed."""
    message = " ".join(message.split())
    see_help = f"; see steel {command} --help"
    if match := re.search(r"unrecognized arguments: ([^\s=]+)", message):
        if not match[1].startswith("-"):
            return f'unexpected argument "{match[1]}"{see_help}'
        return f"unknown option {match[1]}{suggest(match[1], options) or see_help}"
    if match := _UNKNOWN_KEY.search(message):
        name = match[1] or match[2]
        return f'unknown setting "{name}" (option or config file key){suggest(name, options) or see_help}'
    if match := re.search(r"arguments are required: (.+)", message):
        names = [f"--{name}" if f"--{name}" in options else name.upper() for name in match[1].split(", ")]
        return f"missing required argument{'s' * (len(names) > 1)} {', '.join(names)}{see_help}"
    if match := re.search(r"argument (--[^\s/:]+)\S*: expected one argument", message):
        return f"option {match[1]} needs a value{see_help}"
    if match := _WRONG_VALUE.search(message):
        key, of_type, choices, sequence, value = match.groups()
        # Numbers among several lists of choices are reported by their type alone; text is meant.
        literal = re.search(r"Expected a typing.Literal\[(.+?)\]", message)
        if literal and "Subtypes: [typing.Literal" in message:
            of_type, choices = None, literal[1]
        key = f"model.{key}" if 'Parser key "model": Does' in message else key
        name = f"--{key}" if f"--{key}" in options else key.upper()
        if of_type or choices or sequence:
            kind = "a list in brackets, such as [1,2,3]" if of_type == "tuple" else f"of type {of_type}"
            expected = kind if of_type else f"one of {choices}" if choices else f"a {sequence}"
            return f"{name} must be {expected}, got {value}"
        return f"{name} must be the name of a class, got {value}; see --{key}.help"
    return f"{message[:300]}{see_help}"
