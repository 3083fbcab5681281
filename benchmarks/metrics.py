"""Counting pixels for the scores, compared with a forward pass and with libraries, in CPU time.

    uv run python -m benchmarks.metrics [--rounds N] [--json FILE]

One image of 256 x 1600 with four classes, on one thread. All variants must give the same counts.

Peers: torchmetrics' MultilabelStatScores and SMP's get_stats on the same masks; one threshold after the other, as
notebooks do; and the contest's popular kernel for the smallest area, which labels components with OpenCV and loops over
them. The lower bound of counting is reading both masks once.
"""

import warnings
from collections.abc import Callable
from functools import partial

import cv2
import numpy as np
import segmentation_models_pytorch as smp
import torch
from numpy.typing import NDArray
from torchmetrics.classification import MultilabelStatScores

from benchmarks.components import HEIGHT, WIDTH, draw_planes
from benchmarks.harness import Comparison, build_parser, compare, report
from steel.decision.components import drop_small_spots
from steel.evaluation.scores import LEVELS, sweep
from steel.training.epoch_scores import MaskScores
from steel.training.metrics import count
from steel.training.networks import SegmenterNetwork

NUM_CLASSES = 4
Mask = NDArray[np.bool_]


def draw_masks(rng: np.random.Generator) -> tuple[NDArray[np.float32], Mask]:
    """Return pixel probabilities and truth, both `(4, 256, 1600)`: smooth random fields and their high regions."""
    noise = rng.standard_normal((NUM_CLASSES, HEIGHT, WIDTH), np.float32)
    smooth = np.stack([cv2.GaussianBlur(plane, (0, 0), 12) for plane in noise])
    smooth /= smooth.std(axis=(1, 2), keepdims=True)
    probabilities = 1 / (1 + np.exp(-4 * (smooth + 0.2 * noise) + 6))
    return probabilities.astype(np.float32), smooth > 1.6


def compare_counts(probabilities: NDArray[np.float32], truth: Mask, rounds: int) -> Comparison:
    """Compare the update of the mask scores with libraries and with a forward pass."""
    predicted, true = (torch.from_numpy(masks)[None] for masks in (probabilities >= 0.5, truth))
    index = torch.zeros(1, dtype=torch.int64)
    scores, library = MaskScores(), MultilabelStatScores(NUM_CLASSES, average=None)
    ours = count(predicted, true)
    library.update(predicted, true)
    of_library = library.compute()  # true positives, false positives, true negatives, false negatives, truth
    assert torch.equal(of_library[:, 0], ours.hits[0])
    assert torch.equal(of_library[:, 0] + of_library[:, 1], ours.predicted[0])
    assert torch.equal(of_library[:, 4], ours.truth[0])
    hits, false, missed, _ = smp.metrics.get_stats(predicted.long(), true.long(), mode="multilabel")
    assert torch.equal(hits, ours.hits)
    assert torch.equal(hits + false, ours.predicted)
    assert torch.equal(hits + missed, ours.truth)
    network = SegmenterNetwork(NUM_CLASSES, "resnet18").eval()
    image = torch.randint(0, 256, (1, 1, HEIGHT, WIDTH), dtype=torch.uint8)

    def forward() -> None:
        with torch.inference_mode():
            network(image)

    # As 64-bit words, which NumPy compares as fast as the memory delivers them.
    words = [masks.numpy().reshape(-1).view(np.uint64) for masks in (predicted, true)]
    # SMP does not accept bool.
    long = predicted.long(), true.long()
    variants: dict[str, Callable[[], object]] = {
        "steel, MaskScores.update": lambda: scores.update(predicted, true, index),
        "forward pass, U-Net-R18": forward,
        "reading both masks once": lambda: [int(array.max()) for array in words],
        "torchmetrics, MultilabelStatScores, bool": lambda: library.update(predicted, true),
        "torchmetrics, MultilabelStatScores, int64": lambda: library.update(*long),
        "smp, get_stats, int64": lambda: smp.metrics.get_stats(*long, mode="multilabel"),
        "smp, get_stats, cast from bool": lambda: smp.metrics.get_stats(
            predicted.long(), true.long(), mode="multilabel"
        ),
    }
    targets = {"forward pass, U-Net-R18": 20, "reading both masks once": 1 / 1.5}
    return compare(
        "counting one image, four classes", variants, "steel, MaskScores.update", rounds=rounds, targets=targets
    )


def sweep_naively(probabilities: NDArray[np.float32], truth: Mask) -> NDArray[np.int64]:
    """Count as notebooks do: threshold, multiply, sum."""
    counts = np.zeros((2, LEVELS), np.int64)
    for k in range(LEVELS):
        predicted = probabilities >= k / LEVELS
        counts[:, k] = (predicted * truth).sum(), predicted.sum()
    return counts


def compare_sweeps(probabilities: NDArray[np.float32], truth: Mask, rounds: int) -> Comparison:
    """Compare counting at all thresholds of one class."""
    assert np.array_equal(sweep(probabilities, truth), sweep_naively(probabilities, truth))
    variants: dict[str, Callable[[], object]] = {
        "steel, sweep": partial(sweep, probabilities, truth),
        "a threshold after another": partial(sweep_naively, probabilities, truth),
    }
    targets = {"a threshold after another": 100}
    return compare(f"{LEVELS} thresholds, one class", variants, "steel, sweep", rounds=rounds, targets=targets)


def post_process(mask: Mask, smallest: int) -> NDArray[np.float32]:
    """Drop small components with the contest's popular kernel."""
    num_component, component = cv2.connectedComponents(mask.astype(np.uint8))
    predictions = np.zeros(mask.shape, np.float32)
    for c in range(1, num_component):
        p = component == c
        if p.sum() > smallest:
            predictions[p] = 1
    return predictions


def compare_filters(title: str, mask: Mask, smallest: int, rounds: int, target: float | None = None) -> Comparison:
    """Compare filters of one class; the kernel keeps spots larger than its limit, ours also those equal to it."""
    masks, sizes = torch.from_numpy(mask)[None, None], torch.tensor([smallest + 1])
    assert np.array_equal(drop_small_spots(masks, sizes)[0, 0].numpy(), post_process(mask, smallest) > 0)
    variants: dict[str, Callable[[], object]] = {
        "steel, drop_small_spots": partial(drop_small_spots, masks, sizes),
        "the popular kernel": partial(post_process, mask, smallest),
    }
    targets = {} if target is None else {"the popular kernel": target}
    return compare(title, variants, "steel, drop_small_spots", rounds=rounds, targets=targets)


def main() -> None:
    """Print a table for each comparison."""
    parser = build_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    warnings.filterwarnings("ignore", "The ``compute`` method")
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    probabilities, truth = draw_masks(rng)
    blobs, noise = draw_planes(rng)["20 blobs"][0], rng.random((HEIGHT, WIDTH)) < 0.01
    comparisons = [
        compare_counts(probabilities, truth, args.rounds),
        compare_sweeps(probabilities[0], truth[0], args.rounds),
        compare_filters("smallest area, 20 blobs", blobs, 50, args.rounds),
        compare_filters("smallest area, noise of 1 % of the pixels", noise, 2, args.rounds, 20),
    ]
    report(comparisons, args.json)


if __name__ == "__main__":
    main()
