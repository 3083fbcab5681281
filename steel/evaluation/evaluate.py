"""`steel evaluate`: how good both stages are on images that neither network has seen, as a report to be signed."""

import csv
import json
import math
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from steel.data.annotations import Annotations
from steel.data.datamodule import SteelDataModule
from steel.data.formats.submission import head_submission, list_codes
from steel.decision import bundle
from steel.decision.about import About
from steel.decision.point import OperatingPoint
from steel.decision.tuning import Tuning, to_plain
from steel.devices import choose_device, prepare_process
from steel.errors import InputError, require_at_least
from steel.evaluation.assemble import assemble, recall_part
from steel.evaluation.judging import Judged, explain, judge_part
from steel.evaluation.outlines import score_boundaries, score_spots
from steel.evaluation.promises import measure
from steel.evaluation.report import list_warnings, show, tabulate_scores, write_report
from steel.evaluation.scores import predict_everything, predict_nothing, score_calibration, score_miou
from steel.evaluation.search import Outcome
from steel.files import write_atomic
from steel.intervals import Interval, bootstrap, rate
from steel.pages import clear_pictures
from steel.training.metrics import confusion, dice, score_labels, score_masks
from steel.versions import describe_versions


def _score(judged: Judged, point: OperatingPoint, rows: NDArray[np.int64] | None = None) -> dict[str, float]:
    """All scores of single images, of some of the images."""
    if rows is None:
        rows = np.arange(len(judged.indices))
    decided = torch.from_numpy(rows)[judged.decided[rows]]
    label = torch.tensor([value or point.gate for value in point.label])
    return (
        score_masks(judged.counts.take(rows))
        | score_labels(judged.probabilities[decided], judged.labels[decided], point.gate, judged.known[decided], label)
        | score_boundaries(judged.boundaries[rows])
    )


def _find_intervals(judged: Judged, point: OperatingPoint) -> dict[str, Interval]:
    """Wilson's for rates, with a design effect where images belong to groups; for the rest a bootstrap over groups."""
    names = list(_score(judged, point))
    limits = bootstrap(
        lambda rows: np.array(list(_score(judged, point, rows).values())), len(judged.indices), judged.groups
    )
    # A wide interval of a score near its bound reaches beyond; errors of areas alone have no upper bound.
    intervals = {
        name: Interval(*np.clip(ends, 0, np.inf if name.startswith("area_error") else 1).tolist())
        for name, ends in zip(names, limits, strict=True)
    }
    called = judged.probabilities.amax(1) >= point.gate
    present = judged.counts.truth > 0
    drawn = judged.counts.predicted > 0
    clean = ~present.any(1)
    defective, decided = judged.labels.any(1), judged.decided
    rates = {
        "accuracy": ((called == defective), decided),
        "recall": (called, defective & decided),
        "precision": (defective, called & decided),
        "false_alarm_rate": (drawn.any(1), clean),
    }
    for c in range(present.shape[1]):
        rates[f"false_alarm_rate_class_{c + 1}"] = drawn[:, c], clean
        label = point.label[c] or point.gate
        rates[f"recall_class_{c + 1}"] = called & (judged.probabilities[:, c] >= label), judged.labels[:, c]
    for name, (hits, among) in rates.items():
        intervals[name] = rate(hits[among].numpy(), judged.groups[among.numpy()])
    return intervals


def summarise(judged: Judged, point: OperatingPoint) -> dict[str, Any]:
    """All the numbers, the headline ones first."""
    scores = _score(judged, point)
    decided = judged.decided
    called, defective = judged.probabilities[decided].amax(1) >= point.gate, judged.labels[decided].any(1)
    causes = explain(judged)
    return {
        "accuracy": scores["accuracy"],
        "kaggle_dice": scores["kaggle_dice"],
        "dice_on_defects": scores["dice_on_defects"],
        "num_images": len(judged.indices),
        "num_groups": len(np.unique(judged.groups)),
        "num_defective": int(defective.sum()),
        "num_defects": judged.labels.sum(0).tolist(),
        "scores": scores,
        "intervals": {name: list(interval) for name, interval in _find_intervals(judged, point).items()},
        "predict_nothing": score_masks(predict_nothing(judged.counts)),
        "predict_everything": score_masks(predict_everything(judged.counts)),
        "segmenter_alone": score_masks(judged.ungated) | score_miou(judged.exclusive),
        "accuracy_calling_all_clean": float((~defective).double().mean()),
        "accuracy_calling_all_defective": float(defective.double().mean()),
        "confusion": confusion(called, defective).tolist(),
        "calibration": score_calibration(judged.probabilities[decided], judged.labels[decided]),
        "spots": score_spots(judged.spots, judged.labels.shape[1]),
        "errors": causes.drop(columns="worst").to_dict("records"),
        "images_per_second": len(judged.indices) / judged.seconds,
    }


def _compare_promises(judged: Judged, tuned: Tuning, classes: Sequence[str]) -> list[dict[str, Any]]:
    """What the operating point promised beside what came."""
    outcome = Outcome(
        judged.passed.numpy(),
        (judged.counts.predicted > 0).numpy(),
        (judged.counts.hits > 0).numpy(),
        dice(judged.counts).numpy(),
    )
    present = (judged.counts.truth > 0).numpy()
    came = measure(present, judged.known.all(1).numpy() & ~present.any(1), judged.groups, outcome, tuned.aim, classes)
    rows = []
    for promise in tuned.promises:
        values = came[promise.name][0]
        low, high = promise.prediction
        value = float(values.mean()) if len(values) else math.nan
        rows.append(
            {
                "": promise.name,
                "expected": show(promise.value, promise.interval),
                "95 % on new images": f"{low:.3f} to {high:.3f} (of {promise.num_new})",
                "came": show(value),
                "of": len(values),
                "held": "-" if math.isnan(value) else "yes" if low - 1e-9 <= value <= high + 1e-9 else "no",
            }
        )
    return rows


def _list_submission(judged: Judged, annotations: Annotations) -> str:
    text = StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(head_submission("new"))
    for i, codes in zip(judged.indices.tolist(), judged.codes, strict=True):
        rows.writerows(list_codes(str(annotations.names[i]), codes, "new"))
    return text.getvalue()


def _recall_exported(about: About, data: SteelDataModule, part: str) -> None:
    """Makes sure that the images of a part are those that the exported file's networks have not seen."""
    for network in (*about.classifiers, *about.segmenters):
        if network.digest == data.annotations.digest and network.split != data.split.digest:
            raise InputError(
                f"{data.root} is divided otherwise (split {data.split.digest}) than for the networks of this file "
                f"({network.split}), so they may have seen images of {part}; put the splits.csv of their run there"
            )


def evaluate(
    *,
    classifier: str | list[str] | None = None,
    segmenter: str | list[str] | None = None,
    operating_point: str | None = None,
    flips: bool = False,
    model: str | None = None,
    root: str,
    split: Literal["train", "val", "test"] = "test",
    tolerance: int = 3,
    num_pictures: int = 24,
    out: str = "evaluation",
    batch_size: int = 8,
    num_workers: int | None = None,
    device: str = "auto",
) -> None:
    """Judges both stages together on images that the networks have not seen, or an exported file (--model).

    Writes index.html (the report), evaluation.json, submission.csv and the pictures of the report.

    Args:
        classifier: Checkpoint of the classifier; several, as [A.ckpt,B.ckpt], are averaged.
        segmenter: Checkpoint of the segmenter; several, as [C.ckpt,D.ckpt], are averaged.
        operating_point: File that `steel tune` wrote; by default all thresholds are 0.5. An exported file has its own.
        flips: Average over each image as it is and mirrored in both directions, which takes four times as long.
        model: File that `steel export` wrote, instead of checkpoints.
        root: Folder with train.csv and train_images.
        split: The part to judge by.
        tolerance: Pixels by which an outline may be off and still count, for the Dice of the outlines.
        num_pictures: How many images to show at the most.
        out: Folder for the report; an earlier one there is replaced.
        batch_size: Images that the networks see at once.
        num_workers: Threads that load; by default one fewer than there are cores, 8 at the most.
        device: Where to run: auto, cpu, cuda or cuda:1.

    Example:
        steel evaluate --classifier C.ckpt --segmenter S.ckpt --operating_point point.yaml --root data
        steel evaluate --model inspector.pt --root data
    """
    require_at_least(0, tolerance=tolerance, num_pictures=num_pictures)
    require_at_least(1, batch_size=batch_size)
    where = choose_device(device)
    prepare_process(where)
    inspector: torch.nn.Module
    if model is not None:
        if classifier or segmenter or operating_point or flips:
            raise InputError("--model holds networks, operating point and flips; leave the other options out")
        inspector, about = bundle.read(model, where)
    elif classifier and segmenter:
        assembly = assemble(classifier, segmenter, flips, operating_point)
        inspector, about = assembly.inspector.to(where), assembly.describe()
    else:
        raise InputError("give --classifier and --segmenter, or --model")
    data = SteelDataModule(
        root,
        num_classes=len(about.classes),
        batch_size=batch_size,
        num_workers=num_workers,
    )
    if model is None:
        recall_part(assembly, data, split)
    else:
        _recall_exported(about, data, split)
    if len(data.split.indices(split)) == 0:
        raise InputError(f"no image of {root} is in the part {split}; give it some in splits.csv")

    judged = judge_part(inspector, data, split, where, tolerance)
    described = {key: value for key, value in data.describe().items() if key in ("digest", "split")}
    source = {
        "part": split,
        "root": str(data.root),
        "data": described,
        "device": str(where),
        "versions": describe_versions(),
    }
    summary = summarise(judged, about.operating_point)
    summary["warnings"] = list_warnings(summary)
    summary["promises"] = _compare_promises(judged, about.tuned, about.classes) if about.tuned else []

    folder = Path(out)
    clear_pictures(folder)
    write_atomic(folder / "submission.csv", _list_submission(judged, data.annotations))
    write_report(folder, judged, summary, about, source, data.annotations, num_pictures)
    write_atomic(
        folder / "evaluation.json", json.dumps(to_plain(summary | about.to_dict() | source), indent=2, allow_nan=False)
    )

    print(tabulate_scores(summary).to_string(index=False))
    for warning in summary["warnings"]:
        print(f"warning: {warning}")
    print(f"wrote {folder / 'index.html'}, evaluation.json, submission.csv, pictures/")
