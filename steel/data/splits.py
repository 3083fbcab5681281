"""Which images train, which choose, which judge: a stratified split over images that never divides a group.

ROOT/splits.csv    ImageId,split with split in train, val, test
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from steel.data.annotations import Annotations, match_names, read_annotations, read_columns
from steel.errors import InputError, require_at_least

PARTS = ("train", "val", "test")
DEFAULT_FRACTIONS = (0.7, 0.15, 0.15)


@dataclass(frozen=True)
class Split:
    """The part that each image of a data set belongs to.

    Attributes:
        names: The data set's file names, sorted.
        parts: `(n,)` of "train", "val", "test", or "" for an image that is in none.
    """

    names: NDArray[np.str_]
    parts: NDArray[np.str_]

    def indices(self, part: str) -> NDArray[np.int64]:
        """The rows of the table that belong to a part."""
        return np.flatnonzero(self.parts == part)

    def members(self) -> dict[str, list[str]]:
        """The names in each part, for a checkpoint."""
        return {part: self.names[self.indices(part)].tolist() for part in PARTS}

    @property
    def digest(self) -> str:
        """A hash over who is where."""
        lines = (f"{name},{part}\n" for name, part in zip(self.names, self.parts, strict=True))
        return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]


def make_split(annotations: Annotations, fractions: Sequence[float] = DEFAULT_FRACTIONS, seed: int = 0) -> Split:
    """Divides a data set into train, val and test.

    Whole groups are dealt one after another, those with the rarest content first, each to the part that lags furthest
    behind its share of what the group holds: of images, of each class, and of each set of classes. The result depends
    on names, labels, groups and seed alone, not on the order of files or rows. Where all groups are single images it
    comes as near to the shares as whole images allow; scikit-learn's StratifiedGroupKFold, which knows equal folds
    only, would need 20 of them for 70/15/15.

    Args:
        annotations: The data set.
        fractions: The shares of train, val and test, which sum to 1; a share may be 0.
        seed: Another seed gives another split.

    Raises:
        InputError: The fractions are no shares.
    """
    shares = np.asarray(fractions, float)
    require_at_least(0, seed=seed)
    if shares.shape != (3,) or not (shares >= 0).all() or not abs(shares.sum() - 1) <= 1e-6:
        raise InputError(f"fractions are three shares of train, val and test that sum to 1, but {list(fractions)} came")
    content, group_of = _describe_groups(annotations)
    totals = content.sum(axis=0)
    order = np.random.default_rng(seed).permutation(len(content))
    # Scarcity: the largest share that a group takes of anything there is.
    scarcity = (content / totals).max(axis=1)
    order = order[np.argsort(-scarcity[order], kind="stable")]

    open_parts = np.flatnonzero(shares)
    targets = shares[open_parts, None] * totals
    filled = np.zeros_like(targets)
    part_of_group = np.empty(len(content), np.int64)
    for g in order:
        # The growth of sum((filled - target)^2 / target) when the group is added.
        growth = (content[g] * (content[g] + 2 * (filled - targets)) / targets).sum(axis=1)
        best = int(np.argmin(growth))
        filled[best] += content[g]
        part_of_group[g] = open_parts[best]
    return Split(annotations.names, np.array(PARTS)[part_of_group[group_of]])


def _describe_groups(annotations: Annotations) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """What each group holds, `(groups, features)` counts of images, classes and sets of classes; each image's group.

    Groups are numbered by their first image, so that the numbers do not depend on what the groups are called.
    """
    labels = annotations.labels
    _, sets = np.unique(np.packbits(labels, axis=1), axis=0, return_inverse=True)
    features = np.column_stack([np.ones(len(labels)), labels, np.eye(int(sets.max()) + 1)[sets.ravel()]])
    group_of = pd.factorize(annotations.groups)[0].astype(np.int64)
    content = np.zeros((int(group_of.max()) + 1, features.shape[1]))
    np.add.at(content, group_of, features)
    return content[:, content.any(axis=0)], group_of


def read_split(path: Path, annotations: Annotations) -> Split:
    """Reads a `splits.csv`.

    Args:
        path: The file. Images that it does not name are in no part.
        annotations: The data set that it divides.

    Raises:
        InputError: Columns or parts are other than expected, an image is unknown or stands twice, or a group of
            `groups.csv` is divided.
    """
    table = read_columns(path, ("ImageId", "split"))
    for line, part in zip(table["line"], table["split"], strict=True):
        if part not in PARTS:
            raise InputError(f'{path}, line {line}: split is one of {", ".join(PARTS)}, but "{part}" came')
    parts = np.full(len(annotations), "", dtype="<U5")
    parts[match_names(path, table["ImageId"], annotations.names, table["line"])] = table["split"].to_numpy(dtype="<U5")
    split = Split(annotations.names, parts)
    _refuse_divided_groups(path, split, annotations)
    return split


def recall_split(annotations: Annotations, data: Mapping[str, object], source: Path) -> Split:
    """The split to judge a trained network by: the one it was trained with, or that of data it has never seen.

    Args:
        annotations: The data set to judge on.
        data: What the checkpoint says of its data: "digest", "split" (the digest of its split) and "members".
        source: The checkpoint, for errors.

    Raises:
        InputError: The data set was changed since, its `splits.csv` is another, or images that the network was trained
            with are among those to judge it by.
    """
    path = annotations.root / "splits.csv"
    given = read_split(path, annotations) if path.is_file() else None
    members: Mapping[str, Sequence[str]] = data["members"]  # type: ignore[assignment]
    if data["digest"] == annotations.digest:
        parts = np.full(len(annotations), "", dtype="<U5")
        for part, names in members.items():
            parts[np.isin(annotations.names, names)] = part
        split = Split(annotations.names, parts)
        if given and given.digest != split.digest:
            raise InputError(
                f"{path} (split {given.digest}) is not the split that {source} was trained with ({data['split']}); "
                f"train again or put the old one back"
            )
        return split
    if given is None:
        raise InputError(
            f"{annotations.root} (data {annotations.digest}) is not the data set that {source} was trained on "
            f"({data['digest']}); give that one, or a splits.csv that names the images to judge by"
        )
    judged = set(annotations.names[np.isin(given.parts, ("val", "test"))].tolist())
    if known := judged.intersection(members["train"]):
        raise InputError(
            f"{len(known)} images that {path} puts into val or test, {min(known)} among them, were trained with by "
            f"{source}; take them out"
        )
    return given


def _refuse_divided_groups(path: Path, split: Split, annotations: Annotations) -> None:
    part_of: dict[int, int] = {}
    for i, (group, part) in enumerate(zip(annotations.groups.tolist(), split.parts, strict=True)):
        if not part:
            continue
        first = part_of.setdefault(group, i)
        if split.parts[first] != part:
            raise InputError(
                f"{path} divides a group of groups.csv: {split.names[first]} is in {split.parts[first]}, "
                f"{split.names[i]} in {part}; keep a group on one side"
            )


def choose_split(annotations: Annotations, fractions: Sequence[float], seed: int) -> Split:
    """The split of a data set: its `splits.csv` as it is where there is one, else a new one."""
    path = annotations.root / "splits.csv"
    return read_split(path, annotations) if path.is_file() else make_split(annotations, fractions, seed)


def write_split(split: Split, path: Path) -> None:
    """Writes a `splits.csv`, sorted by name."""
    used = split.parts != ""
    table = pd.DataFrame({"ImageId": split.names[used], "split": split.parts[used]})
    table.to_csv(path, index=False, lineterminator="\n")


def tabulate_split(split: Split, annotations: Annotations) -> pd.DataFrame:
    """Counts images, groups, clean images and images of each class, a row for each part."""
    rows = []
    for part in PARTS:
        i = split.indices(part)
        counts = annotations.labels[i].sum(axis=0).tolist()
        groups = len(np.unique(annotations.groups[i]))
        clean = int((~annotations.labels[i].any(axis=1)).sum())
        rows.append([part, len(i), groups, clean, *counts])
    return pd.DataFrame(rows, columns=["part", "images", "groups", "clean", *annotations.classes])


def split(
    root: str, fractions: tuple[float, float, float] = DEFAULT_FRACTIONS, seed: int = 0, out: str | None = None
) -> None:
    """Divides a data set into train, val and test, over images, and writes splits.csv.

    Stratified by the set of classes on an image; groups of groups.csv stay on one side. Both tasks use the file when
    it lies in the data set's folder.

    Args:
        root: Folder with train.csv and train_images.
        fractions: Shares of train, val and test, which sum to 1, as [0.7,0.15,0.15].
        seed: Another seed gives another split.
        out: File to write, by default splits.csv in the data set's folder.
    """
    path = Path(out) if out else Path(root) / "splits.csv"
    if path.exists():
        raise InputError(
            f"{path} is there already and models may have been judged by it; remove it or give another --out"
        )
    annotations = read_annotations(root)
    result = make_split(annotations, fractions, seed)
    write_split(result, path)
    print(tabulate_split(result, annotations).to_string(index=False))
    print(f"seed {seed}, split {result.digest}, data {annotations.digest}")
    print(f"wrote {path}")
