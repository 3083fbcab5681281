import importlib
import inspect
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import steel.cli
from steel.cli import main


def test_the_public_commands() -> None:
    """A command that appears or goes is announced here."""
    commands = (
        "demo info synth convert check explore split audit fit validate test tune evaluate relabel score export "
        "inspect serve"
    )
    assert list(steel.cli._COMMANDS) == commands.split()


def test_help_names_every_command_in_the_order_of_the_work(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert re.findall(r"^  (\w+) ", text, re.MULTILINE) == list(steel.cli._COMMANDS)
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("command", steel.cli._COMMANDS)
def test_help_has_a_sentence_for_each_argument(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: steel {command}")
    text, _, examples = text.partition("\nExample:\n")
    entries = re.findall(r"^  (?=-|\w)(.+(?:\n {4,}.+)*)", text[text.index("\n\n") :], flags=re.MULTILINE)
    assert entries
    for entry in entries:
        name, _, words = " ".join(entry.split()).partition(" ")
        # What is left without metavariable, type and default.
        sentence = re.sub(r"\((?:required, )?(?:type|default): .*\)$|[A-Z_]{2,}|\[.*?\]|\{.*?\}", "", words)
        assert len(sentence.split()) >= 2, (name, words)
    listed = re.findall(r"^  (?:-\w(?: \w+)?, )?(--[\w.]+)", text, flags=re.MULTILINE)
    assert examples.strip()
    for example in examples.strip().splitlines():
        words = shlex.split(example)
        assert words[:2] == ["steel", command]
        # What a network takes is listed by --model.help.
        options = [word for word in words if word.startswith("--") and not word.startswith("--model.")]
        assert set(options) <= set(listed), example


def parameters_of(command: str) -> dict[str, inspect.Parameter]:
    module, _, name = steel.cli._COMMANDS[command].partition(":")
    return dict(inspect.signature(getattr(importlib.import_module(module), name)).parameters)


# fit, validate and test are Lightning's.
FUNCTIONS = [command for command, function in steel.cli._COMMANDS.items() if not function.endswith(":run_cli")]


@pytest.mark.parametrize("command", FUNCTIONS)
def test_options_stand_in_the_same_order_everywhere(command: str) -> None:
    """What the inspector is made of; where it comes out; how it is computed, last."""
    parameters = parameters_of(command)
    order = ("classifier", "segmenter", "operating_point", "flips", "root", "split", "num_pictures", "out", "seed",
             "batch_size", "num_workers", "device")  # fmt: skip
    asked = [name for name, it in parameters.items() if name in order and it.kind is it.KEYWORD_ONLY]
    assert asked == [name for name in order if name in asked]
    for it in parameters.values():  # what is an option at the command line has a name in Python, too
        assert it.kind is not it.POSITIONAL_OR_KEYWORD or it.default is it.empty


def test_the_same_option_is_the_same_everywhere() -> None:
    """One type, one default and one sentence for what several commands take."""
    shared: dict[str, set[tuple[object, ...]]] = {}
    for command in FUNCTIONS:
        module, _, name = steel.cli._COMMANDS[command].partition(":")
        text = inspect.getdoc(getattr(importlib.import_module(module), name)) or ""
        for option, it in parameters_of(command).items():
            sentence = re.search(rf"^    {option}: (.+(?:\n        .+)*)", text, re.MULTILINE)
            about = it.annotation, it.default, sentence and sentence[1]
            if option in ("flips", "batch_size", "num_workers", "device"):
                shared.setdefault(option, set()).add(about)
            if option == "root" and it.kind is it.POSITIONAL_OR_KEYWORD:
                shared.setdefault(option, set()).add(about)
    assert all(len(ways) == 1 for ways in shared.values()), shared


def test_version() -> None:
    run = subprocess.run([sys.executable, "-m", "steel", "--version"], capture_output=True, text=True, check=True)
    assert run.stdout.startswith("steel 0.")


def test_the_dispatcher_imports_nothing_heavy() -> None:
    code = "import sys, steel.cli; print([m for m in ('torch', 'numpy', 'pandas', 'jsonargparse') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.slow
def test_commands_on_data_import_neither_lightning_nor_smp(root: Path, tmp_path: Path) -> None:
    heavy = ("torch", "pytorch_lightning", "lightning_fabric", "segmentation_models_pytorch")
    code = f"""
import sys
from steel.cli import main

statuses = [main(words.split("|")) for words in sys.argv[1:]]
print(statuses, [name for name in {heavy} if name in sys.modules])
"""
    commands = [
        ("--help",),
        ("--version",),
        ("check", root),
        ("explore", root, f"--out={tmp_path / 'explored'}"),
        ("convert", root, tmp_path / "coco", "--from=severstal", "--to=coco"),
        ("split", root),
    ]
    words = ["|".join(map(str, command)) for command in commands]
    run = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert run.stdout.splitlines()[-1:] == ["[0, 0, 0, 0, 0, 0] []"], run.stderr


def test_info_names_versions(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    assert "torch" in text
    assert "CPU threads" in text


def test_wrong_commands_and_options(refused: Callable[..., str], tmp_path: Path, root: Path) -> None:
    assert refused("evalute") == 'steel: there is no command "evalute"; did you mean evaluate?'
    assert 'no command "learn"; commands: demo, ' in refused("learn")
    assert main([]) == 2
    assert "split needs ROOT; steel split --help" in refused("split")
    assert "convert needs DST, --from, --to;" in refused("convert", root)
    assert "no option --fold; did you mean --folds?" in refused("split", root, "--fold=3")
    assert "no option --twice; steel split --help" in refused("split", root, "--twice")
    assert '"more" is one word too many' in refused("split", root, "more")
    assert "--seed takes a value of type int, but many came" in refused("split", root, "--seed=many")
    assert "--size takes a tuple with 2 elements" in refused("synth", tmp_path / "new", "--size=[1,2,3]")
    assert "--split takes one of 'all', 'train'" in refused("score", "submission.csv", root, "--split=best")
    assert "sum to 1" in refused("split", root, "--fractions=[0.5,0.5,0.5]")


@pytest.mark.parametrize(
    ("flag", "is_on"),
    [
        (["--near_duplicates"], True),  # last
        (["--near_duplicates", "--seed=3"], True),  # another option behind it
        (["--near_duplicates", "true"], True),
        (["--near_duplicates=true"], True),
        (["--near_duplicates", "False"], False),
        (["--near_duplicates=false"], False),
        ([], False),
    ],
)
@pytest.mark.parametrize("is_first", [False, True])
def test_a_flag_alone_says_yes(
    root: Path, capsys: pytest.CaptureFixture[str], flag: list[str], is_on: bool, is_first: bool
) -> None:
    assert main(["split", *flag, str(root)] if is_first else ["split", str(root), *flag]) == 0
    assert ("show the same scene" in capsys.readouterr().out) == is_on


@pytest.mark.parametrize(("returned", "status"), [(None, 0), (0, 0), (1, 1), ("text", 0)])
def test_the_exit_status_is_what_a_command_returns(
    monkeypatch: pytest.MonkeyPatch, root: Path, returned: object, status: int
) -> None:
    def explore(root: str) -> object:
        return returned

    monkeypatch.setattr("steel.data.explore.explore", explore)
    assert main(["explore", str(root)]) == status


def test_ctrl_c_is_a_word_and_a_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], root: Path
) -> None:
    def explore(root: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("steel.data.explore.explore", explore)
    assert main(["explore", str(root)]) == 130
    assert capsys.readouterr().err == "steel: stopped\n"


def test_the_systems_own_errors_are_sentences(refused: Callable[..., str], tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    assert "file" in refused("synth", file / "below", "--num_images=1")


def test_bad_data_is_one_sentence_whatever_the_command(refused: Callable[..., str], root: Path, tmp_path: Path) -> None:
    commands = (["split", root], ["explore", root, f"--out={tmp_path / 'x'}"])
    (root / "train.csv").write_text("ImageId,ClassId,EncodedPixels\nsynthetic_00001.jpg,1,5 2 9\n")
    for command in commands:
        sentence = refused(*command)
        assert "train.csv, line 2" in sentence
        assert "odd" in sentence
