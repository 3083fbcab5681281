"""Labels to and from the formats of other tools: COCO, YOLO segmentation and PNG masks.

Each reader gives one neutral form, `Labels`, and each writer takes it, so that every pair of formats works. Nothing is
rounded on the way: all formats come back without the loss of a pixel, but for `index` where classes overlap. `convert`
tells the folders of each.

`groups.csv`, `splits.csv` and `unknown.csv` are taken along by every format. What other tools export of these is read
too, as `steel.data.formats` says of each: CVAT's COCO, Ultralytics YOLO and Segmentation mask, Label Studio's COCO and
YOLO.
"""

import shutil
from collections import Counter
from pathlib import Path
from typing import Literal, Required, TypedDict, Unpack

from steel.data.formats.coco import read_coco, write_coco
from steel.data.formats.labels import Labels, index_stems
from steel.data.formats.png_masks import Overlap, read_index, read_masks, write_index, write_masks
from steel.data.formats.severstal import read_severstal, write_severstal
from steel.data.formats.yolo import read_yolo, write_yolo
from steel.data.runs import area
from steel.data.severstal import MAX_CLASSES
from steel.errors import InputError
from steel.files import new_folder, require_new_folder
from steel.progress import track

Format = Literal["severstal", "coco", "coco-polygons", "yolo", "masks", "index"]

# `from` is a keyword of Python, so that only keyword arguments by a dictionary make the options --from and --to.
Formats = TypedDict("Formats", {"from": Required[Format], "to": Required[Format]})
Formats.__doc__ = """The two formats.

Args:
    from: What SRC is.
    to: What DST becomes.
"""


def convert(
    src: str,
    dst: str,
    *,
    images: str | None = None,
    copy_images: bool = True,
    overlap: Overlap = "refuse",
    **formats: Unpack[Formats],
) -> None:
    """Converts labels between this layout (severstal), COCO, YOLO segmentation and PNG masks.

        severstal       train_images/ train.csv classes.csv
        coco            images/ annotations/instances_default.json: a mask for each spot
        coco-polygons   images/ annotations/instances_default.json: an outline for each spot
        yolo            images/ labels/<stem>.txt data.yaml: an outline for each spot
        masks           images/ masks/<stem>_<class id>.png classes.csv: 0 and 255, a file for each defect
        index           images/ index/<stem>.png classes.csv: 0 is clean, else the class id

    No format loses a pixel when it is read back here or by COCO's own code, holes and single pixels included; index
    does where classes overlap, and says how many. Class names, clean images, groups.csv and splits.csv are kept.

    Args:
        src: Folder of the data set. For coco the JSON file will do, for severstal also a submission.csv of
            steel inspect, with --images; a classes.csv beside it names the classes.
        dst: Folder to write; new or empty.
        images: Folder with the images, where they are not in SRC.
        copy_images: Whether the image files are copied, so that DST is complete.
        overlap: Which class id wins where classes overlap, for index, which holds one class a pixel.

    Example:
        steel convert coco data --from coco --to severstal
        steel convert data corrected --from severstal --to yolo
        steel convert inspected/submission.csv labels --from severstal --to coco --images NEW_IMAGES
    """
    out, to = Path(dst), formats["to"]
    require_new_folder(out)
    labels = read_labels(Path(src), formats["from"], Path(images) if images else None)
    missing = [image.name for image in labels.images if image.path is None]
    if copy_images and missing:
        raise InputError(
            f'no image "{missing[0]}" (and {len(missing) - 1} more) near {src}, though it names it; give its folder '
            f"with --images, or --copy_images=false to convert labels only"
        )
    folder = "train_images" if to == "severstal" else "images"
    with new_folder(out) as draft:
        changed = write_labels(labels, draft, to, overlap)
        if copy_images:
            _copy_images(labels, draft / folder)
    _report(labels, changed)
    print(f"wrote {out}" + ("" if copy_images else f"; the images belong into {out / folder}"))


def read_labels(src: Path, form: Format, images: Path | None = None) -> Labels:
    """Reads a data set's labels.

    Args:
        src: Its folder or file; see `convert`.
        form: What it is.
        images: Folder with the images, where they are not in `src`.

    Raises:
        InputError: The first thing that is wrong, with file and place.
    """
    if not src.exists():
        raise InputError(f"no file or folder {src}; name what to convert")
    if images and not images.is_dir():
        raise InputError(f"no folder {images}; --images is the folder with the images")
    if src.is_file() and form in ("yolo", "masks", "index"):
        raise InputError(f"{src} is a file, but {form} is a folder with labels and images; name the folder")
    match form:
        case "severstal":
            labels = read_severstal(src, images)
        case "coco" | "coco-polygons":
            labels = read_coco(src, images)
        case "yolo":
            labels = read_yolo(src, images)
        case "masks":
            labels = read_masks(src, images)
        case "index":
            labels = read_index(src, images)
    for name, num in Counter(image.name for image in labels.images).most_common(1):
        if num > 1:
            raise InputError(f'{src}: two images are called "{name}" in different folders; rename one')
    if not 1 <= (num_classes := len(labels.classes)) <= MAX_CLASSES:
        raise InputError(f"{src}: {num_classes} classes, but 1 to {MAX_CLASSES} are possible; choose among them")
    return labels


def write_labels(labels: Labels, out: Path, form: Format, overlap: Overlap = "refuse") -> Counter[str]:
    """Writes labels, without the images.

    Args:
        labels: What to write.
        out: Folder, which is there.
        form: In what form.
        overlap: Which class wins in an index map.

    Returns:
        How many pixels the reader of the same form would find changed, by the names of the images where there are any.

    Raises:
        InputError: The format cannot hold the labels.
    """
    if form in ("yolo", "masks", "index"):
        index_stems(image.name for image in labels.images)
    for name in ("groups.csv", "splits.csv", "unknown.csv"):
        if (labels.root / name).is_file():
            shutil.copyfile(labels.root / name, out / name)
    match form:
        case "severstal":
            write_severstal(labels, out)
        case "coco" | "coco-polygons":
            return write_coco(labels, out, form)
        case "yolo":
            return write_yolo(labels, out)
        case "masks":
            write_masks(labels, out)
        case "index":
            return write_index(labels, out, overlap)
    return Counter()


def _copy_images(labels: Labels, folder: Path) -> None:
    folder.mkdir()
    for image in track(labels.images, "copying images", len(labels.images)):
        assert image.path  # or `convert` has refused
        shutil.copyfile(image.path, folder / image.name)


def _report(labels: Labels, changed: Counter[str]) -> None:
    num_clean = sum(not image.codes for image in labels.images)
    num_defects = sum(len(image.codes) for image in labels.images)
    num_pixels = sum(area(runs) for image in labels.images for runs in image.codes.values())
    print(f"{len(labels.images):,} images, {num_clean:,} clean; {num_defects:,} defects of {', '.join(labels.classes)}")
    if labels.num_empty:
        print(f"{labels.num_empty:,} annotations cover no pixel and are left out")
    if lost := changed.total():
        ((worst, most),) = changed.most_common(1)
        share = f"{lost:,} of {num_pixels:,} labelled pixels changed ({lost / num_pixels:.3%})"
        print(f"{share}, on {len(changed):,} images, most on {worst} ({most:,})")
    else:
        print(f"none of {num_pixels:,} labelled pixels changed")
