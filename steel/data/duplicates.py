"""Images that show the same scene: the same pixels, or one re-encoded, brightened, turned, mirrored or shifted.

Each image is reduced to a thumbnail of about 6,400 pixels, freed of shading, bands and contrast. Two steps find twins:

1. Candidates. The magnitudes of a thumbnail's spectrum do not change when it is shifted and, both halves added, when it
   is mirrored. Divided by their own surroundings they are the speckle of one scene, for which the kind of
   steel does not matter: unrelated images correlate by 0 +- 0.03, twins by 0.3 and more. One matrix product compares
   all images with all others.
2. Proof. Phase correlation of the two thumbnails, in each way to turn them. Its peak is about the share of frequencies
   that agree on one shift: twins reach 0.45 to 1, unrelated images stay below 0.1. A repeated pattern such as tread
   plate, of which every image looks like every other, agrees in a few frequencies only (0.15 on Severstal's).

The figures are those of synthetic steel, of the Severstal images and of magnetic tiles, where scenes are known.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import cv2
import numpy as np
import scipy.fft
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from steel.data import images
from steel.data.cache import cache_folder, hash_file
from steel.files import write_atomic
from steel.progress import map_on_all_cores

MIN_SCORE = 0.25  # of the phase correlation
_MIN_RESEMBLANCE = 0.2  # of the spectra, to be worth a proof
_MAX_CANDIDATES = 32  # an image, so that a set of thousands of twins stays linear
_THUMBNAIL_PIXELS = 6400
_NEARLY_SQUARE = 1.25  # a longer side cut by so much may have become the shorter one
_VERSION = "2"  # of the method: what an older one found is not taken from the cache

Float = NDArray[np.float32]


class Pair(NamedTuple):
    """Two images of the same scene.

    Attributes:
        first: Index of one image.
        second: Index of the other; larger.
        kind: "exact" where every pixel is the same, else "near".
        score: 0..1, the share of the scene's frequencies that agree; 1 where exact.
        how: What was done to the first to make the second, in words; turns are clockwise.
    """

    first: int
    second: int
    kind: Literal["exact", "near"]
    score: float
    how: str


class _Fingerprint(NamedTuple):
    pixels: bytes  # a digest of size and grey values
    thumbnail: NDArray[np.int8]  # lying on its longer side
    upright: bool  # whether it had to be laid down


def find_duplicates(paths: Sequence[Path], folder: Path | None = None) -> list[Pair]:
    """Finds all images that show the same scene.

    Time is mostly decoding, on all cores; memory is a few KB an image.

    Args:
        paths: The images; their order gives the indices.
        folder: Keeps results by the content of the images, so that nothing is decoded twice; by default the user's
            cache folder.

    Returns:
        Pairs in order of their indices. Of k images with the same pixels, the k - 1 pairs of the first with each other;
        it stands for the others in what is near. Another order of the paths only renumbers.

    Raises:
        InputError: An image cannot be read.
    """
    folder = cache_folder() if folder is None else folder
    hashes = list(map_on_all_cores(hash_file, paths, "reading"))
    # The search goes by content, so that its result fits the same images in any order and by any name.
    order = sorted(range(len(paths)), key=lambda i: hashes[i])
    key = hashlib.sha256("\n".join([_VERSION, *sorted(hashes)]).encode()).hexdigest()[:32]
    file = folder / f"duplicates-{key}.json"
    pairs = _recall(file)
    if pairs is None:
        reduction = _choose_reduction([images.read_size(path) for path in paths])
        sorted_paths = [paths[i] for i in order]
        prints = list(
            map_on_all_cores(partial(_read_fingerprint, reduction=reduction), sorted_paths, "comparing images")
        )
        pairs = _match(prints, reduction)
        _keep(file, pairs)
    return _renumber(pairs, order)


def join(groups: NDArray[np.int64], pairs: Iterable[Pair]) -> NDArray[np.int64]:
    """Joins the groups whose images show the same scene, also through a chain of others.

    Args:
        groups: `(n,)` the group of each image.
        pairs: Images that belong together.

    Returns:
        `(n,)` numbers of the joined groups.
    """
    names, dense = np.unique(groups, return_inverse=True)
    ends = dense[np.array([(pair.first, pair.second) for pair in pairs], np.int64).reshape(-1, 2)]
    graph = coo_array((np.ones(len(ends), bool), (ends[:, 0], ends[:, 1])), shape=(len(names), len(names)))
    joined: NDArray[np.int64] = connected_components(graph, directed=False)[1].astype(np.int64)[dense]
    return joined


def _recall(file: Path) -> list[Pair] | None:
    """What was found before; None where nothing was, or the file is no longer whole."""
    try:
        return [Pair(*row) for row in json.loads(file.read_text())["pairs"]]
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _keep(file: Path, pairs: Iterable[Pair]) -> None:
    with suppress(OSError):  # a full or read-only home costs time, not the result
        write_atomic(file, json.dumps({"pairs": list(pairs)}))


def _renumber(pairs: Iterable[Pair], order: Sequence[int]) -> list[Pair]:
    """Pairs by their place in `order` become pairs by its numbers; the smallest stands for those of equal pixels."""
    alike: dict[int, list[int]] = {}
    numbered = []
    for pair in pairs:
        if pair.kind == "exact":
            alike.setdefault(pair.first, [order[pair.first]]).append(order[pair.second])
    for pair in pairs:
        if pair.kind == "near":
            first, second = (min(alike.get(place, [order[place]])) for place in pair[:2])
            numbered.append(pair._replace(first=first, second=second))
    for members in alike.values():
        numbered += [Pair(min(members), i, "exact", 1.0, "the same pixels") for i in members if i != min(members)]
    return sorted(pair if pair.first < pair.second else _turn_round(pair) for pair in numbered)


def _turn_round(pair: Pair) -> Pair:
    """The same pair, told from the other image."""
    how = re.sub("by (90|270) degrees", lambda by: f"by {360 - int(by[1])} degrees", pair.how)
    if re.search("90|270|diagonal", pair.how):  # the columns of one are rows of the other
        how = re.sub(r"about (\d+) columns and (\d+) rows", r"about \2 columns and \1 rows", how)
    return pair._replace(first=pair.second, second=pair.first, how=how)


def _choose_reduction(sizes: Sequence[tuple[int, int]]) -> int:
    """One factor for all images, since a scene that is reduced in another way is not recognised."""
    pixels = float(np.median([height * width for height, width in sizes])) if sizes else 1.0
    return max(1, round(math.sqrt(pixels / _THUMBNAIL_PIXELS)))


def _read_fingerprint(path: Path, reduction: int) -> _Fingerprint:
    return _take_fingerprint(images.read_grey(path), reduction)


def _take_fingerprint(image: NDArray[np.uint8], reduction: int) -> _Fingerprint:
    digest = hashlib.sha256(np.array(image.shape, np.int32).tobytes())
    digest.update(np.ascontiguousarray(image).data)
    upright = image.shape[0] > image.shape[1]
    lying = cv2.transpose(image) if upright else image
    height, width = (max(1, side // reduction) for side in lying.shape)
    small = cv2.resize(lying, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32)
    # Shading goes, then the bands along and across that all images of one coil share.
    small -= cv2.blur(small, (9, 9))
    small -= small.mean(axis=0, keepdims=True)
    small -= small.mean(axis=1, keepdims=True)
    # Contrast goes too, but what is weaker than two grey levels stays weak: a black margin must not become noise.
    small /= np.sqrt(cv2.blur(small * small, (17, 17))) + 2.0
    return _Fingerprint(digest.digest(), np.round(small.clip(-3, 3) * 42).astype(np.int8), upright)


def _match(prints: Sequence[_Fingerprint], reduction: int) -> list[Pair]:
    """Finds the pairs among fingerprints, the smaller number first."""
    first_with: dict[bytes, int] = {}
    pairs = []
    for i, fingerprint in enumerate(prints):
        first = first_with.setdefault(fingerprint.pixels, i)
        if first != i:
            pairs.append(Pair(first, i, "exact", 1.0, "the same pixels"))
    # One image stands for all that are equal to it.
    scenes = np.array(list(first_with.values()), np.int64)
    spectra, owners = _take_spectra([prints[i].thumbnail for i in scenes])
    for a, b in _find_candidates(spectra, owners):
        first, second = int(scenes[a]), int(scenes[b])
        score, how = _prove(prints[first], prints[second], reduction)
        if score >= MIN_SCORE:
            pairs.append(Pair(first, second, "near", round(score, 3), how))
    return pairs


def _take_spectra(thumbnails: Sequence[NDArray[np.int8]]) -> tuple[Float, NDArray[np.int64]]:
    """Features `(rows, d)` of length 1, and the thumbnail of each row; two for nearly square ones."""
    sizes = np.array([thumbnail.shape for thumbnail in thumbnails]).reshape(-1, 2)
    # Of an image much larger than the others the middle is enough, and keeps the arrays small.
    limit = np.minimum(sizes.max(axis=0), 1.5 * np.median(sizes, axis=0)) if len(sizes) else np.array([8, 8])
    canvas = (_even(int(limit[0])), _even(int(limit[1])))
    rows, owners = [], []
    for i, thumbnail in enumerate(thumbnails):
        views = [thumbnail, thumbnail.T] if _is_nearly_square(thumbnail) else [thumbnail]
        for view in views:
            rows.append(_take_spectrum(view, canvas))
            owners.append(i)
    return np.array(rows, np.float32), np.array(owners, np.int64)


def _even(side: int) -> int:
    """The next even size whose transform is fast."""
    side = max(side, 8)
    while (fast := int(scipy.fft.next_fast_len(side, real=True))) % 2:
        side = fast + 1
    return fast


def _take_spectrum(thumbnail: NDArray[np.int8], canvas: tuple[int, int]) -> Float:
    height, width = np.minimum(thumbnail.shape, canvas)
    top, left = (thumbnail.shape[0] - height) // 2, (thumbnail.shape[1] - width) // 2
    framed = np.zeros(canvas, np.float32)
    framed[:height, :width] = thumbnail[top : top + height, left : left + width]
    magnitude = np.abs(scipy.fft.rfft2(framed))
    half = canvas[0] // 2
    # A mirrored image has its vertical frequencies exchanged.
    speckle = np.sqrt(magnitude[1:half, 1:] + magnitude[:half:-1, 1:])
    around = cv2.blur(speckle, (5, 5))
    feature = ((speckle - around) / (around + 1e-6)).ravel()
    feature -= feature.mean()
    unit: Float = feature / (np.linalg.norm(feature) + 1e-12)
    return unit


def _find_candidates(spectra: Float, owners: NDArray[np.int64], block: int = 1024) -> Iterator[tuple[int, int]]:
    """Pairs of thumbnails with spectra alike, each once, the most alike of an image."""
    seen = set()
    for start in range(0, len(spectra), block):
        for row, likeness in enumerate(spectra[start : start + block] @ spectra[start:].T, start):
            alike = np.flatnonzero(likeness >= _MIN_RESEMBLANCE)
            taken = 0
            for column in alike[np.argsort(-likeness[alike], kind="stable")].tolist():
                a, b = sorted((int(owners[row]), int(owners[start + column])))
                if a == b or (a, b) in seen:
                    continue
                if taken == _MAX_CANDIDATES:
                    break
                taken += 1
                seen.add((a, b))
                yield a, b


def _prove(one: _Fingerprint, other: _Fingerprint, reduction: int) -> tuple[float, str]:
    """The peak of the phase correlation over all ways to turn the other, and what it says was done."""
    a, b = one.thumbnail, other.thumbnail
    surfaces = []
    for transposed in (False, True) if _is_nearly_square(a) and _is_nearly_square(b) else (False,):
        view = b.T if transposed else b
        canvas = [_even(max(sides)) for sides in zip(a.shape, view.shape, strict=True)]
        views = np.stack([view[::flip_y, ::flip_x] for flip_y, flip_x in _FLIPS]).astype(np.float32)
        agreement = _take_phases(a.astype(np.float32), canvas) * _take_phases(views, canvas).conj()
        surfaces.append(scipy.fft.irfft2(agreement, canvas))
    best = max(range(len(surfaces)), key=lambda i: float(surfaces[i].max()))
    surface = surfaces[best]
    way, *peak = np.unravel_index(int(surface.argmax()), surface.shape)
    # The surface is a ring: what lies beyond its middle is a shift to the other side.
    y, x = (int((p + side // 2) % side - side // 2) for p, side in zip(peak, surface.shape[1:], strict=True))
    if one.upright:
        y, x = x, y
    flips = _FLIPS[int(way)]
    return float(surface.max()), _describe(flips, best == 1, one.upright, other.upright, x * reduction, y * reduction)


def _is_nearly_square(thumbnail: NDArray[np.int8]) -> bool:
    height, width = thumbnail.shape
    return float(width) < _NEARLY_SQUARE * float(height)


def _take_phases(thumbnails: Float, canvas: Sequence[int]) -> NDArray[np.complex64]:
    spectrum = scipy.fft.rfft2(thumbnails, canvas)
    phases: NDArray[np.complex64] = spectrum / (np.abs(spectrum) + 1e-3)
    return phases


_FLIPS = ((1, 1), (1, -1), (-1, 1), (-1, -1))
_TURNS: dict[str, Callable[[NDArray[np.int64]], NDArray[np.int64]]] = {
    "mirrored left to right": lambda a: a[:, ::-1],
    "mirrored top to bottom": lambda a: a[::-1],
    "turned by 180 degrees": lambda a: a[::-1, ::-1],
    "turned by 90 degrees": lambda a: a.T[::-1],
    "turned by 270 degrees": lambda a: a.T[:, ::-1],
    "mirrored along a diagonal": lambda a: a.T,
    "mirrored along the other diagonal": lambda a: a[::-1, ::-1].T,
}


def _describe(flips: tuple[int, int], transposed: bool, upright: bool, other_upright: bool, x: int, y: int) -> str:
    """Says what was done, from what brings two thumbnails together that lie on their longer sides."""
    corner = np.arange(4).reshape(2, 2)
    turned = corner.T if other_upright != transposed else corner
    turned = turned[:: flips[0], :: flips[1]]
    turned = turned.T if upright else turned
    words = [name for name, make in _TURNS.items() if np.array_equal(make(corner), turned)]
    if x or y:
        words.append(f"shifted by about {abs(x)} columns and {abs(y)} rows")
    return ", ".join(words) or "the same place, other pixels"
