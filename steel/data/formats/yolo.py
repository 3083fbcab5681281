"""YOLO segmentation: a text file for each image with one line, an outline, for each spot.

images/
labels/<stem>.txt       class x y x y ...       class from 0, coordinates as fractions of the image's width and height
data.yaml               names: {0: name, ...}   Label Studio writes classes.txt instead, one name per line
"""

from collections import Counter, defaultdict
from pathlib import Path

import yaml

from steel.data.formats import outlines
from steel.data.formats.labels import Labels, open_folders, require_image
from steel.data.runs import Runs, Size, count_changes, unite
from steel.data.spots import split_spots
from steel.errors import InputError
from steel.progress import track


def read_yolo(src: Path, images: Path | None) -> Labels:
    """Read a dataset in YOLO format; an image without a text file is clean.

    Raises:
        InputError: A file is missing or wrong.
    """
    classes = _read_names(src)
    found, files = open_folders(src, images, "labels", suffixes=(".txt",))
    num_empty = 0
    for stem, path in track(files.items(), "reading labels", len(files)):
        image = require_image(stem, path, found)
        spots = _read_file(path, image.size, len(classes))
        image.runs.update({c: runs for c, parts in spots.items() if len(runs := unite(parts))})
        num_empty += sum(len(runs) == 0 for parts in spots.values() for runs in parts)
    return Labels(classes, list(found.values()), src, num_empty)


def _read_names(src: Path) -> tuple[str, ...]:
    path = next((src / name for name in ("data.yaml", "classes.txt") if (src / name).is_file()), None)
    if path is None:
        raise InputError(f"no file {src / 'data.yaml'} (or classes.txt); add it, since it names the classes")
    try:
        text = path.read_text(encoding="utf-8-sig")
        content = {"names": text.rstrip().splitlines()} if path.suffix == ".txt" else yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: it cannot be read ({' '.join(str(error).split())}); write it again") from error
    names = content.get("names") if isinstance(content, dict) else None
    names = dict(enumerate(names)) if isinstance(names, list) else names
    if not isinstance(names, dict) or set(names) != set(range(len(names))):
        raise InputError(f"{path}: names must be a list or 0: name, 1: name, ..., got {str(names)[:80]}; fix it")
    return tuple(str(names[c]).strip() for c in range(len(names)))


def _read_file(path: Path, size: Size, num_classes: int) -> dict[int, list[Runs]]:
    spots: dict[int, list[Runs]] = defaultdict(list)
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if line.strip():
            try:
                c, runs = _read_line(line, size)
                if not 0 <= c < num_classes:
                    raise InputError(f"has class {c}, but the classes are 0 to {num_classes - 1}; fix it")
            except InputError as error:
                raise InputError(f"{path}, line {number}: it {error}") from error
            spots[c].append(runs)
    return spots


def _read_line(line: str, size: Size) -> tuple[int, Runs]:
    """Return the class and the runs of an outline; errors have no subject."""
    words = line.split()
    try:
        c, fractions = int(words[0]), [float(word) for word in words[1:]]
    except ValueError as error:
        raise InputError(f"must hold a class and coordinates ({error}); fix it") from error
    if len(fractions) == 4:
        raise InputError("is a box (class x y width height), but outlines are needed; export segmentation")
    for fraction in fractions:
        if not 0 <= fraction <= 1:
            raise InputError(f"has the coordinate {fraction:g}, but coordinates must be fractions, 0 to 1; fix it")
    return c, outlines.fill([[fraction * size[1 - i % 2] for i, fraction in enumerate(fractions)]], size)


def write_yolo(labels: Labels, out: Path) -> Counter[str]:
    """Write a text file for each image, and data.yaml; return the changed pixels by image."""
    changed: Counter[str] = Counter()
    (out / "labels").mkdir()
    for image in track(labels.images, "writing labels", len(labels.images)):
        lines = []
        for c, runs in sorted(image.runs.items()):
            loops = [outlines.trace(spot, image.size) / image.size[::-1] for spot in split_spots(runs, image.size)]
            # Eight digits are accurate to 1e-4 of a pixel on an image of 10,000.
            written = [" ".join([str(c), *(f"{fraction:.8g}" for fraction in loop.ravel())]) for loop in loops]
            after = unite([_read_line(line, image.size)[1] for line in written])
            changed[image.name] += count_changes(runs, after)
            lines += written
        (out / "labels" / f"{Path(image.name).stem}.txt").write_text("".join(f"{line}\n" for line in lines))
    # Without `path`, Ultralytics uses the folder of this file.
    content = {"train": "images", "val": "images", "names": dict(enumerate(labels.classes))}
    (out / "data.yaml").write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return +changed
