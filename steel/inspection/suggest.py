"""`steel suggest`: ranks unlabelled images by how much labelling them is worth, and prepares the best for labelling."""

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from steel.data.images import find_candidates, find_images
from steel.data.spelling import format_csv
from steel.decision import bundle
from steel.decision.about import About
from steel.devices import choose_device, prepare_process
from steel.errors import require_at_least
from steel.files import write_atomic
from steel.inspection.coco import write_coco
from steel.inspection.doubt import decide_with_doubt, measure_label_doubt
from steel.inspection.inspect import MODEL_JSON, print_counts, require_readable, require_same_model, require_unused, run
from steel.inspection.pipeline import Pipeline
from steel.inspection.ranking import choose_distinct, explain, rank_images
from steel.inspection.records import ModelFile, Record, list_result_columns, name_images
from steel.inspection.strip_report import MAX_THUMBNAILS, THUMBNAIL_SIDE, draw_record
from steel.inspection.tables import Tables
from steel.pages import Page
from steel.progress import map_on_all_cores
from steel.wording import format_count

_COLUMNS = ["rank", "image", "score", "label_doubt", "mask_doubt", "novelty", "reason", "path"]
_STYLE = """
.sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(18rem, 1fr)); gap: 1rem; }
.sheet figure { margin: 0; } .sheet figcaption + img { display: block; }
"""


def suggest(
    model: str,
    images: str,
    *,
    num: int = 100,
    root: str | None = None,
    resume: bool = False,
    out: str = "suggested",
    batch_size: int = 8,
    device: str = "auto",
    digest: str | None = None,
) -> None:
    """Choose the unlabelled images that are most worth labelling next.

    An exported file contains code. Use only files from sources that you trust, and pass their SHA-256 as --digest.

    All images are inspected. An image is worth labelling if the decision on it is close to flipping at the operating
    point (its gate, label thresholds or masks). With a file that was exported with --novelty, an image is also worth
    labelling if it is unlike any clean steel seen. No two of the images chosen show the same scene.

    Writes suggestions.csv (the images in order, each with the reason), suggestions.html (a contact sheet with
    outlines), to_label (the images with what was found on them, as a COCO dataset with polygons for CVAT or Label
    Studio), and the tables of `steel inspect` with the column mask_doubt.

    Args:
        model: File written by `steel export`.
        images: An image, a folder, or a quoted pattern such as "line*/*.png".
        num: Number of images to choose.
        root: Folder of a dataset, with train.csv and train_images; images that show a scene of it are left out.
        resume: Skip images that results.csv already has, and continue an interrupted run.
        out: Output folder. It must not contain results of an earlier run, unless --resume continues that run.
        batch_size: Number of images that the networks process at once.
        device: Device to run on: auto, cpu, cuda or cuda:1.
        digest: SHA-256 of the model, as `steel export` prints it; another file is refused.

    Raises:
        InputError: An option is out of range, the model cannot be used, no image is found or readable, or the output
            folder holds results of another run.

    Example:
        steel suggest inspector.pt NEW_IMAGES --num 100 --out monday
        steel suggest inspector.pt "line*/*.png" --root data --resume
    """
    require_at_least(1, num=num, batch_size=batch_size)
    torch_device = choose_device(device)
    prepare_process(torch_device)
    module, about = bundle.read(model, torch_device, digest)
    paths = name_images(find_candidates(images))
    labelled = find_images(Path(root) / "train_images") if root else []
    folder, source = Path(out), ModelFile(Path(model).name, str(about.sha256))
    if resume:
        require_same_model(folder / MODEL_JSON, source)
    else:
        require_unused(folder)
    folder.mkdir(parents=True, exist_ok=True)
    columns = list_result_columns(about.classes, has_novelty=about.novelty is not None, has_doubt=True)
    tables = Tables(folder, columns, len(about.classes), form="new", shard=None, resume=resume)
    write_atomic(folder / MODEL_JSON, json.dumps(source._asdict() | about.to_dict(), indent=2))
    pipeline = Pipeline(module, about.classes, torch_device, batch_size=batch_size, decide_batch=decide_with_doubt)
    run(pipeline, tables, paths)
    chosen = _choose(tables, paths, labelled, about, num)
    write_atomic(folder / "suggestions.csv", _format_suggestions(chosen, about, paths))
    records = [one.record for one in chosen]
    copied = {record.image: paths[record.image] for record in records}
    write_coco(folder / "to_label", records, about.classes, "coco-polygons", copied)
    _write_sheet(folder, chosen, paths, len(tables.done))
    _print_summary(source, tables, len(chosen), num, folder)


class _Suggestion(NamedTuple):
    record: Record
    score: float
    reason: str


def _choose(
    tables: Tables, paths: Mapping[str, Path], labelled: Sequence[Path], about: About, num: int
) -> list[_Suggestion]:
    """Return the images that are most worth labelling, the best first."""
    # A run that was continued may have recorded images that are no longer there.
    ranking = rank_images((record for record in tables.read() if record.image in paths), about.operating_point)
    positions = choose_distinct([paths[name] for name in ranking.images], labelled, num)
    names = {ranking.images[i]: i for i in positions}
    records = {record.image: record for record in tables.read() if record.image in names}
    return [
        _Suggestion(
            record,
            float(ranking.scores[i]),
            explain(record, bool(ranking.is_novel[i]), about.operating_point, about.classes),
        )
        for name, i in names.items()
        if isinstance(record := records[name], Record)
    ]


def _format_suggestions(chosen: Sequence[_Suggestion], about: About, paths: Mapping[str, Path]) -> str:
    rows: list[list[object]] = [[*_COLUMNS]]
    for rank, (record, score, reason) in enumerate(chosen, 1):
        label = measure_label_doubt(record.class_probabilities, about.operating_point).value
        numbers = [f"{value:.4f}" for value in (score, label, record.mask_doubt or 0.0)]
        novelty = "" if record.novelty is None else f"{record.novelty:.4f}"
        rows.append([rank, record.image, *numbers, novelty, reason, str(paths[record.image])])
    return format_csv(rows)


def _write_sheet(folder: Path, chosen: Sequence[_Suggestion], paths: Mapping[str, Path], num_images: int) -> None:
    """Write the contact sheet of the images chosen from `num_images`."""
    page = Page(f"The {format_count(len(chosen), 'image')} most worth labelling of {num_images:,}", folder)
    page.add_text(
        "Outlines show what the inspector has found, in the colour of the class; magenta places are unlike any clean "
        "steel. The folder to_label has the images, with the outlines as annotations to correct."
    )
    shown = chosen[:MAX_THUMBNAILS]
    if len(shown) < len(chosen):
        page.add_text(f"Only the first {len(shown):,} are shown; suggestions.csv has all of them.")
    records = [one.record for one in shown]
    drawn = map_on_all_cores(lambda record: draw_record(record, paths, THUMBNAIL_SIDE, 70), records, "drawing")
    figures = []
    for rank, (one, picture) in enumerate(zip(shown, drawn, strict=True), 1):
        name = html.escape(f"{rank}. {one.record.image}")
        figures.append(
            f'<figure><figcaption>{name}</figcaption><img alt="{name}" src="data:image/jpeg;base64,{picture}">'
            f'<span class="note">{html.escape(one.reason)}</span></figure>'
        )
    page.add_markup(f'<div class="sheet">{"".join(figures)}</div>')
    page.write("suggestions.html", _STYLE)


def _print_summary(source: ModelFile, tables: Tables, num_chosen: int, num: int, folder: Path) -> None:
    """Print the model, counts and paths.

    Raises:
        InputError: No image could be read.
    """
    print_counts(source, tables, f"{num_chosen:,} chosen")
    if num_chosen < min(num, len(tables.done) - tables.num_unreadable):
        print("the other images show scenes that are chosen or labelled already")
    names = ("suggestions.csv", "suggestions.html", "to_label", "results.csv", "results.parquet")
    print(f"wrote {', '.join(str(folder / name) for name in names)}")
    require_readable(tables)
