"""The report that a quality engineer signs: what `steel evaluate` found, as one HTML page."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_curve, roc_curve

from steel import plots
from steel.data import rle
from steel.data.annotations import Annotations
from steel.decision.about import About, TrainedNetwork
from steel.evaluation.judging import Judged, explain
from steel.evaluation.promises import name_classes
from steel.evaluation.scores import reliability
from steel.evaluation.tune import tabulate_point
from steel.pages import Page
from steel.progress import track
from steel.training.metrics import dice, unpack

VERDICTS = ("clean", "defective")

# Scores of the report, in words; those of single classes follow by name.
_HEADLINES = {
    "dice_on_defects": "Dice on defects",
    "kaggle_dice": "Kaggle Dice",
    "iou": "IoU, mean of classes",
    "false_alarm_rate": "clean images with a false alarm",
    "accuracy": "accuracy of defective-or-not",
    "balanced_accuracy": "balanced accuracy",
    "recall": "defective images called so",
    "precision": "images called defective that are",
    "auroc": "AUROC of defective-or-not",
    "average_precision": "average precision of defective-or-not",
    "f1_macro": "F1 of the classes, mean",
    "boundary_dice": "Dice of the outlines",
}
_BY_CLASS = {
    "recall_class_": "recall",
    "precision_class_": "precision",
    "f1_class_": "F1",
    "auroc_class_": "AUROC",
    "average_precision_class_": "average precision",
    "dice_class_": "Dice on defects",
    "iou_class_": "IoU",
    "boundary_dice_class_": "Dice of outlines",
    "false_alarm_rate_class_": "false alarms",
    "area_error_class_": "area error",
}


def list_warnings(summary: Mapping[str, Any]) -> list[str]:
    """Where a score is no better than that of an inspector that does not look, or deceives."""
    scores, nothing, everything = (summary[key] for key in ("scores", "predict_nothing", "predict_everything"))
    warnings = []
    for name in ("kaggle_dice", "dice_on_defects"):
        for blind, other in (("nothing", nothing), ("everything", everything)):
            if scores[name] < other[name]:
                warnings.append(
                    f"{_HEADLINES[name]} is {scores[name]:.4f}, but predicting {blind} has {other[name]:.4f}"
                )
    best = max(summary["accuracy_calling_all_clean"], summary["accuracy_calling_all_defective"])
    if scores["accuracy"] <= best:
        warnings.append(f"accuracy is {scores['accuracy']:.4f}, but giving every image the same answer has {best:.4f}")
    if scores["auroc"] < 0.5:
        warnings.append(f"AUROC is {scores['auroc']:.4f}, below the 0.5 of guessing")
    return warnings


def show(value: float | None, interval: Sequence[float | None] | None = None) -> str:
    """A number with its interval, each where there is one; an end that is None has no bound."""
    if value is None or math.isnan(value):
        return "-"
    low, high = (math.inf if end is None else end for end in interval or (math.nan, math.nan))
    return f"{value:.4f}" if math.isnan(low) else f"{value:.4f} ({low:.3f} to {high:.3f})"


def tabulate_scores(summary: Mapping[str, Any]) -> pd.DataFrame:
    """The headline scores with their 95 % intervals, beside what predicting nothing and everything would score."""
    all_clean, all_defective = (summary[f"accuracy_calling_all_{verdict}"] for verdict in VERDICTS)
    nothing = summary["predict_nothing"] | {"accuracy": all_clean, "recall": 0.0}
    everything = summary["predict_everything"] | {"accuracy": all_defective, "recall": 1.0, "precision": all_defective}
    rows = [
        {
            "": text,
            "inspector (95 % interval)": show(summary["scores"][name], summary["intervals"][name]),
            "segmenter alone": show(summary["segmenter_alone"].get(name, math.nan)),
            "predict nothing": show(nothing.get(name, math.nan)),
            "predict everything": show(everything.get(name, math.nan)),
        }
        for name, text in _HEADLINES.items()
    ]
    name, text = "miou_with_background", "mIoU with background"
    rows.append(dict.fromkeys(rows[0], "-") | {"": text, "segmenter alone": show(summary["segmenter_alone"][name])})
    return pd.DataFrame(rows)


def tabulate_classes(summary: Mapping[str, Any], classes: Sequence[str]) -> pd.DataFrame:
    """The scores of each class, a column for each, with their 95 % intervals."""
    table: dict[str, list[str]] = {"": ["images", *_BY_CLASS.values()]}
    for c, name in enumerate(name_classes(classes)):
        keys = [f"{prefix}{c + 1}" for prefix in _BY_CLASS]
        cells = [show(summary["scores"][key], summary["intervals"][key]) for key in keys]
        table[name] = [str(summary["num_defects"][c]), *cells]
    return pd.DataFrame(table)


def choose_pictures(judged: Judged, limit: int) -> list[tuple[int, str]]:
    """Rows of the images to show and why: the worst of each cause by turns, and the best of each class."""
    scores = dice(judged.counts)
    causes = explain(judged)
    queues = [[(row, why) for row in rows] for why, rows in zip(causes["cause"], causes["worst"], strict=True)]
    for c in range(judged.labels.shape[1]):
        members = torch.nonzero(judged.counts.truth[:, c]).squeeze(1)
        ranked = members[scores[members, c].argsort(descending=True)].tolist()
        queues.append([(row, "best of its class") for row in ranked[:1]])
    chosen: dict[int, str] = {}
    while len(chosen) < limit and any(queues):
        for queue in queues:
            while queue and queue[0][0] in chosen:
                queue.pop(0)
            if queue and len(chosen) < limit:
                row, why = queue.pop(0)
                chosen[row] = why
    return list(chosen.items())


def _draw(judged: Judged, row: int, annotations: Annotations, classes: Sequence[str], gate: float) -> Figure:
    i = int(judged.indices[row])
    image = annotations.read_image(i)
    truth = unpack(torch.from_numpy(annotations.draw_plane(i))[None], len(classes))[0].numpy()
    predicted = np.stack([rle.decode(code, image.shape) for code in judged.codes[row]]).astype(bool)
    scores = dice(judged.counts)[row].tolist()
    certainty = float(judged.probabilities[row].amax())
    details = [
        f"{name} Dice {score:.2f}" if true.any() else f"{name} false alarm"
        for name, score, true, found in zip(classes, scores, truth, predicted, strict=True)
        if true.any() or found.any()
    ]
    verdict = VERDICTS[certainty >= gate]
    return plots.plot_comparison(
        image,
        truth,
        predicted,
        f"{annotations.names[i]}: called {verdict} (p = {certainty:.2f})  {'  '.join(details)}",
        (f"truth: {_list_areas(truth, classes)}", f"prediction: {_list_areas(predicted, classes)}"),
    )


def _list_areas(masks: NDArray[np.bool_], classes: Sequence[str]) -> str:
    areas = [f"{name} {mask.sum():,} px" for name, mask in zip(classes, masks, strict=True) if mask.any()]
    return ", ".join(areas) or "clean"


def _draw_curves(judged: Judged, gate: float) -> Figure | None:
    """Missing against false alarms and precision against recall of the gate, the chosen point marked."""
    decided = judged.decided
    certainty, defective = judged.probabilities[decided].amax(1).numpy(), judged.labels[decided].any(1).numpy()
    if not 0 < defective.sum() < len(defective):
        return None
    false_alarms, found, _ = roc_curve(defective, certainty)
    precision, recall, _ = precision_recall_curve(defective, certainty)
    called = certainty >= np.float32(gate)
    hits = int((called & defective).sum())
    at = hits / defective.sum()
    return plots.plot_curves(
        {
            ("clean images called defective", "defective images missed"): (
                false_alarms, 1 - found, float((called & ~defective).sum() / (~defective).sum()), 1 - at,
            ),
            ("defective images called so", "images called defective that are"): (
                recall, precision, at, hits / max(1, called.sum()),
            ),
        },
        f"by the gate, the chosen {gate:.3f} marked",
    )  # fmt: skip


def write_report(
    folder: Path,
    judged: Judged,
    summary: Mapping[str, Any],
    about: About,
    source: Mapping[str, Any],
    annotations: Annotations,
    num_pictures: int,
) -> None:
    """Writes index.html and its pictures.

    Args:
        folder: Where to.
        judged: Image by image.
        summary: The numbers of `evaluation.summarise`, with "warnings" and "promises".
        about: What was judged.
        source: Where it was judged: "part", "root", "data", "device", "versions".
        annotations: The data set.
        num_pictures: How many images to show at the most.
    """
    classes, point, versions = about.classes, about.operating_point, source["versions"]
    page = Page(f"How good the inspector is: {source['part']} of {source['root']}", folder)
    page.add_text(
        f"{summary['num_images']:,} images in {summary['num_groups']:,} groups, {summary['num_defective']:,} of them "
        f"defective. Data {source['data']['digest']}, split {source['data']['split']}, steel {versions['steel']} at "
        f"commit {versions['commit']}, torch {versions['torch']}."
    )
    page.add_text(
        f"Encoders started from: classifier {_name_weights(about.classifiers)}; "
        f"segmenter {_name_weights(about.segmenters)}."
    )
    page.add_text(
        f"{'Each image as it is and mirrored, four probabilities averaged. ' if about.flips else ''}"
        f"{summary['images_per_second']:.1f} images a second on {source['device']}, both networks on every image."
    )
    for warning in summary["warnings"]:
        page.add_text(f"Warning: {warning}.")
    page.add_heading("The operating point")
    if about.tuned:
        on = about.tuned.chosen_on
        page.add_text(
            f"Chosen for {about.tuned.aim.name} on {on.num_images:,} images in {on.num_groups:,} groups: {on.part} of "
            f"{on.root} (data {on.data}, split {on.split})."
        )
        for warning in about.tuned.warnings:
            page.add_text(f"Warning when it was chosen: {warning}.")
    else:
        page.add_text("Not tuned: gate and pixels at 0.5, nothing too small. `steel tune` chooses one on validation.")
    page.add_table(tabulate_point(point, classes), f"Gate {point.gate:.4f}; sizes in pixels")
    if summary["promises"]:
        page.add_table(pd.DataFrame(summary["promises"]), "What was promised, and what came")
    page.add_heading("Scores")
    page.add_table(tabulate_scores(summary), "Both stages together; 95 % intervals")
    page.add_text(
        "Kaggle Dice counts a clean pair of image and class as 1 when nothing is predicted, so predicting nothing "
        "scores high. Dice on defects counts only the pairs that have truth, and false alarms only images without any."
    )
    page.add_table(tabulate_classes(summary, classes), "By class, with 95 % intervals")
    page.add_heading("Defective or not")
    page.add_picture(
        "confusion",
        plots.plot_confusion(np.array(summary["confusion"]), VERDICTS, f"by the gate at {point.gate:.3f}"),
        "Truth down, decision across",
    )
    if (curves := _draw_curves(judged, point.gate)) is not None:
        page.add_picture("curves", curves, "What other gates would do")
    known = judged.decided
    probabilities, labels = judged.probabilities[known], judged.labels[known]
    bins = [reliability(probabilities[:, c], labels[:, c]) for c in range(len(classes))]
    brier, ece = summary["calibration"]["brier"], summary["calibration"]["ece"]
    page.add_picture(
        "calibration", plots.plot_reliability({"classifier": bins}, classes), f"Brier score {brier:.4f}, ECE {ece:.4f}"
    )
    page.add_heading("What went wrong")
    errors = pd.DataFrame(summary["errors"])
    if len(errors):
        shown = errors.assign(loss=errors["loss"].map("{:.2f}".format), share=errors["share"].map("{:.1%}".format))
        page.add_table(
            shown, "Each lost pair of image and class for one cause; the losses, 1 - Dice, add up to the total"
        )
    page.add_table(pd.DataFrame(summary["spots"]).round(4), "Spots by class and size in pixels")
    page.add_heading("Pictures: truth in green, prediction in red")
    chosen = choose_pictures(judged, num_pictures)
    for row, why in track(chosen, "drawing", len(chosen)):
        name = str(annotations.names[judged.indices[row]])
        page.add_picture(f"pictures/{name}", _draw(judged, row, annotations, classes, point.gate), f"{why}: {name}")
    page.write()


def _name_weights(networks: Sequence[TrainedNetwork]) -> str:
    names = ", ".join(dict.fromkeys(network.init["weights"] or "random weights" for network in networks))
    return names if len(networks) == 1 else f"{names} (mean of {len(networks)} networks)"
