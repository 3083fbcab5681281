"""`steel evaluate`: both stages on images that no network has seen, as a report that a quality engineer can sign."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from steel.data.annotations import Annotations
from steel.data.datamodule import SteelDataModule
from steel.data.formats.submission import head_submission, list_codes
from steel.data.spelling import format_csv
from steel.decision import bundle
from steel.decision.about import About
from steel.decision.plain import to_plain
from steel.devices import choose_device, prepare_process
from steel.errors import InputError, require_at_least
from steel.evaluation.against import Comparison, compare, format_comparison, note_unknown_images
from steel.evaluation.assemble import Assembly, assemble
from steel.evaluation.folds import assemble_folds, pool
from steel.evaluation.judging import Decisions, judge_part
from steel.evaluation.parts import open_part, require_same_split
from steel.evaluation.report import write_report
from steel.evaluation.summary import EvaluatedOn, Summary, summarise
from steel.evaluation.verdict import format_results, reach_verdict
from steel.files import require_writable, write_atomic
from steel.pages import clear_pictures
from steel.versions import describe_versions
from steel.wording import format_count, wrap


def evaluate(
    *,
    classifier: str | list[str] | None = None,
    segmenter: str | list[str] | None = None,
    operating_point: str | list[str] | None = None,
    flips: bool = False,
    model: str | None = None,
    against: str | None = None,
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
        classifier: Checkpoint of the classifier; best and last name that of the newest run in lightning_logs. With
            several, as [A.ckpt,B.ckpt], the probabilities are averaged.
        segmenter: Checkpoint of the segmenter, or several, named as for --classifier.
        operating_point: File written by `steel tune`; by default all thresholds are 0.5. An exported file has its own.
            For cross-validation, give the points and the checkpoints of all folds, the points as [A.yaml,B.yaml]. Each
            image is then evaluated by the networks of the fold that has the image in --split.
        flips: Average the probabilities over four flips of each image; takes four times as long.
        model: File written by `steel export`, instead of checkpoints.
        against: Another file written by `steel export`, such as that of the inspector in use. Both judge every image;
            each difference has a 95 % interval, and a sentence says whether the new inspector is better.
        root: Folder with train.csv and train_images.
        split: Part of the dataset to evaluate on.
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
        steel evaluate --model new.pt --against inspector.pt --root data
    """
    require_at_least(0, tolerance=tolerance, num_pictures=num_pictures)
    require_at_least(1, batch_size=batch_size)
    require_writable(Path(out))
    where = choose_device(device)
    prepare_process(where)
    candidates = _open(model, classifier, segmenter, operating_point, flips, where)
    abouts = [one.about for one in candidates]
    parts = [open_part(root, split, one.origin, batch_size=batch_size, num_workers=num_workers) for one in candidates]
    rival = _open_rival(against, abouts[0], parts, split, where) if against else None

    def judge(inspectors: Iterable[_Candidate]) -> Decisions:
        pairs = zip(inspectors, parts, strict=True)
        return pool([judge_part(one.module, data, split, where, tolerance=tolerance) for one, data in pairs])

    decisions = judge(candidates)
    # The promises of a fold are for its own images.
    about = abouts[0] if len(abouts) == 1 else replace(abouts[0], tuned=None)
    num_ungrouped = sum(int((~data.split.is_grouped[data.split.indices(split)]).sum()) for data in parts)
    summary = summarise(decisions, about, num_ungrouped)
    table, digests = parts[0].annotations, dict.fromkeys(data.split.digest for data in parts)
    on = EvaluatedOn(
        part=split, root=str(parts[0].root), data=table.digest, split=", ".join(digests), device=str(where),
        versions=describe_versions(),
    )  # fmt: skip
    comparison = None
    if rival:
        aim = abouts[0].tuned.aim if abouts[0].tuned else None
        notes = note_unknown_images([*abouts, rival.about], table.digest)
        comparison = compare(decisions, judge([rival] * len(parts)), aim, Path(str(against)).name, notes)

    folder = Path(out)
    clear_pictures(folder)
    write_atomic(folder / "submission.csv", _format_submission(decisions, table))
    verdict = reach_verdict(decisions, summary, abouts[0], split)
    write_report(
        folder, decisions, summary, abouts, verdict, comparison, on=on, annotations=table, num_pictures=num_pictures
    )
    described = about.to_dict() if len(abouts) == 1 else {"folds": [about.to_dict() for about in abouts]}
    compared = {"against": comparison.to_dict()} if comparison else {}
    content = to_plain(summary.to_dict() | described | on.to_dict() | {"verdict": verdict._asdict()} | compared)
    write_atomic(folder / "evaluation.json", json.dumps(content, indent=2, allow_nan=False))
    _print_results(content, summary, comparison, split)
    print(f"wrote {folder / 'index.html'}, evaluation.json, submission.csv, pictures/")


class _Candidate(NamedTuple):
    """An inspector on the device, and where it comes from."""

    module: torch.nn.Module
    origin: Assembly | About
    about: About


def _open(
    model: str | None,
    classifier: str | list[str] | None,
    segmenter: str | list[str] | None,
    operating_point: str | list[str] | None,
    flips: bool,
    device: torch.device,
) -> list[_Candidate]:
    """Open the exported file, or assemble the inspector of each operating point; for the arguments see `evaluate`."""
    if model is not None:
        if classifier or segmenter or operating_point or flips:
            raise InputError("--model contains networks, operating point and flips; remove the other options for these")
        module, about = bundle.read(model, device)
        return [_Candidate(module, about, about)]
    if not classifier or not segmenter:
        raise InputError("--classifier and --segmenter, or --model, must be given")
    if isinstance(operating_point, list):
        classifiers, segmenters = ([one] if isinstance(one, str) else one for one in (classifier, segmenter))
        assemblies = assemble_folds(classifiers, segmenters, operating_point, flips)
    else:
        assemblies = [assemble(classifier, segmenter, flips, operating_point)]
    return [_Candidate(one.inspector.to(device), one, one.describe()) for one in assemblies]


def _open_rival(path: str, new: About, parts: Sequence[SteelDataModule], part: str, device: torch.device) -> _Candidate:
    """Open the exported file to compare with, and check that it can be evaluated on the same images."""
    module, about = bundle.read(path, device)
    if about.classes != new.classes:
        raise InputError(
            f"--against must know the classes {', '.join(new.classes)}, but {path} knows {', '.join(about.classes)}; "
            f"evaluate both without --against"
        )
    for data in parts:
        require_same_split(about, data, part)
    return _Candidate(module, about, about)


def _print_results(content: dict[str, Any], summary: Summary, comparison: Comparison | None, part: str) -> None:
    num_images, num_groups = format_count(summary.num_images, "image"), format_count(summary.num_groups, "group")
    print(f"{num_images} in {num_groups} ({part})")
    print(format_results(content))
    if comparison:
        print(f"\n{format_comparison(comparison)}")
    for warning in [*summary.warnings, *(comparison.notes if comparison else ())]:
        print(wrap(f"warning: {warning}"))


def _format_submission(decisions: Decisions, annotations: Annotations) -> str:
    rows = [head_submission("new")]
    for i, codes in zip(decisions.indices.tolist(), decisions.codes, strict=True):
        rows += list_codes(str(annotations.names[i]), codes, "new")
    return format_csv(rows)
