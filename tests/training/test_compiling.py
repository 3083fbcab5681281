"""`--compile`, on a CPU by a compiler without CUDA graphs."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from conftest import Trained, fit_args
from steel.cli import main
from steel.data.datamodule import SteelDataModule
from steel.training import compiling
from steel.training.checkpoint_files import read_checkpoint

LAST = "lightning_logs/segmenter/version_0/checkpoints/last.ckpt"
EVERYTHING = [
    "--trainer.accumulate_grad_batches=2", "--ema_decay=0.8", "--model.freeze_epochs=1", "--trainer.max_epochs=2",
    "--trainer.limit_train_batches=4", "--last.every_n_train_steps=1",
    "--model.warmup=0", "--model.schedule=constant",  # a schedule would depend on max_epochs
]  # fmt: skip


@pytest.fixture
def compiled_sizes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Compile on the CPU as if this helped; return a list of the shapes for which the compiled network was called."""
    original, shapes = torch.compile, []

    def compile_eagerly(call: Callable[..., Tensor], *, mode: str, dynamic: bool) -> Callable[..., Tensor]:
        assert (mode, dynamic) == ("reduce-overhead", False)
        compiled = original(call, backend="aot_eager", dynamic=False)

        def run(images: Tensor) -> Tensor:
            shapes.append(tuple(images.shape))
            return compiled(images)  # type: ignore[no-any-return]

        return run

    monkeypatch.setattr(torch, "compile", compile_eagerly)
    monkeypatch.setattr(compiling, "_find_obstacle", lambda task, data: None)
    return shapes


def train(root: Path, folder: Path, *more: str) -> dict[str, Any]:
    """Run `steel fit` of a small segmenter, and return its last checkpoint."""
    assert main([*fit_args("segmenter", root, folder), *EVERYTHING, *more]) == 0
    return dict(read_checkpoint(folder / LAST))


def assert_same_weights(one: dict[str, Any], other: dict[str, Any], rtol: float) -> None:
    for key in ("state_dict", "current_model_state"):
        assert one[key].keys() == other[key].keys()
        for name, tensor in one[key].items():
            torch.testing.assert_close(other[key][name], tensor, rtol=rtol, atol=rtol)


@pytest.mark.parametrize(("device", "crop", "reason"), [
    ("cpu", (64, 64), "on a CUDA GPU only, and this run is on cpu"),
    ("cuda", None, "several sizes, and each would be compiled; set --data.crop"),
    ("cuda", (64, 64), None),
])  # fmt: skip
def test_only_training_of_one_size_on_a_gpu_is_compiled(
    root: Path, device: str, crop: tuple[int, int] | None, reason: str | None
) -> None:
    data = SteelDataModule(str(root), crop=crop)
    assert data.has_fixed_size
    path = data.annotations.path(int(data.split.indices("train")[0]))
    cv2.imwrite(str(path), np.zeros((64, 80), np.uint8))
    (root / "train.csv").write_text("ImageId,ClassId,EncodedPixels\n")
    obstacle = compiling._find_obstacle(
        SimpleNamespace(device=torch.device(device)),  # type: ignore[arg-type]
        SteelDataModule(str(root), num_classes=4, crop=crop),
    )
    assert obstacle is None if reason is None else reason in str(obstacle)


def test_on_a_cpu_compile_says_that_it_does_not_help(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*fit_args("classifier", root, tmp_path), "--trainer.limit_train_batches=1", "--compile"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("compiled", "not compiled"))]
    assert lines == ["not compiled: this makes training faster on a CUDA GPU only, and this run is on cpu"]


def test_a_network_that_cannot_be_compiled_trains_uncompiled(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], trained: Trained
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no compiler\n  on this machine")

    monkeypatch.setattr(torch, "compile", lambda call, **settings: fail)
    monkeypatch.setattr(compiling, "_find_obstacle", lambda task, data: None)
    resets: list[bool] = []
    monkeypatch.setattr(torch.compiler, "reset", lambda: resets.append(True))
    assert main([*fit_args("segmenter", trained.root, tmp_path), "--compile"]) == 0
    assert resets == [True]  # the memory of graphs is free again
    output = capsys.readouterr().out
    assert "not compiled: torch.compile failed (RuntimeError: no compiler on this machine)\n" in output
    # The trial leaves weights, statistics and random numbers as they were.
    assert torch.equal(*(read_checkpoint(path)["state_dict"]["network.unet.segmentation_head.0.weight"] for path in (
        trained.segmenter, tmp_path / LAST)))  # fmt: skip


@pytest.mark.slow
def test_a_compiled_run_trains_as_an_uncompiled_one_and_resumes_exactly(
    root: Path, tmp_path: Path, compiled_sizes: list[tuple[int, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    plain = train(root, tmp_path / "plain")
    assert "compiled as" not in capsys.readouterr().out
    whole = train(root, tmp_path / "whole", "--compile")
    assert capsys.readouterr().out.count("compiled as a CUDA graph in ") == 1
    assert_same_weights(plain, whole, 1e-4)
    train(root, tmp_path / "parts", "--compile", "--trainer.max_epochs=1")
    assert_same_weights(whole, train(root, tmp_path / "parts", "--compile", "--ckpt_path=last"), 0)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_cuda_graph_trains_as_the_network_and_resumes_exactly(
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    accumulate: int,
    precision: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # Other kernels of cuDNN may add in another order in each run.
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    options = [
        "--trainer.accelerator=gpu", "--trainer.devices=1", f"--trainer.precision={precision}",
        f"--trainer.accumulate_grad_batches={accumulate}",
    ]  # fmt: skip
    plain = train(root, tmp_path / "plain", *options)
    whole = train(root, tmp_path / "whole", *options, "--compile")
    assert "compiled as a CUDA graph in " in capsys.readouterr().out
    assert_same_weights(plain, whole, 2e-2)
    train(root, tmp_path / "parts", *options, "--compile", "--trainer.max_epochs=1")
    assert_same_weights(whole, train(root, tmp_path / "parts", *options, "--compile", "--ckpt_path=last"), 0)
