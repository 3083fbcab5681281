"""The neutral form of labels, and how labels find their images.

    severstal, coco     a label names its image
    the others          label and image have the same name without suffix, the stem

Images lie where CVAT, Label Studio or this project put them, in folders below that too.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from steel.data import images as image_files
from steel.data.runs import Runs, Size
from steel.errors import InputError
from steel.progress import track


class LabelledImage(NamedTuple):
    """An image with its labels.

    Attributes:
        name: File name, without folders.
        path: Where it lies; None where it was not found and the format tells its size.
        size: Height and width in pixels.
        codes: The runs of each class (from 0) that is on it.
    """

    name: str
    path: Path | None
    size: Size
    codes: dict[int, Runs]


class Labels(NamedTuple):
    """The labels of a data set, in no format.

    Attributes:
        classes: The names of the C classes.
        images: All images, clean ones too.
        root: Folder where groups.csv, splits.csv and unknown.csv lie, if there are any.
        num_empty: How many annotations were left out because they cover no pixel.
    """

    classes: tuple[str, ...]
    images: list[LabelledImage]
    root: Path
    num_empty: int = 0


def find_images_below(folder: Path) -> list[Path]:
    """All images in a folder and in folders in it, sorted."""
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in image_files.SUFFIXES and p.is_file())


def find_label_folder(src: Path, *names: str) -> Path:
    """The first of some folders that is there; an InputError where none is."""
    folder = next((src / name for name in names if (src / name).is_dir()), None)
    if folder is None:
        raise InputError(f"no folder {src / names[0]}; the labels belong there")
    return folder


def index_stems(names: Iterable[str | Path]) -> dict[str, Path]:
    """Files by their stems; an InputError where two have the same one."""
    found: dict[str, Path] = {}
    for path in map(Path, names):
        if other := found.get(path.stem):
            raise InputError(
                f'{other} and {path} have the same stem "{path.stem}", by which labels and images are matched; '
                f"rename one"
            )
        found[path.stem] = path
    return found


def match_stems(files: Iterable[Path], images: Mapping[str, LabelledImage]) -> dict[str, Path]:
    """Files of labels by the stems of their images; an InputError where there is no such image."""
    found = index_stems(files)
    for stem, file in found.items():
        if stem not in images:
            raise InputError(f"{file}: there is no image with the stem {stem}; put it there or take the file out")
    return found


def read_clean(paths: Mapping[str, Path]) -> dict[str, LabelledImage]:
    """Images without labels yet, under the keys of their paths; an InputError where one cannot be read."""
    items = track(paths.items(), "reading sizes", len(paths))
    return {key: LabelledImage(path.name, path, image_files.read_size(path), {}) for key, path in items}


def read_clean_by_stem(src: Path, images: Path | None) -> dict[str, LabelledImage]:
    """The images of a data set, without labels yet, by their stems.

    Raises:
        InputError: There is none, one cannot be read, or two have the same stem.
    """
    places = [src / name for name in ("images", "JPEGImages", "train_images")]
    folder = images or next((place for place in places if place.is_dir()), None)
    if folder in (None, src):  # where the labels lie, too
        raise InputError(f"no folder {places[0]}; put the images there or give their folder with --images")
    paths = index_stems(find_images_below(folder))
    if not paths:
        raise InputError(f"no image in {folder}; images end in {', '.join(image_files.SUFFIXES)}")
    return read_clean(paths)
