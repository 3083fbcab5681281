"""Removes small spots, which are 8-connected components, from masks.

Needs torch alone and can be scripted, because it is part of `Inspector.decide`. No loop runs over pixels, so the same
code serves every device.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad


def drop_small_spots(masks: Tensor, smallest_spot: Tensor) -> Tensor:
    """Clear every 8-connected component of fewer than `smallest_spot[c]` pixels.

    The result is exact for any mask. The time is proportional to the number of runs in a plane, whatever their shape.

    Args:
        masks: bool `(N, C, H, W)`; not modified.
        smallest_spot: int64 `(C,)`, in pixels; 0 and 1 keep everything.

    Returns:
        New masks, bool `(N, C, H, W)`.
    """
    masks = masks.clone(memory_format=torch.contiguous_format)
    planes, smallest = masks.flatten(0, 1), smallest_spot.repeat(masks.shape[0])
    chosen = torch.nonzero(smallest > 1).squeeze(1)
    chosen = chosen[planes[chosen].flatten(1).any(1)]
    # On a CPU, the runs of one plane fit into the cache. Other devices are fastest with a single call.
    batch_size = 1 if masks.device.type == "cpu" else max(len(chosen), 1)
    for i in range(0, len(chosen), batch_size):
        batch = chosen[i : i + batch_size]
        planes[batch] = _clear_small(planes[batch], smallest[batch])
    return masks


def _clear_small(planes: Tensor, smallest: Tensor) -> Tensor:
    """Clear the components of fewer than `smallest[p]` pixels, int64 `(P,)`, in planes, bool `(P, H, W)`."""
    # An empty column on the left and an empty row below separate the runs of rows and planes in the flattened masks.
    padded = pad(planes, [1, 0, 0, 1])
    height, width = padded.shape[1], padded.shape[2]
    flat = padded.flatten()
    runs = torch.nonzero(flat[1:] ^ flat[:-1]).view(-1, 2) + 1
    starts, ends = runs[:, 0].contiguous(), runs[:, 1].contiguous()
    # The runs of the next row that touch a run, also at a corner, are consecutive.
    first = torch.searchsorted(ends, starts + width)
    upper, lower = _expand_ranges(first, torch.searchsorted(starts, ends + width, right=True) - first)
    root = _find_roots(upper, lower, len(runs))
    area = torch.zeros_like(root).index_add_(0, root, ends - starts)
    plane = torch.div(starts, height * width, rounding_mode="floor")
    small = area[root] < smallest[plane]
    _, pixels = _expand_ranges(starts[small], (ends - starts)[small])
    flat[pixels] = False
    return flat.view_as(padded)[:, :-1, 1:]


def _expand_ranges(first: Tensor, num: Tensor) -> tuple[Tensor, Tensor]:
    """Concatenate ranges of `num[i]` integers from `first[i]` on; return the i of each integer, then the integers."""
    which = torch.repeat_interleave(num)
    offset = first - (num.cumsum(0) - num)
    return which, torch.arange(len(which), device=first.device) + offset.gather(0, which)


def _find_roots(one: Tensor, other: Tensor, num: int) -> Tensor:
    """Find the connected components of a graph: return the smallest node of each node's component, int64 `(num,)`.

    The graph has `num` nodes, and edges between `one` and `other`, int64 `(E,)`.
    """
    root = torch.arange(num, device=one.device)
    # Each round attaches every root to its smallest neighbour if that is smaller. A root to which nothing was attached
    # has a smaller neighbour in the next round, because all its neighbours have found a smaller one. So two rounds at
    # least halve the roots of a component, and there are at most 2 log2(num) rounds; noise takes 6.
    while len(one) > 0:
        root.scatter_reduce_(0, torch.maximum(one, other), torch.minimum(one, other), "amin")
        parent = root.gather(0, root)
        while not torch.equal(parent, root):
            root = parent
            parent = root.gather(0, root)
        one, other = root.gather(0, one), root.gather(0, other)
        is_apart = one != other
        one, other = one[is_apart], other[is_apart]
    return root
