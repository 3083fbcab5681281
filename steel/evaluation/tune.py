"""`steel tune`: chooses the operating point, writes it down, and says what speaks against it."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import torch

from steel import plots
from steel.data.datamodule import SteelDataModule
from steel.decision.drift import FEWEST_GROUPS, FEWEST_IMAGES, build_reference
from steel.decision.point import OperatingPoint, PointFile, write_point
from steel.decision.tuning import Aim, AimName, ChosenOn, Promise, Tuning, to_plain
from steel.devices import choose_device, prepare_process
from steel.errors import InputError, require_at_least
from steel.evaluation.assemble import assemble, hash_networks, recall_part
from steel.evaluation.calibration import Calibration
from steel.evaluation.evidence import Evidence, Grid, gather, read_scores
from steel.evaluation.promises import name_classes, promise, tabulate_promises
from steel.evaluation.scores import reliability
from steel.evaluation.search import Outcome, calibrated, choose, count_needed, judge
from steel.files import write_atomic
from steel.intervals import largest_claim
from steel.progress import track
from steel.versions import describe_versions

# What a miss costs in false alarms, for the points between which the trade-off is drawn.
_RATIOS = (0.02, 0.05, 0.2, 0.5, 1.0, 2.0, 5.0, 15.0, 50.0, 150.0, 500.0)


class Tuned(NamedTuple):
    """A chosen point and what is to be known of it.

    Attributes:
        point: The point.
        promises: What it promises.
        outcome: What it does to the images that it was chosen by.
    """

    point: OperatingPoint
    promises: list[Promise]
    outcome: Outcome


def tune_on(evidence: Evidence, aim: Aim, classes: Sequence[str], num_new: int | None = None) -> Tuned:
    """Chooses an operating point and says what it promises.

    Args:
        evidence: Of the images to choose by.
        aim: What to choose for.
        classes: Names of the classes.
        num_new: How many new images the predictions are for; by default as many as there are here.
    """
    point = choose(evidence, aim)
    outcome = judge(evidence, point)
    return Tuned(point, promise(evidence, outcome, aim, classes, num_new or len(evidence.names)), outcome)


def list_warnings(evidence: Evidence, tuned: Tuned, aim: Aim, classes: Sequence[str]) -> list[str]:
    """What cannot be claimed, and where a number deceives."""
    warnings = []
    for c, name in enumerate(f"class {name}" for name in name_classes(classes)):
        n, found = int(evidence.labels[:, c].sum()), int(tuned.outcome.found[:, c].sum())
        if n == 0:
            warnings.append(f"no image has {name}: nothing can be said about it")
            continue
        needed = count_needed(evidence, c, aim) if aim.name == "recall" else 0
        if needed is None:
            warnings.append(
                f"a recall of {aim.share:g} cannot be claimed for {name}: even {n} of {n} found proves only a recall "
                f"above {largest_claim(n, n):.3f}"
            )
        elif found < needed:
            warnings.append(
                f"a recall of {aim.share:g} is not reached for {name}: the networks find {found} of {n} at best, and "
                f"{needed} are needed to claim it"
            )
    untuned = judge(evidence, OperatingPoint.untuned(len(classes)))
    labels = evidence.labels
    # Of scores alone every class that is called is faultlessly outlined.
    if labels.any() and evidence.grid != Grid():
        before, after = (
            (float(outcome.dice.mean()), float(outcome.dice[labels].mean())) for outcome in (untuned, tuned.outcome)
        )
        if after[0] > before[0] and after[1] < before[1]:
            warnings.append(
                f"Kaggle Dice rises ({before[0]:.4f} to {after[0]:.4f}) because less is outlined, not because it is "
                f"outlined better: Dice on defects falls ({before[1]:.4f} to {after[1]:.4f}) against thresholds of 0.5"
            )
    return warnings


def _list_trade_off(evidence: Evidence, tuned: Tuned) -> dict[str, pd.DataFrame]:
    """What points for other costs of a miss would do, on the images at hand.

    Not points for other shares of false alarms: these stop where a further mask does more harm than good.
    """
    each = (1.0,) * evidence.labels.shape[1]
    points = [
        choose(evidence, Aim("cost", tuple(ratio * cost for cost in each), each))
        for ratio in track(_RATIOS, "trade-off", len(_RATIOS))
    ]
    return {
        "other costs of a miss": pd.DataFrame([_summarise(evidence, judge(evidence, point)) for point in points]),
        "chosen": pd.DataFrame([_summarise(evidence, tuned.outcome)]),
        "expected of new images": pd.DataFrame([_summarise_promises(tuned.promises)]),
    }


def _summarise_promises(promises: Sequence[Promise]) -> dict[str, float]:
    values = {row.name: row.value for row in promises}
    return {
        "false alarms": values["clean images with a false alarm"],
        "missed": 1 - values["defects found"],
        "Dice on defects": values["Dice on defects"],
        "Kaggle Dice": values["Kaggle Dice"],
    }


def _summarise(evidence: Evidence, outcome: Outcome) -> dict[str, float]:
    labels, clean = evidence.labels, evidence.clean
    return {
        "false alarms": float(outcome.called[clean].any(axis=1).mean()) if clean.any() else np.nan,
        "missed": float(1 - outcome.found[labels].mean()) if labels.any() else np.nan,
        "Dice on defects": float(outcome.dice[labels].mean()) if labels.any() else np.nan,
        "Kaggle Dice": float(outcome.dice.mean()),
    }


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
    num_new: int | None = None,
    out: str = "operating_point.yaml",
    batch_size: int = 8,
    num_workers: int | None = None,
    device: str = "auto",
) -> None:
    """Chooses the operating point: calibration, gate, and for each class its thresholds and smallest sizes.

    Writes the point with what it promises as YAML, and beside it pictures of the trade-off and of the calibration.
    With --scores it chooses gate and label thresholds alone, from probabilities that were made elsewhere.

    Args:
        classifier: Checkpoint of the classifier; several, as [A.ckpt,B.ckpt], are averaged.
        segmenter: Checkpoint of the segmenter; several, as [C.ckpt,D.ckpt], are averaged.
        flips: Average over each image as it is and mirrored in both directions, which takes four times as long.
        root: Folder with train.csv and train_images.
        split: The part to choose by; test would make the report on test worthless.
        scores: CSV with ImageId, label1, label2, ... (0 or 1) and probability1, probability2, ...; group as well if
            images belong together.
        aim: cost: the lowest sum of --miss_cost and --alarm_cost. recall: of every class --recall of the defects,
            claimed with 95 % confidence, at the fewest false alarms. false_alarms: on at most --false_alarms of the
            clean images, and as many defects found as that allows. kaggle_dice: the highest Kaggle Dice.
        miss_cost: What a defect costs that is not found; for each class, as [10,20,5], or one for all.
        alarm_cost: What a class costs that is called on an image without it; for each class or one for all.
        recall: Least share of the defects of each class to be found, for --aim recall.
        false_alarms: Largest share of clean images with a mask, for --aim false_alarms.
        num_new: Number of new images to say what will be seen on; by default as many as it is chosen by.
        out: File to write.
        batch_size: Images that the networks see at once.
        num_workers: Threads that load; by default one fewer than there are cores, 8 at the most.
        device: Where to run: auto, cpu, cuda or cuda:1.

    Example:
        steel tune --classifier C.ckpt --segmenter S.ckpt --root data --miss_cost 5 --out point.yaml
        steel tune --scores scores.csv --aim recall --recall 0.98
    """
    require_at_least(1, num_new=num_new, batch_size=batch_size)
    source: dict[str, Any]
    if scores is not None:
        if classifier or segmenter or root:
            raise InputError("--scores stands for checkpoints and data; give it alone or leave it out")
        evidence, classes = read_scores(Path(scores))
        wanted = _read_aim(aim, miss_cost, alarm_cost, recall, false_alarms, len(classes))
        networks, source = None, {"scores": scores}
    elif classifier and segmenter and root:
        where = choose_device(device)
        prepare_process(where)
        assembly = assemble(classifier, segmenter, flips)
        classes = assembly.classes
        wanted = _read_aim(aim, miss_cost, alarm_cost, recall, false_alarms, len(classes))
        data = SteelDataModule(root, num_classes=len(classes), batch_size=batch_size, num_workers=num_workers)
        recall_part(assembly, data, split)
        if len(data.split.indices(split)) == 0:
            raise InputError(f"no image of {root} is in the part {split}; give it some in splits.csv")
        evidence = gather(assembly.inspector.to(where).probabilities, data, split, where)
        described = data.describe()
        networks = hash_networks(list(assembly.classifiers), list(assembly.segmenters), flips)
        source = {"root": root, "part": split, "data": described["digest"], "split": described["split"]}
    else:
        raise InputError("give --classifier, --segmenter and --root, or --scores")

    tuned = tune_on(evidence, wanted, classes, num_new)
    warnings = list_warnings(evidence, tuned, wanted, classes)
    reference = None
    if evidence.measured is not None:
        reference = build_reference(evidence.measured, calibrated(evidence, tuned.point), evidence.groups)
        if reference is None:
            warnings.append(
                f"drift will not be watched: that takes {FEWEST_IMAGES} images of {FEWEST_GROUPS} groups, but there "
                f"are {len(evidence.names)} of {len(np.unique(evidence.groups))}"
            )
    path = Path(out)
    pictures = _write_pictures(path, evidence, tuned, classes)
    source |= {"num_images": len(evidence.names), "num_groups": len(np.unique(evidence.groups))}
    more: dict[str, Any] = {"passed_by_gate": float(tuned.outcome.passed.mean()), "versions": describe_versions()}
    tuning = None
    if networks:
        tuning = Tuning(wanted, ChosenOn(**source), networks, tuple(tuned.promises), tuple(warnings))
    else:
        promises = [to_plain(row._asdict()) for row in tuned.promises]
        more |= {"aim": to_plain(wanted._asdict()), "chosen_on": source, "promises": promises, "warnings": warnings}
    write_point(path, classes, PointFile(tuned.point, tuning, reference), more)

    print(tabulate_point(tuned.point, classes).to_string(index=False))
    print(f"gate {tuned.point.gate:.4f}, which {tuned.outcome.passed.mean():.1%} of the images pass")
    if scores is None:
        print(assembly.describe_gate())
    print(tabulate_promises(tuned.promises).to_string(index=False))
    for warning in warnings:
        print(f"warning: {warning}")
    print(f"wrote {', '.join(map(str, (path, *pictures)))}")


def _write_pictures(path: Path, evidence: Evidence, tuned: Tuned, classes: Sequence[str]) -> list[Path]:
    """Draws the trade-off and the calibration beside the file of the point."""
    bins = {
        title: [
            reliability(torch.from_numpy(column[known]), torch.from_numpy(evidence.labels[known, c]))
            for c, (column, known) in enumerate(zip(probabilities.T, evidence.known.T, strict=True))
        ]
        for title, probabilities in (
            ("as it is", evidence.classes),
            ("calibrated", calibrated(evidence, tuned.point)),
        )
    }
    figures = {
        "trade_off": plots.plot_trade_off(_list_trade_off(evidence, tuned), f"{len(evidence.names):,} images"),
        "calibration": plots.plot_reliability(bins, name_classes(classes)),
    }
    paths = []
    for name, figure in figures.items():
        png = BytesIO()
        figure.savefig(png, format="png", dpi=110)
        paths.append(path.with_name(f"{path.stem}_{name}.png"))
        write_atomic(paths[-1], png.getvalue())
    return paths


def _read_aim(
    aim: AimName,
    miss: float | list[float],
    alarm: float | list[float],
    recall: float,
    false_alarms: float,
    num_classes: int,
) -> Aim:
    costs = []
    for name, cost in (("miss_cost", miss), ("alarm_cost", alarm)):
        each = cost if isinstance(cost, list) else [cost] * num_classes
        if len(each) != num_classes or not all(np.isfinite(each)) or min(each) <= 0:
            raise InputError(
                f"--{name} takes a number above 0 for each of {num_classes} classes or for all, but {cost} came"
            )
        costs.append(tuple(float(value) for value in each))
    for name, share in (("recall", recall), ("false_alarms", false_alarms)):
        if not 0 <= share <= 1:
            raise InputError(f"--{name} lies between 0 and 1, but {share} came")
    return Aim(aim, costs[0], costs[1], recall if aim == "recall" else false_alarms)


def tabulate_point(point: OperatingPoint, classes: Sequence[str]) -> pd.DataFrame:
    """The thresholds and smallest sizes, a row for each class."""
    return pd.DataFrame(
        {
            "class": list(classes),
            "calibration": [Calibration(*fit).method for fit in zip(point.temperature, point.curve, strict=True)],
            "label": np.round(point.label, 4),
            "pixel": np.round(point.pixel, 4),
            "smallest spot": point.smallest_spot,
            "smallest area": point.smallest_area,
        }
    )
