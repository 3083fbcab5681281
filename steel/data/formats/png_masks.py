"""PNG masks: a file for each defect, a map of class ids for each image, or CVAT's map of colours.

    images/                         JPEGImages/ in CVAT
    masks/<stem>_<class id>.png     0 and one other value; 255 is written
    index/<stem>.png                0 is clean, other values are class ids
    SegmentationClass/<stem>.png    CVAT's, in the colours of labelmap.txt, whose lines are label:red,green,blue::
    classes.csv                     see `steel.data.severstal`; CVAT names the classes in labelmap.txt

A wrong value cannot be told from the id of another class, so lossy files (JPEG) and fractions are refused. So is 255,
which many tools write for "void": a pixel that nobody judged has no class, and is not clean either.

Label Studio's brush names its PNGs by task instead of image, so its labels must be exported as COCO.
"""

import re
from collections import Counter
from io import BytesIO
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from steel.data import rle
from steel.data.formats.labels import LabelledImage, Labels, open_folders
from steel.data.formats.severstal import write_classes
from steel.data.images import decode
from steel.data.severstal import CLASS_IDS, MAX_CLASSES, require_classes
from steel.data.spelling import read_text
from steel.errors import InputError
from steel.progress import track

Overlap = Literal["refuse", "lowest", "highest"]
Colour = tuple[int, int, int]

_VOID = 255
_PNG_DEPTH, _PNG_COLOUR_TYPE = 24, 25  # places in the file; type 0 is grey


def read_masks(src: Path, images: Path | None) -> Labels:
    """Read a dataset with a file for each defect.

    Raises:
        InputError: A mask or classes.csv is wrong.
    """
    found, files = open_folders(src, images, "masks")
    largest = (0, "")
    for name, path in track(files.items(), "reading masks", len(files)):
        stem, _, class_id = name.rpartition("_")
        if class_id not in CLASS_IDS:
            rule = f"a mask must be called <stem of its image>_<class, 1 to {MAX_CLASSES}>.png"
            raise InputError(f"{path}: {rule}; rename it (Label Studio's brush: export COCO instead)")
        image = found.find(stem, path, class_id)
        mask = _read_grey(path, image)
        if len(values := np.unique(mask[mask != 0])) > 1:
            raise InputError(f"{path} must have one value other than 0, got {values[0]} and {values[1]}; fix it")
        largest = max(largest, (int(class_id), str(path)))
        if len(values):
            image.runs[int(class_id) - 1] = rle.find_runs(mask != 0)
    return Labels(require_classes(src, *largest), found.images, src)


def read_index(src: Path, images: Path | None) -> Labels:
    """Read a dataset with a map of class ids, or CVAT's map of colours, for each image.

    Raises:
        InputError: A map, labelmap.txt or classes.csv is wrong.
    """
    found, files = open_folders(src, images, "index", "SegmentationClass")
    labelmap = src / "labelmap.txt"
    names, colours = _read_labelmap(labelmap) if labelmap.is_file() else ((), [])
    largest = (0, "")
    for stem, path in track(files.items(), "reading index maps", len(files)):
        image = found.find(stem, path)
        values = _look_up(path, image, colours) if colours else _read_grey(path, image)
        for value in np.unique(values[values != 0]).tolist():
            if not 1 <= value <= MAX_CLASSES:
                reason = f"{path} has the value {value}, but at most {MAX_CLASSES} classes are possible"
                remedy = "; set void pixels to 0, and list them in unknown.csv if they must not count as clean"
                raise InputError(f"{reason}{remedy if value == _VOID else '; fix the map'}")
            image.runs[value - 1] = rle.find_runs(values == value)
            largest = max(largest, (value, str(path)))
    return Labels(names or require_classes(src, *largest), found.images, src)


def _open(path: Path, image: LabelledImage) -> tuple[Image.Image, bytes]:
    """Open a label image, which must be whole, lossless and as large as its image; return it and the file's content."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); fix that") from error
    decode(data, path)  # refuses damage that Pillow accepts, but OpenCV does not know the indices of a palette
    picture = Image.open(BytesIO(data))
    picture.load()
    if "JPEG" in (picture.format, str(picture.info.get("compression")).upper()):
        raise InputError(f"{path} is a JPEG, whose compression changes values; export PNGs")
    if picture.size != image.size[::-1]:
        reason = f"{path} is {picture.width} x {picture.height} pixels, but its image {image.name} is "
        raise InputError(f"{reason}{image.size[1]} x {image.size[0]}; export it again")
    return picture, data


def _read_grey(path: Path, image: LabelledImage) -> NDArray[np.integer]:
    """Return grey values, the indices of a palette, or the value that the three channels share."""
    picture, data = _open(path, image)
    values = np.asarray(picture)
    if values.dtype.kind == "f":
        raise InputError(f"{path} must have whole numbers, but its values are fractions ({values.dtype}); export PNGs")
    if values.ndim == 3:
        if picture.mode != "RGB" or (values != values[:, :, :1]).any():
            raise InputError(
                f"{path} must have grey values or a palette, but is in colour ({picture.mode}); convert it"
            )
        values = values[:, :, 0]
    if picture.format == "PNG" and picture.mode == "L" and not data[_PNG_COLOUR_TYPE]:
        values = values // (255 // (2 ** data[_PNG_DEPTH] - 1))  # Pillow stretches 2 and 4 bits to 0..255
    return values.astype(np.uint8) if values.dtype == bool else values


def _look_up(path: Path, image: LabelledImage, colours: list[Colour]) -> NDArray[np.integer]:
    """Return the index of the colour of each pixel."""
    picture, _ = _open(path, image)
    if picture.mode not in ("1", "L", "P", "RGB", "RGBA"):
        raise InputError(
            f"{path} must have the colours of labelmap.txt in 8 bits, but is {picture.mode}; export it again"
        )
    pixels = np.asarray(picture.convert("RGB"))
    values = np.full(image.size, -1)
    for value, colour in enumerate(colours):
        values[(pixels == colour).all(axis=2)] = value
    if (values < 0).any():
        unknown = tuple(pixels[values < 0][0].tolist())
        raise InputError(f"{path} has the colour {unknown}, which is not in labelmap.txt; add it there")
    return values


def _read_labelmap(path: Path) -> tuple[tuple[str, ...], list[Colour]]:
    """Return the names of the classes, and the colours of the background and of the classes."""
    names: dict[Colour, str] = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = re.fullmatch(r"([^:]*):\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*(:.*)?", line)
        if match is None:
            raise InputError(f'{path}, line {number}: it must be name:red,green,blue::, got "{line[:60]}"; fix it')
        name, colour = match[1], (int(match[2]), int(match[3]), int(match[4]))
        if colour in names:
            raise InputError(f"{path}, line {number}: another label has the colour {colour}; use different colours")
        names[colour] = name
    background = [colour for colour, name in names.items() if name.lower() == "background"]
    classes = {colour: name for colour, name in names.items() if colour not in background}
    return tuple(classes.values()), [*(background or [(0, 0, 0)]), *classes]


def write_masks(labels: Labels, out: Path) -> None:
    """Write a file for each defect, and classes.csv."""
    (out / "masks").mkdir()
    for image in track(labels.images, "writing masks", len(labels.images)):
        for c, runs in image.runs.items():
            _write_png(out / "masks" / f"{Path(image.name).stem}_{c + 1}.png", rle.decode(runs, image.size) * 255)
    write_classes(labels.classes, out)


def write_index(labels: Labels, out: Path, overlap: Overlap) -> Counter[str]:
    """Write a map of class ids for each image, and classes.csv; return the changed pixels by image.

    Raises:
        InputError: Classes overlap, and `overlap` does not say which class to keep.
    """
    changed: Counter[str] = Counter()
    (out / "index").mkdir()
    for image in track(labels.images, "writing index maps", len(labels.images)):
        values = np.zeros(image.size, np.uint8)
        for c, runs in sorted(image.runs.items(), reverse=overlap == "lowest"):
            mask = rle.decode(runs, image.size) > 0
            num = int((values[mask] > 0).sum())
            if num and overlap == "refuse":
                reason = f"class {c + 1} of {image.name} overlaps another on {num:,} pixels, but an index map holds one"
                raise InputError(f"{reason} class per pixel; choose a class with --overlap, or another format")
            changed[image.name] += num
            values[mask] = c + 1
        _write_png(out / "index" / f"{Path(image.name).stem}.png", values)
    write_classes(labels.classes, out)
    return +changed


def _write_png(path: Path, values: NDArray[np.uint8]) -> None:
    path.write_bytes(cv2.imencode(".png", values)[1].tobytes())
