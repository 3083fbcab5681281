import re
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
        "demo synth check explore split audit convert fit validate test tune evaluate relabel score export inspect "
        "serve info"
    )
    assert list(steel.cli._COMMANDS) == commands.split()


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for name in steel.cli._COMMANDS:
        assert f"\n  {name} " in text


@pytest.mark.parametrize("command", steel.cli._COMMANDS)
def test_help_has_a_sentence_for_each_argument(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: steel {command}")
    entries = re.findall(r"^  (?=-|\w)(.+(?:\n {4,}.+)*)", text[text.index("\n\n") :], flags=re.MULTILINE)
    assert entries
    for entry in entries:
        name, _, words = " ".join(entry.split()).partition(" ")
        # What is left without metavariable, type and default.
        sentence = re.sub(r"\((?:required, )?(?:type|default): .*\)$|[A-Z_]{2,}|\[.*?\]|\{.*?\}", "", words)
        assert len(sentence.split()) >= 2, (name, words)


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
    assert 'no command "trian"' in refused("trian")
    assert main([]) == 2
    assert "--help" in refused("split")
    assert "--fold" in refused("split", root, "--fold=3")
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
