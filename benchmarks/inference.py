"""The exported file against plain eager and ONNX Runtime on the same networks, ratios of CPU time taken in one run.

    uv run python benchmarks/inference.py [--rounds 5]

One image of 256 x 1600 at a time, one thread; the gate is a ResNet-18 at half the size, the segmenter a U-Net on
ResNet-34, of random weights. Each time is the median of several rounds in turn, so that a busy machine slows all alike.
Everything runs twice: with glibc's allocator as it is, and told to keep what was freed (M_MMAP_MAX 0, M_TRIM_THRESHOLD
2^31 - 1), which spares fresh pages. Both sides of a ratio are always under the same one.

Plain eager is `network(images)` as most would call it: contiguous weights, gradients on.
"""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from steel.inspection import bundle, formats
from steel.inspection.components import drop_small_spots
from steel.inspection.inspector import Inspector, OperatingPoint
from steel.training.networks import ClassifierNetwork, SegmenterNetwork

HEIGHT, WIDTH, NUM_CLASSES = 256, 1600, 4
KEEP_FREED = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "2147483647"}


def build() -> Inspector:
    """The default pair."""
    torch.manual_seed(0)
    networks = ClassifierNetwork(NUM_CLASSES), SegmenterNetwork(NUM_CLASSES)
    return Inspector(*networks, OperatingPoint.untuned(NUM_CLASSES)).eval()


def write_files(folder: Path) -> None:
    """The inspector in fp32, bf16 and as ONNX."""
    inspector = build()
    example = torch.randint(0, 256, (1, 64, 256), dtype=torch.uint8)
    for precision in ("fp32", "bf16"):
        # Random weights of this depth differ far more than trained ones.
        program = bundle.Program(formats.lower(inspector, precision), example, 1.0)
        bundle.write(program, {}, folder / f"{precision}.pt")
    formats.write_onnx(inspector, {}, folder / "fp32.onnx")


def draw_masks() -> torch.Tensor:
    """What a network outlines on an image: 5 and 20 blobs of two classes, nothing of two; bool `(1, 4, H, W)`."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    masks = np.zeros((1, NUM_CLASSES, HEIGHT, WIDTH), bool)
    for c, num in enumerate((5, 20)):
        for _ in range(num):
            row, column, a, b = rng.integers(HEIGHT), rng.integers(WIDTH), *rng.uniform(2, 40, 2)
            masks[0, c] |= ((y - row) / a) ** 2 + ((x - column) / b) ** 2 <= 1
    return torch.from_numpy(masks)


def measure(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Seconds of CPU of each way, the median of several rounds after one that warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for i in range(rounds + 1):
        for name, way in ways.items():
            start = time.process_time()
            way()
            if i > 0:
                seconds[name].append(time.process_time() - start)
    return {name: float(np.median(values)) for name, values in seconds.items()}


def run(folder: Path, rounds: int) -> None:
    """Prints what was measured under the allocator of this process."""
    torch.set_num_threads(1)
    images = torch.randint(0, 256, (1, 1, HEIGHT, WIDTH), dtype=torch.uint8)
    plain = build().to(memory_format=torch.contiguous_format)
    modules = {precision: bundle.read(folder / f"{precision}.pt")[0] for precision in ("fp32", "bf16")}
    onnx = formats.read_onnx(folder / "fp32.onnx", OperatingPoint.untuned(NUM_CLASSES))
    masks, smallest = draw_masks(), torch.full((NUM_CLASSES,), 50)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit.*` is deprecated")
        filter_spots = torch.jit.script(drop_small_spots)

    def inferring(way: Callable[[], object]) -> Callable[[], object]:
        def infer() -> object:
            with torch.inference_mode():
                return way()

        return infer

    def inspect(gate: float) -> Callable[[], object]:
        def way() -> object:
            modules["fp32"].gate.fill_(gate)
            return modules["fp32"](images)

        return inferring(way)

    took = measure(
        {
            "plain eager fp32": lambda: plain.probabilities(images),
            "exported fp32": inferring(lambda: modules["fp32"].probabilities(images)),
            "ONNX Runtime fp32": inferring(lambda: onnx.probabilities(images)),
            "exported bf16": inferring(lambda: modules["bf16"].probabilities(images)),
            "inspect, let through": inspect(0.0),
            "inspect, turned away": inspect(2.0),
            "filter of small spots": inferring(lambda: filter_spots(masks, smallest)),
        },
        rounds,
    )
    for name, seconds in took.items():
        print(f"  {name:24}{1e3 * seconds:9.1f} ms")
    let, away = took["inspect, let through"], took["inspect, turned away"]
    print(f"  exported fp32 takes {took['exported fp32'] / took['ONNX Runtime fp32']:.2f} times ONNX Runtime")
    print(f"  bf16 is {took['plain eager fp32'] / took['exported bf16']:.2f} times faster than plain eager fp32")
    print(
        f"  at 95 % clean the gate is {(let - away) / (0.95 * away + 0.05 * let):.2f} times faster than segmenting all"
    )
    print(f"  the filter takes {took['filter of small spots'] / took['exported fp32']:.2%} of the forward pass")


def main() -> None:
    """Writes the files and runs once under each allocator."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="files that are written already; for the two runs themselves")
    args = parser.parse_args()
    if args.folder:
        run(args.folder, args.rounds)
        return
    print(
        f"Python {platform.python_version()}, torch {torch.__version__}, ONNX Runtime {onnxruntime.__version__}, "
        f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, one thread",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as name:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            write_files(Path(name))
        for title, settings in (("glibc's allocator as it is", {}), ("told to keep what was freed", KEEP_FREED)):
            print(title, flush=True)
            again = [sys.executable, __file__, f"--folder={name}", f"--rounds={args.rounds}"]
            subprocess.run(again, env=os.environ | settings, check=True)


if __name__ == "__main__":
    main()
