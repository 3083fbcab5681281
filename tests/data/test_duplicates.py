"""Tests of duplicate search: planted copies are found and described, unrelated images are not, the cache is sound."""

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from steel.data import duplicates, images
from steel.data.duplicates import MIN_SCORE, Pair, find_duplicates, join
from steel.data.synthetic import draw_image
from steel.errors import InputError

Image = NDArray[np.uint8]
HEIGHT, WIDTH, MORE = 128, 800, 100


@cache
def draw(seed: int, height: int = HEIGHT, width: int = WIDTH + MORE) -> Image:
    """A strip with a scratch, wider than an image of it."""
    return draw_image(np.random.default_rng(seed), (2,), (height, width))[0]


def strip(seed: int) -> Image:
    return draw(seed)[:, :WIDTH]


def brighten(image: Image, factor: float) -> Image:
    return np.clip(image * factor, 0, 255).astype(np.uint8)


def jpeg(image: Image, quality: int) -> Image:
    data = cv2.imencode(".jpg", np.ascontiguousarray(image), (cv2.IMWRITE_JPEG_QUALITY, quality))[1]
    return cv2.imdecode(data, cv2.IMREAD_GRAYSCALE)


def save(folder: Path, pictures: Sequence[Image], suffix: str = ".png") -> list[Path]:
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{i:03d}{suffix}" for i in range(len(pictures))]
    for path, picture in zip(paths, pictures, strict=True):
        assert cv2.imwrite(str(path), np.ascontiguousarray(picture))
    return paths


@pytest.fixture
def search(tmp_path: Path) -> Callable[..., list[Pair]]:
    """Write images losslessly and search them."""

    def run(*pictures: Image) -> list[Pair]:
        pairs = find_duplicates(save(tmp_path / "images", pictures), tmp_path / "kept")
        assert [pair[:2] for pair in pairs] == sorted({pair[:2] for pair in pairs})
        assert all(0 <= pair.first < pair.second < len(pictures) for pair in pairs)
        assert all((pair.kind == "exact") <= (pair.score == 1) and MIN_SCORE <= pair.score <= 1 for pair in pairs)
        return pairs

    return run


SAME_PLACE = "same position, different pixels"
COPIES: dict[str, tuple[Callable[[Image], Image], str]] = {
    "JPEG at quality 60": (lambda wide: jpeg(wide[:, :WIDTH], 60), SAME_PLACE),
    "darker": (lambda wide: brighten(wide[:, :WIDTH], 0.8), SAME_PLACE),
    "brighter": (lambda wide: brighten(wide[:, :WIDTH], 1.2), SAME_PLACE),
    "flipped along x": (lambda wide: cv2.flip(wide[:, :WIDTH], 1), "mirrored left to right"),
    "flipped along y": (lambda wide: cv2.flip(wide[:, :WIDTH], 0), "mirrored top to bottom"),
    "clockwise": (lambda wide: cv2.rotate(wide[:, :WIDTH], cv2.ROTATE_90_CLOCKWISE), "turned by 90 degrees"),
    "half": (lambda wide: cv2.rotate(wide[:, :WIDTH], cv2.ROTATE_180), "turned by 180 degrees"),
    "counter": (lambda wide: cv2.rotate(wide[:, :WIDTH], cv2.ROTATE_90_COUNTERCLOCKWISE), "turned by 270 degrees"),
    "transposed": (lambda wide: cv2.transpose(wide[:, :WIDTH]), "mirrored along a diagonal"),
    "other diagonal": (
        lambda wide: cv2.flip(cv2.transpose(wide[:, :WIDTH]), -1),
        "mirrored along the other diagonal",
    ),
    "shifted": (lambda wide: wide[:, 80 : 80 + WIDTH], "shifted by about 80 columns and 0 rows"),
    "all along the strip": (
        lambda wide: jpeg(brighten(cv2.flip(wide[:, 60 : 60 + WIDTH], 1), 1.15), 60),
        "mirrored left to right, shifted by about 60 columns and 0 rows",
    ),
    "shifted and turned": (
        lambda wide: cv2.rotate(brighten(wide[:, 80 : 80 + WIDTH], 0.8), cv2.ROTATE_90_CLOCKWISE),
        "turned by 90 degrees, shifted by about 80 columns and 0 rows",
    ),
}


@pytest.mark.parametrize("seed", [0, 3])
@pytest.mark.parametrize("copy", COPIES)
def test_copy_is_found_and_described(search: Callable[..., list[Pair]], copy: str, seed: int) -> None:
    make, words = COPIES[copy]
    (pair,) = search(strip(seed), strip(seed + 1), make(draw(seed)), strip(seed + 2))
    assert (pair.first, pair.second, pair.kind, pair.how) == (0, 2, "near", words)


# The inverse operations: quarter turns change direction, and columns become rows.
INVERSES = {
    "clockwise": "turned by 270 degrees",
    "counter": "turned by 90 degrees",
    "transposed": "mirrored along a diagonal",
    "shifted": "shifted by about 80 columns and 0 rows",
    "all along the strip": "mirrored left to right, shifted by about 60 columns and 0 rows",
    "shifted and turned": "turned by 270 degrees, shifted by about 0 columns and 80 rows",
}


@pytest.mark.parametrize("copy", INVERSES)
def test_inverse_is_described_if_the_copy_comes_first(search: Callable[..., list[Pair]], copy: str) -> None:
    (pair,) = search(COPIES[copy][0](draw(0)), strip(1), strip(0))
    assert (pair.first, pair.second, pair.how) == (0, 2, INVERSES[copy])


@pytest.mark.parametrize("shift", [4, 28, 52, 100])
@pytest.mark.parametrize("upright", [False, True])
def test_direction_and_length_of_a_shift(search: Callable[..., list[Pair]], shift: int, upright: bool) -> None:
    # A thumbnail pixel is 4 image pixels wide; both crops come from one drawing.
    ends = [draw(5)[:, :WIDTH], draw(5)[:, shift : shift + WIDTH]]
    (pair,) = search(*(end.T if upright else end for end in ends))
    columns, rows = (0, shift) if upright else (shift, 0)
    assert pair.how == f"shifted by about {columns} columns and {rows} rows"


def test_shift_across_the_strip(search: Callable[..., list[Pair]]) -> None:
    (pair,) = search(strip(0)[:104], strip(0)[24:])
    assert (pair.kind, pair.how) == ("near", "shifted by about 0 columns and 24 rows")


@pytest.mark.parametrize("size", [(300, 300), (300, 340), (340, 300)], ids=str)  # square or nearly so
@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_rotated_squares_are_found(search: Callable[..., list[Pair]], size: tuple[int, int], quarters: int) -> None:
    image, other = draw(7, *size), draw(8, *size)
    (pair,) = search(image, other, np.rot90(image, -quarters))
    assert (pair.first, pair.second, pair.kind) == (0, 2, "near")
    assert pair.how == f"turned by {90 * quarters} degrees"


def test_same_pixels_in_another_format_are_exact(tmp_path: Path) -> None:
    png, bmp, tif = (save(tmp_path / suffix, [strip(0)], suffix)[0] for suffix in (".png", ".bmp", ".tif"))
    mirrored = save(tmp_path / "mirrored", [strip(0)[::-1]])[0]
    other = save(tmp_path / "other", [strip(1)])[0]
    exact = (1.0, "the same pixels")
    assert find_duplicates([other, png, bmp, mirrored, tif], tmp_path / "kept") == [
        Pair(1, 2, "exact", *exact),
        Pair(1, 3, "near", 1.0, "mirrored top to bottom"),
        Pair(1, 4, "exact", *exact),
    ]


@pytest.mark.parametrize("k", [2, 5])
def test_k_identical_images_give_k_minus_1_pairs(search: Callable[..., list[Pair]], k: int) -> None:
    pairs = search(strip(1), *[strip(0)] * k)
    assert [(pair.first, pair.second, pair.kind) for pair in pairs] == [(1, i, "exact") for i in range(2, k + 1)]


def test_unrelated_images_are_not_paired(search: Callable[..., list[Pair]]) -> None:
    assert search(*(strip(seed) for seed in range(40))) == []


def test_equal_black_margins_are_no_match(search: Callable[..., list[Pair]]) -> None:
    strips = [strip(seed).copy() for seed in range(12)]
    for i, image in enumerate(strips):
        image[:, 500:] = np.random.default_rng(i).integers(0, 4, (HEIGHT, 300))
    assert search(*strips) == []
    assert len(search(*strips, strips[3][::-1])) == 1  # a copy with such a margin is found


def draw_tread_plate(seed: int) -> Image:
    """Rows of diamonds at a random offset, with noise."""
    rng = np.random.default_rng(seed)
    image = np.full((HEIGHT, WIDTH), 110, np.float32)
    shift_x, shift_y = rng.integers(0, 40, 2).tolist()
    for i, y in enumerate(range(-40, HEIGHT + 40, 20)):
        for x in range(-40, WIDTH + 40, 40):
            centre = (x + shift_x + 20 * (i % 2), y + shift_y)
            cv2.ellipse(image, centre, (12, 4), 45 if i % 2 else -45, 0, 360, 180, -1)
    return np.clip(image + rng.normal(0, 6, image.shape), 0, 255).astype(np.uint8)


def test_repeated_pattern_is_no_match(search: Callable[..., list[Pair]]) -> None:
    assert search(*(draw_tread_plate(seed) for seed in range(20))) == []


def test_uniform_images_are_exact_duplicates_or_none(search: Callable[..., list[Pair]]) -> None:
    flat = [np.full((HEIGHT, WIDTH), level, np.uint8) for level in (0, 90, 91, 255, 0, 90)]
    pairs = search(*flat, flat[0].T, strip(0))
    assert [(pair.first, pair.second, pair.kind) for pair in pairs] == [(0, 4, "exact"), (1, 5, "exact")]


def test_images_of_different_sizes(search: Callable[..., list[Pair]]) -> None:
    small, large = strip(0)[:96, :500], draw(20, 200, 1200)
    pairs = search(small, large, strip(1), large[:, ::-1], draw(21, 90, 90), small[::-1, ::-1], strip(1))
    assert [pair[:3] for pair in pairs] == [(0, 5, "near"), (1, 3, "near"), (2, 6, "exact")]


def test_tiny_images(search: Callable[..., list[Pair]]) -> None:
    dots = [np.full((1, 1), level, np.uint8) for level in (3, 4, 3)]
    rng = np.random.default_rng(0)
    slim = [rng.integers(0, 256, (3, 500), dtype=np.uint8) for _ in range(2)]
    pairs = search(*dots, *slim, slim[0].T, slim[1])
    assert [pair[:3] for pair in pairs] == [(0, 2, "exact"), (3, 5, "near"), (4, 6, "exact")]
    pairs = search(strip(0), *dots, *slim, strip(0)[:, ::-1])
    assert [pair[:3] for pair in pairs] == [(0, 6, "near"), (1, 3, "exact")]


def test_one_image_or_none_gives_no_pairs(search: Callable[..., list[Pair]]) -> None:
    assert search() == []
    assert search(strip(0)) == []


def test_candidates_across_block_boundaries_are_found() -> None:
    rng = np.random.default_rng(0)
    spectra = rng.standard_normal((23, 400)).astype(np.float32)
    spectra[17] = spectra[2] + 0.5 * spectra[17]
    spectra[9] = spectra[8]
    spectra /= np.linalg.norm(spectra, axis=1, keepdims=True)
    owners = np.arange(23)
    for block in (1, 4, 9, 23, 100):
        assert set(duplicates._find_candidates(spectra, owners, block)) == {(2, 17), (8, 9)}, block


def test_candidates_are_similar_in_low_frequencies_and_in_all() -> None:
    rng = np.random.default_rng(0)
    # Of 1,200 frequencies, the first 256 are compared first.
    spectra = rng.standard_normal((6, 1200)).astype(np.float32)
    spectra[1, :600] = spectra[0, :600]  # alike in low and in half of all frequencies
    spectra[3, 600:] = spectra[2, 600:]  # alike in high frequencies alone
    spectra[5] += 0.05 * spectra[4]
    spectra[5, :120] = spectra[4, :120]  # alike in a tenth of all frequencies
    spectra /= np.linalg.norm(spectra, axis=1, keepdims=True)
    assert list(duplicates._find_candidates(spectra, np.arange(6))) == [(0, 1)]


def test_a_thousand_copies_of_one_scene_are_joined_by_few_candidates() -> None:
    rng = np.random.default_rng(0)
    spectra = rng.standard_normal(600) + 0.7 * rng.standard_normal((1000, 600))
    spectra = (spectra / np.linalg.norm(spectra, axis=1, keepdims=True)).astype(np.float32)
    pairs = list(duplicates._find_candidates(spectra, np.arange(1000), block=100))
    assert len(pairs) == len(set(pairs)) <= 32 * 1000
    assert len(set(duplicates.join(np.arange(1000), pairs).tolist())) == 1


def test_each_of_many_similar_images_is_compared_with_the_32_nearest() -> None:
    rng = np.random.default_rng(0)
    spectra = rng.standard_normal(50) + rng.standard_normal((90, 50))
    spectra = (spectra / np.linalg.norm(spectra, axis=1, keepdims=True)).astype(np.float32)
    correlation = spectra @ spectra.T
    expected: list[tuple[int, int]] = []
    for i in range(90):
        nearest = sorted({*range(90)} - {i}, key=lambda j: -correlation[i, j])
        pairs = [(min(i, j), max(i, j)) for j in nearest if correlation[i, j] >= duplicates._MIN_CORRELATION]
        expected += [pair for pair in pairs if pair not in expected][:32]
    assert len(expected) > 32 * 45
    assert list(duplicates._find_candidates(spectra, np.arange(90))) == expected


def renumber(pairs: Iterable[Pair], order: Sequence[int]) -> set[tuple[int, int, str, float]]:
    """Return the pairs after image i was moved to position order.index(i)."""
    return {(*sorted((order.index(p.first), order.index(p.second))), p.kind, p.score) for p in pairs}


def forbid_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> Image:
        raise AssertionError(f"{path} was decoded again")

    monkeypatch.setattr(images, "read_grey", fail)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("is_cached", [False, True])
def test_reordering_the_paths_only_renumbers_the_pairs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, is_cached: bool
) -> None:
    pictures = [
        strip(0),
        strip(1),
        strip(0)[:, ::-1],
        strip(2),
        np.rot90(strip(1)),
        strip(3),
        draw(3)[:, 40:][:, :WIDTH],
    ]
    paths = save(tmp_path / "images", pictures)
    before = find_duplicates(paths, tmp_path / "kept")
    assert len(before) == 3
    order = np.random.default_rng(seed).permutation(len(paths)).tolist()
    if is_cached:
        forbid_decoding(monkeypatch)
    after = find_duplicates([paths[i] for i in order], tmp_path / ("kept" if is_cached else "new"))
    assert {pair[:4] for pair in after} == renumber(before, order)
    assert after == sorted(after)
    assert all(pair.first < pair.second for pair in after)


def test_cached_results_need_no_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Three identical files, the same pixels in another format, and a rotated copy.
    paths = save(tmp_path / "png", [strip(1), strip(0), strip(0), np.rot90(strip(0)), strip(0), strip(2)])
    paths += save(tmp_path / "bmp", [strip(0)], ".bmp")
    first = find_duplicates(paths, tmp_path / "kept")
    assert [pair[:3] for pair in first] == [(1, 2, "exact"), (1, 3, "near"), (1, 4, "exact"), (1, 6, "exact")]
    assert first[1].how == "turned by 270 degrees"
    order = [6, 3, 4, 0, 5, 2, 1]
    fresh = find_duplicates([paths[i] for i in order], tmp_path / "other")

    forbid_decoding(monkeypatch)
    assert find_duplicates(paths, tmp_path / "kept") == first
    renamed = [path.rename(tmp_path / f"{i:03d}_new{path.suffix}") for i, path in enumerate(paths)]
    assert find_duplicates(renamed, tmp_path / "kept") == first
    again = find_duplicates([renamed[i] for i in order], tmp_path / "kept")
    assert again == fresh
    assert [pair[:3] for pair in again] == [(0, 1, "near"), (0, 2, "exact"), (0, 5, "exact"), (0, 6, "exact")]
    with pytest.raises(AssertionError, match="decoded again"):
        find_duplicates(renamed[1:], tmp_path / "kept")  # another set of images is not in the cache


def test_changed_file_is_searched_again(tmp_path: Path) -> None:
    paths = save(tmp_path / "images", [strip(0), strip(1), strip(2)])
    assert find_duplicates(paths, tmp_path / "kept") == []
    cv2.imwrite(str(paths[2]), strip(0)[::-1])
    assert [pair[:3] for pair in find_duplicates(paths, tmp_path / "kept")] == [(0, 2, "near")]


@pytest.mark.parametrize(
    "text", ["", "half", "[]", "{}", "null", "7", '{"pairs": [[0, 1]]}', '{"pairs": 3}', b"\xff\x00"]
)
def test_damaged_cache_is_ignored_and_rewritten(tmp_path: Path, text: str | bytes) -> None:
    paths = save(tmp_path / "images", [strip(0), strip(1), strip(0)[::-1]])
    expected = find_duplicates(paths, tmp_path / "kept")
    assert len(expected) == 1
    (file,) = (tmp_path / "kept").iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2] if text == "half" else text if isinstance(text, bytes) else text.encode())
    assert find_duplicates(paths, tmp_path / "kept") == expected
    assert file.read_bytes() == whole


def test_unwritable_cache_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = save(tmp_path / "images", [strip(0), strip(0)[::-1]])
    expected = find_duplicates(paths, tmp_path / "kept")
    blocked = tmp_path / "file"
    blocked.touch()
    assert find_duplicates(paths, blocked / "below") == expected  # a file instead of a folder

    def refuse(path: Path, content: bytes) -> int:
        raise PermissionError(13, "Permission denied", str(path))

    # Root ignores file permissions, so the error is simulated.
    monkeypatch.setattr(Path, "write_bytes", refuse)
    (tmp_path / "locked").mkdir()
    assert find_duplicates(paths, tmp_path / "locked") == expected
    assert list((tmp_path / "locked").iterdir()) == []


def test_only_the_cache_folder_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = save(tmp_path / "images", [strip(0), strip(1)])
    home = tmp_path / "home"
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "xdg"))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    find_duplicates(paths, tmp_path / "kept")
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    (written,) = files.keys() - before.keys()
    assert written.parent == tmp_path / "kept"
    assert before.items() <= files.items()
    assert not home.exists()

    find_duplicates(paths)
    assert [path.parent for path in home.rglob("*.json")] == [home / "xdg" / "steel"]
    monkeypatch.delenv("XDG_CACHE_HOME")
    find_duplicates(paths)
    assert len(list((home / ".cache" / "steel").glob("*.json"))) == 1


def test_unreadable_image_is_named(tmp_path: Path) -> None:
    paths = save(tmp_path / "images", [strip(0), strip(1)])
    with pytest.raises(InputError, match=r"gone\.png.*read"):
        find_duplicates([*paths, tmp_path / "gone.png"], tmp_path / "kept")
    paths[1].write_bytes(paths[1].read_bytes()[:200])
    with pytest.raises(InputError, match=r"001\.png"):
        find_duplicates(paths, tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


def test_copies_of_real_images_are_found(real_data: Callable[[str], Path], tmp_path: Path) -> None:
    folder = real_data("severstal-mini") / "train_images"
    chosen = [images.read_grey(path) for path in images.find_images(folder)[:12]]
    copies = [jpeg(chosen[0][:, 100:], 60), brighten(chosen[4][::-1], 0.8), np.rot90(chosen[7])]
    paths = save(tmp_path / "images", [*chosen, *copies])
    planted = {(0, 12), (4, 13), (7, 14)}
    assert {pair[:2] for pair in find_duplicates(paths, tmp_path / "kept") if pair.second >= 12} == planted


def join_naively(groups: Sequence[int], ends: Sequence[tuple[int, int]]) -> list[set[int]]:
    """Merge sets until no two of them share a group or a pair."""
    sets = [{i for i, group in enumerate(groups) if group == name} for name in set(groups)]
    for a, b in ends:
        touched = [members for members in sets if members & {a, b}]
        sets = [members for members in sets if members not in touched] + [set().union(*touched)]
    return sets


@given(st.data())
def test_join_matches_naive_merging(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 25))
    groups = data.draw(st.lists(st.integers(-5, 40), min_size=n, max_size=n))
    index = st.integers(0, n - 1)
    ends = data.draw(st.lists(st.tuples(index, index).filter(lambda it: it[0] < it[1]), max_size=15)) if n > 1 else []
    joined = join(np.array(groups), [Pair(a, b, "near", 0.5, "") for a, b in ends])
    assert joined.shape == (n,)
    found = [set(np.flatnonzero(joined == number).tolist()) for number in np.unique(joined)]
    assert sorted(map(sorted, found)) == sorted(map(sorted, join_naively(groups, ends)))


def test_join_follows_chains_and_groups() -> None:
    groups = np.array([7, 7, 2, 3, 9, 9])
    chain = [Pair(1, 2, "near", 0.4, ""), Pair(2, 3, "exact", 1.0, "")]
    joined = join(groups, chain)
    assert len(set(joined[:4].tolist())) == 1
    assert joined[4] == joined[5] != joined[0]
    assert len(np.unique(join(groups, []))) == 4
    assert join(np.array([], np.int64), []).shape == (0,)


def test_thousands_of_identical_images_are_renumbered() -> None:
    num = 20_000
    order = np.random.default_rng(0).permutation(num).tolist()
    pairs = [Pair(0, i, "exact", 1.0, "the same pixels") for i in range(1, num - 1)]
    pairs.append(Pair(0, num - 1, "near", 0.5, "same position, different pixels"))
    renumbered = duplicates._renumber(pairs, order)
    representative, other = min(order[:-1]), order[-1]
    assert {pair[:2] for pair in renumbered if pair.kind == "exact"} == {
        (representative, i) for i in order[:-1] if i != representative
    }
    assert [pair[:2] for pair in renumbered if pair.kind == "near"] == [tuple(sorted((representative, other)))]
