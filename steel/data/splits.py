"""Stratified splits into train, val and test, or into folds, over images and without dividing a group.

ROOT/splits.csv    ImageId,split with split in train, val, test
                or ImageId,fold with fold in 0..K-1: fold k is test, fold k + 1 is val, the others are train
                and optionally group: images of one coil or scene, in addition to the groups of groups.csv
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array

from steel.data.annotations import Annotations, read_annotations
from steel.data.duplicates import find_duplicates, join
from steel.data.record import DataRecord
from steel.data.severstal import read_named
from steel.data.spelling import parse_whole
from steel.data.tables import Finding, raise_first
from steel.errors import InputError, require_at_least
from steel.files import write_atomic
from steel.wording import format_count

PARTS = ("train", "val", "test")
DEFAULT_FRACTIONS = (0.7, 0.15, 0.15)


@dataclass(frozen=True)
class Split:
    """The part and the group that each image of a dataset belongs to.

    Attributes:
        names: `(n,)`, the dataset's file names, sorted.
        parts: `(n,)`, "train", "val", "test", or "" for an image that is in no part.
        groups: int64 `(n,)`, numbers of the groups, those of groups.csv joined with those of the split.
        is_grouped: bool `(n,)`, whether the group of an image is known; otherwise the image is its own group.
    """

    names: NDArray[np.str_]
    parts: NDArray[np.str_]
    groups: NDArray[np.int64]
    is_grouped: NDArray[np.bool_]

    def indices(self, part: str) -> NDArray[np.int64]:
        """Return the rows of the table that belong to a part."""
        return np.flatnonzero(self.parts == part)

    def members(self) -> dict[str, list[str]]:
        """Return the file names in each part, to be stored in a checkpoint."""
        return {part: self.names[self.indices(part)].tolist() for part in PARTS}

    def name_groups(self) -> dict[str, str]:
        """Return the first file name of the group of each image whose group is known, by file name."""
        first = pd.Series(self.names).groupby(self.groups).transform("first").to_numpy()
        return dict(zip(self.names[self.is_grouped].tolist(), first[self.is_grouped].tolist(), strict=True))

    def join_groups(self, group_of: Mapping[str, str]) -> "Split":
        """Return the split with the groups joined whose images share a value in `group_of`, which is by file name."""
        rows = np.flatnonzero(np.isin(self.names, list(group_of)))
        first: dict[str, int] = {}
        pairs = [(first.setdefault(group_of[str(self.names[i])], i), i) for i in rows.tolist()]
        is_grouped = self.is_grouped.copy()
        is_grouped[rows] = True
        return replace(self, groups=join(self.groups, pairs), is_grouped=is_grouped)

    @property
    def digest(self) -> str:
        """A hash of names and parts."""
        lines = (f"{name},{part}\n" for name, part in zip(self.names, self.parts, strict=True))
        return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]


def make_split(annotations: Annotations, fractions: Sequence[float] = DEFAULT_FRACTIONS, seed: int = 0) -> Split:
    """Divide a dataset into train, val and test.

    Groups are assigned one by one, those with the rarest content first. Each goes to the part that lacks most of what
    the group holds: images, classes and sets of classes. The result depends on names, labels, groups and seed only.
    scikit-learn's StratifiedGroupKFold only makes equal folds and would need 20 of them for 70/15/15.

    Args:
        annotations: The dataset.
        fractions: Shares of train, val and test, which sum to 1; a share may be 0.
        seed: Another seed gives another split.

    Raises:
        InputError: The fractions are not three shares that sum to 1, or the seed is negative.
    """
    shares = np.asarray(fractions, float)
    require_at_least(0, seed=seed)
    if shares.shape != (3,) or not (shares >= 0).all() or not abs(shares.sum() - 1) <= 1e-6:
        raise InputError(f"fractions must be three shares (train, val, test) that sum to 1, got {list(fractions)}")
    return _build_split(annotations, np.array(PARTS)[_assign(annotations, shares, seed)])


def _build_split(annotations: Annotations, parts: NDArray[np.str_]) -> Split:
    """Build a split with the groups of the dataset."""
    return Split(annotations.names, parts, annotations.groups, annotations.is_grouped)


def make_folds(annotations: Annotations, num_folds: int, seed: int = 0) -> NDArray[np.int64]:
    """Divide a dataset into folds of equal size, by the method of `make_split`.

    Returns:
        `(n,)`, the fold of each image, 0 to `num_folds` - 1.

    Raises:
        InputError: There are fewer than 3 folds or more than groups, or the seed is negative.
    """
    require_at_least(0, seed=seed)
    require_at_least(3, folds=num_folds)
    if num_folds > (num_groups := len(np.unique(annotations.groups))):
        raise InputError(f"folds must be at most the number of groups of images ({num_groups}), got {num_folds}")
    return _assign(annotations, np.full(num_folds, 1 / num_folds), seed)


def _assign(annotations: Annotations, shares: NDArray[np.float64], seed: int) -> NDArray[np.int64]:
    """Return the index into `shares` that each image is assigned to."""
    content, group_of = _count_content(annotations)
    totals = content.sum(axis=0)
    order = np.random.default_rng(seed).permutation(content.shape[0])
    # The largest share of any feature that a group holds.
    scarcity = np.maximum.reduceat(content.data / totals[content.indices], content.indptr[:-1])
    order = order[np.argsort(-scarcity[order], kind="stable")]

    open_shares = np.flatnonzero(shares)
    targets = shares[open_shares, None] * totals
    filled = np.zeros_like(targets)
    share_of_group = np.empty(content.shape[0], np.int64)
    for g in order:
        counts, stored = np.zeros_like(totals), slice(*content.indptr[g : g + 2])
        counts[content.indices[stored]] = content.data[stored]
        # The increase of sum((filled - target)^2 / target) if the group is added.
        increase = (counts * (counts + 2 * (filled - targets)) / targets).sum(axis=1)
        best = int(np.argmin(increase))
        filled[best] += counts
        share_of_group[g] = open_shares[best]
    return share_of_group[group_of]


def _count_content(annotations: Annotations) -> tuple[csr_array, NDArray[np.int64]]:
    """Return counts of images, classes and class sets, sparse `(groups, features)`, and each image's group `(n,)`."""
    labels = annotations.labels
    _, sets = np.unique(np.packbits(labels, axis=1), axis=0, return_inverse=True)
    group_of = pd.factorize(annotations.groups)[0].astype(np.int64)  # by first image, whatever the groups are called
    images, classes = np.nonzero(labels)
    rows = np.concatenate([group_of, group_of[images], group_of])
    columns = np.concatenate([np.zeros(len(labels), np.int64), 1 + classes, 1 + labels.shape[1] + sets.ravel()])
    _, columns = np.unique(columns, return_inverse=True)  # leaves out the classes that no image has
    return coo_array((np.ones(len(rows)), (rows, columns))).tocsr(), group_of


def read_split(path: Path, annotations: Annotations, fold: int | None = None) -> Split:
    """Read a `splits.csv`.

    Args:
        path: The file. Images that it does not name are in no part.
        annotations: The dataset.
        fold: The fold to test on, if the file has folds.

    Raises:
        InputError: The file has an error or divides a group, or `fold` does not fit the file.
    """
    split, is_folds, findings = read_parts(path, annotations)
    raise_first(findings)
    if not is_folds:
        if fold is not None:
            raise InputError(f"data.fold is {fold}, but {path} has parts and no folds; remove data.fold")
        return split
    folds = np.where(split.parts == "", "-1", split.parts).astype(int)
    num_folds = len(np.unique(folds[folds >= 0]))
    if num_folds < 3 or folds.max() + 1 != num_folds:
        raise InputError(f"{path} must have at least 3 folds, numbered 0, 1, 2, ...; write it with steel split --folds")
    if fold is None or not 0 <= fold < num_folds:
        raise InputError(
            f"the fold must be 0 to {num_folds - 1} for the folds of {path}, got {fold}; choose one with --data.fold, "
            f"for steel score with --fold"
        )
    part_of_fold = np.full(num_folds, "train", dtype="<U5")
    part_of_fold[[fold, (fold + 1) % num_folds]] = "test", "val"
    return replace(split, parts=np.where(folds < 0, "", part_of_fold[folds]))


def has_folds(path: Path, annotations: Annotations) -> bool:
    """Return true if `path` is a `splits.csv` with folds instead of parts, false if there is no such file."""
    return path.is_file() and read_parts(path, annotations)[1]


def require_fold(fold: int | None, source: Path | str, path: Path) -> int:
    """Return the fold that a network (`source`) was trained with, for a `splits.csv` with folds.

    Raises:
        InputError: The network was trained without folds.
    """
    if fold is None:
        raise InputError(
            f"{source} was trained on train, val and test, but {path} has folds; restore the splits.csv of the "
            f"training, or for other images write one with steel split without --folds"
        )
    return fold


def read_groups(annotations: Annotations) -> Split:
    """Return the groups of a dataset and of its `splits.csv`, whose parts or folds are of no interest.

    Raises:
        InputError: The file has an error or divides a group.
    """
    path = annotations.root / "splits.csv"
    if not path.is_file():
        return _build_split(annotations, np.full(len(annotations), ""))
    split, _, findings = read_parts(path, annotations)
    raise_first(findings)
    return split


def read_parts(path: Path, annotations: Annotations) -> tuple[Split, bool, list[Finding]]:
    """Read a `splits.csv` leniently.

    Returns:
        The split, whether its parts are folds, and the errors in the file.
    """
    table, positions, findings = read_named(path, ("split", "fold"), annotations.names, optional=("group",))
    is_folds = "fold" in table.form
    expected = "fold must be 0, 1, 2, ..." if is_folds else f"split must be one of {', '.join(PARTS)}"
    parts = np.full(len(annotations), "", dtype="<U9")
    values = table.columns["fold" if is_folds else "split"] if table.form else []
    for i, value, line in zip(positions, values, table.lines, strict=True):
        number = parse_whole(value) if is_folds else None
        is_valid = number is not None and 0 <= number < 1000 if is_folds else value in PARTS
        if not is_valid:
            findings.append(Finding(path, line, "split", f'{expected}, got "{value}"; fix the row'))
        elif i >= 0:
            parts[i] = value if number is None else str(number)
    groups = zip(positions, table.columns.get("group", [""] * len(positions)), strict=True)
    group_of = {str(annotations.names[i]): group for i, group in groups if i >= 0 and group}
    split = _build_split(annotations, parts).join_groups(group_of)
    return split, is_folds, [*findings, *_find_divided_groups(path, split)]


def _find_divided_groups(path: Path, split: Split) -> Iterator[Finding]:
    table = pd.DataFrame({"group": split.groups, "name": split.names, "part": split.parts})[split.parts != ""]
    firsts = table.drop_duplicates(["group", "part"])
    for _, rows in firsts[firsts.duplicated("group", keep=False)].groupby("group"):
        (name, part), (other_name, other_part), *_ = zip(rows["name"], rows["part"], strict=True)
        where = f"{name} is in {part}, {other_name} in {other_part}"
        message = f"a group of groups.csv or of this file is divided: {where}; put all its images into one part"
        yield Finding(path, None, "divided group", message)


def recall_split(annotations: Annotations, data: DataRecord, source: Path, fold: int | None = None) -> Split:
    """Return the split that a network was trained with, or for another dataset the split in its `splits.csv`.

    Args:
        annotations: The dataset to evaluate on.
        data: The checkpoint's record of its data.
        source: The checkpoint, for error messages.
        fold: The fold to test on, if `splits.csv` has folds; by default the checkpoint's.

    Raises:
        InputError: The data has changed, or images that the network was trained on are in val or test.
    """
    path = annotations.root / "splits.csv"
    given = None
    if path.is_file():
        # The checkpoint's fold does not apply to a file with parts.
        if fold is None and has_folds(path, annotations):
            fold = require_fold(data.get("fold"), source, path)
        given = read_split(path, annotations, fold)
    if data["digest"] == annotations.digest:
        parts = np.full(len(annotations), "", dtype="<U5")
        for part, names in data["members"].items():
            parts[np.isin(annotations.names, names)] = part
        split = replace(given or _build_split(annotations, parts), parts=parts).join_groups(data.get("groups", {}))
        if given and given.digest != split.digest:
            raise InputError(
                f"{source} was trained with split {data['split']}, but {path} is split {given.digest}; "
                f"restore the old file or train again"
            )
        return split
    if given is None:
        raise InputError(
            f"{source} was trained on data {data['digest']}, but {annotations.root} is data {annotations.digest}; use "
            f"the dataset of the training, or add a splits.csv that names the images to evaluate on"
        )
    evaluated = set(annotations.names[np.isin(given.parts, ("val", "test"))].tolist())
    if known := evaluated.intersection(data["members"]["train"]):
        images = f"{len(known)} images in val or test of {path}, for example {min(known)}"
        raise InputError(f"{source} was trained on {images}; remove them from val and test")
    return given


def choose_split(annotations: Annotations, fractions: Sequence[float], seed: int, fold: int | None = None) -> Split:
    """Return the split in the dataset's `splits.csv`, or else a new one; see `read_split` and `make_split`.

    Raises:
        InputError: The file or an argument is invalid.
    """
    path = annotations.root / "splits.csv"
    if path.is_file():
        return read_split(path, annotations, fold)
    if fold is not None:
        raise InputError(f"data.fold is {fold}, but there is no {path}; write it with steel split --folds")
    return make_split(annotations, fractions, seed)


def write_split(split: Split, path: Path, column: str = "split") -> None:
    """Write a `splits.csv`, sorted by file name; `column` is "fold" if the parts are folds.

    If groups are known it has a column group, so that they are used wherever the split is.
    """
    table = pd.DataFrame({"ImageId": split.names, column: split.parts})
    if split.is_grouped.any():
        table["group"] = table["ImageId"].map(split.name_groups()).fillna("")
    write_atomic(path, table[split.parts != ""].to_csv(index=False, lineterminator="\n"))


def tabulate_parts(members: Mapping[str, NDArray[np.int64]], annotations: Annotations) -> pd.DataFrame:
    """Count images, groups, clean images and images of each class; `members` are the rows of each part."""
    rows = []
    for part, i in members.items():
        labels = annotations.labels[i]
        counts = [len(i), len(np.unique(annotations.groups[i])), int((~labels.any(axis=1)).sum())]
        rows.append([part, *counts, *labels.sum(axis=0).tolist()])
    return pd.DataFrame(rows, columns=["part", "images", "groups", "clean", *annotations.classes])


def split(
    root: str,
    *,
    fractions: tuple[float, float, float] = DEFAULT_FRACTIONS,
    folds: int | None = None,
    near_duplicates: bool = False,
    out: str | None = None,
    seed: int = 0,
) -> None:
    """Divide a dataset into train, val and test, or into folds, and write splits.csv.

    The split is over images and stratified by the set of classes on an image. Groups in groups.csv are kept together.
    steel fit uses the file if it is in the dataset's folder.

    Args:
        root: Folder with train.csv and train_images.
        fractions: Shares of train, val and test, which sum to 1, for example [0.7,0.15,0.15].
        folds: Number of equal folds to make instead. With --data.fold 2, fold 2 is test, fold 3 is val, and the others
            are train.
        near_duplicates: Search for images of the same scene first, and keep these together as well.
        out: File to write, by default splits.csv in the dataset's folder.
        seed: Random seed; another seed gives another split.

    Example:
        steel split data --near_duplicates
        steel split data --folds 5 --out folds.csv
    """
    path = Path(out) if out else Path(root) / "splits.csv"
    if path.exists():
        raise InputError(f"{path} already exists, and models may depend on it; remove it or choose another --out")
    if folds is not None and tuple(fractions) != DEFAULT_FRACTIONS:
        raise InputError("--folds makes equal folds and cannot be combined with --fractions; give one of them")
    annotations = read_annotations(root)
    grouped = join_near_duplicates(annotations) if near_duplicates else annotations
    if folds is None:
        result = make_split(grouped, fractions, seed)
        write_split(result, path)
        members = {part: result.indices(part) for part in PARTS}
        description = f"split {result.digest}"
    else:
        fold_of = make_folds(grouped, folds, seed)
        write_split(_build_split(grouped, fold_of.astype(str)), path, "fold")
        members = {f"fold {k}": np.flatnonzero(fold_of == k) for k in range(folds)}
        description = f"{folds} folds (select one with --data.fold)"
    print(tabulate_parts(members, grouped).to_string(index=False))
    print(f"seed {seed}, {description}, data {annotations.digest}")
    print(f"wrote {path}")


def join_near_duplicates(annotations: Annotations) -> Annotations:
    """Merge the groups whose images show the same scene, and print how many pairs there are."""
    pairs = find_duplicates(annotations.list_paths())
    groups = join(annotations.groups, pairs)
    before, after = len(np.unique(annotations.groups)), len(np.unique(groups))
    num_pairs = format_count(len(pairs), "pair of images with the same scene", "pairs of images with the same scene")
    print(f"{num_pairs}; groups (single images included): {before:,} -> {after:,}")
    return replace(annotations, groups=groups, grouped=np.arange(len(annotations)))
