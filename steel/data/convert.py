"""Conversion of labels between this project's layout, COCO, YOLO segmentation and PNG masks.

Each reader returns the neutral `Labels` and each writer takes it, so every pair of formats works. The readers accept
CVAT's COCO, Ultralytics YOLO and Segmentation mask, and Label Studio's COCO and YOLO; see `steel.data.formats`.
"""

import shutil
from collections import Counter
from pathlib import Path
from typing import Literal, Required, TypedDict, Unpack

from steel.data.formats.coco import read_coco, write_coco
from steel.data.formats.labels import Labels, index_stems
from steel.data.formats.png_masks import Overlap, read_index, read_masks, write_index, write_masks
from steel.data.formats.severstal import read_severstal, write_severstal
from steel.data.formats.submission import read_submission
from steel.data.formats.yolo import read_yolo, write_yolo
from steel.data.runs import area
from steel.data.severstal import MAX_CLASSES
from steel.errors import InputError
from steel.files import new_folder, require_new_folder
from steel.progress import track
from steel.wording import format_count

Format = Literal["severstal", "coco", "coco-polygons", "yolo", "masks", "index"]

# `from` is a Python keyword, so only a dictionary of keyword arguments can make the options --from and --to.
Formats = TypedDict("Formats", {"from": Required[Format], "to": Required[Format]})
Formats.__doc__ = """The two formats.

Args:
    from: Format of SRC.
    to: Format of DST.
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
    """Convert labels between the layout of this project (severstal), COCO, YOLO segmentation and PNG masks.

        severstal       train_images/ train.csv classes.csv
        coco            images/ annotations/instances_default.json: a mask for each spot
        coco-polygons   images/ annotations/instances_default.json: an outline for each spot
        yolo            images/ labels/<stem>.txt data.yaml: an outline for each spot
        masks           images/ masks/<stem>_<class id>.png classes.csv: 0 and 255, a file for each defect
        index           images/ index/<stem>.png classes.csv: 0 is clean, other values are class ids

    Every pixel is kept, including holes and single pixels, if the result is read by steel or by COCO's own code. Only
    index loses pixels, where classes overlap; the number of lost pixels is printed. Class names, clean images,
    groups.csv, splits.csv and unknown.csv are kept.

    Args:
        src: Folder of the dataset, or the JSON file of coco. For severstal, it can also be a submission.csv of steel
            inspect, together with --images; a classes.csv beside it names the classes.
        dst: Folder to write; new or empty.
        images: Folder with the images, if they are not in SRC.
        copy_images: Copy the image files.
        overlap: Class id that index, which has one class per pixel, keeps where classes overlap.

    Raises:
        InputError: SRC is wrong, DST is not empty, or the format of DST cannot hold the labels.

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
        reason = f'no image "{missing[0]}" (and {len(missing) - 1} more) in {src}'
        raise InputError(f"{reason}; give their folder with --images, or convert the labels with --copy_images=false")
    folder = "train_images" if to == "severstal" else "images"
    with new_folder(out) as draft:
        changed = write_labels(labels, draft, to, overlap)
        if copy_images:
            (draft / folder).mkdir()
            for image in track(labels.images, "copying images", len(labels.images)):
                shutil.copyfile(image.path or "", draft / folder / image.name)
    _report(labels, changed)
    print(f"wrote {out}" + ("" if copy_images else f"; put the images into {out / folder}"))


def read_labels(src: Path, form: Format, images: Path | None = None) -> Labels:
    """Read the labels of a dataset; see `convert`.

    Raises:
        InputError: A file or folder is missing or wrong; the message names the first error with file and place.
    """
    if not src.exists():
        raise InputError(f"no file or folder {src}; give the dataset to convert")
    if images and not images.is_dir():
        raise InputError(f"no folder {images}; --images must be the folder with the images")
    if src.is_file() and form in ("yolo", "masks", "index"):
        raise InputError(f"{src} is a file, but {form} is a folder with labels and images; give the folder")
    severstal = read_submission if src.is_file() else read_severstal
    readers = {"severstal": severstal, "yolo": read_yolo, "masks": read_masks, "index": read_index}
    labels = readers.get(form, read_coco)(src, images)
    for name, num in Counter(image.name for image in labels.images).most_common(1):
        if num > 1:
            raise InputError(f'{src}: two images in different folders are called "{name}"; rename one')
    if not 1 <= len(labels.classes) <= MAX_CLASSES:
        raise InputError(f"{src}: the number of classes must be 1 to {MAX_CLASSES}, got {len(labels.classes)}")
    return labels


def write_labels(labels: Labels, out: Path, form: Format, overlap: Overlap = "refuse") -> Counter[str]:
    """Write labels without the images into an existing folder; see `convert`.

    Returns:
        The number of pixels that reading the result back would change, by image; without images that do not change.

    Raises:
        InputError: The format cannot hold the labels.
    """
    if form in ("yolo", "masks", "index"):
        index_stems(image.name for image in labels.images)
    for name in ("groups.csv", "splits.csv", "unknown.csv"):
        if (labels.root / name).is_file():
            shutil.copyfile(labels.root / name, out / name)
    match form:
        case "coco" | "coco-polygons":
            return write_coco(labels, out, form)
        case "yolo":
            return write_yolo(labels, out)
        case "index":
            return write_index(labels, out, overlap)
        case "severstal" | "masks":
            (write_severstal if form == "severstal" else write_masks)(labels, out)
    return Counter()


def _report(labels: Labels, changed: Counter[str]) -> None:
    num_clean = sum(not image.runs for image in labels.images)
    areas = [area(runs) for image in labels.images for runs in image.runs.values()]
    num_pixels = sum(areas)
    num_images, num_defects = format_count(len(labels.images), "image"), format_count(len(areas), "defect")
    print(f"{num_images}, {num_clean:,} clean; {num_defects} of {', '.join(labels.classes)}")
    if labels.num_empty:
        print(f"skipped {format_count(labels.num_empty, 'annotation')} without a pixel")
    if num_changed := changed.total():
        ((worst, num_worst),) = changed.most_common(1)
        fraction = f"{num_changed:,} of {num_pixels:,} labelled pixels changed ({num_changed / num_pixels:.3%})"
        print(f"{fraction}, on {format_count(len(changed), 'image')}, most on {worst} ({num_worst:,})")
    else:
        print(f"none of {num_pixels:,} labelled pixels changed")
