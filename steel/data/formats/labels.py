"""The neutral form of labels, and how labels find their images in the folders of CVAT, Label Studio and this project.

In the formats yolo, masks and index, label and image have the same file name without suffix, the stem.
"""

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from steel.data.images import SUFFIXES, read_size
from steel.data.runs import Runs, Size
from steel.errors import InputError
from steel.progress import track


class LabelledImage(NamedTuple):
    """An image with its labels.

    Attributes:
        name: File name without folders.
        path: The file; None if it was not found and the format stores the size.
        size: Height and width in pixels.
        runs: The runs of each class (from 0) on the image.
    """

    name: str
    path: Path | None
    size: Size
    runs: dict[int, Runs]


class Labels(NamedTuple):
    """The labels of a dataset, independent of a format.

    Attributes:
        classes: The names of the C classes.
        images: All images, including clean ones.
        root: The folder of groups.csv, splits.csv and unknown.csv, if there are any.
        num_empty: Number of annotations that were skipped because they cover no pixel.
    """

    classes: tuple[str, ...]
    images: list[LabelledImage]
    root: Path
    num_empty: int = 0


def find_files(folder: Path, suffixes: tuple[str, ...] = SUFFIXES) -> list[Path]:
    """Return all images, or files with other suffixes, in a folder and its subfolders, sorted."""
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in suffixes and p.is_file())


def index_stems(names: Iterable[str | Path]) -> dict[str, Path]:
    """Return files by their stems.

    Raises:
        InputError: Two files have the same stem.
    """
    found: dict[str, Path] = {}
    for path in map(Path, names):
        if other := found.get(path.stem):
            reason = f'{other} and {path} have the same stem "{path.stem}", by which labels and images are matched'
            raise InputError(f"{reason}; rename one")
        found[path.stem] = path
    return found


def require_image(stem: str, path: Path, images: Mapping[str, LabelledImage]) -> LabelledImage:
    """Return the image of a label file by its stem.

    Raises:
        InputError: There is no such image.
    """
    if stem not in images:
        raise InputError(f'{path}: no image has the stem "{stem}"; add the image or remove the file')
    return images[stem]


def read_clean(paths: Collection[Path]) -> list[LabelledImage]:
    """Return images without labels.

    Raises:
        InputError: An image is unreadable.
    """
    return [LabelledImage(path.name, path, read_size(path), {}) for path in track(paths, "reading sizes", len(paths))]


def open_folders(
    src: Path, images: Path | None, *label_folders: str, suffixes: tuple[str, ...] = SUFFIXES
) -> tuple[dict[str, LabelledImage], dict[str, Path]]:
    """Return the images of a dataset without labels, and the files of the first existing label folder, by their stems.

    Raises:
        InputError: A folder is missing, an image is unreadable, or two files have the same stem.
    """
    places = [src / name for name in ("images", "JPEGImages", "train_images")]
    folder = images or next((place for place in places if place.is_dir()), None)
    if folder in (None, src):  # src contains label images as well
        raise InputError(f"no folder {places[0]}; put the images there or give their folder with --images")
    paths = index_stems(find_files(folder))
    if not paths:
        raise InputError(f"no image in {folder}; images end in {', '.join(SUFFIXES)}")
    labels = next((src / name for name in label_folders if (src / name).is_dir()), None)
    if labels is None:
        raise InputError(f"no folder {src / label_folders[0]}; put the labels there")
    # YOLO's classes.txt holds the names of the classes.
    files = index_stems(path for path in find_files(labels, suffixes) if path.name != "classes.txt")
    return dict(zip(paths, read_clean(paths.values()), strict=True)), files
