"""What a given split is worth: whether it leaks, how it is balanced, and what its parts allow to be claimed."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from steel import plots
from steel.data.annotations import Annotations, read_annotations
from steel.data.duplicates import Pair, find_duplicates, join
from steel.data.splits import PARTS, tabulate_parts
from steel.data.tables import raise_first, read_table
from steel.errors import InputError
from steel.files import new_folder, require_new_folder, write_atomic
from steel.intervals import wilson
from steel.pages import Page

NUM_PICTURES = 8  # of the worst pairs
_KINDS = ("same image", "same pixels", "near-duplicate", "same group", "chain")  # the worst first
_COLUMNS = ("split", "fold", "part", "set", "subset")
_ALIASES = {"training": "train", "valid": "val", "validation": "val", "dev": "val", "testing": "test"}


@dataclass(frozen=True)
class Leak:
    """An image that shows what another part has seen too.

    Attributes:
        image: The image.
        part: Its part.
        twin: The image that it shares a scene with.
        twin_part: The part of that one, which comes earlier.
        kind: "same image" where it is named in both parts, "same pixels", "near-duplicate", "same group", or "chain"
            where other images connect the two.
        score: 0..1, how alike the two are; 1 where it is certain, 0 for a chain.
        how: What was done to one to make the other, in words.
    """

    image: str
    part: str
    twin: str
    twin_part: str
    kind: str
    score: float
    how: str


@dataclass(frozen=True)
class Assignment:
    """Who is where, in a split that may name an image twice.

    Attributes:
        parts: The parts in order: train, val, test and then others.
        members: The rows of the table that belong to each.
        unknown: Names that the data set does not have, by part.
    """

    parts: tuple[str, ...]
    members: Mapping[str, NDArray[np.int64]]
    unknown: Mapping[str, list[str]]


def read_assignment(path: Path, annotations: Annotations) -> Assignment:
    """Reads any split: ours, or lists that others have made.

    Args:
        path: A CSV with ImageId and one of split, fold, part, set, subset; or a folder with a list of images for each
            part (`train.txt`, `val.txt`, ...: a name or path on each line, with or without its ending).
        annotations: The data set that it divides.

    Raises:
        InputError: It is neither, it has fewer than two parts, or none of its images is in the data set.
    """
    given = list(_read_lists(path)) if path.is_dir() else list(_read_rows(path))
    index = {name: i for i, name in enumerate(annotations.names.tolist())}
    stems: dict[str, int] = {}
    for name, i in index.items():
        stems[PurePosixPath(name).stem] = -1 if PurePosixPath(name).stem in stems else i
    members: dict[str, list[int]] = {}
    unknown: dict[str, list[str]] = {}
    for part, text in given:
        name = PurePosixPath(text.replace("\\", "/")).name
        i = index.get(name, stems.get(name, -1))
        members.setdefault(part, [])
        if i < 0:
            unknown.setdefault(part, []).append(text)
        else:
            members[part].append(i)
    if len(members) < 2:
        raise InputError(f"{path} has {len(members)} part, but a split has two or more; name them all")
    if not any(members.values()):
        raise InputError(
            f"{path} names no image of {annotations.root}, such as {annotations.names[0]}; give its own data"
        )
    order = [part for part in PARTS if part in members] + sorted(set(members).difference(PARTS))
    return Assignment(
        tuple(order), {part: np.unique(np.array(rows, np.int64)) for part, rows in members.items()}, unknown
    )


def _read_rows(path: Path) -> Iterator[tuple[str, str]]:
    table = read_table(path, *(("ImageId", column) for column in _COLUMNS))
    raise_first(table.findings)
    images, parts = table.columns.values()
    for name, part in zip(images, parts, strict=True):
        if part:
            yield _name_part(part), name


def _name_part(text: str) -> str:
    name = _ALIASES.get(text.lower(), text.lower())
    return name if name in PARTS else text


def _read_lists(folder: Path) -> Iterator[tuple[str, str]]:
    lists = sorted(folder.glob("*.txt"))
    if not lists:
        raise InputError(f"no list such as train.txt in {folder}; put one there for each part, or give a CSV file")
    for path in lists:
        try:
            lines = path.read_text("utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise InputError(f"{path} is no text in UTF-8 ({error.reason}); save it so") from error
        yield from ((_name_part(path.stem), line.strip()) for line in lines if line.strip())


def find_leaks(assignment: Assignment, annotations: Annotations, pairs: Sequence[Pair]) -> list[Leak]:
    """Finds the images of each part that an earlier part has seen.

    Args:
        assignment: Who is where.
        annotations: The data set; its groups count as scenes.
        pairs: Its images of one scene; see `duplicates.find_duplicates`.

    Returns:
        One leak, the worst, for each such image, worst first.
    """
    # Of images with the same pixels one stands for all in a pair, so twins are looked up by these clusters.
    pixels = join(np.arange(len(annotations)), [pair for pair in pairs if pair.kind == "exact"])
    near: dict[int, list[tuple[int, Pair]]] = {}
    for pair in pairs:
        if pair.kind == "near":
            first, second = int(pixels[pair.first]), int(pixels[pair.second])
            near.setdefault(first, []).append((second, pair))
            near.setdefault(second, []).append((first, pair))
    clusters = (pixels, annotations.groups, join(annotations.groups, pairs))
    leaks = []
    earlier: dict[int, str] = {}  # image -> the first part that has it
    for part in assignment.parts:
        seen = [{int(numbers[i]): i for i in earlier} for numbers in clusters]
        for i in assignment.members[part].tolist():
            own = [int(numbers[i]) for numbers in clusters]
            if i in earlier:
                found = _Twin(i, "same image", 1.0, "named in both parts")
            elif known := _find_twin(own, seen, near.get(own[0], [])):
                found = known
            else:
                continue
            names = annotations.names
            leaks.append(Leak(str(names[i]), part, str(names[found.image]), earlier[found.image], *found[1:]))
        for i in assignment.members[part].tolist():
            earlier.setdefault(i, part)
    order = {kind: rank for rank, kind in enumerate(_KINDS)}
    return sorted(leaks, key=lambda leak: (order[leak.kind], -leak.score, leak.image))


class _Twin(NamedTuple):
    image: int
    kind: str
    score: float
    how: str


def _find_twin(own: Sequence[int], seen: Sequence[Mapping[int, int]], near: Sequence[tuple[int, Pair]]) -> _Twin | None:
    """The worst twin among the images seen, of an image given by its clusters of pixels, group and scene."""
    by_pixels, by_group, by_scene = seen
    pixels, group, scene = own
    if (twin := by_pixels.get(pixels)) is not None:
        return _Twin(twin, "same pixels", 1.0, "the same pixels")
    if known := [(pair, by_pixels[other]) for other, pair in near if other in by_pixels]:
        pair, twin = max(known, key=lambda it: it[0].score)
        return _Twin(twin, "near-duplicate", pair.score, pair.how)
    if (twin := by_group.get(group)) is not None:
        return _Twin(twin, "same group", 1.0, "groups.csv")
    if (twin := by_scene.get(scene)) is not None:
        return _Twin(twin, "chain", 0.0, "through other images")
    return None


def tabulate_claims(assignment: Assignment, annotations: Annotations) -> pd.DataFrame:
    """Says what the images of each class in each judging part allow to be claimed.

    A row for each part but the first and each class: how many images, and the recall that finding all of them, or all
    but one, would show (Wilson's 95 % interval).
    """
    rows = []
    for part in assignment.parts[1:]:
        counts = annotations.labels[assignment.members[part]].sum(axis=0).tolist()
        for name, n in zip(annotations.classes, counts, strict=True):
            rows.append([part, name, n, *(_show_interval(hits, n) for hits in (n, n - 1))])
    return pd.DataFrame(rows, columns=["part", "class", "images", "if all are found", "if one is missed"])


def _show_interval(hits: int, n: int) -> str:
    if n == 0:
        return "nothing"
    interval = wilson(hits, n)
    return f"recall {interval.low:.3f} to {interval.high:.3f}"


def tabulate_sets(assignment: Assignment, annotations: Annotations) -> pd.DataFrame:
    """Counts the images with each set of classes, a row for each set and a column for each part."""
    sets = ["+".join(np.array(annotations.classes)[row]) or "clean" for row in annotations.labels]
    table = pd.DataFrame({"set of classes": pd.unique(pd.Series(sets)[np.argsort(annotations.labels.sum(axis=1))])})
    for part in assignment.parts:
        counts = Counter(sets[i] for i in assignment.members[part].tolist())
        table[part] = [counts[name] for name in table["set of classes"]]
    return table


def tabulate_shares(assignment: Assignment, annotations: Annotations) -> pd.DataFrame:
    """The counts of each part, and how far the share of each class is off the part's share of images, in percent."""
    table = tabulate_parts({part: assignment.members[part] for part in assignment.parts}, annotations)
    share = table["images"] / table["images"].sum()
    for name in annotations.classes:
        expected = share * table[name].sum()
        off = 100 * (table[name] - expected) / expected.where(expected > 0)
        table[name] = [
            f"{count} ({o:+.0f} %)" if o == o else str(count) for count, o in zip(table[name], off, strict=True)
        ]
    sizes = [len(np.unique(annotations.sizes[assignment.members[part]], axis=0)) for part in assignment.parts]
    return table.assign(sizes=sizes)


def audit(root: str, *, splits: str | None = None, out: str | None = None) -> int:
    """Reports leaks and balance of any given split, and what its parts allow to be claimed.

    A leak is an image of which a part before has the same pixels, the same scene (mirrored, turned, shifted,
    re-encoded, brightened) or another image of its group. Ends with exit status 1 where there is one.

    Args:
        root: Folder with train.csv and train_images.
        splits: CSV with ImageId and split (or fold, part, set, subset), or a folder with train.txt, val.txt and so on,
            which name an image on each line; by default splits.csv in the data set's folder.
        out: Folder for the report as a page, with the worst pairs as pictures, and for audit.json; new or empty.

    Example:
        steel audit data
        steel audit data --splits theirs.csv --out audited
    """
    if out:
        require_new_folder(Path(out))
    annotations = read_annotations(root)
    source = Path(splits) if splits else Path(root) / "splits.csv"
    assignment = read_assignment(source, annotations)
    pairs = find_duplicates([annotations.path(i) for i in range(len(annotations))])
    leaks = find_leaks(assignment, annotations, pairs)
    headline = _describe_leaks(assignment, leaks)
    shares = tabulate_shares(assignment, annotations)
    print(shares.to_string(index=False))
    print(tabulate_claims(assignment, annotations).to_string(index=False))
    print(headline)
    for leak in leaks[:NUM_PICTURES]:
        ends = f"{leak.image} ({leak.part}) and {leak.twin} ({leak.twin_part})"
        print(f"  {ends}: {leak.kind}, {leak.score:.2f}, {leak.how}")
    if out:
        with new_folder(Path(out)) as folder:
            page = _write_page(folder, source, annotations, assignment, leaks, headline)
            _write_json(folder / "audit.json", source, annotations, assignment, leaks)
        print(f"page: {Path(out) / page.name}")
    return 1 if leaks else 0


def _describe_leaks(assignment: Assignment, leaks: Sequence[Leak]) -> str:
    total = sum(len(assignment.members[part]) for part in assignment.parts[1:])
    unknown = sum(len(names) for names in assignment.unknown.values())
    missing = f" {unknown:,} names are not in the data set and were not looked at." if unknown else ""
    if not leaks:
        return f"No leak: none of the {total:,} images of {', '.join(assignment.parts[1:])} was seen before.{missing}"
    kinds = Counter(f"{leak.kind} ({leak.part} in {leak.twin_part})" for leak in leaks)
    listed = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common())
    return (
        f"LEAKS: {len(leaks):,} of {total:,} images of {', '.join(assignment.parts[1:])} were seen before: {listed}. "
        f"Scores on them say nothing of new steel; divide anew by steel split --near_duplicates.{missing}"
    )


def _write_page(
    folder: Path,
    source: Path,
    annotations: Annotations,
    assignment: Assignment,
    leaks: Sequence[Leak],
    headline: str,
) -> Path:
    page = Page(f"Audit of {source}", folder)
    page.add_text(headline)
    page.add_text(f"Data {annotations.root}, {len(annotations):,} images, digest of the labels {annotations.digest}.")
    page.add_heading("Balance")
    caption = "Images of each part; in brackets how far a class is off the part's share of images"
    page.add_table(tabulate_shares(assignment, annotations), caption)
    page.add_table(tabulate_sets(assignment, annotations), "Images with each set of classes")
    page.add_heading("What can be claimed")
    caption = "The recall that a part could show at best; with few images of a class, no result can say more"
    page.add_table(tabulate_claims(assignment, annotations), caption)
    if leaks:
        page.add_heading("Leaks")
        for k, leak in enumerate(leaks[:NUM_PICTURES]):
            page.add_picture(f"leak_{k + 1}", _plot_leak(leak, annotations), f"{leak.kind}: {leak.how}")
        page.add_table(pd.DataFrame([vars(leak) for leak in leaks]), f"All {len(leaks):,} images that were seen before")
    return page.write()


def _plot_leak(leak: Leak, annotations: Annotations) -> Figure:
    # Names are sorted.
    ends = np.searchsorted(annotations.names, [leak.image, leak.twin]).tolist()
    return plots.plot_examples(
        [annotations.read_image(i) for i in ends],
        [annotations.draw_masks(i) for i in ends],
        [f"{leak.image} ({leak.part})", f"{leak.twin} ({leak.twin_part})"],
        f"{leak.kind}, {leak.score:.2f}",
    )


def _write_json(
    path: Path, source: Path, annotations: Annotations, assignment: Assignment, leaks: Sequence[Leak]
) -> None:
    shares = tabulate_parts({part: assignment.members[part] for part in assignment.parts}, annotations)
    found = {
        "data": annotations.digest,
        "splits": str(source),
        "parts": shares.to_dict("records"),
        "unknown": dict(assignment.unknown),
        "leaks": [vars(leak) for leak in leaks],
    }
    write_atomic(path, json.dumps(found, indent=1))
