"""Evaluate the inspectors of several folds as one: every image is judged once, by networks that have not seen it."""

from collections.abc import Sequence

import numpy as np

from steel.decision.point import read_point
from steel.errors import InputError
from steel.evaluation.assemble import Assembly, assemble, hash_networks
from steel.evaluation.judging import Decisions, join
from steel.training.checkpoints import load_task


def assemble_folds(
    classifiers: Sequence[str], segmenters: Sequence[str], points: Sequence[str], flips: bool
) -> list[Assembly]:
    """Load one inspector for each operating point, from the checkpoints that the point was chosen for.

    Args:
        classifiers: Checkpoints of all classifiers.
        segmenters: Checkpoints of all segmenters.
        points: Files written by `steel tune`, one for each inspector.
        flips: Average the probabilities over flips; see `Inspector`.

    Raises:
        InputError: A checkpoint belongs to no point or a point to none of the checkpoints, the points have different
            aims, or see `assemble`.
    """
    classes = load_task(classifiers[0])[1]["data"]["classes"]
    hashes = {path: hash_networks([path], [], flips).classifiers[0] for path in (*classifiers, *segmenters)}
    found, aims = [], set()
    for point in points:
        tuned = read_point(point, classes).tuned
        if tuned is None:
            raise InputError(f"{point} does not say which networks it is for; several points must be from `steel tune`")
        aims.add(tuned.aim)
        ours = [path for path in classifiers if hashes[path] in tuned.networks.classifiers]
        theirs = [path for path in segmenters if hashes[path] in tuned.networks.segmenters]
        if not ours or not theirs:
            raise InputError(f"{point} was chosen for other networks; give the checkpoints that it was chosen for")
        found.append(assemble(ours, theirs, flips, point))
    used = {path for assembly in found for path in assembly.checkpoints}
    if unused := [path for path in hashes if path not in used]:
        raise InputError(f"none of the operating points was chosen for {unused[0]}; leave it out or add its point")
    if len(aims) > 1:
        raise InputError("the operating points were chosen for different aims; run `steel tune` with the same options")
    return found


def pool(folds: Sequence[Decisions]) -> Decisions:
    """Join the decisions on the parts of several folds.

    Raises:
        InputError: Two parts have an image in common.
    """
    first = np.cumsum([0, *(int(fold.groups.max()) + 1 for fold in folds[:-1])])
    pooled = join([fold._replace(groups=fold.groups + start) for fold, start in zip(folds, first, strict=True)])
    if len(np.unique(pooled.indices)) < len(pooled.indices):
        raise InputError("two folds have a test image in common; give one inspector for each fold of the same split")
    return pooled
