"""`benchmarks.memory`: the bank covers the clean places."""

import torch

from benchmarks.memory import choose_bank


def test_the_bank_covers_the_candidates() -> None:
    """A rare kind of clean place is in the bank, and no candidate is far from it."""
    candidates = torch.cat([torch.randn(500, 8), torch.randn(3, 8) + 50])
    chosen = choose_bank(candidates, 40)
    assert len(set(chosen.tolist())) == 40
    assert (chosen >= 500).any()
    distances = torch.cdist(candidates, candidates[chosen]).amin(1)
    drawn = torch.cdist(candidates, candidates[:40]).amin(1)
    assert distances.max() < drawn.max() / 5
    assert len(choose_bank(candidates[:5], 40)) == 5
