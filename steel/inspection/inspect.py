"""`steel inspect`: runs an exported file over an image, a folder, a glob, or what appears in a folder."""

import hashlib
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from steel.data.formats.submission import SubmissionFormat
from steel.data.images import find_images
from steel.decision import bundle
from steel.decision.about import About
from steel.decision.drift import Drift, Window
from steel.devices import choose_device, prepare_process
from steel.errors import InputError, require_at_least
from steel.inspection.pipeline import Drawn, Pipeline
from steel.inspection.records import ModelFile, name_images
from steel.inspection.tables import Tables, name_unfinished, write_coco
from steel.progress import track

# What made the results: which file, by its name and its digest, and what stands in it.
ABOUT = "inspector.json"


def inspect(
    model: str,
    images: str,
    *,
    overlays: Drawn = "defective",
    submission_format: SubmissionFormat = "new",
    coco: bool = False,
    report: bool = False,
    mm_per_pixel: float | None = None,
    image_length: float | None = None,
    resume: bool = False,
    shard: str | None = None,
    watch: bool = False,
    idle_seconds: float | None = None,
    engine: Literal["local", "ray"] = "local",
    out: str = "inspected",
    batch_size: int = 8,
    device: str = "auto",
) -> None:
    """Inspects images with an exported file.

    Writes results.csv (a row for each image, an unreadable one with the reason), spots.csv (a row for each spot),
    submission.csv (codes in Kaggle's form), results.parquet (all of it, typed) and pictures of what was found.

    Args:
        model: File that `steel export` wrote.
        images: An image, a folder, or a pattern in quotes such as "line*/*.png".
        overlays: Which images to draw.
        submission_format: Columns ImageId,ClassId,EncodedPixels (new) or ImageId_ClassId,EncodedPixels (old).
        coco: Write coco/annotations/instances_default.json too, with an annotation for each spot.
        report: Write report.html too, one page to look at what was found, which opens without a network.
        mm_per_pixel: Side of a pixel in millimetres, for the report.
        image_length: Millimetres of strip from one image to the next, for the report; by default the image's own.
        resume: Skip what results.csv has, and go on with a run that was stopped.
        shard: Which part of the images to inspect, such as 2/8; the parts share one results.parquet.
        watch: Inspect images as they appear in the folder until Ctrl-C, and tell how long that took.
        idle_seconds: Stop watching after so many seconds without a new image.
        engine: What runs the work: this process (local), or a Ray cluster (ray), which writes results.parquet alone.
        out: Folder for what is made.
        batch_size: Images that the networks see at once.
        device: Where to run: auto, cpu, cuda or cuda:1.

    Example:
        steel inspect inspector.pt NEW_IMAGES --report
        steel inspect inspector.pt "line*/*.png" --out monday --resume
    """
    require_at_least(1, batch_size=batch_size)
    for option, number in {"mm_per_pixel": mm_per_pixel, "image_length": image_length}.items():
        if number is not None and not 0 < number < float("inf"):
            raise InputError(f"{option} is above 0, but {number} came")
    part = _parse_shard(shard)
    _refuse(
        "--engine ray does not take", engine == "ray", shard=shard, watch=watch, resume=resume, coco=coco, report=report
    )
    _refuse("--shard does not take", part is not None, watch=watch, coco=coco, report=report)
    _refuse("without --watch there is no", not watch, idle_seconds=idle_seconds)
    _refuse("without --report there is no", not report, mm_per_pixel=mm_per_pixel, image_length=image_length)
    if watch and not Path(images).is_dir():
        raise InputError(f"--watch takes a folder, but {images} is none; make it, or name another")
    folder = Path(out)
    if engine == "ray":
        from steel.inspection import ray_engine

        ray_engine.inspect(model, images, out, batch_size, device)
        return
    where = choose_device(device)
    prepare_process(where)
    module, about = bundle.read(model, where)
    named = {} if watch else name_images(find_images(images))
    pictures = folder / "overlays"
    pictures.mkdir(parents=True, exist_ok=True)
    source = ModelFile(Path(model).name, _digest(Path(model)))
    if resume or part:
        _require_same_model(folder / ABOUT, source)
    window = Window(about.reference, about.classes) if about.reference else None
    pipeline = Pipeline(module, about.classes, where, batch_size, overlays, pictures, window)
    tables = Tables(folder, about.classes, submission_format, part, resume)
    _write_about(folder / ABOUT, source, about)
    if watch:
        _watch(pipeline, tables, Path(images), batch_size, idle_seconds)
        named = {name: Path(images) / name for name in tables.done}
    else:
        _run(pipeline, tables, dict(list(named.items())[part[0] - 1 :: part[1]]) if part else named)
    made = [*tables.paths, tables.parquet, pictures]
    if coco:
        made.append(write_coco(folder / "coco", tables, about.classes))
    if report:
        from steel.inspection.strip_report import Scale, write_strip_report

        made.append(write_strip_report(folder, tables, source, about.classes, named, Scale(mm_per_pixel, image_length)))
    _tell(tables, pipeline.drifts, made)


def _parse_shard(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise InputError(f'--shard is i/n with i from 1 to n, such as 2/8, but "{text}" came')
    return int(found[1]), int(found[2])


def _refuse(way: str, is_chosen: bool, **options: object) -> None:
    """Refuses options that one way of working does not know."""
    for name, value in options.items():
        if is_chosen and value not in (None, False):
            raise InputError(f"{way} --{name}; leave it out")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _require_same_model(path: Path, source: ModelFile) -> None:
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else source._asdict()
    if before["sha256"] != source.sha256:
        raise InputError(
            f"what is in {path.parent} was inspected with another model ({before['model']}, {before['sha256'][:12]}); "
            f"give that one, or name another folder with --out"
        )


def _write_about(path: Path, source: ModelFile, about: About) -> None:
    # Shards may write it at the same time.
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    unfinished.write_text(json.dumps(source._asdict() | about.to_dict(), indent=2), encoding="utf-8")
    os.replace(unfinished, path)


def _run(pipeline: Pipeline, tables: Tables, named: dict[str, Path]) -> None:
    """Inspects what is not done, and finishes the tables."""
    left = {name: path for name, path in named.items() if name not in tables.done}
    if len(left) < len(named):
        print(f"{len(named) - len(left):,} of {len(named):,} images are done already")
    with tables:
        try:
            for record in track(pipeline.run(left.items()), "inspecting", len(left)):
                tables.write(record)
        except KeyboardInterrupt:
            print(
                f"{len(tables.done):,} of {len(named):,} images are in {name_unfinished(tables.paths[0])}; the same "
                f"command with --resume goes on",
                file=sys.stderr,
            )
            raise
        tables.finish()


def _watch(pipeline: Pipeline, tables: Tables, folder: Path, most: int, idle_seconds: float | None) -> None:
    """Inspects what appears until Ctrl-C, and finishes the tables."""
    from steel.inspection.watch import Latencies, watch

    print(f"watching {folder}; Ctrl-C ends it", file=sys.stderr)
    latencies = Latencies()
    with tables:
        try:
            watch(pipeline, tables, folder, most, idle_seconds, latencies)
        except KeyboardInterrupt:
            tables.cut()
        print(latencies.describe())
        tables.finish()


def _tell(tables: Tables, drifts: Sequence[Drift], made: Sequence[Path]) -> None:
    results, num = tables.paths[0], len(tables.done)
    print(f"{num:,} images: {tables.num_defective:,} defective, {tables.num_unreadable:,} unreadable")
    if tables.num_unreadable:
        print(f"why {tables.num_unreadable:,} could not be read stands in the column error of {results}")
    for drift in drifts:
        print(f"warning: {drift.sentence}")
    print(f"wrote {', '.join(map(str, made))}")
    if num and tables.num_unreadable == num:
        raise InputError(f"none of the {num:,} images could be read; see the column error of {results}")
