"""MkDocs hooks: pages made from the repository's own files and docstrings.

README, CONTRIBUTING, CHANGELOG and the READMEs of benchmarks and examples become pages. Each command gets a page made
from the docstring that `--help` shows, each public module a page of API reference.
"""

import importlib
import inspect
import re
from pathlib import Path
from typing import Any

from docstring_parser import parse
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

import steel
from steel.cli import COMMANDS

ROOT = Path(__file__).resolve().parent.parent
# Files outside docs/ that are pages of the site.
PAGES = {
    "index.md": "README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "reporting.md": "SECURITY.md",
    "benchmarks.md": "benchmarks/README.md",
    "cpp.md": "examples/cpp/README.md",
}
# Links to files of the repository that have no page.
SOURCES = r"(?:lightning_logs|examples|benchmarks|steel|tests|conf)/?[\w./-]*|LICENSE|Dockerfile|CITATION\.cff"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages and their places in the navigation."""
    for page, source in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    commands = [{name: _add(files, config, f"commands/{name}.md", describe_command(name))} for name in COMMANDS]
    reference: list[dict[str, Any]] = []
    for folder in (ROOT / "steel", *sorted(path for path in (ROOT / "steel").iterdir() if _is_package(path))):
        pages = [
            {module.rpartition(".")[2]: _add(files, config, f"reference/{module}.md", describe_module(module))}
            for module in list_modules(folder)
        ]
        reference.append({".".join(folder.relative_to(ROOT).parts): pages})
    assert isinstance(config.nav, list)
    config.nav = [*config.nav[:2], {"Commands": commands}, *config.nav[2:], {"API reference": reference}]
    return files


def on_page_markdown(markdown: str, page: Any, config: MkDocsConfig, files: Files) -> str:
    """Point links between files of the repository to their pages on the site."""
    markdown = re.sub(r"\]\((?:\.\./)*docs/", "](", markdown)
    for target, source in PAGES.items():
        if target != "index.md":
            names = "|".join({re.escape(source), re.escape(source.removesuffix("/README.md"))})
            markdown = re.sub(rf"\]\((?:\.\./)?(?:{names})(#[\w-]*)?\)", rf"]({target}\1)", markdown)
    # Files without a page: the name stays, the link goes.
    return re.sub(rf"\[([^\]]+)\]\((?:\.\./)?(?:{SOURCES})\)", r"\1", markdown)


def list_modules(folder: Path) -> list[str]:
    """List the public modules of a package, its own folder first."""
    paths = sorted(folder.glob("*.py") if folder.name == "steel" else folder.rglob("*.py"))
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths if path.name[0] != "_"]
    return ["steel", *modules] if folder.name == "steel" else modules


def describe_module(module: str) -> str:
    """Write the page of a module; that of `steel` lists the names that can be imported from it."""
    page = f"# {module}\n\n::: {module}\n"
    if module != "steel":
        return page
    homes = {name: getattr(steel, name).__module__ for name in steel.__all__}
    rows = [f"| [`{name}`]({home}.md#{home}.{name}) | `{home}` |" for name, home in sorted(homes.items())]
    return "\n".join([page, "| name | defined in |", "| --- | --- |", *rows, ""])


def describe_command(name: str) -> str:
    """Write the page of a command from the docstring that its `--help` shows."""
    module, _, function = COMMANDS[name].partition(":")
    loaded = importlib.import_module(module)
    if function == "run_cli":
        return _describe_lightning(name, loaded.HELP[name])
    described = getattr(loaded, function)
    doc = parse(described.__doc__)
    extra = [parse(hint.__doc__) for hint in inspect.get_annotations(described).values() if hasattr(hint, "__args__")]
    meant = {param.arg_name: param for part in (doc, *(e for e in extra if e.params)) for param in part.params}
    rows = ["| argument | | default |", "| --- | --- | --- |"]
    for argument in inspect.signature(described).parameters.values():
        if argument.kind is argument.VAR_KEYWORD:
            options = [("--from", "from"), ("--to", "to")]
            rows += [f"| `{option}` | {_cell(_FORMATS.get(key, ''))} | required |" for option, key in options]
            continue
        is_positional = argument.kind is argument.POSITIONAL_OR_KEYWORD
        label = argument.name.upper() if is_positional else f"--{argument.name}"
        default = "required" if argument.default is argument.empty else f"`{argument.default}`"
        meaning = meant[argument.name].description if argument.name in meant else ""
        rows.append(f"| `{label}` | {_cell(meaning or '')} | {default} |")
    return "\n".join(
        [f"# steel {name}", "", *_paragraphs(described.__doc__), "", *_examples(described.__doc__), "", *rows, ""]
    )


_FORMATS = {"from": "Format of SRC.", "to": "Format of DST."}


def _describe_lightning(name: str, text: str) -> str:
    lines = [f"# steel {name}", "", *_paragraphs(text), "", *_examples(text), ""]
    return "\n".join(
        [
            *lines,
            f"`steel {name} --help` lists the options that people use, `--help all` every option of Trainer and data.",
            "`--model.help DefectClassifier` and `--model.help DefectSegmenter` list those of the networks, which the",
            "reference of",
            "[steel.training.tasks](../reference/steel.training.tasks.md) and",
            "[steel.data.datamodule](../reference/steel.data.datamodule.md) describes too.",
            "",
        ]
    )


def _paragraphs(text: str | None) -> list[str]:
    """Return the summary and description of a docstring; indented lines stay preformatted."""
    return [
        re.split(r"^(?:Args|Raises|Returns|Example):$", inspect.cleandoc(text or ""), flags=re.MULTILINE)[0].strip()
    ]


def _examples(text: str | None) -> list[str]:
    _, _, examples = inspect.cleandoc(text or "").partition("Example:\n")
    return ["```bash", inspect.cleandoc(examples), "```"] if examples else []


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _add(files: Files, config: MkDocsConfig, path: str, content: str) -> str:
    files.append(File.generated(config, path, content=content))
    return path


def _is_package(path: Path) -> bool:
    return (path / "__init__.py").is_file()
