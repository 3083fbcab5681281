"""Start-up cost of commands, in CPU time of fresh processes.

    uv run python -m benchmarks.startup [--rounds 5] [--image FILE]

`steel --help` and `steel --version` are compared with `import pytorch_lightning`. `steel inspect` of one image is
compared with its lower bound, importing torch and loading the file. The forward passes of the self-test, of the warm-up
and of the image are measured in the command's own process (`--timed`) and subtracted. Everything runs on one thread,
since torch threads that wait for each other on a busy machine use CPU time.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks.harness import Comparison, build_parser, compare, read_cpu_time, report, summarise

LOADING = "import sys, torch; torch.jit.load(sys.argv[1])"


def run(*command: str) -> str:
    """Run Python and return its output."""
    # Bytecode is kept, as in an installation; otherwise most of the time would be that of the compiler.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    env["OMP_NUM_THREADS"] = "1"
    return subprocess.run([sys.executable, *command], env=env, capture_output=True, text=True, check=True).stdout


def compare_help(rounds: int) -> Comparison:
    """Compare the dispatcher with importing Lightning."""
    variants: dict[str, Callable[[], object]] = {
        "steel --help": lambda: run("-m", "steel", "--help"),
        "steel --version": lambda: run("-m", "steel", "--version"),
        "import pytorch_lightning": lambda: run("-c", "import pytorch_lightning"),
        "Python alone": lambda: run("-c", "pass"),
    }
    return compare("help and version", variants, "steel --version", 1, "ms", rounds, {"import pytorch_lightning": 8})


def compare_inspect(model: Path, image: Path, out: Path, rounds: int) -> Comparison:
    """Compare `steel inspect` of one image, without its forward passes, with loading torch and the file."""
    ours, limit = "steel inspect of one image, forward passes apart", "import torch, load the file"
    seconds: dict[str, list[float]] = {ours: [], limit: []}
    for i in range(rounds):
        args = ("--timed", str(model), str(image), str(out / str(i)))
        start = read_cpu_time()
        forward = float(run("-m", "benchmarks.startup", *args).split()[-1])
        seconds[ours].append(read_cpu_time() - start - forward)
        start = read_cpu_time()
        run("-W", "ignore", "-c", LOADING, str(model))
        seconds[limit].append(read_cpu_time() - start)
    return summarise("one image, the file that is exported", seconds, ours, 1, "s", {limit: 1 / 1.5})


def inspect_timed(model: str, image: str, out: str) -> None:
    """Run `steel inspect` and print the CPU seconds of its forward passes."""
    from steel.cli import main as steel
    from steel.decision import bundle

    forward, freeze = 0.0, bundle.torch.jit.freeze

    def timed(call: Callable[..., Any]) -> Callable[..., Any]:
        def way(*args: Any) -> Any:
            nonlocal forward
            start = time.process_time()
            result = call(*args)
            forward += time.process_time() - start
            return result

        return way

    class Timed:
        """Frozen module that times the calls that run the networks."""

        def __init__(self, module: Any) -> None:
            self._module = module
            self.probabilities = timed(module.probabilities)

        def __call__(self, images: Any) -> Any:
            return timed(self._module)(images)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._module, name)

    bundle.torch.jit.freeze = lambda *args, **options: Timed(freeze(*args, **options))  # type: ignore[assignment]
    steel(["inspect", model, image, f"--out={out}"])
    print(forward)


def write_model(path: Path) -> None:
    """Export the default networks with random weights."""
    import torch

    from benchmarks.inference import NUM_CLASSES, build
    from steel.decision import bundle
    from steel.decision.about import About
    from steel.decision.point import OperatingPoint
    from steel.export import targets

    example = torch.randint(0, 256, (1, 64, 256), dtype=torch.uint8)
    program = bundle.Program(targets.lower(build(), "fp32"), example, 1.0)
    about = About(tuple(str(c + 1) for c in range(NUM_CLASSES)), OperatingPoint.untuned(NUM_CLASSES))
    bundle.write(program, about, path)


def main() -> None:
    """Print the ratios."""
    parser = build_parser(__doc__)
    parser.add_argument("--model", type=Path, help="exported file; by default the default networks with random weights")
    parser.add_argument("--image", type=Path, help="image; by default noise of 256 x 1600")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--timed", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.timed:
        inspect_timed(*args.timed)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, image = args.model or folder / "inspector.pt", args.image or folder / "noise.png"
        if not args.image:
            cv2.imwrite(str(image), np.random.default_rng(0).integers(0, 256, (256, 1600), np.uint8))
        if not args.model:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                write_model(model)
        report([compare_help(args.rounds), compare_inspect(model, image, folder / "out", args.rounds)], args.json)


if __name__ == "__main__":
    main()
