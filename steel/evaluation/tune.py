"""`steel tune`: choose an operating point, write it to a file, and report its promises and what limits them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import torch

from steel import plots
from steel.decision.drift import FEWEST_GROUPS, FEWEST_IMAGES, Reference, build_reference
from steel.decision.plain import to_plain
from steel.decision.point import OperatingPoint, PointFile, write_point
from steel.decision.tuning import Aim, AimName, ChosenOn, NetworkHashes, Promise, Tuning
from steel.devices import choose_device, prepare_process
from steel.errors import InputError, require_at_least
from steel.evaluation.assemble import Assembly, assemble, hash_networks
from steel.evaluation.calibration import Calibration
from steel.evaluation.claims import count_allowed, count_needed, find_alarm_bound, find_largest_claim
from steel.evaluation.evidence import Evidence, Grid, gather, read_scores
from steel.evaluation.parts import open_part, warn_of_groups
from steel.evaluation.promises import promise, tabulate_promises
from steel.evaluation.scores import reliability
from steel.evaluation.search import Outcome, calibrated, choose, judge
from steel.files import atomic_path, require_writable
from steel.progress import track
from steel.versions import describe_versions
from steel.wording import format_count, format_table, name_classes, wrap

# New images that promises can be for; their distribution takes a number for each possible count.
_MOST_NEW = 10_000_000
_POINT_COLUMNS = ("class", "calibration", "label", "pixel", "spot", "area")  # narrow enough for a terminal
# Costs of a miss, in false alarms, at which the trade-off is plotted.
_MISS_COSTS = (0.02, 0.05, 0.2, 0.5, 1.0, 2.0, 5.0, 15.0, 50.0, 150.0, 500.0)


class TunedPoint(NamedTuple):
    """A chosen operating point.

    Attributes:
        point: The operating point.
        promises: What it promises on new images.
        outcome: Its effect on the images that it was chosen on.
    """

    point: OperatingPoint
    promises: list[Promise]
    outcome: Outcome


def tune_on(evidence: Evidence, aim: Aim, classes: Sequence[str], num_new: int | None = None) -> TunedPoint:
    """Choose an operating point and compute its promises for `num_new` images, by default as many as in `evidence`."""
    point = choose(evidence, aim)
    outcome = judge(evidence, point)
    return TunedPoint(point, promise(evidence, outcome, aim, classes, num_new or len(evidence.names)), outcome)


def list_warnings(evidence: Evidence, tuned: TunedPoint, aim: Aim, classes: Sequence[str]) -> list[str]:
    """List claims that the evidence does not support, and scores that mislead; `tuned` was chosen on `evidence`."""
    warnings = []
    for c, name in enumerate(name_classes(classes)):
        n, found = int(evidence.labels[:, c].sum()), int(tuned.outcome.found[:, c].sum())
        needed = count_needed(evidence, c, aim) if n and aim.name == "recall" else 0
        if n == 0:
            warnings.append(f"no image has class {name}, so nothing is known about its recall")
        elif needed is None:
            warnings.append(
                f"a recall of {aim.share:g} cannot be claimed for class {name} with {aim.confidence:.0%} confidence: "
                f"finding {n} of {format_count(n, 'defect')} proves only a recall above "
                f"{find_largest_claim(evidence, c, n, aim):.3f}"
            )
        elif found < needed:
            warnings.append(
                f"a recall of {aim.share:g} is not reached for class {name}: the networks find at most {found} of "
                f"{format_count(n, 'defect')}, and {needed} are needed to claim it"
            )
    if aim.name == "false_alarms" and evidence.clean.any() and count_allowed(evidence, aim) is None:
        warnings.append(
            f"a limit of {aim.share:g} of the clean images cannot be claimed with {aim.confidence:.0%} confidence: 0 "
            f"false alarms on {format_count(int(evidence.clean.sum()), 'clean image')} prove only that at most "
            f"{find_alarm_bound(evidence, 0, aim.confidence):.3f} of them have one"
        )
    untuned, labels = judge(evidence, OperatingPoint.untuned(len(classes))), evidence.labels
    # With scores alone (an empty grid) every class that is called has a Dice of 1.
    if labels.any() and evidence.grid != Grid():
        kaggle = [float(outcome.dice.mean()) for outcome in (untuned, tuned.outcome)]
        on_defects = [float(outcome.dice[labels].mean()) for outcome in (untuned, tuned.outcome)]
        if kaggle[1] > kaggle[0] and on_defects[1] < on_defects[0]:
            warnings.append(
                f"Kaggle Dice rises from {kaggle[0]:.4f} at thresholds of 0.5 to {kaggle[1]:.4f} because fewer pixels "
                f"are predicted, not because masks improve: Dice on defects falls from {on_defects[0]:.4f} to "
                f"{on_defects[1]:.4f}"
            )
    return warnings


def describe_limit(evidence: Evidence, tuned: TunedPoint, aim: Aim) -> str:
    """Describe how many defects it costs to keep the limit of false alarms at the confidence of the aim."""
    on_average = judge(evidence, choose(evidence, replace(aim, confidence=0.5)))
    found, instead = (int(outcome.found[evidence.labels].sum()) for outcome in (tuned.outcome, on_average))
    return (
        f"{found} of {format_count(int(evidence.labels.sum()), 'defect')} are found with a limit of {aim.share:g} at "
        f"{aim.confidence:.0%} confidence; {instead} with a limit that holds on average (--confidence 0.5)"
    )


def tune(
    *,
    classifier: str | list[str] | None = None,
    segmenter: str | list[str] | None = None,
    flips: bool = False,
    root: str | None = None,
    split: Literal["train", "val", "test"] = "val",
    scores: str | None = None,
    aim: AimName = "cost",
    miss_cost: float | list[float] = 1.0,
    alarm_cost: float | list[float] = 1.0,
    recall: float = 0.95,
    false_alarms: float = 0.02,
    confidence: float = 0.95,
    num_new: int | None = None,
    out: str = "operating_point.yaml",
    batch_size: int = 8,
    num_workers: int | None = None,
    device: str = "auto",
) -> None:
    """Choose the operating point: calibration, gate, and for each class its thresholds and smallest sizes.

    Writes the operating point and its promises as YAML, and plots of the trade-off and of the calibration next to it.
    With --scores, only calibration, gate and label thresholds are chosen, from the probabilities of other software.

    Args:
        classifier: Checkpoint of the classifier; best and last name that of the newest run in lightning_logs. With
            several, as [A.ckpt,B.ckpt], the probabilities are averaged.
        segmenter: Checkpoint of the segmenter, or several, named as for --classifier.
        flips: Average the probabilities over four flips of each image; takes four times as long.
        root: Folder with train.csv and train_images.
        split: Part of the dataset to choose on. If this is test, the scores on test will be too optimistic.
        scores: CSV with the columns ImageId, label1, label2, ... (0 or 1), probability1, probability2, ... and, if
            images belong together, group.
        aim: cost: the lowest sum of --miss_cost and --alarm_cost. recall: at least --recall of the defects of every
            class, claimed with --confidence, at the fewest false alarms. false_alarms: as many defects found as
            possible with masks on at most --false_alarms of the clean images, claimed with --confidence. kaggle_dice:
            the highest Kaggle Dice.
        miss_cost: Cost of a missed defect, for all classes or for each, as [10,20,5].
        alarm_cost: Cost of a class called on an image without it, for all classes or for each, as [1,1,2].
        recall: Smallest share of each class's defects to find, for --aim recall.
        false_alarms: Largest share of clean images with a mask, for --aim false_alarms.
        confidence: One-sided confidence of the claim, for --aim recall and --aim false_alarms; 0.5 keeps the limit of
            false alarms only on average.
        num_new: Number of new images that the promises are for; by default the number of images chosen on.
        out: File to write.
        batch_size: Number of images that the networks process at once.
        num_workers: Number of threads that load images; by default one fewer than there are cores, at most 8.
        device: Device to run on: auto, cpu, cuda or cuda:1.

    Raises:
        InputError: The options contradict each other, a file cannot be read, or the dataset does not fit the networks.

    Example:
        steel tune --classifier best --segmenter best --root data --miss_cost 5 --out point.yaml
        steel tune --scores scores.csv --aim recall --recall 0.98
    """
    require_at_least(1, num_new=num_new, batch_size=batch_size)
    if num_new is not None and num_new > _MOST_NEW:
        raise InputError(f"num_new must be at most {_MOST_NEW:,}, got {num_new:,}")
    require_writable(Path(out))
    build = partial(_build_aim, aim, miss_cost, alarm_cost, recall, false_alarms, confidence)
    assembly: Assembly | None = None
    origin: dict[str, Any]
    if scores is not None:
        if classifier or segmenter or root:
            raise InputError("--scores replaces checkpoints and data; remove --classifier, --segmenter and --root")
        evidence, classes = read_scores(Path(scores))
        wanted, origin = build(len(classes)), {"scores": scores}
    elif classifier and segmenter and root:
        where = choose_device(device)
        prepare_process(where)
        assembly = assemble(classifier, segmenter, flips)
        classes, wanted = assembly.classes, build(len(assembly.classes))
        data = open_part(root, split, assembly, batch_size=batch_size, num_workers=num_workers)
        origin = {"root": root, "part": split, "data": data.annotations.digest, "split": data.split.digest}
        evidence = gather(assembly.inspector.to(where).probabilities, data, split, where)
        evidence = evidence._replace(logit_shift=assembly.logit_shift)
    else:
        raise InputError("--classifier, --segmenter and --root, or --scores, must be given")

    tuned = tune_on(evidence, wanted, classes, num_new)
    warnings = warn_of_groups(len(evidence.names), evidence.num_ungrouped)
    warnings += list_warnings(evidence, tuned, wanted, classes)
    reference, more = _build_reference(evidence, tuned.point)
    warnings += more
    networks = hash_networks(assembly.classifiers, assembly.segmenters, flips) if assembly else None
    origin |= {"num_images": len(evidence.names), "num_groups": len(np.unique(evidence.groups))}
    path = Path(out)
    pictures = _write_plots(path, evidence, tuned, classes)
    _write_point(path, tuned, wanted, classes, origin=origin, networks=networks, warnings=warnings, reference=reference)

    limit = describe_limit(evidence, tuned, wanted) if wanted.name == "false_alarms" else None
    num_images, num_groups = format_count(origin["num_images"], "image"), format_count(origin["num_groups"], "group")
    print(f"chosen on {num_images} in {num_groups}")
    _print_tuned(tuned, classes, [assembly.describe_gate() if assembly else None, limit])
    notes = [f"drift: {reference.promise}"] if reference else []
    notes += [*(f"warning: {warning}" for warning in warnings), f"wrote {', '.join(map(str, (path, *pictures)))}"]
    print(*map(wrap, notes), sep="\n")


def _build_reference(evidence: Evidence, point: OperatingPoint) -> tuple[Reference | None, list[str]]:
    """Build the reference for drift warnings, and list the reasons why there is none for images."""
    if evidence.measured is None:
        return None, []
    probabilities, are_known = calibrated(evidence, point), evidence.num_ungrouped == 0
    reference = build_reference(evidence.measured, probabilities, evidence.groups, are_groups_known=are_known)
    if reference is not None:
        return reference, []
    num_images, num_groups = len(evidence.names), len(np.unique(evidence.groups))
    return None, [
        f"drift will not be monitored: it needs {FEWEST_IMAGES} images in {FEWEST_GROUPS} groups, got {num_images} in "
        f"{num_groups}"
    ]


def _print_tuned(tuned: TunedPoint, classes: Sequence[str], notes: Sequence[str | None]) -> None:
    point = tuned.point
    print("operating point: thresholds of labels and pixels, smallest sizes in pixels:")
    print(format_table([_POINT_COLUMNS, *tabulate_point(point, classes).astype(str).to_numpy().tolist()]))
    print(f"gate threshold {point.gate:.4f}; {tuned.outcome.passed.mean():.1%} of the images pass the gate")
    for note in filter(None, notes):
        print(wrap(note))
    print("promises for new images:")
    print(format_table(tabulate_promises(tuned.promises)))


def _build_aim(
    name: AimName,
    miss_cost: float | list[float],
    alarm_cost: float | list[float],
    recall: float,
    false_alarms: float,
    confidence: float,
    num_classes: int,
) -> Aim:
    """Check the options and build the aim; a single cost holds for all classes."""
    costs = []
    for option, cost in (("miss_cost", miss_cost), ("alarm_cost", alarm_cost)):
        values = cost if isinstance(cost, list) else [cost] * num_classes
        if len(values) != num_classes or not all(np.isfinite(values)) or min(values) <= 0:
            raise InputError(
                f"--{option} must be one number above 0, or one for each of {num_classes} classes, got {cost}"
            )
        costs.append(tuple(map(float, values)))
    for option, share in (("recall", recall), ("false_alarms", false_alarms)):
        if not 0 <= share <= 1:
            raise InputError(f"--{option} must be in [0, 1], got {share}")
    if not 0.5 <= confidence < 1:
        raise InputError(f"--confidence must be in [0.5, 1), got {confidence}")
    return Aim(name, costs[0], costs[1], recall if name == "recall" else false_alarms, confidence)


def _write_point(
    path: Path,
    tuned: TunedPoint,
    aim: Aim,
    classes: Sequence[str],
    *,
    origin: Mapping[str, Any],
    networks: NetworkHashes | None,
    warnings: Sequence[str],
    reference: Reference | None,
) -> None:
    """Write the file of the operating point; a point chosen from scores alone (no networks) is valid for any."""
    more: dict[str, Any] = {"passed_by_gate": float(tuned.outcome.passed.mean()), "versions": describe_versions()}
    tuning = None
    if networks:
        tuning = Tuning(aim, ChosenOn(**origin), networks, tuple(tuned.promises), tuple(warnings))
    else:
        more |= {"aim": to_plain(aim), "chosen_on": origin, "promises": to_plain(tuned.promises), "warnings": warnings}
    write_point(path, classes, PointFile(tuned.point, tuning, reference), more)


def _write_plots(path: Path, evidence: Evidence, tuned: TunedPoint, classes: Sequence[str]) -> list[Path]:
    """Plot the trade-off and the calibration next to the file of the operating point."""
    sources = {"not calibrated": evidence.classes, "calibrated": calibrated(evidence, tuned.point)}
    bins = {
        title: [
            reliability(torch.from_numpy(column[known]), torch.from_numpy(evidence.labels[known, c]))
            for c, (column, known) in enumerate(zip(probabilities.T, evidence.known.T, strict=True))
        ]
        for title, probabilities in sources.items()
    }
    figures = {
        "trade_off": plots.plot_trade_off(_tabulate_trade_off(evidence, tuned), f"images: {len(evidence.names):,}"),
        "calibration": plots.plot_reliability(bins, name_classes(classes)),
    }
    paths = [path.with_name(f"{path.stem}_{name}.png") for name in figures]
    for picture, figure in zip(paths, figures.values(), strict=True):
        with atomic_path(picture) as draft:
            figure.savefig(draft, format="png", dpi=110)
    return paths


def _tabulate_trade_off(evidence: Evidence, tuned: TunedPoint) -> dict[str, pd.DataFrame]:
    """Tabulate what operating points for other costs of a miss would do on these images.

    Costs are varied, not shares of false alarms: the search for a share stops where a mask does more harm than good.
    """
    num_classes = evidence.labels.shape[1]
    points = [
        choose(evidence, Aim("cost", (cost,) * num_classes, (1.0,) * num_classes))
        for cost in track(_MISS_COSTS, "plotting the trade-off", len(_MISS_COSTS))
    ]
    values = {row.name: row.value for row in tuned.promises}
    expected = {
        "false alarms": values["clean images with a false alarm"],
        "missed": 1 - values["defects found"],
        "Dice on defects": values["Dice on defects"],
        "Kaggle Dice": values["Kaggle Dice"],
    }
    return {
        "other costs of a miss": pd.DataFrame([_summarise(evidence, judge(evidence, point)) for point in points]),
        "chosen": pd.DataFrame([_summarise(evidence, tuned.outcome)]),
        "expected on new images": pd.DataFrame([expected]),
    }


def _summarise(evidence: Evidence, outcome: Outcome) -> dict[str, float]:
    labels, clean = evidence.labels, evidence.clean
    return {
        "false alarms": float(outcome.called[clean].any(axis=1).mean()) if clean.any() else np.nan,
        "missed": float(1 - outcome.found[labels].mean()) if labels.any() else np.nan,
        "Dice on defects": float(outcome.dice[labels].mean()) if labels.any() else np.nan,
        "Kaggle Dice": float(outcome.dice.mean()),
    }


def tabulate_point(point: OperatingPoint, classes: Sequence[str]) -> pd.DataFrame:
    """Tabulate the thresholds and smallest sizes, one row per class."""
    return pd.DataFrame(
        {
            "class": list(classes),
            "calibration": [fit.method for fit in map(Calibration, point.temperature, point.curve, point.shift)],
            "label threshold": np.round(point.label, 4),
            "pixel threshold": np.round(point.pixel, 4),
            "smallest spot": point.smallest_spot,
            "smallest area": point.smallest_area,
        }
    )
