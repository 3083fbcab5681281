"""Every command and every Python example in README and docs/ runs, page by page in order, on tiny data; tests and
tables that the pages name exist and are current.

A block that cannot run in a test is preceded by the line `<!-- not run: why -->`.
"""

import re
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from benchmarks import definitions
from conftest import FIT, Trained
from steel.cli import main
from steel.data.convert import convert

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
)

# Commands that a test does not run: installers, schedulers, servers.
FOREIGN = {"mv", "pip", "torchrun", "srun", "curl", "docker", "sudo", "git", "cd", "cmake", "g++", "export"}
FOREIGN_BY_UV = {"pytest", "ruff", "mypy", "lint-imports", "tensorboard", "python"}


class Block(NamedTuple):
    language: str
    text: str
    line: int
    not_run: str  # the reason, or empty


def read_blocks(page: str) -> list[Block]:
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.finditer(r"(?:<!-- not run: (.+?) -->\n+)?^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [Block(m[2], m[3], text[: m.start()].count("\n") + 1, m[1] or "") for m in found]


def read_commands(block: str) -> list[str]:
    """Return the commands of a shell block, one per line, without comments."""
    joined = re.sub(r"\\\n\s*", " ", block)
    lines = [re.sub(r"(^|\s)#.*", "", line).strip() for line in joined.splitlines()]
    return [command.strip() for line in lines for command in line.split(" && ") if command]


def shorten(words: list[str], networks: Mapping[str, Sequence[str]]) -> list[str]:
    """Add options that make a command of a page small enough for a test; its own options stay.

    Args:
        words: The command, without `steel`.
        networks: More options for each task.
    """
    if words[0] not in ("fit", "validate", "test") or "--print_config" in words or "--model.help" in words:
        return words
    if any("gpu.yaml" in word for word in words):
        return [*words, "--print_config"]
    task = "classifier" if any("classifier.yaml" in word for word in words) else "segmenter"
    # The page means its first run, not the latest run of this test.
    words = [
        f"lightning_logs/{task}/version_0/checkpoints/{word}.ckpt" if before == "--ckpt_path" else word
        for before, word in zip(["", *words], words, strict=False)
    ]
    at = max(i for i, word in enumerate(words) if word == "--config") + 2
    small = ["--config", "conf/smoke.yaml", "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2"]
    quiet = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false", "--num_pictures", "1"]
    return [*words[:at], *small, *networks.get(task, ()), *quiet, *words[at:]]


def prepare(folder: str) -> Path:
    path = Path(folder)
    path.mkdir(parents=True)
    return path


@pytest.mark.parametrize("page", PAGES)
def test_every_command_exists(page: str) -> None:
    for block in read_blocks(page):
        if block.language not in ("bash", "sh"):
            continue
        for command in read_commands(block.text):
            words = shlex.split(command)
            if re.match(r"[A-Z_]+=", words[0]):
                continue
            if words[:2] == ["uv", "run"]:
                known = words[2] == "steel" or words[2] in FOREIGN_BY_UV
            else:
                known = words[0] in FOREIGN | {"uv"}
            assert known, f"{page}:{block.line}: {command}"


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if page != "docs/tracking.md"])
@pytest.mark.filterwarnings("ignore:.*:UserWarning")  # from Lightning, about runs of two steps
@pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated")  # from Lightning; `steel fit` filters it
@pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated")  # users see it too
def test_every_example_runs(
    page: str,
    root: Path,
    trained: Trained,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    if not (blocks := read_examples(page)):
        pytest.skip("this page has no example to run")
    for form in ("coco", "yolo", "masks"):
        convert(str(root), form, **{"from": "severstal", "to": form})
    shutil.copytree(root / "train_images", "NEW_IMAGES")
    if page == "docs/deploying.md":  # which starts from two trained networks and an exported file
        networks = {}
        for task, trained_to in (("classifier", trained.classifier), ("segmenter", trained.segmenter)):
            networks[task] = shutil.copy(
                trained_to, prepare(f"lightning_logs/{task}/version_0/checkpoints") / "best.ckpt"
            )
        assert main(["export", *(f"--{task}={path}" for task, path in networks.items())]) == 0
    run_examples(page, blocks, capsys)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*")  # from the trackers' own dependencies
def test_trackers_keep_runs_exported_file_and_report(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trackers: None, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = read_examples("docs/tracking.md")
    run_examples("docs/tracking.md", [block for block in blocks if block.language == "bash"], capsys, FIT)
    sys.modules["wandb"].finish()  # as the end of the process does
    names = run_examples("docs/tracking.md", [block for block in blocks if block.language == "python"], capsys)
    files = {"inspector.pt", "inspector.pt.card.html", "evaluation/index.html", "evaluation/evaluation.json"}
    mlflow: Any = names["mlflow"]
    fitted, exported = (
        mlflow.search_runs(experiment_names=[name], output_format="list") for name in ("lightning_logs", "inspectors")
    )
    assert fitted[0].data.params["data.root"] == "data"
    assert "train/loss" in fitted[0].data.metrics
    assert "test/kaggle_dice" in exported[0].data.metrics
    kept = Path(mlflow.artifacts.download_artifacts(run_id=exported[0].info.run_id))
    assert files <= {path.relative_to(kept).as_posix() for path in kept.rglob("*")}
    assert (kept / "inspector.pt").read_bytes() == Path("inspector.pt").read_bytes()
    artifact: Any = names["artifact"]
    assert files <= artifact.manifest.entries.keys()
    assert artifact.manifest.entries["inspector.pt"].size == Path("inspector.pt").stat().st_size
    wandb_runs = [path.read_bytes() for path in sorted(Path("wandb").glob("offline-run-*/*.wandb"))]
    assert [b"train/loss" in content for content in wandb_runs] == [True, False]
    assert [b"test/kaggle_dice" in content for content in wandb_runs] == [False, True]


def read_examples(page: str) -> list[Block]:
    return [block for block in read_blocks(page) if block.language in ("bash", "python") and not block.not_run]


def run_examples(
    page: str, blocks: list[Block], capsys: pytest.CaptureFixture[str], networks: Mapping[str, Sequence[str]] = {}
) -> dict[str, object]:
    """Run the commands and the Python of a page in the current folder; return what the Python defined."""
    variables: dict[str, str] = {}
    names: dict[str, object] = {"__name__": "example"}  # shared by all blocks of a page, as in a notebook
    for block in blocks:
        if block.language == "python":
            exec(compile(block.text, f"{page}:{block.line}", "exec"), names)
            continue
        for command in read_commands(block.text):
            if assigned := re.fullmatch(r"([A-Z_]+)=(\S*)", command):
                variables[assigned[1]] = assigned[2]
                continue
            words = shlex.split(re.sub(r"\$(\w+)", lambda m: variables.get(m[1], m[0]), command))
            if words[0] == "mv":
                shutil.move(words[1], words[2])
            if words[:3] != ["uv", "run", "steel"]:
                continue
            if words[3] == "convert" and Path(words[5]).exists():
                shutil.rmtree(words[5])
            capsys.readouterr()
            try:
                status = main(shorten(words[3:], networks))
            except SystemExit as stop:  # --help, --print_config
                status = int(stop.code or 0)
            assert status == 0, f"{page}:{block.line}: {command}\n{capsys.readouterr().err}"
    return names


def test_table_of_definitions_is_current() -> None:
    assert definitions.tabulate() in (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")


def test_named_tests_exist() -> None:
    tests = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        for name in re.findall(r"`(test_\w+)`", text):
            assert f"def {name}(" in tests, f"{page}: {name}"
        for name in re.findall(r"`(tests/[\w/.]+)`", text):
            assert (ROOT / name).is_file(), f"{page}: {name}"


def test_links_between_pages_lead_to_files() -> None:
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)(?:#[\w-]+)?\)", text):
            assert (ROOT / page).parent.joinpath(target).resolve().exists(), f"{page}: {target}"
