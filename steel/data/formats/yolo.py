"""YOLO segmentation: a text file for each image, with a line with an outline for each spot.

images/
labels/<stem>.txt       class x y x y ...       the class from 0, coordinates as shares of the image's width and height
data.yaml               names: {0: name, ...}   Label Studio writes classes.txt instead, a name a line
"""

from collections import Counter, defaultdict
from pathlib import Path

import yaml

from steel.data.formats import outlines
from steel.data.formats.labels import Labels, find_label_folder, match_stems, read_clean_by_stem
from steel.data.runs import Runs, Size, count_changes, unite
from steel.errors import InputError
from steel.progress import track


def read_yolo(src: Path, images: Path | None) -> Labels:
    """Reads a data set's folder; an image without a text file is clean."""
    classes = _read_names(src)
    found = read_clean_by_stem(src, images)
    texts = (path for path in find_label_folder(src, "labels").rglob("*.txt") if path.name != "classes.txt")
    files = match_stems(sorted(texts), found)
    num_empty = 0
    for stem, path in track(files.items(), "reading labels", len(files)):
        parts = _read_file(path, found[stem].size, len(classes))
        found[stem].codes.update({c: runs for c, several in parts.items() if len(runs := unite(several))})
        num_empty += sum(len(runs) == 0 for several in parts.values() for runs in several)
    return Labels(classes, list(found.values()), src, num_empty)


def _read_names(src: Path) -> tuple[str, ...]:
    path = next((src / name for name in ("data.yaml", "classes.txt") if (src / name).is_file()), None)
    if path is None:
        raise InputError(f"no file {src / 'data.yaml'} (or classes.txt); it names the classes")
    try:
        text = path.read_text(encoding="utf-8-sig")
        content = {"names": text.rstrip().splitlines()} if path.suffix == ".txt" else yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: it cannot be read ({' '.join(str(error).split())}); write it anew") from error
    names = content.get("names") if isinstance(content, dict) else None
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or set(names) != set(range(len(names))):
        raise InputError(f"{path} needs names, a list or 0: name, 1: name, ..., but {str(names)[:80]} came")
    return tuple(str(names[c]).strip() for c in range(len(names)))


def _read_file(path: Path, size: Size, num_classes: int) -> dict[int, list[Runs]]:
    parts: dict[int, list[Runs]] = defaultdict(list)
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if line.strip():
            try:
                c, runs = _read_line(line, size)
                if not 0 <= c < num_classes:
                    raise InputError(f"has class {c}, but the classes are 0 to {num_classes - 1}; mend it")
            except InputError as error:
                raise InputError(f"{path}, line {number}: it {error}") from error
            parts[c].append(runs)
    return parts


def _read_line(line: str, size: Size) -> tuple[int, Runs]:
    words = line.split()
    try:
        c, shares = int(words[0]), [float(word) for word in words[1:]]
    except ValueError as error:
        raise InputError(f"holds something else than a class and coordinates ({error}); mend it") from error
    if len(shares) == 4:
        raise InputError("is a box (class x y width height), but outlines are needed; export segmentation")
    for share in shares:
        if not 0 <= share <= 1:
            raise InputError(f"has the coordinate {share:g}, but coordinates are shares of the image, 0 to 1; mend it")
    return c, outlines.fill([[share * size[1 - i % 2] for i, share in enumerate(shares)]], size)


def write_yolo(labels: Labels, out: Path) -> Counter[str]:
    """Writes a text file for each image, and data.yaml."""
    changed: Counter[str] = Counter()
    (out / "labels").mkdir()
    for image in track(labels.images, "writing labels", len(labels.images)):
        lines = []
        for c, runs in sorted(image.codes.items()):
            # Eight decimals are 1e-4 of a pixel on an image of 10,000.
            loops = [
                outlines.trace(spot, image.size) / image.size[::-1] for spot in outlines.split_spots(runs, image.size)
            ]
            written = [" ".join([str(c), *(f"{share:.8g}" for share in loop.ravel())]) for loop in loops]
            after = unite([_read_line(line, image.size)[1] for line in written])
            changed[image.name] += count_changes(runs, after)
            lines += written
        (out / "labels" / f"{Path(image.name).stem}.txt").write_text("".join(f"{line}\n" for line in lines))
    # Without `path`, Ultralytics takes the folder of this file.
    content = {"train": "images", "val": "images", "names": dict(enumerate(labels.classes))}
    (out / "data.yaml").write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return +changed
