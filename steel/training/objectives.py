"""Targets and scores of the two tasks."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steel.data.annotations import Annotations
from steel.data.unknown import find_labels
from steel.training.epoch_scores import LabelScores, MaskScores
from steel.training.metrics import Counts, score_labels, score_masks

# Logit of unlabelled targets. With a target of 0, every loss and its gradient are 0 there. A power of two, so float16
# and bfloat16 represent it exactly.
IGNORED_LOGIT = -8192.0


class LabelObjective:
    """The classes on an image; logits and targets are `(N, C)`."""

    build_scores = LabelScores

    def find_targets(self, masks: Tensor) -> Tensor:
        """Return the targets, bool, for masks `(N, C, H, W)` bool."""
        # The masks are augmented, so a defect that was cropped away is not a target.
        return masks.flatten(2).any(2)

    def find_known(self, targets: Tensor, unknown: Tensor) -> Tensor:
        """Return which targets are labelled, given the unlabelled pixels `(N, H, W)`."""
        return find_labels(targets, unknown.flatten(1).any(1)).known

    def count_negatives(self, annotations: Annotations, rows: NDArray[np.int64]) -> Tensor:
        """Return the number of negatives per positive among table rows, for each class, broadcastable to the logits."""
        positives = (annotations.labelled_areas[rows] > 0).sum(axis=0).clip(1)
        return torch.from_numpy((len(rows) - positives).clip(1) / positives)

    def score_positive(self, annotations: Annotations, rows: NDArray[np.int64]) -> dict[str, float]:
        """Return the scores on images of the table if every class is predicted on all of them.

        A score that is NaN then is NaN for every prediction.
        """
        present, known = find_labels(annotations.labelled_areas[rows], annotations.has_unknown[rows])
        labels = torch.from_numpy(present[known.any(axis=1)])
        return score_labels(torch.ones(labels.shape), labels)

    def update(self, scores: LabelScores, logits: Tensor, targets: Tensor, index: Tensor) -> None:
        """Add a batch to the scores; `index` `(N,)` are the table rows of its images."""
        # An image without any known label is neither clean nor defective.
        scores.update(logits.float().sigmoid(), targets, index, (logits > IGNORED_LOGIT).any(1))


class MaskObjective:
    """The pixels of each class; logits and targets are `(N, C, H, W)`. The methods are those of `LabelObjective`."""

    build_scores = MaskScores

    def find_targets(self, masks: Tensor) -> Tensor:
        return masks

    def find_known(self, targets: Tensor, unknown: Tensor) -> Tensor:
        return ~unknown[:, None].expand_as(targets)

    def count_negatives(self, annotations: Annotations, rows: NDArray[np.int64]) -> Tensor:
        positives = annotations.labelled_areas[rows].sum(axis=0).clip(1)
        num_pixels = annotations.sizes[rows].astype(np.int64).prod(axis=1).sum()
        return torch.from_numpy((num_pixels - positives).clip(1) / positives)[:, None, None]

    def score_positive(self, annotations: Annotations, rows: NDArray[np.int64]) -> dict[str, float]:
        truth, hidden = torch.from_numpy(annotations.labelled_areas[rows]), torch.from_numpy(annotations.hidden[rows])
        pixels = torch.from_numpy(annotations.sizes[rows].astype(np.int64).prod(axis=1)) - hidden
        return score_masks(Counts(truth, pixels[:, None].expand_as(truth), truth, pixels, hidden))

    def update(self, scores: MaskScores, logits: Tensor, targets: Tensor, index: Tensor) -> None:
        unknown = (logits <= IGNORED_LOGIT).all(1)
        scores.update(logits >= 0, targets, index, unknown)  # a probability of at least 0.5
