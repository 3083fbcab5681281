"""Removal of small spots equals SciPy's labelling, pixel for pixel."""

import math
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn

from steel.decision import components
from steel.decision.components import drop_small_spots

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.*` is deprecated")

Mask = NDArray[np.bool_]


class Filter(nn.Module):
    """Calls the filter from an exported method, like `Inspector`."""

    @torch.jit.export
    def decide(self, masks: Tensor, smallest_spot: Tensor) -> Tensor:
        return drop_small_spots(masks, smallest_spot)


@pytest.fixture(scope="module")
def scripted() -> Any:
    return torch.jit.script(Filter())


def measure_spots(mask: Mask) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Return the label of each pixel, 0 for background, and the area of each label."""
    labels, _ = ndimage.label(mask, np.ones((3, 3)))
    return labels, np.bincount(labels.ravel())


def drop_by_scipy(masks: Mask, smallest: list[int]) -> Mask:
    kept = masks.copy()
    for image in kept:
        for mask, limit in zip(image, smallest, strict=True):
            labels, areas = measure_spots(mask)
            mask &= areas[labels] >= limit
    return kept


def draw_spiral(rng: np.random.Generator, y: NDArray[Any], x: NDArray[Any]) -> Mask:
    height, width = y.shape
    mask = np.zeros((height, width), bool)
    for k in range(0, (min(height, width) + 1) // 2, 2):
        mask[k, max(k - 2, 0) : width - k] = True
        mask[k : height - k, width - 1 - k] = True
        mask[height - 1 - k, k : width - k] = True
        mask[k + 2 : height - k, k] = True
    return mask


def draw_blobs(rng: np.random.Generator, y: NDArray[Any], x: NDArray[Any]) -> Mask:
    mask = np.zeros(y.shape, bool)
    for _ in range(rng.integers(1, 20)):
        row, column = rng.integers(y.shape[0]), rng.integers(y.shape[1])
        a, b = rng.uniform(0.5, 1 + max(y.shape) / 12, 2)
        mask |= ((y - row) / a) ** 2 + ((x - column) / b) ** 2 <= 1
    return mask


def draw_noise(share: float, rng: np.random.Generator, y: NDArray[Any], x: NDArray[Any]) -> Mask:
    return rng.random(y.shape) < share


def draw_tree(rng: np.random.Generator, y: NDArray[Any], x: NDArray[Any]) -> Mask:
    """Draw columns that are joined in pairs, then pairs of pairs, and so on from top to bottom."""
    joint = x // 2 + 1
    depth = np.log2(joint & -joint)
    mask: Mask = (x % 2 == 0) | (y == np.minimum(3 * depth + 3, y.shape[0] - 1))
    return mask


Draw = Callable[[np.random.Generator, NDArray[Any], NDArray[Any]], Mask]
PATTERNS: dict[str, Draw] = {
    "empty": lambda rng, y, x: y < 0,
    "full": lambda rng, y, x: y >= 0,
    "one pixel": lambda rng, y, x: (y == y.max() // 2) & (x == x.max()),
    "checkerboard": lambda rng, y, x: (y + x) % 2 == 0,
    "dots": lambda rng, y, x: (y % 2 == 0) & (x % 2 == 0),
    "diagonals": lambda rng, y, x: (x - y) % rng.integers(3, 9) == 0,
    "other diagonals": lambda rng, y, x: (x + y) % rng.integers(3, 9) == 0,
    "rows": lambda rng, y, x: y % 2 == 0,
    "columns": lambda rng, y, x: x % 2 == 0,
    # Runs that are neighbours in a flattened mask only.
    "left and right edge": lambda rng, y, x: ((x == 0) & (y % 4 == 2)) | ((x == x.max()) & (y % 4 == 1)),
    "comb": lambda rng, y, x: (x % 2 == 0) | (y == y.max()),
    "comb upside down": lambda rng, y, x: (x % 2 == 0) | (y == 0),
    "comb on its side": lambda rng, y, x: (y % 2 == 0) | (x == rng.choice([0, x.max()])),
    "snake up and down": lambda rng, y, x: (x % 2 == 0) | (y == np.where(x % 4 == 1, y.max(), 0)),
    "snake left and right": lambda rng, y, x: (y % 2 == 0) | (x == np.where(y % 4 == 1, x.max(), 0)),
    "spiral": draw_spiral,
    "tree": draw_tree,
    "blobs": draw_blobs,
    "holes": lambda rng, y, x: ~draw_blobs(rng, y, x),
    "broken blobs": lambda rng, y, x: draw_blobs(rng, y, x) & (rng.random(y.shape) < 0.7),
    **{f"noise {share}": partial(draw_noise, share) for share in (0.05, 0.2, 0.35, 0.41, 0.5, 0.8)},
}


def draw(pattern: str, rng: np.random.Generator, size: tuple[int, int]) -> Mask:
    return np.ascontiguousarray(PATTERNS[pattern](rng, *np.mgrid[: size[0], : size[1]]))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_equals_scipy(pattern: str, scripted: Any) -> None:
    rng = np.random.default_rng(sum(pattern.encode()))
    sizes = [(1, 1), (1, 57), (57, 1), (2, 2), (256, 1600)] + [tuple(rng.integers(1, 64, 2)) for _ in range(20)]
    for size in sizes:
        mask = draw(pattern, rng, size)
        areas = measure_spots(mask)[1][1:]
        # A limit that keeps an existing area, and one that drops it.
        area = int(rng.choice(areas)) if len(areas) else 5
        masks = torch.from_numpy(mask)[None, None].expand(1, 2, -1, -1)
        expected = drop_by_scipy(masks.numpy(), [area, area + 1])
        assert np.array_equal(drop_small_spots(masks, torch.tensor([area, area + 1])).numpy(), expected)
        assert np.array_equal(scripted.decide(masks, torch.tensor([area, area + 1])).numpy(), expected)


@settings(max_examples=300)
@given(
    hnp.arrays(bool, st.tuples(st.integers(0, 3), st.just(2), st.integers(1, 7), st.integers(1, 7))),
    st.lists(st.integers(0, 12), min_size=2, max_size=2),
)
def test_any_masks_and_sizes(masks: Mask, smallest: list[int]) -> None:
    ours = drop_small_spots(torch.from_numpy(masks), torch.tensor(smallest))
    assert np.array_equal(ours.numpy(), drop_by_scipy(masks, smallest))


def stack(num_images: int, num_classes: int, size: tuple[int, int], seed: int = 0) -> Tensor:
    """Draw masks `(N, C, H, W)` of all patterns in turn."""
    rng, names = np.random.default_rng(seed), list(PATTERNS)
    planes = [draw(names[i % len(names)], rng, size) for i in range(num_images * num_classes)]
    return torch.from_numpy(np.stack(planes)).view(num_images, num_classes, *size)


def test_each_class_has_its_own_limit_and_the_input_is_not_modified(scripted: Any) -> None:
    masks, smallest = stack(10, 5, (23, 40)), [0, 1, 2, 9, 10_000]
    before = masks.clone()
    kept = drop_small_spots(masks, torch.tensor(smallest))
    assert np.array_equal(kept.numpy(), drop_by_scipy(before.numpy(), smallest))
    assert torch.equal(kept, scripted.decide(masks, torch.tensor(smallest)))
    assert torch.equal(kept[:, :2], before[:, :2])
    assert not kept[:, 4].any()
    kept.fill_(True)
    assert torch.equal(masks, before)


@pytest.mark.parametrize("smallest", [0, 1])
def test_limits_of_0_and_1_return_a_copy(smallest: int) -> None:
    masks = stack(2, 2, (8, 9))
    kept = drop_small_spots(masks, torch.full((2,), smallest))
    assert torch.equal(kept, masks)
    assert kept.data_ptr() != masks.data_ptr()


def test_any_memory_layout() -> None:
    masks, smallest = stack(4, 3, (18, 31)), torch.tensor([7, 20, 50])
    expected = drop_small_spots(masks, smallest)
    for layout in (masks.contiguous(memory_format=torch.channels_last), masks.mT.contiguous().mT):
        assert not layout.is_contiguous()
        assert torch.equal(drop_small_spots(layout, smallest), expected)


def test_planes_in_one_call_do_not_affect_each_other() -> None:
    # Devices other than the CPU pass all planes in one call.
    masks = stack(40, 3, (17, 29))
    smallest = torch.tensor([5, 11, 40])
    kept = components._clear_small(masks.flatten(0, 1), smallest.repeat(40)).view_as(masks)
    assert np.array_equal(kept.numpy(), drop_by_scipy(masks.numpy(), smallest.tolist()))


@pytest.mark.gpu
def test_a_gpu_gives_the_same_masks(scripted: Any) -> None:
    masks, smallest = stack(16, 4, (256, 1600)), torch.tensor([0, 30, 200, 3000])
    expected = drop_small_spots(masks, smallest)
    for run in (drop_small_spots, scripted.decide):
        assert torch.equal(run(masks.cuda(), smallest.cuda()).cpu(), expected)


def join_path(num: int) -> NDArray[np.int64]:
    return np.stack([np.arange(num - 1), np.arange(1, num)])


def join_star(num: int) -> NDArray[np.int64]:
    return np.stack([np.arange(num - 1), np.full(num - 1, num - 1)])


def join_caterpillar(num: int) -> NDArray[np.int64]:
    legs = np.stack([np.arange(num // 2), np.arange(num // 2) + num // 2])
    return np.concatenate([legs, join_path(num // 2)], 1)


def join_tree(num: int) -> NDArray[np.int64]:
    return np.stack([np.arange(1, num), (np.arange(1, num) - 1) // 2])


def join_at_random(num: int) -> NDArray[np.int64]:
    return np.random.default_rng(num).integers(0, num, (2, num // 2))


@pytest.mark.parametrize("join", [join_path, join_star, join_caterpillar, join_tree, join_at_random])
@pytest.mark.parametrize("num", [2, 3, 64, 1000, 4096])
def test_roots_of_any_graph_are_found_in_few_rounds(
    join: Callable[[int], NDArray[np.int64]], num: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds = 0

    def count_rounds(one: Tensor, other: Tensor, maximum: Callable[..., Tensor] = torch.maximum) -> Tensor:
        nonlocal rounds
        rounds += 1
        return maximum(one, other)

    monkeypatch.setattr(torch, "maximum", count_rounds)  # called once per round
    for name in (np.arange(num), np.arange(num)[::-1], np.random.default_rng(num).permutation(num)):
        edges = name[join(num)]
        rounds = 0
        root = components._find_roots(torch.from_numpy(edges[0]), torch.from_numpy(edges[1]), num).numpy()
        _, labels = connected_components(coo_array((np.ones(edges.shape[1]), tuple(edges)), shape=(num, num)))
        smallest = np.full(num, num)
        np.minimum.at(smallest, labels, np.arange(num))
        assert np.array_equal(root, smallest[labels])
        assert 1 <= rounds <= 2 * math.log2(num)


def test_decisions_need_torch_numpy_opencv_and_yaml_alone() -> None:
    code = (
        "import sys, torch; before = set(sys.modules); import steel.decision.components;"
        "print(*set(sys.modules) - before); import steel.decision.bundle; print(*set(sys.modules) - before)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    components, bundle = (set(line.split()) for line in run.stdout.splitlines())
    assert components == {"steel", "steel.decision", "steel.decision.components"}
    packages = {name.split(".")[0] for name in bundle}
    assert "cv2" in packages
    assert not packages & {"pandas", "scipy", "sklearn", "matplotlib", "pyarrow", "PIL", "torchvision", "rich"}
