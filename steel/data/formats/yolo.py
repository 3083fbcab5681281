"""YOLO segmentation: a text file for each image with one line, an outline, for each spot.

images/
labels/<stem>.txt       class x y x y ...       class from 0, coordinates as fractions of the image's width and height
data.yaml               names: {0: name, ...}   Label Studio writes classes.txt instead, one name per line
"""

from collections import Counter, defaultdict
from pathlib import Path

import yaml

from steel.data.formats import outlines
from steel.data.formats.labels import Labels, open_folders
from steel.data.runs import Runs, Size, count_changes, unite
from steel.data.spelling import parse_whole, read_text
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
        image = found.find(stem, path)
        spots = _read_file(path, image.size, len(classes))
        image.runs.update({c: runs for c, parts in spots.items() if len(runs := unite(parts))})
        num_empty += sum(len(runs) == 0 for parts in spots.values() for runs in parts)
    return Labels(classes, found.images, src, num_empty)


def _read_names(src: Path) -> tuple[str, ...]:
    path = next((src / name for name in ("data.yaml", "classes.txt") if (src / name).is_file()), None)
    if path is None:
        raise InputError(f"no file {src / 'data.yaml'} (or classes.txt); add it, since it names the classes")
    try:
        text = read_text(path)
        # The base loader keeps all as text; another would read a class "no" as false and "1e3" as 1000.0.
        content = {"names": text.rstrip().splitlines()} if path.suffix == ".txt" else yaml.load(text, yaml.BaseLoader)
    except yaml.YAMLError as error:
        raise InputError(f"{path}: it cannot be read ({' '.join(str(error).split())}); write it again") from error
    names = content.get("names") if isinstance(content, dict) else None
    pairs = enumerate(names) if isinstance(names, list) else names.items() if isinstance(names, dict) else ()
    by_number = {parse_whole(number): name for number, name in pairs}
    are_names = all(isinstance(name, str) and name.strip() for name in by_number.values())
    if not names or not are_names or set(by_number) != set(range(len(names))):
        raise InputError(f"{path}: names must be a list or 0: name, 1: name, ..., got {str(names)[:80]}; fix it")
    return tuple(by_number[c].strip() for c in range(len(names)))


def _read_file(path: Path, size: Size, num_classes: int) -> dict[int, list[Runs]]:
    spots: dict[int, list[Runs]] = defaultdict(list)
    for number, line in enumerate(read_text(path).splitlines(), 1):
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
        c, fractions = parse_whole(words[0]), [float(word) for word in words[1:]]
    except ValueError as error:
        raise InputError(f"must hold a class and coordinates ({error}); fix it") from error
    if c is None:
        raise InputError(f'must start with the number of a class, got "{words[0][:40]}"; fix it')
    if len(fractions) == 4:
        raise InputError("is a box (class x y width height), but outlines are needed; export segmentation")
    sides = [size[1 - i % 2] for i in range(len(fractions))]
    points = [fraction * side for fraction, side in zip(fractions, sides, strict=True)]
    for fraction, point, side in zip(fractions, points, sides, strict=True):
        if not outlines.is_near(point, side):
            raise InputError(f"has the coordinate {fraction:g}, but coordinates must be fractions, 0 to 1; fix it")
    return c, outlines.fill([points], size)


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
