"""The HTML report of `steel evaluate`, written for the quality engineer who signs it."""

import html
from collections.abc import Sequence
from pathlib import Path

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
from steel.evaluation.against import Comparison, add_comparison
from steel.evaluation.judging import Decisions, explain
from steel.evaluation.scores import reliability
from steel.evaluation.summary import EvaluatedOn, Summary, format_score
from steel.evaluation.tune import tabulate_point
from steel.evaluation.verdict import Level, Verdict
from steel.pages import Page
from steel.progress import track
from steel.training.metrics import dice, unpack
from steel.wording import format_count, name_classes

_DECISIONS = ("clean", "defective")
_COLOURS: dict[Level, str] = {
    "ready": "#1a7f37",
    "not ready": "#bf8700",
    "too few images": "#6e7781",
    "do not use": "#cf222e",
}
_STYLE = """
.verdict { border-left: .6rem solid var(--colour); padding: .6rem 1rem; margin: 1rem 0; }
.verdict { background: color-mix(in srgb, var(--colour) 12%, transparent); }
.verdict p { margin: .2rem 0; } .verdict p:first-child { font-size: 1.2rem; font-weight: 600; }
"""

_HEADLINES = {
    "dice_on_defects": "Dice on defects",
    "kaggle_dice": "Kaggle Dice",
    "iou": "mean IoU of the classes",
    "false_alarm_rate": "clean images with a false alarm (a mask)",
    "accuracy": "accuracy (clean or defective)",
    "balanced_accuracy": "balanced accuracy",
    "recall": "defective images detected (recall)",
    "precision": "images called defective that are defective (precision)",
    "auroc": "AUROC of the gate (clean or defective)",
    "average_precision": "average precision of the gate (clean or defective)",
    "f1_macro": "mean F1 of the classes",
    "boundary_dice": "Dice of outlines",
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
    "false_alarm_rate_class_": "clean images with a false alarm",
    "area_error_class_": "relative area error",
}
_PROMISE_COLUMNS = (
    "", "expected (95 % interval)", "95 % prediction interval for new images", "observed", "number observed", "held",
)  # fmt: skip
_SPOT_COLUMNS = {
    "size": "size in pixels",
    "spots": "true spots",
    "found": "share found (at least half of the pixels)",
    "touched": "share touched (at least one pixel)",
    "predicted": "predicted spots",
    "false": "share of predicted spots on no defect",
}


def tabulate_scores(summary: Summary) -> pd.DataFrame:
    """Tabulate the headline scores with 95 % intervals beside those of the segmenter alone and of the baselines."""
    all_defective = summary.accuracy_calling_all_defective
    nothing = {**summary.predict_nothing, "accuracy": summary.accuracy_calling_all_clean, "recall": 0.0}
    everything = {**summary.predict_everything, "accuracy": all_defective, "recall": 1.0, "precision": all_defective}
    rows = [
        {
            "": text,
            "inspector (95 % interval)": format_score(summary.scores.get(name), summary.intervals.get(name)),
            "segmenter alone": format_score(summary.segmenter_alone.get(name)),
            "predict nothing": format_score(nothing.get(name)),
            "predict everything": format_score(everything.get(name)),
        }
        for name, text in (_HEADLINES | {"miou_with_background": "mIoU with background"}).items()
    ]
    return pd.DataFrame(rows)


def tabulate_classes(summary: Summary, classes: Sequence[str]) -> pd.DataFrame:
    """Tabulate the scores of each class with 95 % intervals, one column per class."""
    table: dict[str, list[str]] = {"": ["images with the class", *_BY_CLASS.values()]}
    for c, name in enumerate(name_classes(classes)):
        keys = [f"{prefix}{c + 1}" for prefix in _BY_CLASS]
        cells = [format_score(summary.scores[key], summary.intervals[key]) for key in keys]
        table[name] = [str(summary.num_defects[c]), *cells]
    return pd.DataFrame(table)


def choose_pictures(decisions: Decisions, limit: int) -> list[tuple[int, str]]:
    """Choose at most `limit` images to show: a typical one, the worst of each cause in turn, the best of each class.

    The typical image is the one with the median Dice of the defective images.

    Returns:
        The position of each image in `decisions`, and why it was chosen.
    """
    scores = dice(decisions.counts)
    causes = explain(decisions)
    queues = [[(row, why) for row in rows] for why, rows in zip(causes["cause"], causes["worst"], strict=True)]
    for c in range(decisions.labels.shape[1]):
        members = torch.nonzero(decisions.counts.truth[:, c]).squeeze(1)
        ranked = members[scores[members, c].argsort(descending=True)].tolist()
        queues.append([(row, "best of its class") for row in ranked[:1]])
    chosen: dict[int, str] = {}
    present = decisions.counts.truth > 0
    defective = torch.nonzero(present.any(1)).squeeze(1)
    if limit and len(defective):
        means = (scores * present).sum(1)[defective] / present.sum(1)[defective]
        typical = int(defective[means.argsort()[len(means) // 2]])
        chosen[typical] = "Typical: half of the defective images are outlined better"
    while len(chosen) < limit and any(queues):
        for queue in queues:
            while queue and queue[0][0] in chosen:
                queue.pop(0)
            if queue and len(chosen) < limit:
                row, why = queue.pop(0)
                chosen[row] = why
    return list(chosen.items())


def write_report(
    folder: Path,
    decisions: Decisions,
    summary: Summary,
    abouts: Sequence[About],
    verdict: Verdict,
    comparison: Comparison | None = None,
    *,
    on: EvaluatedOn,
    annotations: Annotations,
    num_pictures: int,
) -> None:
    """Write index.html, with at most `num_pictures` images of the dataset, and its pictures.

    `abouts` describes the inspector, or that of each fold. The page begins with the verdict and a typical image; tables
    and the other images follow.

    Raises:
        InputError: An image cannot be read.
    """
    classes, folds = abouts[0].classes, f" of {len(abouts)} folds" if len(abouts) > 1 else ""
    page = Page(f"Evaluation of the inspector on {on.part} of {on.root}{folds}", folder)

    def add_image(row: int, why: str) -> None:
        name = str(annotations.names[decisions.indices[row]])
        page.add_picture(f"pictures/{name}", _draw(decisions, row, annotations, classes), f"{why}: {name}")

    _add_verdict(page, verdict, summary)
    chosen = choose_pictures(decisions, num_pictures)
    typical, others = chosen[:1], chosen[1:]
    for row, why in typical:
        add_image(row, why)
    if comparison:
        add_comparison(page, comparison)
    _add_scores(page, summary, classes)
    _add_gate(page, decisions, summary, classes)
    _add_errors(page, summary, classes)
    for fold, about in enumerate(abouts, 1):
        _add_point(page, summary, about, f" {fold} of {len(abouts)}" if folds else "")
    _add_origin(page, summary, abouts, on)
    if others:
        page.add_heading("Pictures: truth in green, prediction in red")
    for row, why in track(others, "drawing", len(others)):
        add_image(row, why)
    page.write(style=_STYLE)


def _add_verdict(page: Page, verdict: Verdict, summary: Summary) -> None:
    limits = "".join(f"<li>{html.escape(limit[0].upper() + limit[1:])}.</li>" for limit in verdict.limits)
    page.add_markup(
        f'<section class="verdict" style="--colour: {_COLOURS[verdict.level]}"><p>{html.escape(verdict.sentence)}</p>'
        f"{f'<p>What limits it:</p><ul>{limits}</ul>' if limits else ''}"
        f"<p>Measured on {format_count(summary.num_images, 'image')} in {format_count(summary.num_groups, 'group')}; "
        f"defective: {summary.num_defective:,}.</p></section>"
    )


def _add_origin(page: Page, summary: Summary, abouts: Sequence[About], on: EvaluatedOn) -> None:
    page.add_heading("Data and software")
    page.add_text(
        f"Data {on.data}, split {on.split}, steel {on.versions['steel']} at commit {on.versions['commit']}, torch "
        f"{on.versions['torch']}."
    )
    page.add_text(
        f"Initial weights of the encoders: classifier {_name_weights([about.classifiers for about in abouts])}; "
        f"segmenter {_name_weights([about.segmenters for about in abouts])}."
    )
    if len(abouts) > 1:
        page.add_text(
            f"Every image was judged once, by the one of {len(abouts)} inspectors that has not seen it. AUROC, average "
            f"precision and calibration compare probabilities of different inspectors."
        )
    page.add_text(
        f"{'Probabilities are averaged over four flips of each image. ' if abouts[0].flips else ''}"
        f"{summary.images_per_second:.1f} images per second on {on.device}, with both networks on every image."
    )


def _name_weights(networks: Sequence[Sequence[TrainedNetwork]]) -> str:
    """Name the weights that the networks of each inspector started from."""
    every = [network.init["weights"] or "random weights" for of_one in networks for network in of_one]
    names, num = ", ".join(dict.fromkeys(every)), len(networks[0]) if networks else 1
    return names if num == 1 else f"{names} (mean of {num} networks)"


def _add_point(page: Page, summary: Summary, about: About, fold: str) -> None:
    page.add_heading(f"Operating point{fold}")
    if about.tuned:
        on = about.tuned.chosen_on
        page.add_text(
            f"Chosen for the aim {about.tuned.aim.name} on {format_count(on.num_images, 'image')} in "
            f"{format_count(on.num_groups, 'group')}: "
            f"{on.part} of {on.root} (data {on.data}, split {on.split})."
        )
        for warning in about.tuned.warnings:
            page.add_text(f"Warning when it was chosen: {warning}.")
    else:
        page.add_text(
            "Not tuned: gate and pixel thresholds are 0.5, and no spot or area is dropped for its size. Run `steel "
            "tune` to choose an operating point on the validation images."
        )
    point = about.operating_point
    page.add_table(tabulate_point(point, about.classes), f"Gate threshold {point.gate:.4f}; sizes in pixels")
    if summary.promises:
        table = pd.DataFrame([check.to_row() for check in summary.promises], columns=_PROMISE_COLUMNS)
        page.add_table(table, "Promises of the operating point, and the values observed on these images")


def _add_scores(page: Page, summary: Summary, classes: Sequence[str]) -> None:
    page.add_heading("Scores")
    page.add_table(tabulate_scores(summary), "Both stages together, with 95 % confidence intervals")
    page.add_text(
        "Kaggle Dice is the mean over all pairs of image and class. A pair without a defect counts as 1 if nothing is "
        "predicted, so predicting nothing scores high. Dice on defects is the mean over the pairs with a defect. The "
        "false-alarm rate counts only images without any defect."
    )
    page.add_table(tabulate_classes(summary, classes), "Scores by class, with 95 % confidence intervals")


def _add_gate(page: Page, decisions: Decisions, summary: Summary, classes: Sequence[str]) -> None:
    page.add_heading("Clean or defective")
    page.add_text(_describe_gate(decisions))
    confusion = plots.plot_confusion(np.array(summary.confusion), _DECISIONS, "both stages together")
    page.add_picture("confusion", confusion, "Confusion matrix: truth in rows, decision in columns")
    if (curves := _draw_curves(decisions)) is not None:
        page.add_picture("curves", curves, "The gate alone, at all thresholds")
    probabilities, labels = decisions.probabilities[decisions.decided], decisions.labels[decisions.decided]
    bins = [reliability(probabilities[:, c], labels[:, c]) for c in range(len(classes))]
    brier, ece = summary.calibration["brier"], summary.calibration["ece"]
    caption = f"Calibration: Brier score {brier:.4f}, expected calibration error {ece:.4f}"
    page.add_picture("calibration", plots.plot_reliability({"classifier": bins}, classes), caption)


def _describe_gate(decisions: Decisions) -> str:
    """Say what makes an image defective, and how many clean images the gate stops."""
    low, high = float(decisions.gate.min()), float(decisions.gate.max())
    gate = f"{low:.3f}" if low == high else f"{low:.3f} to {high:.3f}"
    clean = decisions.decided & ~decisions.labels.any(1)
    passed, marked = (int(calls[clean].sum()) for calls in (decisions.passed, decisions.called))
    return (
        f"An image is called defective if something is outlined on it. The gate (threshold {gate}) passes {passed:,} "
        f"of {format_count(int(clean.sum()), 'clean image')} to the segmenter; {marked:,} have a mask after pixel "
        f"thresholds and smallest sizes, which is a false alarm."
    )


def _draw_curves(decisions: Decisions) -> Figure | None:
    """Plot misses against false alarms and precision against recall, with the gate marked; None for one class only."""
    decided = decisions.decided
    probability, defective = decisions.probabilities[decided].amax(1).numpy(), decisions.labels[decided].any(1).numpy()
    if not 0 < defective.sum() < len(defective):
        return None
    false_alarms, detected, _ = roc_curve(defective, probability)
    precision, recall, _ = precision_recall_curve(defective, probability)
    passed = decisions.passed[decided].numpy()
    hits = int((passed & defective).sum())
    chosen_recall = hits / defective.sum()
    chosen_alarms = float((passed & ~defective).sum() / (~defective).sum())
    curves = {
        ("clean images that pass the gate", "defective images stopped by it"): (
            false_alarms, 1 - detected, chosen_alarms, 1 - chosen_recall,
        ),
        ("recall of the gate", "precision of the gate"): (
            recall, precision, chosen_recall, hits / max(1, passed.sum()),
        ),
    }  # fmt: skip
    return plots.plot_curves(curves, "the threshold used is marked")


def _add_errors(page: Page, summary: Summary, classes: Sequence[str]) -> None:
    page.add_heading("Errors")
    if summary.errors:
        rows = [(row["cause"], row["pairs"], f"{row['loss']:.2f}", f"{row['share']:.1%}") for row in summary.errors]
        table = pd.DataFrame(rows, columns=["cause", "pairs of image and class", "loss (1 - Dice)", "share of loss"])
        page.add_table(table, "Losses of Kaggle Dice; each pair has one cause, so the losses add up to the total")
    names = ["all", *name_classes(classes)]
    spots = pd.DataFrame([row | {"class": names[int(row["class"])]} for row in summary.spots])
    for column in spots.columns.intersection(["found", "touched", "false"]):
        spots[column] = spots[column].map(format_score)
    page.add_table(spots.rename(columns=_SPOT_COLUMNS), "Spots (connected areas) by class and size")


def _draw(decisions: Decisions, row: int, annotations: Annotations, classes: Sequence[str]) -> Figure:
    """Draw truth and prediction of one image, with its class probabilities and scores in the title."""
    i = int(decisions.indices[row])
    image = annotations.read_image(i)
    truth = unpack(torch.from_numpy(annotations.draw_plane(i))[None], len(classes))[0].numpy()
    predicted = np.stack([rle.decode(code, image.shape) for code in decisions.codes[row]]).astype(bool)
    probability = float(decisions.probabilities[row].amax())
    scores = dice(decisions.counts)[row].tolist()
    details = [
        f"{name} Dice {score:.2f}" if true.any() else f"{name} false alarm"
        for name, score, true, found in zip(classes, scores, truth, predicted, strict=True)
        if true.any() or found.any()
    ]
    verdict = _DECISIONS[int(decisions.called[row])]
    title = f"{annotations.names[i]}: called {verdict} (p = {probability:.2f})  {'  '.join(details)}"
    captions = f"truth: {list_areas(truth, classes)}", f"prediction: {list_areas(predicted, classes)}"
    return plots.plot_comparison(image, truth, predicted, title, captions)


def list_areas(masks: NDArray[np.bool_], classes: Sequence[str]) -> str:
    """Format the areas of masks `(C, H, W)`, as "1 pits 250 px, 3 scratch 1,024 px"; "clean" if all are empty."""
    return ", ".join(f"{n} {mask.sum():,} px" for n, mask in zip(classes, masks, strict=True) if mask.any()) or "clean"
