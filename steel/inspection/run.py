"""Runs an exported inspector over a file, a folder or a glob of images."""

import csv
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from steel import plots
from steel.data import rle
from steel.data.images import find_images, read_grey
from steel.errors import InputError, require_at_least
from steel.inspection import bundle
from steel.inspection.drift import Drift, Window
from steel.progress import track

SubmissionFormat = Literal["new", "old"]


class Decision(NamedTuple):
    """What was decided of one image: see `Inspection`, without its first axis, on the CPU."""

    gate_probability: float
    class_probabilities: NDArray[np.float32]
    masks: NDArray[np.bool_]
    areas: NDArray[np.int64]


class SubmissionWriter:
    """Writes codes in Kaggle's form, one row per image and class, the code empty where nothing was found."""

    def __init__(self, file: IO[str], form: SubmissionFormat = "new") -> None:
        """Writes the header.

        Args:
            file: Open for writing, with newline="".
            form: "new" has the columns ImageId,ClassId,EncodedPixels, "old" ImageId_ClassId,EncodedPixels.
        """
        self._csv = csv.writer(file, lineterminator="\n")
        self._form = form
        self._csv.writerow([*(["ImageId_ClassId"] if form == "old" else ["ImageId", "ClassId"]), "EncodedPixels"])

    def write(self, image: str, codes: Sequence[str]) -> None:
        """Writes an image's rows, the code of each class."""
        for c, code in enumerate(codes):
            key = [f"{image}_{c + 1}"] if self._form == "old" else [image, c + 1]
            self._csv.writerow([*key, code])


def choose_device(name: str) -> torch.device:
    """The device that a name means.

    Args:
        name: "auto" (a GPU where there is one), or a name of torch's: cpu, cuda, cuda:1, mps.

    Raises:
        InputError: There is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f'no device "{name}" on this machine; give auto, cpu or one that `steel info` lists'
        ) from error
    return device


def _decode(path: Path) -> NDArray[np.uint8] | InputError:
    try:
        return read_grey(path)
    except InputError as error:
        return error


def _prefetch(
    paths: Sequence[Path], window: int, pool: ThreadPoolExecutor
) -> Iterator[list[NDArray[np.uint8] | InputError]]:
    """Decoded images in windows, the next one in the making while one is used."""
    ahead: list[Future[NDArray[np.uint8] | InputError]] = []
    for start in range(0, len(paths) + window, window):
        now, ahead = ahead, [pool.submit(_decode, path) for path in paths[start : start + window]]
        if now:
            yield [future.result() for future in now]


@torch.inference_mode()
def _decide(
    module: torch.nn.Module, window: Sequence[NDArray[np.uint8] | InputError], batch_size: int, device: torch.device
) -> list[Decision | InputError]:
    """Decides about images of any sizes, in batches of one size; what could not be read is passed on."""
    decided: dict[int, Decision | InputError] = {}
    by_size: dict[tuple[int, ...], list[tuple[int, NDArray[np.uint8]]]] = {}
    for i, image in enumerate(window):
        if isinstance(image, InputError):
            decided[i] = image
        else:
            by_size.setdefault(image.shape, []).append((i, image))
    for same in by_size.values():
        for start in range(0, len(same), batch_size):
            some = same[start : start + batch_size]
            batch = torch.from_numpy(np.stack([image for _, image in some]))
            gate, classes, masks, areas = (tensor.cpu().numpy() for tensor in module(batch.to(device)))
            for row, (i, _) in enumerate(some):
                decided[i] = Decision(float(gate[row]), classes[row], masks[row], areas[row])
    return [decided[i] for i in range(len(window))]


def _inspect_all(
    module: torch.nn.Module, paths: Sequence[Path], batch_size: int, device: torch.device
) -> Iterator[tuple[NDArray[np.uint8], Decision] | InputError]:
    """Every image with its decision, or why it could not be read, in the order of the paths and in constant memory."""
    with ThreadPoolExecutor() as pool:
        for window in _prefetch(paths, 4 * batch_size, pool):
            for image, decision in zip(window, _decide(module, window, batch_size, device), strict=True):
                if isinstance(image, InputError):
                    yield image
                else:
                    assert isinstance(decision, Decision)
                    yield image, decision


def _name_images(paths: Sequence[Path]) -> list[str]:
    """The names in the tables: the files' own, or where these are not unique, the paths below their common folder."""
    if len({path.name for path in paths}) == len(paths):
        return [path.name for path in paths]
    common = os.path.commonpath([path.parent for path in paths])
    return [path.relative_to(common).as_posix() for path in paths]


def inspect(
    model: str,
    images: str,
    out: str = "inspected",
    batch_size: int = 8,
    device: str = "auto",
    overlays: Literal["defective", "all", "none"] = "defective",
    submission_format: SubmissionFormat = "new",
) -> None:
    """Inspects images with an exported file.

    Writes results.csv (a row for each image, an unreadable one with the reason), submission.csv (codes in Kaggle's
    form) and pictures of what was found.

    Args:
        model: File that `steel export` wrote.
        images: An image, a folder, or a pattern in quotes such as "line*/*.png".
        out: Folder for what is made.
        batch_size: Images that the networks see at once.
        device: Where to run: auto, cpu, cuda or cuda:1.
        overlays: Which images to draw.
        submission_format: Columns ImageId,ClassId,EncodedPixels (new) or ImageId_ClassId,EncodedPixels (old).
    """
    require_at_least(1, batch_size=batch_size)
    where = choose_device(device)
    module, about = bundle.read(model, where)
    paths = find_images(images)
    folder = Path(out)
    pictures = folder / "overlays"
    pictures.mkdir(parents=True, exist_ok=True)
    classes: list[str] = about["classes"]
    gate = float(module.gate)
    num_defective = num_unreadable = 0
    window, drifts = Window.from_metadata(about), list[Drift]()
    results, submission = folder / "results.csv", folder / "submission.csv"

    with ExitStack() as stack:
        table = csv.writer(stack.enter_context(_open(results)), lineterminator="\n")
        table.writerow(_header(classes))
        codes = SubmissionWriter(stack.enter_context(_open(submission)), submission_format)
        inspected = track(_inspect_all(module, paths, batch_size, where), "inspecting", len(paths))
        for name, result in zip(_name_images(paths), inspected, strict=True):
            if isinstance(result, InputError):
                num_unreadable += 1
                table.writerow([name] + [""] * (2 + 2 * len(classes)) + [str(result)])
                continue
            image, decision = result
            defective = decision.gate_probability >= gate
            num_defective += defective
            if window and (drift := window.add(image, decision.class_probabilities)):
                drifts.append(drift)
            table.writerow(_row(name, defective, decision))
            codes.write(name, [rle.encode(mask) for mask in decision.masks])
            if overlays == "all" or (overlays == "defective" and defective):
                _write_picture(pictures / f"{name}.png", _draw(name, image, decision, classes, defective))
    # They get their names when they are whole.
    for path in (results, submission):
        os.replace(_unfinished(path), path)

    print(f"{len(paths):,} images: {num_defective:,} defective, {num_unreadable:,} unreadable")
    if num_unreadable:
        print(f"why {num_unreadable:,} could not be read stands in the column error of {results}")
    for drift in drifts:
        print(f"warning: {drift.sentence}")
    print(f"wrote {results}, {submission}, {pictures}")
    if num_unreadable == len(paths):
        raise InputError(f"none of the {len(paths):,} images could be read; see the column error of {results}")


def _write_picture(path: Path, picture: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1].tobytes())


def _unfinished(path: Path) -> Path:
    return path.with_name(f"{path.name}.unfinished")


def _open(path: Path) -> IO[str]:
    return _unfinished(path).open("w", newline="", encoding="utf-8")


def _header(classes: Sequence[str]) -> list[str]:
    probabilities = [f"probability_{name}" for name in classes]
    areas = [f"area_pixels_{name}" for name in classes]
    return ["image", "defective", "gate_probability", *probabilities, *areas, "error"]


def _row(name: str, defective: bool, decision: Decision) -> list[Any]:
    probabilities = [f"{p:.6f}" for p in decision.class_probabilities]
    return [name, int(defective), f"{decision.gate_probability:.6f}", *probabilities, *decision.areas.tolist(), ""]


def _draw(
    name: str, image: NDArray[np.uint8], decision: Decision, classes: Sequence[str], defective: bool
) -> NDArray[np.uint8]:
    verdict = "defective" if defective else "clean"
    headline = f"{name}  {verdict} p={decision.gate_probability:.2f}"
    captions = [
        f"{label} p={p:.2f} {area:,} px"
        for label, p, area in zip(classes, decision.class_probabilities, decision.areas, strict=True)
    ]
    return plots.draw_overlay(image, decision.masks, captions, headline)
