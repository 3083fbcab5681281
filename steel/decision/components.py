"""Drops the spots of a mask that are too small to be a defect.

A spot is an 8-connected component. Needs torch alone and scripts to TorchScript, for it decides as a part of
`Inspector.decide`. No loop runs over pixels, so that the same code serves every device.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad


def drop_small_spots(masks: Tensor, smallest_spot: Tensor) -> Tensor:
    """Clears every 8-connected component of fewer than `smallest_spot[c]` pixels.

    Exact for any mask: the time grows with the runs of a plane, however they are connected.

    Args:
        masks: bool `(N, C, H, W)`, left as they are.
        smallest_spot: int64 `(C,)`, in pixels; a class with 0 or 1 keeps everything.

    Returns:
        New masks, bool `(N, C, H, W)`.
    """
    masks = masks.clone(memory_format=torch.contiguous_format)
    planes, smallest = masks.flatten(0, 1), smallest_spot.repeat(masks.shape[0])
    chosen = torch.nonzero(smallest > 1).squeeze(1)
    chosen = chosen[planes[chosen].flatten(1).any(1)]
    # The runs of one plane fit into the cache of a CPU; everything else is fastest when it is called once.
    at_once = 1 if masks.device.type == "cpu" else max(len(chosen), 1)
    for i in range(0, len(chosen), at_once):
        part = chosen[i : i + at_once]
        planes[part] = _clear_small(planes[part], smallest[part])
    return masks


def _clear_small(planes: Tensor, smallest: Tensor) -> Tensor:
    """Planes bool `(P, H, W)` without the components of fewer than `smallest`, int64 `(P,)`, pixels."""
    # A blank column to the left and a blank row below: no run meets one of the next row's or plane's in the flat mask.
    padded = pad(planes, [1, 0, 0, 1])
    height, width = padded.shape[1], padded.shape[2]
    flat = padded.flatten()
    runs = torch.nonzero(flat[1:] ^ flat[:-1]).view(-1, 2) + 1
    starts, ends = runs[:, 0].contiguous(), runs[:, 1].contiguous()
    # The runs of the next row that touch a run, corners included, follow one another.
    first = torch.searchsorted(ends, starts + width)
    upper, lower = _count_up(first, torch.searchsorted(starts, ends + width, right=True) - first)
    root = _find_roots(upper, lower, len(runs))
    area = torch.zeros_like(root).index_add_(0, root, ends - starts)
    plane = torch.div(starts, height * width, rounding_mode="floor")
    small = area[root] < smallest[plane]
    _, pixels = _count_up(starts[small], (ends - starts)[small])
    flat[pixels] = False
    return flat.view_as(padded)[:, :-1, 1:]


def _count_up(first: Tensor, num: Tensor) -> tuple[Tensor, Tensor]:
    """For each i the numbers `first[i]`, `first[i] + 1`, ..., `num[i]` of them: which i, and the number."""
    which = torch.repeat_interleave(num)
    skipped = first - (num.cumsum(0) - num)
    return which, torch.arange(len(which), device=first.device) + skipped.gather(0, which)


def _find_roots(one: Tensor, other: Tensor, num: int) -> Tensor:
    """Connected components of a graph: for each of `num` nodes the smallest node of its component.

    Args:
        one: One end of each edge, int64 `(E,)`.
        other: The other end.
        num: How many nodes there are.
    """
    root = torch.arange(num, device=one.device)
    # Each round hangs every root onto its smallest neighbour, where that is smaller. A root that nothing was hung onto
    # has a smaller neighbour in the next round, since all its neighbours found a smaller one. So two rounds at least
    # halve the roots of a component, and there are at most 2 log2(num) rounds; noise takes 6.
    while len(one) > 0:
        root.scatter_reduce_(0, torch.maximum(one, other), torch.minimum(one, other), "amin")
        further = root.gather(0, root)
        while not torch.equal(further, root):
            root = further
            further = root.gather(0, root)
        one, other = root.gather(0, one), root.gather(0, other)
        apart = one != other
        one, other = one[apart], other[apart]
    return root
