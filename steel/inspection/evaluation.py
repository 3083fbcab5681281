"""The report: what both stages together do to images that neither network has seen."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.metrics import classification_report

from steel import plots
from steel.data.datamodule import SteelDataModule
from steel.errors import InputError
from steel.inspection.assemble import Assembly, assemble, recall_part
from steel.inspection.run import SubmissionWriter, choose_device
from steel.progress import track
from steel.training.metrics import (
    Counts,
    LabelScores,
    MaskScores,
    confusion,
    dice,
    predict_everything,
    predict_nothing,
    score_labels,
    score_masks,
    unpack,
    unpack_unknown,
)
from steel.versions import describe_versions

_VERDICTS = ("clean", "defective")


class _Judged(NamedTuple):
    """The inspector's answers and the truth for n images, sorted by their rows in the table."""

    indices: NDArray[np.int64]
    counts: Counts
    probabilities: torch.Tensor
    labels: torch.Tensor
    known: torch.Tensor  # bool (n, C), whether it is known if the class is on the image
    masks: dict[int, NDArray[np.uint8]]  # row in the table -> bit-packed prediction, for the pictures and the codes

    @property
    def decided(self) -> torch.Tensor:
        """Bool `(n,)`, whether it is known if the image has a defect."""
        return self.known.any(1)


@torch.inference_mode()
def _judge(assembly: Assembly, data: SteelDataModule, part: str, device: torch.device) -> _Judged:
    inspector = assembly.inspector.to(device)
    mask_scores, label_scores = MaskScores(), LabelScores()
    packed: dict[int, NDArray[np.uint8]] = {}
    num_unknown: dict[int, int] = {}  # row in the table -> its pixels that nobody has labelled
    loader = data.part_dataloader(part)
    for batch in track(loader, "inspecting", len(loader)):
        inspection = inspector(batch["image"].to(device))
        masks = inspection.masks.cpu()
        truth = unpack(batch["mask"], len(assembly.classes))
        label_scores.update(inspection.class_probabilities.cpu(), truth.flatten(2).any(2), batch["index"])
        if data.annotations.unknown:
            unknown = unpack_unknown(batch["mask"])
            num_unknown |= dict(zip(batch["index"].tolist(), unknown.flatten(1).sum(1).tolist(), strict=True))
            mask_scores.update(masks & ~unknown[:, None], truth & ~unknown[:, None], batch["index"])
        else:
            mask_scores.update(masks, truth, batch["index"])
        for i, mask in zip(batch["index"].tolist(), masks.numpy(), strict=True):
            packed[i] = np.packbits(mask, axis=-1)
    indices, counts = mask_scores.counts()
    _, probabilities, labels = label_scores.results()
    hidden = torch.tensor([num_unknown.get(i, 0) for i in indices.tolist()])
    counts = counts._replace(pixels=counts.pixels - hidden)
    # What is seen on an image is known; what is not seen may lie where nobody has looked.
    known = labels | (hidden == 0)[:, None]
    return _Judged(indices.numpy(), counts, probabilities, labels, known, packed)


def _unpack_masks(judged: _Judged, row: int, width: int) -> NDArray[np.bool_]:
    return np.unpackbits(judged.masks[int(judged.indices[row])], axis=-1, count=width).astype(bool)


def _summarise(judged: _Judged, gate: float) -> dict[str, Any]:
    """All the numbers, the headline ones first."""
    masks = score_masks(judged.counts)
    probabilities, truth = judged.probabilities[judged.decided], judged.labels[judged.decided]
    called, defective = probabilities.amax(1) >= gate, truth.any(1)
    labels = score_labels(probabilities, truth, gate, judged.known[judged.decided])
    report = classification_report(
        defective, called, labels=[False, True], target_names=_VERDICTS, output_dict=True, zero_division=0.0
    )
    return {
        "accuracy": labels["accuracy"],
        "kaggle_dice": masks["kaggle_dice"],
        "dice_on_defects": masks["dice_on_defects"],
        "num_images": len(judged.indices),
        "num_defective": int(defective.sum()),
        "two_stage": masks,
        "predict_nothing": score_masks(predict_nothing(judged.counts)),
        "predict_everything": score_masks(predict_everything(judged.counts)),
        "defective_or_not": labels,
        "accuracy_calling_all_clean": float((~defective).double().mean()),
        "accuracy_calling_all_defective": float(defective.double().mean()),
        "confusion": confusion(called, defective).tolist(),
        "classification_report": report,
    }


def _drop_nan(value: Any) -> Any:
    """JSON has no nan; what is undefined is null."""
    if isinstance(value, dict):
        return {key: _drop_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def tabulate_scores(summary: dict[str, Any], classes: Sequence[str]) -> pd.DataFrame:
    """The masks' scores of the inspector beside what predicting nothing and everything would score."""
    names = {
        "kaggle_dice": "Kaggle Dice",
        "dice_on_defects": "Dice on defects",
        "iou": "IoU, mean of classes",
        "false_alarm_rate": "false alarms on clean images",
    }
    names |= {f"dice_class_{c + 1}": f"Dice on defects, {name}" for c, name in enumerate(classes)}
    names |= {f"iou_class_{c + 1}": f"IoU, {name}" for c, name in enumerate(classes)}
    columns = {
        "inspector": "two_stage",
        "predict nothing": "predict_nothing",
        "predict everything": "predict_everything",
    }
    rows = {text: [summary[key][name] for key in columns.values()] for name, text in names.items()}
    return pd.DataFrame.from_dict(rows, orient="index", columns=list(columns)).round(4)


def _to_markdown(table: pd.DataFrame) -> str:
    def show(column: str, value: float) -> str:
        if math.isnan(value):
            return "-"
        return f"{value:.0f}" if column == "images" else f"{value:.4f}"

    lines = [["", *table.columns], ["---"] + ["---:"] * len(table.columns)]
    for name, row in zip(table.index, table.to_numpy().tolist(), strict=True):
        lines.append([str(name), *(show(*cell) for cell in zip(table.columns, row, strict=True))])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _write_markdown(path: Path, summary: dict[str, Any], about: dict[str, Any]) -> None:
    report = pd.DataFrame(summary["classification_report"]).T.loc[list(_VERDICTS)]
    report = report.rename(columns={"f1-score": "F1", "support": "images"})
    labels = summary["defective_or_not"]
    table = summary["confusion"]
    data, versions, point = about["data"], about["versions"], about["operating_point"]
    text = f"""# Evaluation

{summary["num_images"]:,} images ({about["part"]} of {about["root"]}), {summary["num_defective"]:,} of them defective.
Data {data["digest"]}, split {data["split"]}, steel {versions["steel"]} at commit {versions["commit"]}.

Encoders started from: classifier {_name_weights(about["classifiers"])}; segmenter {_name_weights(about["segmenters"])}.
Operating point: gate {point["gate"]}, pixels {point["pixel"]}, smallest areas {point["smallest_area"]}.
Flips: {"each image as it is and mirrored, four probabilities averaged" if about["flips"] else "none"}.

## Masks, both stages together

{_to_markdown(tabulate_scores(summary, about["classes"]))}

Kaggle Dice counts a clean pair of image and class as 1 when nothing is predicted, so predicting nothing scores high.
Dice on defects counts only the pairs that have truth, and false alarms only the images that have none.

## Defective or not, by the gate

| | |
| --- | ---: |
| accuracy | {summary["accuracy"]:.4f} |
| accuracy of calling every image clean | {summary["accuracy_calling_all_clean"]:.4f} |
| accuracy of calling every image defective | {summary["accuracy_calling_all_defective"]:.4f} |
| AUROC | {labels["auroc"]:.4f} |
| average precision | {labels["average_precision"]:.4f} |
| macro-F1 of the classes | {labels["f1_macro"]:.4f} |

{_to_markdown(report)}

| truth | called clean | called defective |
| --- | ---: | ---: |
| clean | {table[0][0]} | {table[0][1]} |
| defective | {table[1][0]} | {table[1][1]} |

Pictures, truth in green and prediction in red: `pictures/`.
"""
    path.write_text(text, encoding="utf-8")


def _name_weights(networks: Sequence[dict[str, Any]]) -> str:
    names = ", ".join(dict.fromkeys(about["init"]["weights"] or "random weights" for about in networks))
    return names if len(networks) == 1 else f"{names} (mean of {len(networks)} networks)"


def _choose_pictures(judged: _Judged, gate: float, limit: int) -> list[int]:
    """Rows to show, by turns: false alarms, missed images, and for each class its worst, middle and best masks."""
    called, defective = judged.probabilities.amax(1) >= gate, judged.labels.any(1)
    certainty = judged.probabilities.amax(1)
    false_alarms = torch.nonzero(called & ~defective & judged.decided).squeeze(1)
    missed = torch.nonzero(~called & defective).squeeze(1)
    queues = [
        false_alarms[certainty[false_alarms].argsort(descending=True)].tolist(),
        missed[certainty[missed].argsort()].tolist(),
    ]
    scores = dice(judged.counts)
    for c in range(judged.labels.shape[1]):
        members = torch.nonzero(judged.labels[:, c]).squeeze(1)
        ranked = members[scores[members, c].argsort()].tolist()
        # Worst, middle and best first, then what lies between.
        first = dict.fromkeys(ranked[i] for i in (0, len(ranked) // 2, -1) if ranked)
        queues.append([*first, *(row for row in ranked if row not in first)])
    chosen: list[int] = []
    while len(chosen) < limit and any(queues):
        for queue in queues:
            while queue and queue[0] in chosen:
                queue.pop(0)
            if queue and len(chosen) < limit:
                chosen.append(queue.pop(0))
    return sorted(chosen)


def _write_pictures(
    folder: Path, judged: _Judged, rows: Sequence[int], data: SteelDataModule, classes: Sequence[str], gate: float
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob("*.png"):
        stale.unlink()
    scores = dice(judged.counts)
    annotations = data.annotations
    for row in track(rows, "drawing", len(rows)):
        i = int(judged.indices[row])
        image = annotations.read_image(i)
        truth = unpack(torch.from_numpy(annotations.draw_plane(i))[None], len(classes))[0].numpy()
        predicted = _unpack_masks(judged, row, image.shape[1])
        certainty = float(judged.probabilities[row].amax())
        verdict = _VERDICTS[certainty >= gate]
        details = [
            f"{name} Dice {scores[row, c]:.2f}" if truth[c].any() else f"{name} false alarm"
            for c, name in enumerate(classes)
            if truth[c].any() or predicted[c].any()
        ]
        figure = plots.plot_comparison(
            image,
            truth,
            predicted,
            f"{annotations.names[i]}: called {verdict} (p = {certainty:.2f})  {'  '.join(details)}",
            (f"truth: {_list_areas(truth, classes)}", f"prediction: {_list_areas(predicted, classes)}"),
        )
        figure.savefig(folder / f"{annotations.names[i]}.png", dpi=100)


def _list_areas(masks: NDArray[np.bool_], classes: Sequence[str]) -> str:
    areas = [f"{name} {mask.sum():,} px" for name, mask in zip(classes, masks, strict=True) if mask.any()]
    return ", ".join(areas) or "clean"


def evaluate(
    *,
    classifier: str | list[str],
    segmenter: str | list[str],
    root: str,
    split: Literal["train", "val", "test"] = "test",
    flips: bool = False,
    out: str = "evaluation",
    batch_size: int = 8,
    num_workers: int | None = None,
    device: str = "auto",
    num_pictures: int = 24,
) -> None:
    """Judges both stages together on images that the networks have not seen.

    Writes evaluation.json, evaluation.md, submission.csv, confusion.png and pictures with truth in green and
    prediction in red.

    Args:
        classifier: Checkpoint of the classifier; several, as [A.ckpt,B.ckpt], are averaged.
        segmenter: Checkpoint of the segmenter; several, as [C.ckpt,D.ckpt], are averaged.
        root: Folder with train.csv and train_images.
        split: The part to judge by.
        flips: Average over each image as it is and mirrored in both directions, which takes four times as long.
        out: Folder for the report.
        batch_size: Images that the networks see at once.
        num_workers: Processes that load; by default one fewer than there are cores, 8 at the most.
        device: Where to run: auto, cpu, cuda or cuda:1.
        num_pictures: How many images to show at the most.
    """
    where = choose_device(device)
    assembly = assemble(classifier, segmenter, flips)
    data = SteelDataModule(
        root,
        num_classes=len(assembly.classes),
        batch_size=batch_size,
        num_workers=num_workers,
        persistent_workers=False,
    )
    recall_part(assembly, data, split)
    if len(data.split.indices(split)) == 0:
        raise InputError(f"no image of {root} is in the part {split}; give it some in splits.csv")

    judged = _judge(assembly, data, split, where)
    gate = assembly.point.gate
    summary = _summarise(judged, gate)
    described = {key: value for key, value in data.describe().items() if key in ("digest", "split")}
    about = assembly.describe() | {
        "part": split,
        "root": str(data.root),
        "data": described,
        "versions": describe_versions(),
    }

    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "submission.csv").open("w", newline="", encoding="utf-8") as file:
        codes = SubmissionWriter(file)
        for row, i in enumerate(judged.indices.tolist()):
            codes.write(str(data.annotations.names[i]), _unpack_masks(judged, row, int(data.annotations.sizes[i, 1])))
    rows = _choose_pictures(judged, gate, num_pictures)
    _write_pictures(folder / "pictures", judged, rows, data, assembly.classes, gate)
    matrix = plots.plot_confusion(np.array(summary["confusion"]), _VERDICTS, f"{split}: by the gate at {gate}")
    matrix.savefig(folder / "confusion.png", dpi=110)
    _write_markdown(folder / "evaluation.md", summary, about)
    text = json.dumps(_drop_nan(summary | about), indent=2, allow_nan=False)
    (folder / "evaluation.json").write_text(text, encoding="utf-8")

    print(tabulate_scores(summary, assembly.classes).to_string(na_rep="-"))
    print(f"accuracy of defective-or-not: {summary['accuracy']:.4f} on {int(judged.decided.sum()):,} images")
    print(f"wrote {folder / 'evaluation.md'}, evaluation.json, submission.csv, confusion.png, pictures/")
