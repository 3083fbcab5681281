"""Search for images of the same scene: identical, re-encoded, brightened, rotated, mirrored or shifted copies.

Images are reduced to thumbnails of about 6,400 pixels, without shading, bands and contrast. The search has two steps:

1. Candidates. The magnitude spectrum of a thumbnail is invariant to shifts and, with its two halves added, to
   mirroring. Divided by its local mean it is a speckle pattern that identifies the scene and not the kind of steel:
   unrelated images correlate by 0 +- 0.03, copies by 0.3 and more. One matrix product compares the sixth of the
   frequencies that is lowest, in which copies are most alike, of all images; then all frequencies decide.
2. Verification. The thumbnails are phase-correlated in every orientation. The peak is about the share of frequencies
   that agree on one shift: copies reach 0.45 to 1, unrelated images stay below 0.1, and repeated patterns such as
   tread plate reach 0.15.

Measured on synthetic steel, Severstal images and magnetic tiles with known scenes.
"""

import hashlib
import json
import math
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO, Literal, NamedTuple

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

MIN_SCORE = 0.25  # smallest peak of the phase correlation for a near-duplicate
_MIN_CORRELATION = 0.2  # smallest correlation of the spectra for a candidate
# The lowest frequencies are compared first. Pairs that are verified correlate there by 0.34 and more (magnetic tiles,
# planted twins on synthetic steel), unrelated images by 0.02 +- 0.07.
_MIN_LOW_CORRELATION = 0.3
_MIN_LOW = 256  # number of these frequencies, at least
_MAX_CANDIDATES = 32  # per image, so that time stays linear for thousands of copies of one scene
_THUMBNAIL_PIXELS = 6400
_MAX_SIMILAR = 256  # per row, of which all frequencies are compared
_COLUMNS = 4096  # spectra converted to float32 at once
_NEARLY_SQUARE = 1.25  # below this aspect ratio, cropping may swap the longer and the shorter side
_VERSION = "3"  # of the method; results of other versions are not read from the cache

Float = NDArray[np.float32]


class Pair(NamedTuple):
    """Two images of the same scene.

    Attributes:
        first: Index of one image.
        second: Index of the other image; larger than `first`.
        kind: "exact" if all pixels are equal, else "near".
        score: 0..1, the share of frequencies that agree; 1 for exact pairs.
        how: How the second image was made from the first, in words; rotations are clockwise.
    """

    first: int
    second: int
    kind: Literal["exact", "near"]
    score: float
    how: str


class _Fingerprint(NamedTuple):
    pixels: bytes  # hash of size and grey values
    thumbnail: NDArray[np.int8]  # transposed if needed, so that it is at least as wide as high
    is_upright: bool  # whether it was transposed


class _Fingerprints:
    """Fingerprints by index. The thumbnails, 6.4 KB each, are in a temporary file instead of memory.

    Args:
        fingerprints: Read once.
        file: The temporary file, empty.
    """

    def __init__(self, fingerprints: Iterable[_Fingerprint], file: IO[bytes]) -> None:
        self._file = file
        self._offsets = [0]
        self._is_upright: list[bool] = []
        self.pixels: list[bytes] = []
        self.sizes: list[tuple[int, ...]] = []
        for pixels, thumbnail, is_upright in fingerprints:
            self._file.write(thumbnail.tobytes())
            self._offsets.append(self._offsets[-1] + thumbnail.size)
            self._is_upright.append(is_upright)
            self.pixels.append(pixels)
            self.sizes.append(thumbnail.shape)

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, i: int) -> _Fingerprint:
        self._file.seek(self._offsets[i])
        data = self._file.read(self._offsets[i + 1] - self._offsets[i])
        return _Fingerprint(self.pixels[i], np.frombuffer(data, np.int8).reshape(self.sizes[i]), self._is_upright[i])


def find_duplicates(paths: Sequence[Path], folder: Path | None = None) -> list[Pair]:
    """Find all images that show the same scene.

    Memory use is about 5 KB per image, and 6.4 KB of temporary disk space. The time to compare spectra is quadratic:
    it exceeds the time to read the images from about 500,000 images on.

    Args:
        paths: The images; their order defines the indices.
        folder: Cache folder for the result, by default the user's. The key is the content of the images, so the result
            is reused after they are renamed or reordered.

    Returns:
        Pairs, sorted by index. Identical images form a cluster: its first member is paired with each other member, and
        represents the cluster in near-duplicate pairs.

    Raises:
        InputError: An image cannot be read.
    """
    folder = cache_folder() if folder is None else folder
    hashes = list(map_on_all_cores(hash_file, paths, "reading"))
    # The cached pairs refer to images sorted by content.
    order = sorted(range(len(paths)), key=lambda i: hashes[i])
    key = hashlib.sha256("\n".join([_VERSION, *sorted(hashes)]).encode()).hexdigest()[:32]
    file = folder / f"duplicates-{key}.json"
    pairs = _read_cached(file)
    if pairs is None:
        # One factor for all images, because scenes reduced by different factors do not match.
        areas = [math.prod(images.read_size(path)) for path in paths] or [1]
        reduction = max(1, round(math.sqrt(float(np.median(areas)) / _THUMBNAIL_PIXELS)))
        read = partial(_read_fingerprint, reduction=reduction)
        fingerprints = map_on_all_cores(read, [paths[i] for i in order], "comparing images")
        with tempfile.TemporaryFile() as thumbnails:
            pairs = _match(_Fingerprints(fingerprints, thumbnails), reduction)
        with suppress(OSError):  # without a writable cache the result is only computed again
            write_atomic(file, json.dumps({"pairs": pairs}))
    return _renumber(pairs, order)


def join(groups: NDArray[np.int64], pairs: Iterable[Pair | tuple[int, int]]) -> NDArray[np.int64]:
    """Merge groups `(n,)` that pairs of images connect, directly or through others; return the new groups `(n,)`."""
    names, dense = np.unique(groups, return_inverse=True)
    ends = dense[np.array([pair[:2] for pair in pairs], np.int64).reshape(-1, 2)]
    graph = coo_array((np.ones(len(ends), bool), (ends[:, 0], ends[:, 1])), shape=(len(names), len(names)))
    joined: NDArray[np.int64] = connected_components(graph, directed=False)[1].astype(np.int64)[dense]
    return joined


def _read_cached(file: Path) -> list[Pair] | None:
    """Return the cached pairs, or None if there are none or the file is damaged."""
    try:
        return [Pair(*row) for row in json.loads(file.read_text())["pairs"]]
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _renumber(pairs: Iterable[Pair], order: Sequence[int]) -> list[Pair]:
    """Replace positions in `order` by image indices; the smallest one represents a cluster of identical images."""
    clusters: dict[int, list[int]] = {}
    renumbered = []
    for pair in pairs:
        if pair.kind == "exact":
            clusters.setdefault(pair.first, [order[pair.first]]).append(order[pair.second])
    smallest = {i: min(members) for i, members in clusters.items()}
    for pair in pairs:
        if pair.kind == "near":
            first, second = (smallest.get(i, order[i]) for i in pair[:2])
            renumbered.append(pair._replace(first=first, second=second))
    for i, members in clusters.items():
        first = smallest[i]
        renumbered += [Pair(first, member, "exact", 1.0, "the same pixels") for member in members if member != first]
    return sorted(pair if pair.first < pair.second else _swap(pair) for pair in renumbered)


def _swap(pair: Pair) -> Pair:
    """Exchange the two images of a pair and describe the inverse operation."""
    how = re.sub("by (90|270) degrees", lambda by: f"by {360 - int(by[1])} degrees", pair.how)
    if re.search("90|270|diagonal", pair.how):  # rows and columns are exchanged
        how = re.sub(r"about (\d+) columns and (\d+) rows", r"about \2 columns and \1 rows", how)
    return pair._replace(first=pair.second, second=pair.first, how=how)


def _read_fingerprint(path: Path, reduction: int) -> _Fingerprint:
    image = images.read_grey(path)
    digest = hashlib.sha256(np.array(image.shape, np.int32).tobytes())
    digest.update(np.ascontiguousarray(image).data)
    is_upright = image.shape[0] > image.shape[1]
    image = image.T.copy() if is_upright else image
    height, width = (max(1, side // reduction) for side in image.shape)
    small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32)
    # Remove shading, then the horizontal and vertical bands that all images of a coil share.
    small -= cv2.blur(small, (9, 9))
    small -= small.mean(axis=0, keepdims=True)
    small -= small.mean(axis=1, keepdims=True)
    # Normalise contrast. The 2 grey levels keep a black margin from being amplified to noise.
    small /= np.sqrt(cv2.blur(small * small, (17, 17))) + 2.0
    return _Fingerprint(digest.digest(), np.round(small.clip(-3, 3) * 42).astype(np.int8), is_upright)


def _match(fingerprints: _Fingerprints, reduction: int) -> list[Pair]:
    first_with: dict[bytes, int] = {}
    pairs = []
    for i, pixels in enumerate(fingerprints.pixels):
        first = first_with.setdefault(pixels, i)
        if first != i:
            pairs.append(Pair(first, i, "exact", 1.0, "the same pixels"))
    # One image represents all that are identical to it.
    scenes = list(first_with.values())
    spectra, owners = _compute_spectra(fingerprints, scenes)
    for a, b in _find_candidates(spectra, owners):
        first, second = scenes[a], scenes[b]
        score, how = _verify(fingerprints[first], fingerprints[second], reduction)
        if score >= MIN_SCORE:
            pairs.append(Pair(first, second, "near", round(score, 3), how))
    return pairs


def _compute_spectra(
    fingerprints: _Fingerprints, scenes: Sequence[int]
) -> tuple[NDArray[np.float16], NDArray[np.int64]]:
    """Return unit-length features `(rows, d)`, low frequencies first, and the position in `scenes` of each row.

    Nearly square thumbnails have two rows. float16 halves the memory; it changes a correlation by less than 0.001.
    """
    sizes = np.array([fingerprints.sizes[i] for i in scenes]).reshape(-1, 2)
    # Images much larger than the others are cropped to their centre, which bounds the memory.
    limit = np.minimum(sizes.max(axis=0), 1.5 * np.median(sizes, axis=0)) if len(sizes) else np.array([8, 8])
    canvas = (_even(int(limit[0])), _even(int(limit[1])))
    owners = np.repeat(np.arange(len(scenes)), [1 + _is_nearly_square(size) for size in sizes.tolist()])
    vertical, horizontal = np.arange(1, canvas[0] // 2) / canvas[0], np.arange(1, canvas[1] // 2 + 1) / canvas[1]
    order = np.argsort(np.maximum.outer(vertical, horizontal).ravel(), kind="stable")
    spectra = np.empty((len(owners), len(order)), np.float16)
    for row, owner in enumerate(owners.tolist()):
        thumbnail = fingerprints[scenes[owner]].thumbnail
        is_second = row > 0 and owners[row - 1] == owner
        spectra[row] = _compute_spectrum(thumbnail.T if is_second else thumbnail, canvas)[order]
    return spectra, owners


def _even(side: int) -> int:
    """Return the next even size with a fast Fourier transform."""
    side = max(side, 8)
    while (fast := int(scipy.fft.next_fast_len(side, real=True))) % 2:
        side = fast + 1
    return fast


def _compute_spectrum(thumbnail: NDArray[np.int8], canvas: tuple[int, int]) -> Float:
    height, width = np.minimum(thumbnail.shape, canvas)
    top, left = (thumbnail.shape[0] - height) // 2, (thumbnail.shape[1] - width) // 2
    framed = np.zeros(canvas, np.float32)
    framed[:height, :width] = thumbnail[top : top + height, left : left + width]
    magnitude = np.abs(scipy.fft.rfft2(framed))
    half = canvas[0] // 2
    # Mirroring exchanges positive and negative vertical frequencies.
    speckle = np.sqrt(magnitude[1:half, 1:] + magnitude[:half:-1, 1:])
    local_mean = cv2.blur(speckle, (5, 5))
    feature = ((speckle - local_mean) / (local_mean + 1e-6)).ravel()
    feature -= feature.mean()
    unit: Float = feature / (np.linalg.norm(feature) + 1e-12)
    return unit


def _find_candidates(
    spectra: Float | NDArray[np.float16], owners: NDArray[np.int64], block: int = 512
) -> Iterator[tuple[int, int]]:
    """Yield each pair of thumbnails with similar spectra once, at most `_MAX_CANDIDATES` per row, best first."""
    num_low = max(_MIN_LOW, spectra.shape[1] // 6)
    least = _MIN_LOW_CORRELATION if num_low < spectra.shape[1] else _MIN_CORRELATION
    low = spectra[:, :num_low].astype(np.float32)
    low = (low / (np.linalg.norm(low, axis=1, keepdims=True) + 1e-12)).astype(spectra.dtype)
    seen = set()
    buffer = np.empty((min(block, len(spectra)), len(spectra)), np.float32)
    for start in range(0, len(spectra), block):
        rows = low[start : start + block].astype(np.float32)
        correlations = buffer[: len(rows), start:]
        for left in range(start, len(spectra), _COLUMNS):
            columns = low[left : left + _COLUMNS].astype(np.float32)
            np.matmul(rows, columns.T, out=correlations[:, left - start : left - start + len(columns)])
        np.fill_diagonal(correlations, 0)  # of an image with itself
        for i in np.flatnonzero(correlations.max(axis=1) >= least).tolist():
            row, correlation = start + i, correlations[i]
            similar = np.flatnonzero(correlation >= least)
            if len(similar) > _MAX_SIMILAR:
                similar = similar[np.argpartition(-correlation[similar], _MAX_SIMILAR)[:_MAX_SIMILAR]]
            exact = spectra[start + similar].astype(np.float32) @ spectra[row].astype(np.float32)
            num_taken = 0
            best_first = np.argsort(-exact, kind="stable")[: np.count_nonzero(exact >= _MIN_CORRELATION)]
            for column in (start + similar[best_first]).tolist():
                a, b = sorted((int(owners[row]), int(owners[column])))
                if a == b or (a, b) in seen:
                    continue
                if num_taken == _MAX_CANDIDATES:
                    break
                num_taken += 1
                seen.add((a, b))
                yield a, b


def _verify(one: _Fingerprint, other: _Fingerprint, reduction: int) -> tuple[float, str]:
    """Return the highest peak of the phase correlation over all orientations, and the operation in words."""
    a, b = one.thumbnail, other.thumbnail
    surfaces = []
    for transposed in (False, True) if _is_nearly_square(a.shape) and _is_nearly_square(b.shape) else (False,):
        view = b.T if transposed else b
        canvas = [_even(max(sides)) for sides in zip(a.shape, view.shape, strict=True)]
        views = np.stack([view[::flip_y, ::flip_x] for flip_y, flip_x in _FLIPS]).astype(np.float32)
        spectra = [scipy.fft.rfft2(pixels, canvas) for pixels in (a.astype(np.float32), views)]
        phases = [spectrum / (np.abs(spectrum) + 1e-3) for spectrum in spectra]
        surfaces.append(scipy.fft.irfft2(phases[0] * phases[1].conj(), canvas))
    best = max(range(len(surfaces)), key=lambda i: float(surfaces[i].max()))
    surface = surfaces[best]
    way, *peak = np.unravel_index(int(surface.argmax()), surface.shape)
    # The surface is periodic: positions in its second half are negative shifts.
    y, x = (int((p + side // 2) % side - side // 2) for p, side in zip(peak, surface.shape[1:], strict=True))
    if one.is_upright:
        y, x = x, y
    # The operation, applied to the corners of a square.
    square = np.arange(4).reshape(2, 2)
    flip_y, flip_x = _FLIPS[int(way)]
    moved = (square.T if other.is_upright != (best == 1) else square)[::flip_y, ::flip_x]
    moved = moved.T if one.is_upright else moved
    words = [name for name, apply in _OPERATIONS.items() if np.array_equal(apply(square), moved)]
    if x or y:
        words.append(f"shifted by about {abs(x * reduction)} columns and {abs(y * reduction)} rows")
    return float(surface.max()), ", ".join(words) or "same position, different pixels"


def _is_nearly_square(size: Sequence[int]) -> bool:
    return size[1] < _NEARLY_SQUARE * size[0]


_FLIPS = ((1, 1), (1, -1), (-1, 1), (-1, -1))
_OPERATIONS: dict[str, Callable[[NDArray[np.int64]], NDArray[np.int64]]] = {
    "mirrored left to right": lambda a: a[:, ::-1],
    "mirrored top to bottom": lambda a: a[::-1],
    "turned by 180 degrees": lambda a: a[::-1, ::-1],
    "turned by 90 degrees": lambda a: a.T[::-1],
    "turned by 270 degrees": lambda a: a.T[:, ::-1],
    "mirrored along a diagonal": lambda a: a.T,
    "mirrored along the other diagonal": lambda a: a[::-1, ::-1].T,
}
