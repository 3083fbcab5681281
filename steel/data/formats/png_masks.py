"""PNG masks: a file for each defect, a map of class ids for each image, or CVAT's map of colours.

    images/                         JPEGImages/ of CVAT
    masks/<stem>_<class id>.png     0 and one other value, 255 when written
    index/<stem>.png                0 is clean, else the class id
    SegmentationClass/<stem>.png    of CVAT, in the colours of labelmap.txt, which has lines of label:red,green,blue::
    classes.csv                     as in our own layout; CVAT names the classes in labelmap.txt

The PNGs of Label Studio's brush name a task and not an image, so they have to come as COCO.
"""

from collections import Counter
from io import BytesIO
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from steel.data import rle
from steel.data.formats.labels import (
    LabelledImage,
    Labels,
    find_images_below,
    find_label_folder,
    index_stems,
    match_stems,
    read_clean_by_stem,
)
from steel.data.formats.severstal import CLASS_IDS, read_classes, write_classes

from steel.data.severstal import MAX_CLASSES
from steel.errors import InputError
from steel.progress import track

Overlap = Literal["refuse", "lowest", "highest"]
Values = NDArray[np.integer]  # (H, W)
Colour = tuple[int, ...]


def read_masks(src: Path, images: Path | None) -> Labels:
    """Reads a data set with a file for each defect."""
    found = read_clean_by_stem(src, images)
    files = index_stems(find_images_below(find_label_folder(src, "masks")))
    largest = (0, "")
    for name, path in track(files.items(), "reading masks", len(files)):
        stem, _, class_id = name.rpartition("_")
        if stem not in found or class_id not in CLASS_IDS:
            raise InputError(
                f"{path}: a mask is called <stem of its image>_<class, 1 to {MAX_CLASSES}>.png, but no image has the "
                f'stem "{stem}", or the class is none; rename it (from Label Studio\'s brush export COCO instead)'
            )
        mask = _read_grey(path, found[stem])
        if len(values := np.unique(mask[mask > 0])) > 1:
            raise InputError(
                f"{path} holds the values {values[0]} and {values[1]} beside 0, but a mask has one; mend it"
            )
        largest = max(largest, (int(class_id), str(path)))
        if len(values):
            found[stem].codes[int(class_id) - 1] = find_runs(mask > 0)
    return Labels(read_classes(src, *largest), list(found.values()), src)


def read_index(src: Path, images: Path | None) -> Labels:
    """Reads a data set with a map of class ids for each image, or CVAT's with a map of colours."""
    found = read_clean_by_stem(src, images)
    files = match_stems(find_images_below(find_label_folder(src, "index", "SegmentationClass")), found)
    labelmap = src / "labelmap.txt"
    names, colours = _read_labelmap(labelmap) if labelmap.is_file() else ((), [])
    largest = (0, "")
    for stem, path in track(files.items(), "reading index maps", len(files)):
        values = _look_up(path, found[stem], colours) if colours else _read_grey(path, found[stem])
        for value in np.unique(values[values > 0]).tolist():
            if value > MAX_CLASSES:
                raise InputError(f"{path} has the value {value}, but at most {MAX_CLASSES} classes are possible")
            found[stem].codes[value - 1] = find_runs(values == value)
            largest = max(largest, (value, str(path)))
    return Labels(names or read_classes(src, *largest), list(found.values()), src)


def _open(path: Path, image: LabelledImage) -> Image.Image:
    """A label image, which is as large as its image."""
    try:
        picture = Image.open(BytesIO(path.read_bytes()))
        picture.load()
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError) as error:
        raise InputError(f"{path} is not an image that can be read; export it again") from error
    height, width = image.size
    if picture.size != (width, height):
        raise InputError(
            f"{path} is {picture.width} x {picture.height} pixels, but its image {image.name} is {width} x {height}; "
            f"export it again"
        )
    return picture


def _read_grey(path: Path, image: LabelledImage) -> Values:
    """The values of a grey image, a palette's numbers, or what all three channels hold."""
    picture = _open(path, image)
    values = np.asarray(picture)
    if values.ndim == 3:
        if picture.mode != "RGB" or (values != values[:, :, :1]).any():
            raise InputError(
                f"{path} is in colour ({picture.mode}), but grey values or a palette are needed; export it so"
            )
        values = values[:, :, 0]
    return values.astype(np.uint8) if values.dtype == bool else values


def _look_up(path: Path, image: LabelledImage, colours: list[Colour]) -> Values:
    """The place of each pixel's colour in a list."""
    pixels = np.asarray(_open(path, image).convert("RGB"))
    values = np.full(image.size, -1)
    for value, colour in enumerate(colours):
        values[(pixels == colour).all(axis=2)] = value
    if (values < 0).any():
        unknown = tuple(pixels[values < 0][0].tolist())
        raise InputError(f"{path} has the colour {unknown}, which is not in labelmap.txt; name it there")
    return values


def _read_labelmap(path: Path) -> tuple[tuple[str, ...], list[Colour]]:
    """The names of the classes; the colours of the background and of the classes."""
    names: dict[Colour, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8-sig", errors="replace").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, rest = line.partition(":")
        words = rest.partition(":")[0].split(",")
        if len(words) != 3 or not all(word.strip().isdigit() for word in words):
            raise InputError(f'{path}, line {number}: it needs name:red,green,blue::, but "{line[:60]}" came; mend it')
        colour = tuple(int(word) for word in words)
        if colour in names:
            raise InputError(f"{path}, line {number}: the colour {colour} has another label, too; give each its own")
        names[colour] = name
    background = [colour for colour, name in names.items() if name.lower() == "background"]
    classes = {colour: name for colour, name in names.items() if colour not in background}
    return tuple(classes.values()), [*(background or [(0, 0, 0)]), *classes]


def write_masks(labels: Labels, out: Path) -> None:
    """Writes a file for each defect, and classes.csv."""
    (out / "masks").mkdir()
    for image in track(labels.images, "writing masks", len(labels.images)):
        for c, runs in image.codes.items():
            _write_png(out / "masks" / f"{Path(image.name).stem}_{c + 1}.png", rle.decode(runs, image.size) * 255)
    write_classes(labels.classes, out)


def write_index(labels: Labels, out: Path, overlap: Overlap) -> Counter[str]:
    """Writes a map of class ids for each image, and classes.csv; an InputError where overlaps are refused."""
    changed: Counter[str] = Counter()
    (out / "index").mkdir()
    for image in track(labels.images, "writing index maps", len(labels.images)):
        values = np.zeros(image.size, np.uint8)
        for c, runs in sorted(image.codes.items(), reverse=overlap == "lowest"):
            mask = rle.decode(runs, image.size) > 0
            num = int((values[mask] > 0).sum())
            if num and overlap == "refuse":
                raise InputError(
                    f"class {c + 1} of {image.name} overlaps another on {num:,} pixels, but an index map holds one "
                    f"class a pixel; choose with --overlap, or another format"
                )
            changed[image.name] += num
            values[mask] = c + 1
        _write_png(out / "index" / f"{Path(image.name).stem}.png", values)
    write_classes(labels.classes, out)
    return +changed


def _write_png(path: Path, values: NDArray[np.uint8]) -> None:
    path.write_bytes(cv2.imencode(".png", values)[1].tobytes())
