import contextlib
import errno
import importlib
import inspect
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import get_args, get_origin

import pytest
import torch
from rich.console import Console

import steel.cli
from steel.cli import main
from steel.versions import has_fast_bfloat16


def test_the_public_commands() -> None:
    """Adding or removing a command must change this list."""
    commands = (
        "demo info synth convert check explore split audit fit validate test tune evaluate relabel score "
        "novelty export inspect suggest serve"
    )
    assert list(steel.cli.COMMANDS) == commands.split()


def test_help_lists_every_command_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert re.findall(r"^  (\w+) ", text, re.MULTILINE) == list(steel.cli.COMMANDS)
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("command", steel.cli.COMMANDS)
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
        # The description without metavariable, type and default.
        description = re.sub(r"\((?:required, )?(?:type|default): .*\)$|[A-Z_]{2,}|\[.*?\]|\{.*?\}", "", words)
        assert len(description.split()) >= 2, (name, words)
    listed = re.findall(r"^  (?:-\w(?: \w+)?, )?(--[\w.]+)", text, flags=re.MULTILINE)
    assert examples.strip()
    for example in examples.strip().splitlines():
        words = shlex.split(example)
        assert words[:2] == ["steel", command]
        # --model.help lists the options of a network.
        options = [word for word in words if word.startswith("--") and not word.startswith("--model.")]
        assert set(options) <= set(listed), example


def parameters_of(command: str) -> dict[str, inspect.Parameter]:
    module, _, name = steel.cli.COMMANDS[command].partition(":")
    return dict(inspect.signature(getattr(importlib.import_module(module), name)).parameters)


# fit, validate and test are defined by LightningCLI.
FUNCTIONS = [command for command, function in steel.cli.COMMANDS.items() if not function.endswith(":run_cli")]


@pytest.mark.parametrize("command", FUNCTIONS)
def test_options_have_the_same_order_in_every_command(command: str) -> None:
    """Inputs first, then outputs, then how it is computed."""
    parameters = parameters_of(command)
    order = ("classifier", "segmenter", "operating_point", "flips", "root", "split", "num_pictures", "out", "seed",
             "batch_size", "num_workers", "device")  # fmt: skip
    asked = [name for name, it in parameters.items() if name in order and it.kind is it.KEYWORD_ONLY]
    assert asked == [name for name in order if name in asked]
    for it in parameters.values():  # options of the command line are keyword-only in Python
        assert it.kind is not it.POSITIONAL_OR_KEYWORD or it.default is it.empty


def test_shared_options_are_the_same_in_every_command() -> None:
    """An option of several commands has one type, one default and one description."""
    shared: dict[str, set[tuple[object, ...]]] = {}
    for command in FUNCTIONS:
        module, _, name = steel.cli.COMMANDS[command].partition(":")
        text = inspect.getdoc(getattr(importlib.import_module(module), name)) or ""
        for option, it in parameters_of(command).items():
            sentence = re.search(rf"^    {option}: (.+(?:\n        .+)*)", text, re.MULTILINE)
            about = it.annotation, it.default, sentence and sentence[1]
            if option in ("flips", "batch_size", "num_workers", "device"):
                shared.setdefault(option, set()).add(about)
            if option == "root" and it.kind is it.POSITIONAL_OR_KEYWORD:
                shared.setdefault(option, set()).add(about)
    assert all(len(definitions) == 1 for definitions in shared.values()), shared


def test_version() -> None:
    run = subprocess.run([sys.executable, "-m", "steel", "--version"], capture_output=True, text=True, check=True)
    assert run.stdout.startswith("steel 0.")
    assert run.stdout == f"steel {steel.__version__}\n"


def test_the_dispatcher_imports_no_heavy_package() -> None:
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


def test_info_prints_versions(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    assert "torch" in text
    assert "CPU threads" in text


def test_bfloat16_that_a_gpu_only_emulates_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for has_hardware in (False, True):
        monkeypatch.setattr(
            torch.cuda,
            "is_bf16_supported",
            lambda including_emulation=True, has_hardware=has_hardware: including_emulation or has_hardware,
        )
        assert has_fast_bfloat16() == has_hardware


def test_wrong_commands_and_options(refused: Callable[..., str], tmp_path: Path, root: Path) -> None:
    assert 'command "evalute"; did you mean evaluate?' in refused("evalute")
    assert 'command "learn"; see steel --help' in refused("learn")
    assert main([]) == 2
    assert "missing required argument ROOT; see steel split --help" in refused("split")
    assert "missing required arguments DST, --from, --to; see steel convert --help" in refused("convert", root)
    assert "unknown option --fold; did you mean --folds?" in refused("split", root, "--fold=3")
    assert "unknown option --twice; see steel split --help" in refused("split", root, "--twice")
    assert 'unexpected argument "more"; see steel split --help' in refused("split", root, "more")
    assert "option --seed needs a value" in refused("split", root, "--seed")
    assert "--seed must be of type int, got many" in refused("split", root, "--seed=many")
    assert "--size must be a tuple with 2 elements, got [1, 2, 3]" in refused(
        "synth", tmp_path / "new", "--size=[1,2,3]"
    )
    sentence = refused("score", "submission.csv", root, "--split=best")
    assert "--split must be one of 'all', 'train', 'val', 'test', got best" in sentence
    assert "sum to 1" in refused("split", root, "--fractions=[0.5,0.5,0.5]")


@pytest.mark.parametrize(
    ("flag", "is_on"),
    [
        (["--near_duplicates"], True),  # last
        (["--near_duplicates", "--seed=3"], True),  # followed by another option
        (["--near_duplicates", "true"], True),
        (["--near_duplicates=true"], True),
        (["--near_duplicates", "False"], False),
        (["--near_duplicates=false"], False),
        ([], False),
    ],
)
@pytest.mark.parametrize("is_first", [False, True])
def test_a_flag_without_a_value_is_true(
    root: Path, capsys: pytest.CaptureFixture[str], flag: list[str], is_on: bool, is_first: bool
) -> None:
    assert main(["split", *flag, str(root)] if is_first else ["split", str(root), *flag]) == 0
    assert ("with the same scene" in capsys.readouterr().out) == is_on


@pytest.mark.parametrize(("returned", "status"), [(None, 0), (0, 0), (1, 1), ("text", 0)])
def test_the_exit_status_is_the_return_value_of_the_command(
    monkeypatch: pytest.MonkeyPatch, root: Path, returned: object, status: int
) -> None:
    def explore(root: str) -> object:
        return returned

    monkeypatch.setattr("steel.data.explore.explore", explore)
    assert main(["explore", str(root)]) == status


def test_ctrl_c_prints_one_line_and_exits_with_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], root: Path
) -> None:
    def explore(root: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("steel.data.explore.explore", explore)
    assert main(["explore", str(root)]) == 130
    assert capsys.readouterr().err == "steel: interrupted\n"


def test_system_errors_name_the_cause_and_the_path(refused: Callable[..., str], tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    sentence = refused("synth", file / "below", "--num_images=1")
    assert f"{os.strerror(errno.EEXIST)}: '{file}'" in sentence


def run_explore(monkeypatch: pytest.MonkeyPatch, command: Callable[[], object]) -> int:
    """Run `steel explore` with `command` in its place."""

    def explore(root: str) -> object:
        return command()

    monkeypatch.setattr("steel.data.explore.explore", explore)
    return main(["explore", "data"])


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
def test_names_that_the_terminal_cannot_show_are_escaped(
    monkeypatch: pytest.MonkeyPatch, root: Path, encoding: str
) -> None:
    (root / "train_images" / "板.jpg").touch()
    (root / "classes.csv").write_text("ClassId,name\n1,板\n2,b\n3,c\n4,d\n", encoding="utf-8")
    shown = "板" if encoding == "utf-8" else r"\u677f"
    for command, status in (("check", 1), ("split", 2)):
        output = io.BytesIO()
        for name in ("stdout", "stderr"):
            monkeypatch.setattr(sys, name, io.TextIOWrapper(output, encoding, write_through=True))
        assert main([command, str(root)]) == status
        assert f"{shown}.jpg" in output.getvalue().decode(encoding)
    (root / "train_images" / "板.jpg").unlink()
    assert main(["split", str(root)]) == 0
    assert f" {shown} " in output.getvalue().decode(encoding)


def test_a_file_name_with_invalid_bytes_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_explore(monkeypatch, lambda: print("b\udcfcb.jpg")) == 0
    assert capsys.readouterr().out == "b\\udcfcb.jpg\n"


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX pipes")
@pytest.mark.parametrize("command", ["info", "--help", "--version", "help of tune", "flush", "rich"])
def test_a_closed_output_ends_the_command_silently(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    """As in `steel info | head -1`."""
    reader, writer = os.pipe()
    os.close(reader)
    stdout = os.fdopen(writer, "w")
    monkeypatch.setattr(sys, "stdout", stdout)
    match command:
        case "help of tune":
            status = main(["tune", "--help"])
        case "flush":
            status = run_explore(monkeypatch, lambda: print("text", flush=True))
        case "rich":
            status = run_explore(monkeypatch, lambda: Console().print("text"))
        case _:
            status = main([command])
    assert status == 141
    assert capsys.readouterr().err == ""
    stdout.close()  # flushes, as Python does at exit


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_to_a_full_disk_is_an_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with open("/dev/full", "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert main(["info"]) == 2
    reason = f"[Errno {errno.ENOSPC}] {os.strerror(errno.ENOSPC)}: '<stdout>'"
    assert capsys.readouterr().err == f"steel: {reason}; free some space and repeat the command\n"


@pytest.mark.parametrize(("command", "option"), [("inspect", "--resume"), ("fit", "--ckpt_path last")])
def test_a_full_disk_names_the_option_that_continues(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str, option: str
) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "results.csv")

    monkeypatch.setattr("steel.cli._dispatch", fail)
    assert main([command]) == 2
    assert capsys.readouterr().err.endswith(f"'results.csv'; free some space and repeat the command with {option}\n")


def test_a_full_disk_without_the_name_of_the_file_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("steel.cli._dispatch", fail)
    assert main(["info"]) == 2
    reason = f"the output or a file cannot be written ({os.strerror(errno.ENOSPC)})"
    assert capsys.readouterr().err == f"steel: {reason}; free some space and repeat the command\n"


def test_commands_run_without_stdout_and_stderr(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    for command, status in ((["info"], 0), (["check", str(root)], 0), (["split"], 2)):
        monkeypatch.setattr(sys, "stdout", None)
        monkeypatch.setattr(sys, "stderr", None)
        assert main(command) == status
        sys.stdout.close()
        sys.stderr.close()


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MemoryError("Unable to allocate 3.64 TiB"), "Unable to allocate 3.64 TiB"),
        (MemoryError(), "MemoryError"),
        (torch.OutOfMemoryError("CUDA out of memory."), "CUDA out of memory."),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_too_little_memory_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, reason: str
) -> None:
    def fail() -> None:
        raise error

    assert run_explore(monkeypatch, fail) == 2
    assert capsys.readouterr().err == f"steel: out of memory ({reason}); use smaller batches, crops or images\n"


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        run_explore(monkeypatch, fail)


WITHOUT_NUMBERS = ("info", "convert", "check", "audit", "score", "export")


@pytest.mark.parametrize("command", [command for command in FUNCTIONS if command not in WITHOUT_NUMBERS])
def test_numbers_that_no_option_can_take_are_refused(refused: Callable[..., str], command: str, tmp_path: Path) -> None:
    parameters = parameters_of(command)
    required = [it for it in parameters.values() if it.default is it.empty]
    args = [f"--{it.name}={tmp_path}" if it.kind is it.KEYWORD_ONLY else str(tmp_path / it.name) for it in required]
    large = "1" + "0" * 30
    values = {
        float: {"1.0e30": "1e+30", ".inf": "inf", "-.inf": "-inf", ".nan": "nan"},
        int: {large: large, f"-{large}": f"-{large}"},
    }
    options = [
        (name, kind, len(get_args(it.annotation)) if get_origin(it.annotation) is tuple else 0)
        for name, it in parameters.items()
        for kind in values
        if kind in (it.annotation, *get_args(it.annotation))
    ]
    assert options
    for name, kind, length in options:
        for number, shown in values[kind].items():
            value = f"[{','.join([number] * length)}]" if length else number
            sentence = refused(command, *args, f"--{name}={value}")
            assert f"--{name} must be between -1e15 and 1e15, got {shown}" in sentence


def test_commands_report_invalid_data_in_one_sentence(refused: Callable[..., str], root: Path, tmp_path: Path) -> None:
    commands = (["split", root], ["explore", root, f"--out={tmp_path / 'x'}"])
    (root / "train.csv").write_text("ImageId,ClassId,EncodedPixels\nsynthetic_00001.jpg,1,5 2 9\n")
    for command in commands:
        sentence = refused(*command)
        assert "train.csv, line 2" in sentence
        assert "odd" in sentence


@pytest.fixture(scope="module")
def bash_completion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "steel.bash"
    with path.open("w", encoding="utf-8") as file, contextlib.redirect_stdout(file):
        assert main(["--print_shtab", "bash"]) == 0
    return path


@pytest.mark.skipif(os.name == "nt", reason="needs bash")
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("steel ev", {"evaluate"}),
        ("steel tune --ai", {"--aim"}),
        ("steel tune --aim ", {"cost", "recall", "false_alarms", "kaggle_dice"}),
        ("steel fit --model.back", {"--model.backbone"}),
        ("steel evaluate --root sub", {"subfolder"}),
        ("steel split sub", {"subfolder"}),
    ],
)
def test_bash_completes_commands_options_choices_and_files(
    bash_completion: Path, tmp_path: Path, line: str, expected: set[str]
) -> None:
    (tmp_path / "subfolder").mkdir()
    words = line.split(" ")
    script = (
        f"source {bash_completion}; COMP_WORDS=({' '.join(shlex.quote(word) for word in words)}); "
        f'COMP_CWORD={len(words) - 1}; _shtab_steel steel "{words[-1]}" "{words[-2]}"; echo "${{COMPREPLY[@]}}"'
    )
    run = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert set(run.stdout.split()) == expected


def test_zsh_has_a_script_with_all_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--print_shtab=zsh"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("#compdef steel")
    # Earlier releases of shtab put the quote before the name.
    assert set(re.findall(r"""^    "?(\w+):['\w]""", text, re.MULTILINE)) == set(steel.cli.COMMANDS)
    assert "--miss_cost" in text


def test_other_shells_are_refused(refused: Callable[..., str]) -> None:
    assert "--print_shtab must be one of bash, zsh, got fish" in refused("--print_shtab", "fish")
    assert "got no shell" in refused("--print_shtab")


@pytest.mark.parametrize("command", ["fit", "validate", "test"])
def test_the_short_help_lists_what_people_use_in_groups(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) < 150
    titles = [line for line in lines if re.fullmatch(r"[A-Z][^.]*:", line)]
    assert titles[:2] == ["Settings and checkpoint:", "Data:"]
    assert ("Model: classifier:" in titles) == ("Training:" in titles) == (command == "fit")
    with pytest.raises(SystemExit) as stop:
        main([command, "--help", "all"])
    assert stop.value.code == 0
    everything = capsys.readouterr().out
    assert len(everything.splitlines()) > 400
    listed = re.findall(r"^  (--[\w.]+)", "\n".join(lines), re.MULTILINE)
    assert "--data.root" in listed
    assert "--data.predict" not in listed  # for trainer.predict in Python
    # --help all refers to --model.help for the options of the networks.
    listed_there = set(
        re.findall(r"(--[\w.]+)(?=[ ,\n])", everything)
    )  # from Python 3.13 on, a comma separates two names
    assert [name for name in listed if not name.startswith("--model.") and name not in listed_there] == []
