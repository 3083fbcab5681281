"""Which images train, which choose, which judge: a stratified split over images that never divides a group.

ROOT/splits.csv    ImageId,split with split in train, val, test
                or ImageId,fold with fold in 0..K-1: fold k judges, fold k + 1 chooses, the others train
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from steel.data.annotations import Annotations, read_annotations
from steel.data.duplicates import find_duplicates, join
from steel.data.severstal import read_named
from steel.data.tables import Finding, raise_first
from steel.errors import InputError, require_at_least
from steel.files import write_atomic

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
    return Split(annotations.names, np.array(PARTS)[_deal(annotations, shares, seed)])


def make_folds(annotations: Annotations, num_folds: int, seed: int = 0) -> NDArray[np.int64]:
    """Divides a data set into folds of equal shares, dealt like the parts of `make_split`.

    Args:
        annotations: The data set.
        num_folds: K; 3 or more, since one fold judges and one chooses.
        seed: Another seed gives other folds.

    Returns:
        `(n,)` the fold of each image, 0 to K - 1.

    Raises:
        InputError: There are fewer than 3 folds, or more than groups.
    """
    require_at_least(0, seed=seed)
    require_at_least(3, folds=num_folds)
    if num_folds > (num_groups := len(np.unique(annotations.groups))):
        raise InputError(f"{num_folds} folds, but {num_groups} groups of images cannot fill them; ask for fewer folds")
    return _deal(annotations, np.full(num_folds, 1 / num_folds), seed)


def _deal(annotations: Annotations, shares: NDArray[np.float64], seed: int) -> NDArray[np.int64]:
    """The share, by its place in `shares`, that each image falls to."""
    content, group_of = _describe_groups(annotations)
    totals = content.sum(axis=0)
    order = np.random.default_rng(seed).permutation(len(content))
    # Scarcity: the largest share that a group takes of anything there is.
    scarcity = (content / totals).max(axis=1)
    order = order[np.argsort(-scarcity[order], kind="stable")]

    open_shares = np.flatnonzero(shares)
    targets = shares[open_shares, None] * totals
    filled = np.zeros_like(targets)
    share_of_group = np.empty(len(content), np.int64)
    for g in order:
        # The growth of sum((filled - target)^2 / target) when the group is added.
        growth = (content[g] * (content[g] + 2 * (filled - targets)) / targets).sum(axis=1)
        best = int(np.argmin(growth))
        filled[best] += content[g]
        share_of_group[g] = open_shares[best]
    return share_of_group[group_of]


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


def read_split(path: Path, annotations: Annotations, fold: int | None = None) -> Split:
    """Reads a `splits.csv`.

    Args:
        path: The file. Images that it does not name are in no part.
        annotations: The data set that it divides.
        fold: The fold that judges, where the file has folds.

    Raises:
        InputError: Columns or parts are other than expected, an image is unknown or stands twice, a group of
            `groups.csv` is divided, or `fold` does not fit the file.
    """
    parts, is_folds, findings = read_parts(path, annotations)
    raise_first(findings)
    if not is_folds:
        if fold is not None:
            raise InputError(f"{path} names parts, not folds, but data.fold is {fold}; take that out")
        return Split(annotations.names, parts)
    folds = np.where(parts == "", "-1", parts).astype(int)
    num_folds = len(np.unique(folds[folds >= 0]))
    if num_folds < 3 or folds.max() + 1 != num_folds:
        raise InputError(f"{path}: folds are 0, 1, 2 and so on, 3 or more; write them by steel split --folds")
    if fold is None or not 0 <= fold < num_folds:
        came = "is not set" if fold is None else f"is {fold}"
        raise InputError(f"{path} has the folds 0 to {num_folds - 1}, but data.fold {came}; say which one judges")
    part_of_fold = np.full(num_folds, "train", dtype="<U5")
    part_of_fold[[fold, (fold + 1) % num_folds]] = "test", "val"
    return Split(annotations.names, np.where(folds < 0, "", part_of_fold[folds]))


def read_parts(path: Path, annotations: Annotations) -> tuple[NDArray[np.str_], bool, list[Finding]]:
    """Reads who is where, in either form of a `splits.csv`.

    Returns:
        `(n,)` the part or the fold of each image, "" where it has none; whether they are folds; and what is wrong.
    """
    table, positions, findings = read_named(path, ("split", "fold"), annotations.names)
    is_folds = "fold" in table.form
    parts = np.full(len(annotations), "", dtype="<U9")
    given = table.columns["fold" if is_folds else "split"] if table.form else []
    for i, part, line in zip(positions, given, table.lines, strict=True):
        if is_folds and not (part.isascii() and part.isdigit() and len(part) < 4):
            message = f'folds count 0, 1, 2, ..., but "{part}" came; mend the row'
            findings.append(Finding(path, line, "split", message))
        elif not is_folds and part not in PARTS:
            message = f'split is one of {", ".join(PARTS)}, but "{part}" came; mend the row'
            findings.append(Finding(path, line, "split", message))
        elif i >= 0:
            parts[i] = part
    return parts, is_folds, [*findings, *_find_divided_groups(path, parts, annotations)]


def _find_divided_groups(path: Path, parts: NDArray[np.str_], annotations: Annotations) -> Iterator[Finding]:
    first_of: dict[int, int] = {}
    reported = set()
    for i, (group, part) in enumerate(zip(annotations.groups.tolist(), parts.tolist(), strict=True)):
        if not part or group in reported:
            continue
        first = first_of.setdefault(group, i)
        if parts[first] != part:
            reported.add(group)
            names = annotations.names
            message = (
                f"it divides a group of groups.csv: {names[first]} is in {parts[first]}, {names[i]} in {part}; "
                f"keep a group on one side"
            )
            yield Finding(path, None, "divided group", message)


def recall_split(annotations: Annotations, data: Mapping[str, object], source: Path, fold: int | None = None) -> Split:
    """The split to judge a trained network by: the one it was trained with, or that of data it has never seen.

    Args:
        annotations: The data set to judge on.
        data: What the checkpoint says of its data: "digest", "split" (the digest of its split) and "members".
        source: The checkpoint, for errors.
        fold: The fold to judge by, where the data set's `splits.csv` has folds; by default the checkpoint's.

    Raises:
        InputError: The data set was changed since, its `splits.csv` is another, or images that the network was trained
            with are among those to judge it by.
    """
    path = annotations.root / "splits.csv"
    given = None
    if path.is_file():
        # New images may be in parts, whatever the network was trained with.
        is_folds = read_parts(path, annotations)[1]
        judge: Any = data.get("fold") if fold is None and is_folds else fold
        given = read_split(path, annotations, judge)
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


def choose_split(annotations: Annotations, fractions: Sequence[float], seed: int, fold: int | None = None) -> Split:
    """The split of a data set: its `splits.csv` as it is where there is one, else a new one."""
    path = annotations.root / "splits.csv"
    if path.is_file():
        return read_split(path, annotations, fold)
    if fold is not None:
        raise InputError(f"data.fold is {fold}, but there is no {path}; write it by steel split --folds")
    return make_split(annotations, fractions, seed)


def write_split(split: Split, path: Path) -> None:
    """Writes a `splits.csv` of parts, sorted by name."""
    _write(split.names, "split", split.parts, path)


def _write(names: NDArray[np.str_], column: str, parts: NDArray[np.str_], path: Path) -> None:
    table = pd.DataFrame({"ImageId": names, column: parts})
    write_atomic(path, table[parts != ""].to_csv(index=False, lineterminator="\n"))


def tabulate_parts(members: Mapping[str, NDArray[np.int64]], annotations: Annotations) -> pd.DataFrame:
    """Counts images, groups, clean images and images of each class, a row for each part.

    Args:
        members: The rows of the table that belong to each part.
        annotations: The data set.
    """
    rows = []
    for part, i in members.items():
        counts = annotations.labels[i].sum(axis=0).tolist()
        groups = len(np.unique(annotations.groups[i]))
        clean = int((~annotations.labels[i].any(axis=1)).sum())
        rows.append([part, len(i), groups, clean, *counts])
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
    """Divides a data set into train, val and test, or into folds, over images, and writes splits.csv.

    Stratified by the set of classes on an image; groups of groups.csv stay on one side. Both tasks use the file when
    it lies in the data set's folder.

    Args:
        root: Folder with train.csv and train_images.
        fractions: Shares of train, val and test, which sum to 1, as [0.7,0.15,0.15].
        folds: Equal folds instead; then --data.fold 2 judges by fold 2, chooses by fold 3 and trains on the others.
        near_duplicates: Whether to look for images of one scene first and keep these on one side too.
        out: File to write, by default splits.csv in the data set's folder.
        seed: Another seed gives another split.

    Example:
        steel split data --near_duplicates
        steel split data --folds 5 --out folds.csv
    """
    path = Path(out) if out else Path(root) / "splits.csv"
    if path.exists():
        raise InputError(
            f"{path} is there already and models may have been judged by it; remove it or give another --out"
        )
    if folds is not None and tuple(fractions) != DEFAULT_FRACTIONS:
        raise InputError("folds are equal, so --folds and --fractions exclude each other; give one of them")
    annotations = read_annotations(root)
    together = join_near_duplicates(annotations) if near_duplicates else annotations
    if folds is None:
        result = make_split(together, fractions, seed)
        write_split(result, path)
        members = {part: result.indices(part) for part in PARTS}
        word = f"split {result.digest}"
    else:
        fold_of = make_folds(together, folds, seed)
        _write(annotations.names, "fold", fold_of.astype(str), path)
        members = {f"fold {k}": np.flatnonzero(fold_of == k) for k in range(folds)}
        word = f"{folds} folds (--data.fold k judges by fold k)"
    print(tabulate_parts(members, together).to_string(index=False))
    print(f"seed {seed}, {word}, data {annotations.digest}")
    print(f"wrote {path}")


def join_near_duplicates(annotations: Annotations) -> Annotations:
    """The same data set with the groups joined whose images show the same scene; see `duplicates`."""
    pairs = find_duplicates([annotations.path(i) for i in range(len(annotations))])
    groups = join(annotations.groups, pairs)
    before, after = len(np.unique(annotations.groups)), len(np.unique(groups))
    print(
        f"{len(pairs):,} pairs of images show the same scene; groups, single images included: {before:,} -> {after:,}"
    )
    return replace(annotations, groups=groups)
