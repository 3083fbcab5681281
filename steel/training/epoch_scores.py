"""Scores over all images of an epoch, accumulated batch by batch on the device.

Counts and probabilities are kept per image and never averaged over batches, so no score depends on the batch size or
the number of processes. No update waits for a GPU.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from steel.training.metrics import Counts, count, score_labels, score_masks


class _PerImage(Metric):
    """Rows of numbers per image. An image that occurs twice, for instance as a sampler's padding, counts once."""

    full_state_update = False
    higher_is_better = None
    is_differentiable = False

    def __init__(self) -> None:
        super().__init__()
        self.add_state("indices", [], dist_reduce_fx="cat")
        self.add_state("rows", [], dist_reduce_fx="cat")
        self.indices: list[Tensor] | Tensor
        self.rows: list[Tensor] | Tensor

    def _add(self, index: Tensor, rows: Tensor) -> None:
        assert isinstance(self.indices, list) and isinstance(self.rows, list)  # noqa: PT018
        self.indices.append(index)
        self.rows.append(rows)

    def _collect(self) -> tuple[Tensor, Tensor]:
        """Return the sorted indices of the images and their rows."""
        index = _concatenate(self.indices)
        order = torch.argsort(index, stable=True)
        is_first = torch.ones_like(index, dtype=torch.bool)
        is_first[1:] = index[order][1:] != index[order][:-1]
        return index[order[is_first]], _concatenate(self.rows)[order[is_first]]


def _concatenate(state: Tensor | Sequence[Tensor]) -> Tensor:
    # After synchronising processes, torchmetrics replaces the list by one tensor.
    return state if isinstance(state, Tensor) else torch.cat(list(state))


class MeanLoss(Metric):
    """Mean over images of the losses of batches. torchmetrics' mean waits for the GPU in every batch and omits NaN."""

    full_state_update = False
    higher_is_better = False
    is_differentiable = False

    def __init__(self) -> None:
        super().__init__()
        for name in ("total", "num_images"):
            self.add_state(name, torch.tensor(0.0), dist_reduce_fx="sum")
        self.total: Tensor
        self.num_images: Tensor

    def update(self, loss: Tensor, num_images: int) -> None:
        """Add the mean loss of a batch, a scalar."""
        self.total += loss * num_images
        self.num_images += num_images

    def compute(self) -> Tensor:
        return self.total / self.num_images


class MaskScores(_PerImage):
    """`score_masks` over all images of an epoch."""

    def update(self, predicted: Tensor, truth: Tensor, index: Tensor, unknown: Tensor | None = None) -> None:
        """Add masks of the images with table rows `index` `(N,)`; see `count` for the others."""
        counts = count(predicted, truth, unknown)
        self._add(index, torch.cat([*counts[:3], counts.pixels[:, None], counts.hidden[:, None]], 1))

    def counts(self) -> tuple[Tensor, Counts]:
        """Return the sorted table rows of the images and their counts."""
        index, rows = self._collect()
        hits, predicted, truth = rows[:, :-2].chunk(3, 1)
        return index, Counts(hits, predicted, truth, rows[:, -2], rows[:, -1])

    def compute(self) -> dict[str, float]:
        return score_masks(self.counts()[1])


class LabelScores(_PerImage):
    """`score_labels` over all images of an epoch."""

    def update(self, probabilities: Tensor, labels: Tensor, index: Tensor, known: Tensor | None = None) -> None:
        """Add probabilities and labels, both `(N, C)`, of the images with table rows `index` `(N,)`.

        Images that are not `known`, bool `(N,)`, do not count; by default all do.
        """
        # They are dropped at the end, because a result of unknown length would wait for the GPU in every batch.
        counts = torch.ones_like(probabilities[:, 0]) if known is None else known
        self._add(index, torch.cat([probabilities.float(), labels.float(), counts.float()[:, None]], 1))

    def results(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the sorted table rows of the images, their probabilities `(n, C)` and labels `(n, C)` bool."""
        index, rows = self._collect()
        counts = rows[:, -1] > 0
        probabilities, labels = rows[counts, :-1].chunk(2, 1)
        return index[counts], probabilities, labels > 0

    def compute(self) -> dict[str, float]:
        return score_labels(*self.results()[1:])
