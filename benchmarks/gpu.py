"""Throughput of training and inspection on a GPU, relative to what the GPU can do.

    uv run python -m benchmarks.gpu [--root DIR] [--crop 256 512] [--workers 4 8 16] [--compile] [--model inspector.pt]
    uv run python -m benchmarks.gpu --device cpu --small

The first table is the training step of the segmenter alone, with its batch already on the device: bf16 or fp32 (with
TensorFloat-32, as in `steel fit`), channels last or contiguous weights, as a CUDA graph or not. The second is all of
`steel fit`, with loader, callbacks and logs, for several numbers of processes that load images; the time of the step
alone divided by theirs is the fraction of time in which the GPU works. With `--compile`, both are compiled; the
first steps, which compile, are not timed. The third is the exported file, with images and decisions in host memory.

The peak is the rate of a large bf16 matrix product in the same run; operations are counted by
`torch.utils.flop_counter`. All times are wall-clock times after synchronising with the device. `--small` runs
everything in about a minute, without compiling.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness import Comparison, build_parser, compare, report, summarise
from benchmarks.loader import make_heavier
from benchmarks.training import SKIPPED, Span
from steel.data.synthetic import write_synthetic
from steel.decision import bundle
from steel.decision.about import About
from steel.decision.inspector import Inspector
from steel.decision.point import OperatingPoint
from steel.export import targets
from steel.training.fit import run_cli
from steel.training.networks import ClassifierNetwork, SegmenterNetwork
from steel.training.tasks import DefectSegmenter
from steel.wording import format_count

NUM_CLASSES = 4
OURS = "bf16, channels last"
SMALL: dict[str, Any] = {"encoder": "resnet18", "decoder_channels": (16, 8, 8)}


def read_clock() -> float:
    """Return the time in seconds, after the GPU has finished its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def build_step(
    args: argparse.Namespace, bf16: bool = True, channels_last: bool = True, compiled: bool = False
) -> Callable[[], None]:
    """Return a function for one training step of the segmenter, with its batch already on the device."""
    device = torch.device(args.device)
    task = DefectSegmenter(num_classes=NUM_CLASSES, **(SMALL if args.small else {})).to(device).train()
    if not channels_last:
        task.network.to(memory_format=torch.contiguous_format)
    if compiled:
        task.network.compile(mode="reduce-overhead", dynamic=False)
    size = args.batch_size, 1, *args.crop
    images = torch.randint(0, 256, size, dtype=torch.uint8, device=device)
    index = torch.arange(args.batch_size, device=device)
    batch: Any = {"image": images, "mask": images[:, 0] & (2**NUM_CLASSES - 1), "index": index}
    optimizer = task.build_optimizer()

    def step() -> None:
        torch.compiler.cudagraph_mark_step_begin()
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss = task.loss(task(batch["image"]), task.find_targets(batch).float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def repeat(step: Callable[[], None], num: int) -> Callable[[], None]:
    """Return a function that calls the step `num` times."""

    def run() -> None:
        for _ in range(num):
            step()

    return run


def compare_steps(args: argparse.Namespace) -> Comparison:
    """Compare variants of the training step, in time per image."""
    settings: dict[str, dict[str, bool]] = {
        OURS: {},
        "bf16, contiguous": {"channels_last": False},
        "fp32, channels last": {"bf16": False},
        "bf16, channels last, CUDA graph": {"compiled": True},
    }
    if args.small:
        del settings["bf16, channels last, CUDA graph"]
    variants = {name: repeat(build_step(args, **setting), args.steps) for name, setting in settings.items()}
    title = f"a training step alone, {args.batch_size} crops of {args.crop[0]} x {args.crop[1]}"
    return compare(title, variants, OURS, args.steps * args.batch_size, "ms", args.rounds, clock=read_clock)


def count_flops(args: argparse.Namespace) -> float:
    """Return the number of operations of a training step per image."""
    step = build_step(args)
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops() / args.batch_size


def measure_peak(args: argparse.Namespace) -> float:
    """Return the operations per second of a large bf16 matrix product, the best of several."""
    side = 256 if args.small else 8192
    a, b = (torch.randn(side, side, device=args.device, dtype=torch.bfloat16) for _ in range(2))
    rates = []
    for _ in range(5):
        start = read_clock()
        for _ in range(10):
            a @ b
        rates.append(10 * 2 * side**3 / (read_clock() - start))
    return max(rates)


def fit(args: argparse.Namespace, root: Path, folder: Path, workers: int) -> float:
    """Return the seconds per image that `steel fit` takes after its first steps."""
    options = [
        "fit", "--config=conf/segmenter.yaml", "--config=conf/gpu.yaml", "--model.weights=null", f"--data.root={root}",
        f"--data.crop=[{args.crop[0]},{args.crop[1]}]", f"--data.batch_size={args.batch_size}",
        f"--data.num_workers={workers}", f"--trainer.limit_train_batches={SKIPPED + args.steps}",
        "--trainer.max_epochs=1", "--trainer.limit_val_batches=2", "--trainer.num_sanity_val_steps=0",
        "--trainer.enable_model_summary=false",
        f"--trainer.default_root_dir={folder}", "--best.monitor=val/loss", "--best.mode=min",
        "--early_stopping.monitor=val/loss", "--early_stopping.mode=min", "--num_pictures=0",
        f"--trainer.accelerator={'gpu' if args.device == 'cuda' else 'cpu'}",
        "--trainer.callbacks+=benchmarks.training.Span",
    ]  # fmt: skip
    if args.compile:
        options.append("--compile")
    if not args.root:
        options.append("--data.fractions=[0.9,0.1,0.0]")
    if args.small:
        options += ["--model.encoder=resnet18", "--model.decoder_channels=[16,8,8]", "--trainer.log_every_n_steps=1"]
    run_cli(options)
    return Span.steps[-1] / args.batch_size


def compare_fits(args: argparse.Namespace, root: Path, folder: Path) -> Comparison:
    """Compare `steel fit` with several numbers of workers with the step alone, in time per image."""
    alone, step = "the step alone", repeat(build_step(args, compiled=args.compile), args.steps)
    step()
    variants = {f"steel fit, {format_count(num, 'worker')}": num for num in args.workers}
    seconds: dict[str, list[float]] = {name: [] for name in (*variants, alone)}
    for _ in range(args.rounds):
        start = read_clock()
        step()
        seconds[alone].append((read_clock() - start) / args.steps / args.batch_size)
        for name, num in variants.items():
            seconds[name].append(fit(args, root, folder, num))
    ours = f"steel fit, {format_count(8 if 8 in args.workers else args.workers[0], 'worker')}"
    return summarise("the whole of steel fit", seconds, ours, 1, "ms", {alone: 0.9})


def write_inspector(args: argparse.Namespace, folder: Path) -> Path:
    """Write the default pair of networks in bf16, with random weights."""
    point = OperatingPoint.untuned(NUM_CLASSES)
    networks = ClassifierNetwork(NUM_CLASSES), SegmenterNetwork(NUM_CLASSES, **(SMALL if args.small else {}))
    lowered = targets.lower(Inspector(*networks, point).eval(), "bf16")
    example = torch.randint(0, 256, (1, 64, 256), dtype=torch.uint8)
    path = folder / "inspector.pt"
    # Rounding errors are far larger with random weights than with trained ones.
    about = About(tuple(str(c + 1) for c in range(NUM_CLASSES)), point)
    bundle.write(bundle.Program(lowered, example, 1.0), about, path)
    return path


def compare_inspections(args: argparse.Namespace, model: Path) -> Comparison:
    """Compare the exported file when the gate passes every image and when it passes none."""
    module, _ = bundle.read(model, args.device)
    images = torch.randint(0, 256, (args.batch_size, *args.size), dtype=torch.uint8)

    def inspect(gate: float) -> Callable[[], None]:
        @torch.inference_mode()
        def run() -> None:
            module.gate.fill_(gate)
            for _ in range(args.steps):
                for tensor in module(images.to(args.device)):
                    tensor.cpu()

        return run

    variants = {"every image segmented": inspect(0.0), "none segmented": inspect(2.0)}
    title = f"{model.name}, {args.batch_size} images of {args.size[0]} x {args.size[1]}"
    num = args.steps * args.batch_size
    return compare(title, variants, "every image segmented", num, "ms", args.rounds, clock=read_clock)


def print_rates(comparison: Comparison, unit: str, scale: Callable[[float], float]) -> None:
    """Print the images per second of each variant, and a rate derived from them."""
    print(f"| {comparison.title} | images/s | {unit} |\n|---|--:|--:|")
    for name, milliseconds in comparison.times.items():
        rate = 1e3 / milliseconds
        print(f"| {name} | {rate:,.0f} | {scale(rate):.3g} |")
    print()


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the options, and apply `--small`."""
    parser = build_parser(__doc__)
    parser.add_argument("--root", type=Path, help="dataset; by default synthetic images of 256 x 1600")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--crop", type=int, nargs=2, default=(256, 512), help="height and width to train on")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--workers", type=int, nargs="+", default=(4, 8, 16), help="numbers of workers that load")
    parser.add_argument("--steps", type=int, default=40, help="steps per round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compile", action="store_true", help="run steel fit with --compile")
    parser.add_argument("--model", type=Path, help="exported file; by default the default networks with random weights")
    parser.add_argument("--mm_per_pixel", type=float, help="scale along the strip, for metres per second")
    parser.add_argument("--small", action="store_true", help="small networks and images, few steps")
    args = parser.parse_args(arguments)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device available; try --device cpu --small")
    args.size = (64, 128) if args.small else (256, 1600)
    if args.small:
        args.crop, args.batch_size, args.steps, args.rounds = (64, 64), 2, 2, 1
    return args


def main(arguments: Sequence[str] | None = None) -> None:
    """Print all rates and ratios."""
    args = parse(arguments)
    torch.set_float32_matmul_precision("high")
    flops, peak = count_flops(args), measure_peak(args)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        root = args.root or folder / "data"
        if not args.root:
            # Nine tenths of the images are in train.
            write_synthetic(root, (SKIPPED + args.steps) * args.batch_size * 10 // 9 + 16, size=args.size)
            make_heavier(root)
        steps, fits = compare_steps(args), compare_fits(args, root, folder)
        inspections = compare_inspections(args, args.model or write_inspector(args, folder))
    where = torch.cuda.get_device_name() if args.device == "cuda" else "the CPU"
    print(f"\non {where}, {flops / 1e9:.3g} GFLOP for a crop, peak {peak / 1e12:.3g} TFLOP/s\n")
    for comparison in (steps, fits):
        print_rates(comparison, "share of the peak", lambda rate: rate * flops / peak)
    mm = args.mm_per_pixel or float("nan")
    print_rates(inspections, "m/s of strip", lambda rate: rate * args.size[1] * mm / 1e3)
    report([steps, fits, inspections], args.json)


if __name__ == "__main__":
    main()
