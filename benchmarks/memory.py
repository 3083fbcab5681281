"""A memory of clean places, with which PatchCore compares the places of an image.

Source: Roth et al. 2022, Towards total recall in industrial anomaly detection (PatchCore).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

_NUM_PROJECTED = 32  # dimensions in which the bank is chosen


def join_stages(stages: list[Tensor]) -> Tensor:
    """Return the features of two stages of an encoder at the places of the finer one, float `(N, K, h, w)`."""
    fine, coarse = stages
    return torch.cat([fine, F.interpolate(coarse, size=fine.shape[2:], mode="bilinear")], 1)


def choose_bank(candidates: Tensor, num: int) -> Tensor:
    """Return the positions of `num` of the candidates `(M, K)`, such that every candidate is near to one of them.

    Each is the one most distant from those before it. Distances are taken in a random projection, which keeps them.
    Source: Sener and Savarese 2018, Active learning for convolutional neural networks.
    """
    generator = torch.Generator().manual_seed(0)
    projection = torch.randn(candidates.shape[1], _NUM_PROJECTED, generator=generator)
    x = candidates @ projection / _NUM_PROJECTED**0.5
    nearest = torch.full((len(x),), torch.inf)
    chosen = [0]
    while len(chosen) < min(num, len(x)):
        nearest = torch.minimum(nearest, (x - x[chosen[-1]]).square().sum(1))
        chosen.append(int(nearest.argmax()))
    return torch.tensor(chosen)
