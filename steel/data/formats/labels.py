"""The neutral form of labels, and how labels find their images in the folders of CVAT, Label Studio and this project.

In the formats yolo, masks and index, label and image have the same file name without suffix, the stem; see
`steel.data.spelling` for the differences that are tolerated. Roboflow has the folders of images and labels in train,
valid and test; all three are read, and which image was in which is not kept.
"""

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from steel.data.images import SUFFIXES, read_size
from steel.data.runs import Runs, Size
from steel.data.spelling import NameIndex, is_hidden
from steel.errors import InputError
from steel.progress import track

_IMAGE_FOLDERS = ("images", "JPEGImages", "train_images")
_ROBOFLOW_PARTS = ("train", "valid", "test")


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
    """Return all images, or files with other suffixes, in a folder and its subfolders, sorted; without hidden ones."""
    found = (p for p in folder.rglob("*") if p.suffix.lower() in suffixes and p.is_file())
    return sorted(p for p in found if not any(map(is_hidden, p.relative_to(folder).parts)))


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


class ImagesByStem:
    """The images of a dataset, to be found for label files."""

    def __init__(self, images: list[LabelledImage]) -> None:
        self.images = images
        self._index = NameIndex(Path(image.name).stem for image in images)
        self._label_files: dict[tuple[int, str], Path] = {}

    def find(self, stem: str, path: Path, class_id: str = "") -> LabelledImage:
        """Return the image of a label file with the stem of an image, and with one of its classes if `class_id` is set.

        Raises:
            InputError: There is no such image, or another file has its labels.
        """
        i = self._index.find(stem)
        if i is None:
            raise InputError(f'{path}: no image has the stem "{stem}"; add the image or remove the file')
        if (other := self._label_files.setdefault((i, class_id), path)) != path:
            raise InputError(f"{other} and {path} are both labels of {self.images[i].name}; remove one")
        return self.images[i]


def read_clean(paths: Collection[Path]) -> list[LabelledImage]:
    """Return images without labels.

    Raises:
        InputError: An image is unreadable.
    """
    return [LabelledImage(path.name, path, read_size(path), {}) for path in track(paths, "reading sizes", len(paths))]


def open_folders(
    src: Path, images: Path | None, *label_folders: str, suffixes: tuple[str, ...] = SUFFIXES
) -> tuple[ImagesByStem, dict[str, Path]]:
    """Return the images of a dataset without labels, and the files of the first existing label folder by their stems.

    Raises:
        InputError: A folder is missing, an image is unreadable, or two files have the same stem.
    """
    folders = [images] if images else _find_folders(src, _IMAGE_FOLDERS)
    if folders in ([], [src]):  # src contains label images as well
        raise InputError(
            f"no folder {src / _IMAGE_FOLDERS[0]}; put the images there or give their folder with --images"
        )
    paths = index_stems(path for folder in folders for path in find_files(folder))
    if not paths:
        raise InputError(f"no image in {folders[0]}; images end in {', '.join(SUFFIXES)}")
    if not (labels := _find_folders(src, label_folders)):
        raise InputError(f"no folder {src / label_folders[0]}; put the labels there")
    # YOLO's classes.txt holds the names of the classes.
    found = (path for folder in labels for path in find_files(folder, suffixes) if path.name != "classes.txt")
    return ImagesByStem(read_clean(paths.values())), index_stems(found)


def _find_folders(src: Path, names: Sequence[str]) -> list[Path]:
    """Return the first existing of several folders; in Roboflow's layout one in each part of the dataset."""
    for name in names:
        for places in ([src / name], [src / part / name for part in _ROBOFLOW_PARTS]):
            if found := [place for place in places if place.is_dir()]:
                return found
    return []
