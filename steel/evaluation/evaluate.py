"""`steel evaluate`: both stages on images that no network has seen, as a report that a quality engineer can sign."""

import csv
import json
from io import StringIO
from pathlib import Path
from typing import Literal

import torch

from steel.data.annotations import Annotations
from steel.data.formats.submission import head_submission, list_codes
from steel.decision import bundle
from steel.decision.about import About
from steel.decision.plain import to_plain
from steel.devices import choose_device, prepare_process
from steel.errors import InputError, require_at_least
from steel.evaluation.assemble import Assembly, assemble
from steel.evaluation.judging import Decisions, judge_part
from steel.evaluation.parts import open_part
from steel.evaluation.report import write_report
from steel.evaluation.summary import EvaluatedOn, summarise
from steel.evaluation.verdict import format_results, reach_verdict
from steel.files import require_writable, write_atomic
from steel.pages import clear_pictures
from steel.versions import describe_versions


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
    """Evaluate both stages together, or an exported file (--model), on images that the networks have not seen.

    Writes index.html (the report, which begins with a verdict), evaluation.json, submission.csv and pictures.

    Args:
        classifier: Checkpoint of the classifier, or best or last for that of the newest run in lightning_logs; the
            probabilities of several, as [A.ckpt,B.ckpt], are averaged.
        segmenter: Checkpoint of the segmenter, in the same way.
        operating_point: File written by `steel tune`; by default all thresholds are 0.5. An exported file has its own.
        flips: Average the probabilities over four flips of each image; takes four times as long.
        model: File written by `steel export`, instead of checkpoints.
        root: Folder with train.csv and train_images.
        split: The part of the dataset to evaluate on.
        tolerance: Tolerance in pixels for the Dice of outlines.
        num_pictures: Largest number of images to show in the report.
        out: Folder for the report; an earlier report there is replaced.
        batch_size: Number of images that the networks process at once.
        num_workers: Number of threads that load images; by default one fewer than there are cores, at most 8.
        device: Device to run on: auto, cpu, cuda or cuda:1.

    Raises:
        InputError: The options contradict each other, a file cannot be read, or the dataset does not fit the networks.

    Example:
        steel evaluate --classifier best --segmenter best --operating_point point.yaml --root data
        steel evaluate --model inspector.pt --root data
    """
    require_at_least(0, tolerance=tolerance, num_pictures=num_pictures)
    require_at_least(1, batch_size=batch_size)
    require_writable(Path(out))
    where = choose_device(device)
    prepare_process(where)
    inspector: torch.nn.Module
    networks: Assembly | About
    if model is not None:
        if classifier or segmenter or operating_point or flips:
            raise InputError("--model contains networks, operating point and flips; remove the other options for these")
        inspector, about = bundle.read(model, where)
        networks = about
    elif classifier and segmenter:
        networks = assemble(classifier, segmenter, flips, operating_point)
        inspector, about = networks.inspector.to(where), networks.describe()
    else:
        raise InputError("--classifier and --segmenter, or --model, must be given")
    data = open_part(root, split, networks, batch_size=batch_size, num_workers=num_workers)
    decisions = judge_part(inspector, data, split, where, tolerance=tolerance)
    summary = summarise(decisions, about, int((~data.split.is_grouped[decisions.indices]).sum()))
    table = data.annotations
    on = EvaluatedOn(
        part=split, root=str(data.root), data=table.digest, split=data.split.digest, device=str(where),
        versions=describe_versions(),
    )  # fmt: skip

    folder = Path(out)
    clear_pictures(folder)
    write_atomic(folder / "submission.csv", _format_submission(decisions, table))
    verdict = reach_verdict(decisions, summary, about, split)
    write_report(folder, decisions, summary, about, verdict, on=on, annotations=table, num_pictures=num_pictures)
    content = to_plain(summary.to_dict() | about.to_dict() | on.to_dict() | {"verdict": verdict._asdict()})
    write_atomic(folder / "evaluation.json", json.dumps(content, indent=2, allow_nan=False))

    print(f"{summary.num_images:,} images in {summary.num_groups:,} groups ({split})")
    print(format_results(content))
    for warning in summary.warnings:
        print(f"warning: {warning}")
    print(f"wrote {folder / 'index.html'}, evaluation.json, submission.csv, pictures/")


def _format_submission(decisions: Decisions, annotations: Annotations) -> str:
    text = StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(head_submission("new"))
    for i, codes in zip(decisions.indices.tolist(), decisions.codes, strict=True):
        rows.writerows(list_codes(str(annotations.names[i]), codes, "new"))
    return text.getvalue()
