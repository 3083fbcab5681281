"""`steel inspect`: runs an exported file over images, or over a folder while images appear in it."""

import json
import re
import sys
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Literal

from steel.data.formats.submission import SubmissionFormat
from steel.data.images import find_candidates
from steel.decision import bundle
from steel.decision.monitor import Monitor
from steel.devices import choose_device, prepare_process
from steel.errors import InputError, require_at_least, require_positive
from steel.files import write_atomic
from steel.inspection.coco import write_coco
from steel.inspection.pipeline import OverlayChoice, Pipeline
from steel.inspection.records import ModelFile, list_result_columns, name_images, spell
from steel.inspection.strip_map import Strip
from steel.inspection.tables import Shard, Tables
from steel.progress import track
from steel.wording import format_count

# Name, digest and metadata of the exported file that produced the results.
MODEL_JSON = "inspector.json"

# Files and folders of a finished run, of `steel suggest` too.
_RESULTS = (
    "results.csv", "results.parquet", "report.html", "coco", "overlays", "suggestions.csv", "suggestions.html",
    "to_label",
)  # fmt: skip


def inspect(
    model: str,
    images: str,
    *,
    overlays: OverlayChoice = "defective",
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
    digest: str | None = None,
) -> None:
    """Inspect images with an exported file.

    An exported file contains code. Use only files from sources that you trust, and pass their SHA-256 as --digest.

    Writes results.csv (one row per image, with the reason for each unreadable one), spots.csv (one row per spot),
    submission.csv (run-length codes in Kaggle's format), results.parquet (everything in one typed table) and pictures
    of the masks. If the file was exported with --novelty, results.csv also has the columns novelty, unknown (1 for an
    image that is unlike any clean steel seen and has none of the classes) and unknown_code (run-length code of the
    unusual places). Batches are smaller than --batch_size if the images have more than a million pixels each. Images of
    more than 8 million pixels are inspected in overlapping tiles. Pictures are reduced if they are longer than 3,200
    pixels.

    Args:
        model: File written by `steel export`.
        images: An image, a folder, or a quoted pattern such as "line*/*.png".
        overlays: Images to draw with their masks.
        submission_format: Columns ImageId,ClassId,EncodedPixels (new) or ImageId_ClassId,EncodedPixels (old).
        coco: Also write coco/annotations/instances_default.json, with one annotation per spot.
        report: Also write report.html, a self-contained page with totals, a map of the strip, and all images.
        mm_per_pixel: Side of a pixel in millimetres, for the report.
        image_length: Millimetres of strip from one image to the next, for the report; by default the image's length.
        resume: Skip images that results.csv already has, and continue an interrupted run.
        shard: Part of the images to inspect, such as 2/8 for the second of eight; shards share one results.parquet.
        watch: Inspect images as they appear in the folder, until Ctrl-C, and print the latency.
        idle_seconds: Stop watching after this many seconds without a new image.
        engine: Run in this process (local) or on a Ray cluster (ray). Ray writes results.parquet only.
        out: Output folder. It must not contain results of an earlier run, unless --resume continues that run.
        batch_size: Number of images that the networks process at once.
        device: Device to run on: auto, cpu, cuda or cuda:1.
        digest: SHA-256 of the model, as `steel export` prints it; another file is refused.

    Raises:
        InputError: An option is out of range or excludes another, the model cannot be used, no image is found or
            readable, or the output folder holds results of another run.

    Example:
        steel inspect inspector.pt NEW_IMAGES --report
        steel inspect inspector.pt "line*/*.png" --out monday --resume
    """
    require_at_least(1, batch_size=batch_size)
    require_positive(mm_per_pixel=mm_per_pixel, image_length=image_length, idle_seconds=idle_seconds)
    part = _parse_shard(shard)
    others = {"watch": watch, "coco": coco, "report": report}
    # Ray writes neither pictures nor submission.csv. A default cannot be told from an option that was given.
    ignored = {"overlays": overlays == "all", "submission_format": submission_format == "old"}
    _refuse(engine == "ray", "cannot be combined with --engine ray", shard=shard, resume=resume, **others, **ignored)
    _refuse(part is not None, "cannot be combined with --shard", **others)
    _refuse(not watch, "has no effect without --watch", idle_seconds=idle_seconds)
    _refuse(not report, "has no effect without --report", mm_per_pixel=mm_per_pixel, image_length=image_length)
    if watch and not Path(images).is_dir():
        raise InputError(f"--watch needs a folder, got {images}; create the folder or name another one")
    if engine == "ray":
        from steel.inspection import ray_engine

        ray_engine.inspect(model, images, out, batch_size=batch_size, device=device, digest=digest)
        return
    torch_device = choose_device(device)
    prepare_process(torch_device)
    module, about = bundle.read(model, torch_device, digest)
    paths = {} if watch else name_images(find_candidates(images))
    classes, folder, source = about.classes, Path(out), ModelFile(Path(model).name, str(about.sha256))
    if resume or part:
        require_same_model(folder / MODEL_JSON, source)
    _require_nothing_stale(folder, is_new=not (resume or part), report=report, coco=coco)
    (drawings := folder / "overlays").mkdir(parents=True, exist_ok=True)
    columns = list_result_columns(classes, has_novelty=about.novelty is not None)
    tables = Tables(folder, columns, len(classes), form=submission_format, shard=part, resume=resume)
    write_atomic(folder / MODEL_JSON, json.dumps(source._asdict() | about.to_dict(), indent=2))
    drift = Monitor(about.reference, classes) if about.reference else None
    pipeline = Pipeline(
        module, classes, torch_device, batch_size=batch_size, overlays=overlays, overlay_folder=drawings, drift=drift
    )
    if watch:
        _watch(pipeline, tables, Path(images), batch_size=batch_size, idle_seconds=idle_seconds)
        # Images may have been removed since, and the table may spell a name differently than the folder.
        paths = {name: Path(images) / name for name in tables.done}
        paths |= {name: path for path in Path(images).iterdir() if (name := spell(path.name)) in tables.done}
    else:
        run(pipeline, tables, dict(list(paths.items())[part.number - 1 :: part.num_shards]) if part else paths)
    written = [*tables.paths, tables.parquet, drawings]
    if coco:
        written.append(write_coco(folder / "coco", tables.read(), classes))
    if report:
        from steel.inspection.strip_report import write_strip_report

        strip = Strip(tables.read(), mm_per_pixel, image_length)
        written.append(write_strip_report(folder, strip, source, classes, paths=paths))
    promise = about.reference.promise if about.reference else ""
    _print_summary(source, tables, pipeline, written, promise)


def _parse_shard(text: str | None) -> Shard | None:
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise InputError(f'--shard must be i/n with i from 1 to n, such as 2/8, got "{text}"')
    return Shard(int(match[1]), int(match[2]))


def _refuse(is_refused: bool, reason: str, **options: object) -> None:
    """Raise an error for the first option that is given, if `is_refused`."""
    for name, value in options.items():
        if is_refused and value not in (None, False):
            raise InputError(f"--{name} {reason}; leave it out")


def _require_nothing_stale(folder: Path, *, is_new: bool, report: bool, coco: bool) -> None:
    """Refuse to leave results of an earlier run beside those of this one, where they would pass for its own.

    Args:
        folder: The output folder.
        is_new: Whether the run neither continues another one nor shares its folder.
        report: Whether this run writes report.html.
        coco: Whether this run writes the folder coco.

    Raises:
        InputError: The folder holds results that this run would not renew.
    """
    if is_new:
        require_unused(folder)
    for option, name, is_renewed in (("report", "report.html", report), ("coco", "coco", coco)):
        if (folder / name).exists() and not is_renewed:
            raise InputError(f"{folder / name} would lack the images of this run; add --{option}, or delete it")


def require_unused(folder: Path) -> None:
    """Refuse a folder with results of a finished run of `steel inspect` or `steel suggest`.

    Raises:
        InputError: The folder holds such results.
    """
    if (folder / "results.csv.unfinished").exists():  # `Tables` reports an interrupted run
        return
    for name in _RESULTS:
        if (folder / name).exists():
            raise InputError(
                f"{folder} holds the results of an earlier run ({name}); choose another folder with --out, or add "
                f"to them with --resume"
            )


def require_same_model(path: Path, source: ModelFile) -> None:
    """Refuse to continue a run of another exported file; `path` is `MODEL_JSON` in the output folder.

    Raises:
        InputError: The file names another model, or is damaged.
    """
    try:
        earlier = json.loads(path.read_text(encoding="utf-8")) if path.exists() else source._asdict()
        model, sha256 = str(earlier["model"]), str(earlier["sha256"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged, so the model is unknown; choose another folder with --out") from error
    if sha256 != source.sha256:
        raise InputError(
            f"{path.parent} holds results of another model ({model}, {sha256[:12]}); use that model, or choose another "
            f"folder with --out"
        )


def run(pipeline: Pipeline, tables: Tables, paths: Mapping[str, Path]) -> None:
    """Inspect the images, given their paths by name, that are not recorded yet, and finish and close the tables.

    After Ctrl-C, the tables can be continued; the message on stderr says how.
    """
    remaining = {name: path for name, path in paths.items() if name not in tables.done}
    if len(remaining) < len(paths):
        print(f"already inspected, so skipped: {len(paths) - len(remaining):,} of {format_count(len(paths), 'image')}")
    with closing(tables):
        try:
            for record in track(pipeline.run(remaining.items()), "inspecting", len(remaining)):
                tables.write(record)
        except KeyboardInterrupt:
            total = format_count(len(paths), "image")
            progress = f"{len(tables.done):,} of {total} recorded in {tables.unfinished[0]}"
            print(f"{progress}; run the same command with --resume to continue", file=sys.stderr)
            raise
        tables.finish()


def _watch(pipeline: Pipeline, tables: Tables, folder: Path, *, batch_size: int, idle_seconds: float | None) -> None:
    """Inspect images as they appear until Ctrl-C or the idle time, and finish the tables."""
    from steel.inspection.watch import Latency, describe_latencies, watch

    print(f"watching {folder}; press Ctrl-C to stop", file=sys.stderr)
    latencies: list[Latency] = []
    with closing(tables):
        try:
            for latency in watch(pipeline, tables, folder, batch_size=batch_size, idle_seconds=idle_seconds):
                latencies.append(latency)  # noqa: PERF402, an interrupted `extend` may lose items
        except KeyboardInterrupt:
            tables.recover()
        print(describe_latencies(latencies))
        tables.finish()


def _print_summary(
    source: ModelFile, tables: Tables, pipeline: Pipeline, written: list[Path], drift_promise: str
) -> None:
    """Print the model, counts, drift warnings with their promise, and paths.

    Raises:
        InputError: No image could be read.
    """
    print_counts(source, tables, f"{tables.num_defective:,} defective")
    if tables.num_unknown:
        print(f"unlike any clean steel seen, and none of the classes: {format_count(tables.num_unknown, 'image')}")
    for drift in pipeline.drifts:
        print(f"warning: {drift.sentence}")
    if pipeline.drifts:
        print(drift_promise)
    print(f"wrote {', '.join(map(str, written))}")
    require_readable(tables)


def print_counts(source: ModelFile, tables: Tables, found: str) -> None:
    """Print the model, the number of images followed by `found`, and where the reasons for unreadable ones are."""
    print(f"{source.model}: SHA-256 {source.sha256}")
    print(f"{format_count(len(tables.done), 'image')}: {found}, {tables.num_unreadable:,} unreadable")
    if tables.num_unreadable:
        print(f"the reason for each unreadable image is in the column error of {tables.paths[0]}")


def require_readable(tables: Tables) -> None:
    """Check that an image could be read; raise InputError if there are images and none could be."""
    if tables.done and tables.num_unreadable == len(tables.done):
        images, results = format_count(len(tables.done), "image"), tables.paths[0]
        raise InputError(f"none of the images could be read ({images}); see the column error of {results}")
