"""The exported file, compared with eager mode, ONNX Runtime and OpenVINO on the same networks, in CPU time.

    uv run python -m benchmarks.inference [--rounds 5] [--json FILE]

One image of 256 x 1600 at a time, on one thread. The classifier is a ResNet-18 at half size and the segmenter a
U-Net on ResNet-34, both with random weights. Everything runs twice: with glibc's default allocator settings, and with
settings that keep freed memory (M_MMAP_MAX 0, M_TRIM_THRESHOLD 2^31 - 1), which avoids page faults. A ratio compares
two variants under the same settings.

Plain eager is `network(images)` as most would call it: contiguous weights, gradients enabled. OpenVINO is compared if
it is installed (`uv run --group peers`). Its default precision is bfloat16 on a CPU that has it, so it runs twice. It
reduces images without antialiasing, so its class probabilities differ; the time for that is small.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.harness import Comparison, build_parser, measure, report, summarise
from steel.decision import bundle
from steel.decision.about import About
from steel.decision.components import drop_small_spots
from steel.decision.inspector import Inspector
from steel.decision.point import OperatingPoint
from steel.export import targets
from steel.training.networks import ClassifierNetwork, SegmenterNetwork

HEIGHT, WIDTH, NUM_CLASSES = 256, 1600, 4
ALLOCATORS = {
    "glibc's allocator as it is": {},
    "told to keep what was freed": {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "2147483647"},
}
CLEAN = 0.95  # fraction of the images on a line
OPENVINO: dict[str, dict[str, str]] = {
    "OpenVINO fp32": {"INFERENCE_PRECISION_HINT": "f32"},
    "OpenVINO as it is": {},
}


def build(is_fast: bool = False) -> Inspector:
    """Return an inspector with the default networks, or those of conf/offline.yaml and conf/fast.yaml."""
    torch.manual_seed(0)
    lite: dict[str, Any] = {"encoder": "timm-tf_efficientnet_lite0"} if is_fast else {}
    slim: dict[str, Any] = {"decoder_channels": (128, 64, 32, 16), "scale": 0.5} if is_fast else {}
    networks = ClassifierNetwork(NUM_CLASSES, **lite), SegmenterNetwork(NUM_CLASSES, **lite, **slim)
    return Inspector(*networks, OperatingPoint.untuned(NUM_CLASSES)).eval()


def write_files(folder: Path) -> None:
    """Export the inspector in fp32, in bf16 and as ONNX."""
    inspector = build()
    example = torch.randint(0, 256, (1, 64, 256), dtype=torch.uint8)
    about = About(tuple(str(c + 1) for c in range(NUM_CLASSES)), OperatingPoint.untuned(NUM_CLASSES))
    variants = {name: targets.lower(inspector, name) for name in ("fp32", "bf16")} | {"fast": build(is_fast=True)}
    for name, variant in variants.items():
        # Rounding errors are far larger with random weights than with trained ones.
        bundle.write(bundle.Program(variant, example, 1.0), about, folder / f"{name}.pt")
    targets.write_onnx(inspector, about, folder / "fp32.onnx")


def draw_masks() -> torch.Tensor:
    """Return masks bool `(1, 4, H, W)`: 5 and 20 blobs of two classes, two classes empty."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    masks = np.zeros((1, NUM_CLASSES, HEIGHT, WIDTH), bool)
    for c, num in enumerate((5, 20)):
        for _ in range(num):
            row, column, a, b = rng.integers(HEIGHT), rng.integers(WIDTH), *rng.uniform(2, 40, 2)
            masks[0, c] |= ((y - row) / a) ** 2 + ((x - column) / b) ** 2 <= 1
    return torch.from_numpy(masks)


def compile_openvino(path: Path, images: torch.Tensor) -> dict[str, Callable[[], object]]:
    """Return functions that run an ONNX file in OpenVINO on one thread; none if it is not installed."""
    if importlib.util.find_spec("openvino") is None:
        return {}
    import openvino

    core, one_thread = openvino.Core(), {"INFERENCE_NUM_THREADS": "1"}
    model = core.read_model(path)
    model.reshape(list(images.shape))  # for images of any size, it would return empty outputs at once
    compiled = {name: core.compile_model(model, "CPU", one_thread | hints) for name, hints in OPENVINO.items()}
    for run in compiled.values():
        assert run(images.numpy())["pixels"].shape[2:] == images.shape[2:]
    return {name: partial(run, images.numpy()) for name, run in compiled.items()}


def compare_under(allocator: str, folder: Path, rounds: int) -> list[Comparison]:
    """Measure all variants under the allocator settings of this process."""
    torch.set_num_threads(1)
    images = torch.randint(0, 256, (1, 1, HEIGHT, WIDTH), dtype=torch.uint8)
    plain = build().to(memory_format=torch.contiguous_format)
    modules = {name: bundle.read(folder / f"{name}.pt")[0] for name in ("fp32", "bf16", "fast")}
    onnx = targets.read_onnx(folder / "fp32.onnx", OperatingPoint.untuned(NUM_CLASSES))
    masks, smallest = draw_masks(), torch.full((NUM_CLASSES,), 50)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit.*` is deprecated")
        filter_spots = torch.jit.script(drop_small_spots)

    def inferring(way: Callable[[], object]) -> Callable[[], object]:
        def infer() -> object:
            with torch.inference_mode():
                return way()

        return infer

    def inspect(gate: float, name: str = "fp32") -> Callable[[], object]:
        def way() -> object:
            modules[name].gate.fill_(gate)
            return modules[name](images)

        return inferring(way)

    openvino = compile_openvino(folder / "fp32.onnx", images)
    took = measure(
        {
            "plain eager fp32": lambda: plain.probabilities(images),
            "exported fp32": inferring(lambda: modules["fp32"].probabilities(images)),
            "ONNX Runtime fp32": inferring(lambda: onnx.probabilities(images)),
            "exported bf16": inferring(lambda: modules["bf16"].probabilities(images)),
            "all segmented": inspect(0.0),
            "all segmented, conf/fast.yaml": inspect(0.0, "fast"),
            "gate alone": inspect(2.0),
            "filter of small spots": inferring(lambda: filter_spots(masks, smallest)),
            **openvino,
        },
        rounds,
    )
    pairs = list(zip(took["all segmented"], took["gate alone"], strict=True))
    took["segmenter and decision"] = [let - away for let, away in pairs]
    took["gated"] = [CLEAN * away + (1 - CLEAN) * let for let, away in pairs]

    def hold(title: str, ours: str, targets: dict[str, float | None]) -> Comparison:
        seconds = {name: took[name] for name in (ours, *targets) if name in took}
        wanted = {name: target for name, target in targets.items() if target}
        return summarise(f"{title}, {allocator}", seconds, ours, 1, "ms", wanted)

    return [
        hold(
            "both networks",
            "exported fp32",
            {"plain eager fp32": None, "ONNX Runtime fp32": 1 / 1.15, "OpenVINO fp32": None},
        ),
        hold(
            "bfloat16",
            "exported bf16",
            {"plain eager fp32": 2.7, "exported fp32": None, "OpenVINO as it is": None},
        ),
        hold("the gate", "gate alone", {"segmenter and decision": 1 / 0.08}),
        hold(f"a line with {CLEAN:.0%} clean images", "gated", {"all segmented": 2.0}),
        hold("a line without a GPU", "all segmented, conf/fast.yaml", {"all segmented": 4.0}),
        hold("small spots", "filter of small spots", {"exported fp32": 20}),
    ]


def main() -> None:
    """Write the files and run once under each allocator setting."""
    parser = build_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--allocator", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.folder:
        report(compare_under(args.allocator, args.folder, args.rounds), args.json)
        return
    if importlib.util.find_spec("openvino") is None:
        print("OpenVINO is not installed, so it is not compared; use uv run --group peers", file=sys.stderr)
    comparisons = []
    with tempfile.TemporaryDirectory() as name:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            write_files(Path(name))
        for allocator, settings in ALLOCATORS.items():
            file = Path(name) / "figures.json"
            again = [sys.executable, "-m", "benchmarks.inference", f"--folder={name}", f"--allocator={allocator}"]
            again += [f"--rounds={args.rounds}", f"--json={file}"]
            subprocess.run(again, env=os.environ | settings, check=True, stdout=subprocess.DEVNULL)
            comparisons += [Comparison(**each) for each in json.loads(file.read_text("utf-8"))["comparisons"]]
    report(comparisons, args.json)


if __name__ == "__main__":
    main()
