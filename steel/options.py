"""What all commands share: how `--help` looks, and the one sentence on an option that is wrong."""

import difflib
import inspect
import re
from argparse import Action
from collections.abc import Collection, Iterable, Sequence

from jsonargparse import ArgumentParser, DefaultHelpFormatter


class HelpFormatter(DefaultHelpFormatter):
    """Fills paragraphs and keeps indented lines; shows what is required first, what every command has last."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = text.split("\n\n")
        return "\n\n".join(
            paragraph if "\n    " in paragraph else super(HelpFormatter, self)._fill_text(paragraph, width, indent)
            for paragraph in paragraphs
        )

    def add_arguments(self, actions: Iterable[Action]) -> None:
        """Adds the entries of one group.

        Args:
            actions: The options, in the order of the signature.
        """
        shared = ("help", "print_config")
        super().add_arguments(sorted(actions, key=lambda action: (action.dest in shared, not action.required)))


def describe(docstring: str | None) -> dict[str, str]:
    """What `--help` says before the options and after them.

    Args:
        docstring: That of a command; its examples, each of which can be typed as it is, stand under `Example:`.

    Returns:
        "description" and "epilog", as a parser takes them.
    """
    about, *sections = re.split(r"\n\n(?=[A-Z]\w+:\n)", inspect.cleandoc(docstring or ""))
    return {"description": about, "epilog": "\n\n".join(text for text in sections if text.startswith("Example:"))}


def list_options(parser: ArgumentParser) -> list[str]:
    """The options of a parser as they are typed, such as --seed."""
    return [name for action in parser._actions for name in action.option_strings if name.startswith("--")]


def expand_flags(args: Sequence[str], flags: Collection[str]) -> list[str]:
    """Lets `--flips` alone say yes, where jsonargparse wants it said.

    Args:
        args: What was typed.
        flags: The options that are true or false.

    Returns:
        The same with `--flips=true` for a flag that nothing or something else follows.
    """
    return [
        f"{arg}=true" if arg in flags and after.lower() not in ("true", "false") else arg
        for arg, after in zip(args, [*args[1:], ""], strict=False)
    ]


def suggest(name: str, names: Iterable[str]) -> str:
    """Words that name the nearest of several names, or none where nothing is near.

    Args:
        name: What was typed; `--data.rot` is compared by its last part, so that a forgotten `data.` is found too.
        names: What there is.

    Returns:
        `; did you mean --data.root?`, or nothing.
    """
    tails = {known.rpartition(".")[2].lstrip("-"): known for known in names}
    near = difflib.get_close_matches(name.rpartition(".")[2].lstrip("-").lower(), tails, n=1)
    return f"; did you mean {tails[near[0]]}?" if near else ""


def explain(message: str, options: Sequence[str], command: str) -> str:
    """Jsonargparse's report on a wrong option as one sentence.

    Args:
        message: The report, of one line or many.
        options: All that the command takes.
        command: Its name.
    """
    message = " ".join(message.split())
    more = f"steel {command} --help lists what it takes"
    if match := re.search(r"unrecognized arguments: ([^\s=]+)", message):
        if not match[1].startswith("-"):
            return f'"{match[1]}" is one word too many; {more}'
        return f"there is no option {match[1]}{suggest(match[1], options) or f'; {more}'}"
    unknown = r"""(?:Option|Key|key) ['"](\S+)['"] is not (?:accepted|expected)|does not accept option '(\S+)'"""
    if match := re.search(unknown, message):
        name = match[1] or match[2]
        hint = suggest(name, options) or f"; {more}"
        return f'there is no setting "{name}" (in a config file or as an option){hint}'
    if match := re.search(r"arguments are required: (.+)", message):
        names = [f"--{name}" if f"--{name}" in options else name.upper() for name in match[1].split(", ")]
        return f"{command} needs {', '.join(names)}; {more}"
    if match := re.search(r"argument (--\S+): expected one argument", message):
        return f"{match[1]} needs a value; {more}"
    # Of a union's report only the first branch, which is the one that was meant.
    value = (
        r"Expected an? (?:<class '(\w+)'>|typing\.Literal\[(.+?)\]|(\w+ with \d+ elements)|dot import path string:)"
        r".*?(?:Given|Got) value: (.+?)(?: - Expected|$)"
    )
    if match := re.search(r'Parser key "([^"]+)": (?:(?!Parser key).)*?' + value, message):
        key, of_type, choices, tuple_of, came = match.groups()
        key = f"model.{key}" if 'Parser key "model": Does' in message else key
        wanted = f"a value of type {of_type}" if of_type else f"one of {choices}" if choices else f"a {tuple_of}"
        if not (of_type or choices or tuple_of):
            wanted = f"the name of a class, as --{key}.help lists them"
        return f"{f'--{key}' if f'--{key}' in options else key.upper()} takes {wanted}, but {came} came"
    return f"{message[:300]}; {more}"
