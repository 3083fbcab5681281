"""Scores of different libraries on the same masks, as the table in docs/metrics.md.

    uv run python -m benchmarks.definitions

The data are 16 images of 64 x 128 with four classes, every fourth one clean, and four detectors. Each score is the
library's Dice or F1 of these masks, with integer input and the averaging that its name says.
"""

import warnings

import numpy as np
import segmentation_models_pytorch as smp
import torch
from numpy.typing import NDArray
from torchmetrics.classification import MultilabelF1Score
from torchmetrics.segmentation import DiceScore, GeneralizedDiceScore

from steel.training.metrics import count, score_masks

N, NUM_CLASSES, HEIGHT, WIDTH = 16, 4, 64, 128
Mask = NDArray[np.bool_]


def draw_truth() -> Mask:
    """Return masks `(16, 4, 64, 128)`: one class on each image, none on every fourth."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    truth = np.zeros((N, NUM_CLASSES, HEIGHT, WIDTH), bool)
    for i in range(N):
        if i % 4:
            row, column, a, b = rng.integers(16, 48), rng.integers(24, 104), *rng.integers(6, 16, 2)
            truth[i, (i + i // 4) % NUM_CLASSES] = ((y - row) / a) ** 2 + ((x - column) / b) ** 2 <= 1
    return truth


def draw_detectors(truth: Mask) -> dict[str, Mask]:
    """Return the predicted masks by name of the detector."""
    moved = np.roll(truth, (3, 4), (2, 3))
    alarmed = moved.copy()
    alarmed[:, 0, :4, :4] = True  # a spot of 16 pixels on every image
    return {
        "faultless": truth,
        "a little off": moved,
        "a little off, with a small false alarm": alarmed,
        "nothing": np.zeros_like(truth),
    }


def score(predicted: Mask, true: Mask) -> dict[str, float]:
    """Return the scores by the library's name for them."""
    masks, truth = torch.from_numpy(predicted).long(), torch.from_numpy(true).long()
    ours = score_masks(count(torch.from_numpy(predicted), torch.from_numpy(true)))
    stats = smp.metrics.get_stats(masks, truth, mode="multilabel")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {
            "Kaggle Dice": ours["kaggle_dice"],
            "Dice on defects": ours["dice_on_defects"],
            "SMP f1, macro-imagewise": float(smp.metrics.f1_score(*stats, reduction="macro-imagewise")),
            "SMP f1, weighted-imagewise": float(
                smp.metrics.f1_score(*stats, reduction="weighted-imagewise", class_weights=[0.25] * NUM_CLASSES)
            ),
            "SMP f1, micro": float(smp.metrics.f1_score(*stats, reduction="micro")),
            "torchmetrics DiceScore": float(DiceScore(NUM_CLASSES, average="macro")(masks, truth)),
            "torchmetrics GeneralizedDiceScore": float(GeneralizedDiceScore(NUM_CLASSES)(masks, truth)),
            "torchmetrics MultilabelF1Score": float(MultilabelF1Score(NUM_CLASSES)(masks, truth)),
        }


def tabulate() -> str:
    """Return a Markdown table with a row for each definition and a column for each detector."""
    truth = draw_truth()
    columns = {name: score(predicted, truth) for name, predicted in draw_detectors(truth).items()}
    names = next(iter(columns.values()))
    lines = [["definition", *columns], ["---"] * (1 + len(columns))]
    lines += [[name, *(f"{scores[name]:.3f}" for scores in columns.values())] for name in names]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Print the table."""
    print(tabulate())


if __name__ == "__main__":
    main()
