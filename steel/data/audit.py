"""`steel audit`: leaks and balance of any split, and the recall that its parts can demonstrate."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from steel import plots
from steel.data.annotations import Annotations, read_annotations
from steel.data.duplicates import Pair, find_duplicates, join
from steel.data.spelling import NameIndex, is_hidden, read_text
from steel.data.splits import PARTS, tabulate_parts
from steel.data.tables import raise_first, read_table
from steel.errors import InputError
from steel.files import new_folder, require_new_folder, write_atomic
from steel.intervals import effective_size, wilson
from steel.pages import Page
from steel.wording import format_count

NUM_PICTURES = 8  # leaks shown on the screen and as figures
_KINDS = ("same image", "same pixels", "near-duplicate", "same group", "chain")  # worst first
_COLUMNS = ("split", "fold", "part", "set", "subset")
_ALIASES = {"training": "train", "valid": "val", "validation": "val", "dev": "val", "testing": "test"}


@dataclass(frozen=True)
class Leak:
    """An image whose scene is also in an earlier part.

    Attributes:
        image: The image.
        part: Its part.
        twin: The image in the earlier part.
        twin_part: The earlier part.
        kind: One of `_KINDS`. A "same image" is named in both parts; a "chain" of other images connects the two.
        score: 0..1, the similarity; 1 if it is certain, 0 for a chain.
        how: How one image was made from the other, in words.
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
    """The parts of a split, which may name an image more than once.

    Attributes:
        parts: The parts in order: train, val, test, then others.
        members: The rows of the table that belong to each part, in this order.
        unknown: Names that are not in the dataset, by part.
    """

    parts: tuple[str, ...]
    members: Mapping[str, NDArray[np.int64]]
    unknown: Mapping[str, list[str]]


def read_assignment(path: Path, annotations: Annotations) -> Assignment:
    """Read a split from a table or from lists of images.

    Args:
        path: A CSV file with ImageId and one of split, fold, part, set, subset; or a folder with one list per part
            (`train.txt`, `val.txt`, ...) that has a name or path per line, with or without suffix.
        annotations: The dataset.

    Raises:
        InputError: The file is missing or invalid, has fewer than two parts, or names no image of the dataset.
    """
    names = annotations.names.tolist()
    stems = [PurePosixPath(name).stem for name in names]
    num_same = Counter(stems)
    by_name = NameIndex(names)
    by_stem = NameIndex(stem if num_same[stem] == 1 else name for stem, name in zip(stems, names, strict=True))
    members: dict[str, list[int]] = {}
    unknown: dict[str, list[str]] = {}
    # Labels of parts, each with the name of an image.
    for label, text in _read_lists(path) if path.is_dir() else _read_rows(path):
        lower = _ALIASES.get(label.lower(), label.lower())
        part = lower if lower in PARTS else label
        name = PurePosixPath(text.replace("\\", "/")).name
        rows = members.setdefault(part, [])
        found = by_stem.find(name) if (i := by_name.find(name)) is None else i
        if found is not None:
            rows.append(found)
        else:
            unknown.setdefault(part, []).append(text)
    if len(members) < 2:
        raise InputError(f"{path} must have at least two parts, got {len(members)}; name all parts of the split")
    if not any(members.values()):
        example = f"no image of {annotations.root} such as {annotations.names[0]}"
        raise InputError(f"{path} names {example}; give a split of this dataset")
    order = [part for part in PARTS if part in members] + sorted(set(members).difference(PARTS))
    return Assignment(tuple(order), {part: np.unique(np.array(members[part], np.int64)) for part in order}, unknown)


def _read_rows(path: Path) -> Iterator[tuple[str, str]]:
    table = read_table(path, *(("ImageId", column) for column in _COLUMNS))
    raise_first(table.findings)
    names, parts = table.columns.values()
    yield from ((part, name) for name, part in zip(names, parts, strict=True) if part)


def _read_lists(folder: Path) -> Iterator[tuple[str, str]]:
    lists = sorted(path for path in folder.glob("*.txt") if not is_hidden(path.name))
    if not lists:
        raise InputError(f"no list such as train.txt in {folder}; add one for each part, or give a CSV file")
    for path in lists:
        yield from ((path.stem, line.strip()) for line in read_text(path).splitlines() if line.strip())


def find_leaks(assignment: Assignment, annotations: Annotations, pairs: Sequence[Pair]) -> list[Leak]:
    """Return the worst leak of each image whose scene is also in an earlier part, worst first.

    Args:
        assignment: The split.
        annotations: The dataset; images of one group count as one scene.
        pairs: Its images of the same scene; see `duplicates.find_duplicates`.
    """
    # In near-duplicate pairs one image represents all with the same pixels, so they are looked up by cluster.
    pixels = join(np.arange(len(annotations)), [pair for pair in pairs if pair.kind == "exact"])
    near: dict[int, list[tuple[int, Pair]]] = {}
    for pair in pairs:
        if pair.kind == "near":
            first, second = int(pixels[pair.first]), int(pixels[pair.second])
            near.setdefault(first, []).append((second, pair))
            near.setdefault(second, []).append((first, pair))
    clusters = (pixels, annotations.groups, join(annotations.groups, pairs))
    names, leaks = annotations.names, []
    part_of: dict[int, str] = {}  # image -> first part that has it
    for part in assignment.parts:
        seen = [{int(numbers[i]): i for i in part_of} for numbers in clusters]
        members = assignment.members[part].tolist()
        for i in members:
            own = [int(numbers[i]) for numbers in clusters]
            is_repeated = i in part_of
            found = (i, "same image", 1.0, "named in both parts") if is_repeated else _find_twin(own, seen, near)
            if found:
                twin, kind, score, how = found
                leaks.append(Leak(str(names[i]), part, str(names[twin]), part_of[twin], kind, score, how))
        part_of |= {i: part for i in members if i not in part_of}
    return sorted(leaks, key=lambda leak: (_KINDS.index(leak.kind), -leak.score, leak.image))


def _find_twin(
    own: Sequence[int], seen: Sequence[Mapping[int, int]], near: Mapping[int, list[tuple[int, Pair]]]
) -> tuple[int, str, float, str] | None:
    """Return the worst match of an image in an earlier part: its index, kind, score and description."""
    by_pixels, by_group, by_scene = seen  # cluster -> an image in an earlier part
    pixels, group, scene = own
    if (twin := by_pixels.get(pixels)) is not None:
        return twin, "same pixels", 1.0, "the same pixels"
    if known := [(pair, by_pixels[other]) for other, pair in near.get(pixels, []) if other in by_pixels]:
        pair, twin = max(known, key=lambda it: it[0].score)
        return twin, "near-duplicate", pair.score, pair.how
    if (twin := by_group.get(group)) is not None:
        return twin, "same group", 1.0, "groups.csv"
    if (twin := by_scene.get(scene)) is not None:
        return twin, "chain", 0.0, "through other images"
    return None


def tabulate_claims(assignment: Assignment, annotations: Annotations) -> pd.DataFrame:
    """Tabulate Wilson's 95 % intervals of the recall that each part but the first can demonstrate.

    How alike the images of a group are is unknown, so each group counts as one image.
    """
    rows = []
    for part in assignment.parts[1:]:
        members = assignment.members[part]
        for c, name in enumerate(annotations.classes):
            groups = annotations.groups[members[annotations.labels[members, c]]]
            n, num_groups = len(groups), len(np.unique(groups))
            size = effective_size(np.ones(n), groups) if n else 0
            intervals = [wilson(hits / n * size, size) for hits in (n, n - 1)] if n else []
            cells = [f"recall {interval.low:.3f} to {interval.high:.3f}" for interval in intervals] or ["nothing"] * 2
            rows.append([part, name, n, num_groups, *cells])
    return pd.DataFrame(rows, columns=["part", "class", "images", "groups", "if all are found", "if one is missed"])


def tabulate_sets(assignment: Assignment, annotations: Annotations) -> pd.DataFrame:
    """Count images with each set of classes, with one row per set and one column per part."""
    sets = np.array(["+".join(np.array(annotations.classes)[row]) or "clean" for row in annotations.labels])
    order = pd.unique(sets[np.argsort(annotations.labels.sum(axis=1))])
    counts = {part: [(sets[members] == name).sum() for name in order] for part, members in assignment.members.items()}
    return pd.DataFrame({"set of classes": order} | counts)


def tabulate_shares(assignment: Assignment, annotations: Annotations) -> pd.DataFrame:
    """Count images by part, with the deviation of each class from the part's share of images in percent."""
    table = tabulate_parts(assignment.members, annotations)
    share = table["images"] / table["images"].sum()
    for name in annotations.classes:
        expected = share * table[name].sum()
        off = 100 * (table[name] - expected) / expected.where(expected > 0)
        texts = off.map("{:+.0f} %".format)
        table[name] = [f"{n}" if np.isnan(o) else f"{n} ({t})" for n, o, t in zip(table[name], off, texts, strict=True)]
    sizes = [len(np.unique(annotations.sizes[assignment.members[part]], axis=0)) for part in assignment.parts]
    return table.assign(sizes=sizes)


def audit(root: str, *, splits: str | None = None, out: str | None = None) -> int:
    """Report leaks and balance of any split, and the recall that its parts can demonstrate.

    An image leaks if an earlier part (train, then val, then test) has the same pixels, the same scene (mirrored,
    rotated, shifted, re-encoded or brightened) or another image of its group. The exit status is 1 if there is a leak,
    else 0.

    Args:
        root: Folder with train.csv and train_images.
        splits: CSV file with the columns ImageId and split (or fold, part, set, subset), or a folder with the lists
            train.txt, val.txt and so on, one image per line; by default splits.csv in the dataset's folder.
        out: Folder for a page with figures of the worst leaks, and for audit.json; new or empty.

    Example:
        steel audit data
        steel audit data --splits other.csv --out audited
    """
    if out:
        require_new_folder(Path(out))
    annotations = read_annotations(root)
    source = Path(splits) if splits else Path(root) / "splits.csv"
    assignment = read_assignment(source, annotations)
    leaks = find_leaks(assignment, annotations, find_duplicates(annotations.list_paths()))
    print(tabulate_shares(assignment, annotations).to_string(index=False))
    print(tabulate_claims(assignment, annotations).to_string(index=False))
    print(_describe_leaks(assignment, leaks))
    for leak in leaks[:NUM_PICTURES]:
        ends = f"{leak.image} ({leak.part}) and {leak.twin} ({leak.twin_part})"
        print(f"  {ends}: {leak.kind}, {leak.score:.2f}, {leak.how}")
    if out:
        with new_folder(Path(out)) as folder:
            page = _write_report(folder, source, annotations, assignment, leaks)
        print(f"page: {Path(out) / page.name}")
    return 1 if leaks else 0


def _describe_leaks(assignment: Assignment, leaks: Sequence[Leak]) -> str:
    total = sum(len(assignment.members[part]) for part in assignment.parts[1:])
    later = ", ".join(assignment.parts[1:])
    num_unknown = sum(len(names) for names in assignment.unknown.values())
    ignored = (
        f" Ignored, because they are not in the dataset: {format_count(num_unknown, 'name')}." if num_unknown else ""
    )
    if not leaks:
        return f"No leak: of {format_count(total, 'image')} of {later}, none is in an earlier part.{ignored}"
    kinds = Counter(f"{leak.kind} ({leak.part} and {leak.twin_part})" for leak in leaks)
    listed = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common())
    images = f"{len(leaks):,} of {format_count(total, 'image')} of {later}"
    return (
        f"LEAKS: {images} also in an earlier part: {listed}. Scores on them say nothing about new steel; make a new "
        f"split with steel split --near_duplicates.{ignored}"
    )


def _write_report(
    folder: Path, source: Path, annotations: Annotations, assignment: Assignment, leaks: Sequence[Leak]
) -> Path:
    page = Page(f"Audit of {source}", folder)
    page.add_text(_describe_leaks(assignment, leaks))
    page.add_text(
        f"Dataset {annotations.root}: {format_count(len(annotations), 'image')}, digest of the labels "
        f"{annotations.digest}."
    )
    page.add_heading("Balance")
    caption = "Images of each part; in brackets the deviation of a class from the part's share of images"
    page.add_table(tabulate_shares(assignment, annotations), caption)
    page.add_table(tabulate_sets(assignment, annotations), "Images with each set of classes")
    page.add_heading("Recall that can be demonstrated")
    caption = "95 % confidence intervals of the best possible results; the fewer groups, the wider the interval"
    page.add_table(tabulate_claims(assignment, annotations), caption)
    if leaks:
        page.add_heading("Leaks")
        for k, leak in enumerate(leaks[:NUM_PICTURES]):
            page.add_picture(f"leak_{k + 1}", _plot_leak(leak, annotations), f"{leak.kind}: {leak.how}")
        page.add_table(pd.DataFrame([vars(leak) for leak in leaks]), f"All {len(leaks):,} leaking images")
    content = {
        "data": annotations.digest,
        "splits": str(source),
        "parts": tabulate_parts(assignment.members, annotations).to_dict("records"),
        "unknown": dict(assignment.unknown),
        "leaks": [vars(leak) for leak in leaks],
    }
    write_atomic(folder / "audit.json", json.dumps(content, indent=1))
    return page.write()


def _plot_leak(leak: Leak, annotations: Annotations) -> Figure:
    indices = np.searchsorted(annotations.names, [leak.image, leak.twin]).tolist()  # names are sorted
    images, masks = zip(*((annotations.read_image(i), annotations.draw_masks(i)) for i in indices), strict=True)
    captions = [f"{leak.image} ({leak.part})", f"{leak.twin} ({leak.twin_part})"]
    return plots.plot_examples(images, masks, captions, f"{leak.kind}, {leak.score:.2f}")
