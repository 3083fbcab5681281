"""`steel novelty`: learn normal steel from clean images, and choose the limit above which an image is unlike it."""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steel.data.datamodule import SteelDataModule
from steel.data.unknown import find_labels
from steel.decision.novelty import Gaussian, NormalSteel, NoveltyFile, NoveltyLimit, write_novelty
from steel.devices import choose_device, prepare_process
from steel.errors import InputError, require_at_least
from steel.evaluation.assemble import hash_networks, load_trained
from steel.evaluation.claims import HIGH, claim_rate, find_effective_size
from steel.evaluation.parts import warn_of_groups
from steel.files import require_writable
from steel.intervals import effective_size, wilson
from steel.progress import track
from steel.training.checkpoints import find_checkpoint
from steel.training.networks import ClassifierNetwork
from steel.training.tasks import DefectClassifier
from steel.wording import wrap

_NUM_PLACES = 40_000  # clean places that each distribution is estimated from; more hardly change it
_SHRINKAGE = 1e-3  # share of the mean variance added to each, so that a feature constant on clean steel does not decide
_NUM_BEYOND = 3  # places of a clean image that are beyond a distance of 1 on average; 1 to 10 give equal results
_FEWEST = 2  # clean images to learn from, and to choose the limit on


def novelty(
    *,
    classifier: str,
    root: str,
    false_alarms: float = 0.05,
    confidence: float = 0.95,
    out: str = "novelty.pt",
    batch_size: int = 8,
    num_workers: int | None = None,
    device: str = "auto",
) -> None:
    """Learn what clean steel looks like, so that the exported file also reports defects that nobody labelled.

    The features of clean places are learnt from the clean images of the classifier's train part. An image is reported
    if its distance from clean steel is above a limit, which is chosen on the clean images of the val part. Give the
    file to `steel export --novelty`.

    Args:
        classifier: Checkpoint of the classifier; best and last name that of the newest run in lightning_logs.
        root: Folder with train.csv and train_images.
        false_alarms: Largest share of clean images above the limit.
        confidence: One-sided confidence of --false_alarms; 0.5 keeps that share only on average.
        out: File to write.
        batch_size: Number of images that the networks process at once.
        num_workers: Number of threads that load images; by default one fewer than there are cores, at most 8.
        device: Device to run on: auto, cpu, cuda or cuda:1.

    Raises:
        InputError: An option is out of range, the checkpoint is not one of a classifier, the dataset does not fit it,
            or there are too few clean images.

    Example:
        steel novelty --classifier best --root data --false_alarms 0.02 --out novelty.pt
    """
    require_at_least(1, batch_size=batch_size)
    if not 0 < false_alarms < 1:
        raise InputError(f"--false_alarms must be in (0, 1), got {false_alarms}")
    if not 0.5 <= confidence < 1:
        raise InputError(f"--confidence must be in [0.5, 1), got {confidence}")
    require_writable(path := Path(out))
    where = choose_device(device)
    prepare_process(where)
    checkpoint = find_checkpoint(classifier, Path("lightning_logs"), DefectClassifier.name)
    trained, about = load_trained(checkpoint, DefectClassifier)
    if not isinstance(network := trained.network, ClassifierNetwork):
        raise InputError(
            f"{checkpoint} has a network of another class than ClassifierNetwork, so its encoder is unknown"
        )
    data = SteelDataModule(
        root, num_classes=len(about["data"]["classes"]), batch_size=batch_size, num_workers=num_workers
    )
    data.recall(about["data"], checkpoint)
    train, val = (find_clean(data, part) for part in ("train", "val"))
    new = val[~np.isin(data.split.groups[val], data.split.groups[train])]
    for rows, part in ((train, "train"), (new, "val")):
        if len(rows) < _FEWEST:
            raise InputError(f"{root} must have at least {_FEWEST} clean images in {part}, got {len(rows)}; add some")
    network = network.to(where)
    normal = learn(network, data, train, where)
    distances, groups = measure_distances(network, normal, data, new, where), data.split.groups[new]
    limit = choose_limit(distances, groups, false_alarms, confidence)
    digest = hash_networks([str(checkpoint)], [], flips=False).classifiers[0]
    limit = replace(limit, classifier=digest, num_trained=len(train))
    write_novelty(path, NoveltyFile(normal.cpu(), limit))
    print(f"learnt from {len(train):,} clean images; {limit.promise}")
    for warning in warn_of_groups(len(new), int((~data.split.is_grouped[new]).sum())) + _list_warnings(limit):
        print(wrap(f"warning: {warning}"))
    print(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB)")


def _list_warnings(limit: NoveltyLimit) -> list[str]:
    if limit.bound <= limit.false_alarms:
        return []
    return [
        f"a limit of {limit.false_alarms:g} of the clean images cannot be claimed with {limit.confidence:.0%} "
        f"confidence: {limit.num_alarms} of {limit.num_images:,} clean images above the limit prove only that at most "
        f"{limit.bound:.3f} of new ones are"
    ]


def find_clean(data: SteelDataModule, part: str) -> NDArray[np.int64]:
    """Return the rows of the images of a part that are known to be clean."""
    table = data.annotations
    clean: NDArray[np.bool_] = find_labels(table.labelled_areas, table.has_unknown).clean
    rows = data.split.indices(part)
    return rows[clean[rows]]


@torch.inference_mode()
def _describe(
    network: ClassifierNetwork, data: SteelDataModule, rows: NDArray[np.int64], device: torch.device, text: str
) -> Iterator[tuple[list[int], list[Tensor]]]:
    """Yield the rows of each batch, and the features of their places at each stage, float `(N, K, h, w)`."""
    loader = data.images_dataloader(rows)
    for batch in track(loader, text, len(loader)):
        images = batch["image"].to(device)
        yield batch["index"].tolist(), network.describe(images)[1]


def learn(
    network: ClassifierNetwork, data: SteelDataModule, rows: NDArray[np.int64], device: torch.device
) -> NormalSteel:
    """Learn normal steel from clean images.

    Args:
        network: The classifier's network, in evaluation mode, on `device`.
        data: The dataset.
        rows: Rows of clean images in its table.
        device: The device to run on.
    """
    per_image = -(-_NUM_PLACES // len(rows))
    found: dict[int, list[tuple[Tensor, int]]] = {}
    for batch, stages in _describe(network, data, rows, device, "learning"):
        for position, i in enumerate(batch):
            # A seed per image, so that the result does not depend on the order of the batches.
            generator = torch.Generator().manual_seed(i)
            places = [stage[position].flatten(1).T.cpu() for stage in stages]
            found[i] = [(x[torch.randperm(len(x), generator=generator)[:per_image]], len(x)) for x in places]
    gaussians = []
    for stage in zip(*(found[i] for i in sorted(found)), strict=True):
        drawn, nums = zip(*stage, strict=True)
        gaussians.append(fit_gaussian(torch.cat(drawn), max(0.5, 1 - _NUM_BEYOND / float(np.mean(nums)))))
    return NormalSteel(gaussians).to(device)


def fit_gaussian(places: Tensor, share: float) -> Gaussian:
    """Return the distribution of the features of clean places, float `(M, K)`.

    The unit of its distances is the largest of the given share of these places, so that stages can be compared.
    """
    x = places.double()
    mean = x.mean(0)
    covariance = torch.cov(x.T)
    covariance.diagonal().add_(_SHRINKAGE * covariance.diagonal().mean() + 1e-12)
    variances, directions = torch.linalg.eigh(covariance)
    whitening = directions / variances.sqrt()
    unit = ((x - mean) @ whitening).norm(dim=1).quantile(share).clamp_min(1e-6)
    return Gaussian(mean.float(), (whitening / unit).float())


def measure_distances(
    network: ClassifierNetwork,
    normal: NormalSteel,
    data: SteelDataModule,
    rows: NDArray[np.int64],
    device: torch.device,
) -> NDArray[np.float32]:
    """Return the distances `(n,)` of images from normal steel; for the arguments see `learn`."""
    found: dict[int, float] = {}
    for batch, places in _describe(network, data, rows, device, "measuring"):
        found.update(zip(batch, normal(places).images.tolist(), strict=True))
    return np.array([found[i] for i in rows.tolist()], np.float32)


def choose_limit(
    distances: NDArray[np.float32], groups: NDArray[np.int64], false_alarms: float, confidence: float
) -> NoveltyLimit:
    """Choose the lowest limit that at most a share of new clean images exceeds, at a one-sided confidence.

    The limit is just above the distance of one of the images, which makes the bound of `claim_rate` exact for
    independent images. If even the largest distance proves too little, the limit is there.

    Args:
        distances: `(n,)`, distances of clean images that normal steel was not learnt from.
        groups: `(n,)`, their groups.
        false_alarms: The share, 0 to 1.
        confidence: The confidence, 0.5 to 1.

    Returns:
        The limit, without its origin.
    """
    n = len(distances)
    is_high = distances > np.quantile(distances, 1 - HIGH)
    size = find_effective_size(is_high, groups, confidence)

    def bound(num_alarms: int) -> float:
        return 1 - claim_rate((n - num_alarms) / n * size, size, confidence)

    num_alarms = max(0, bisect_right(range(n), false_alarms, key=bound) - 1)
    value = np.nextafter(np.sort(distances)[n - 1 - num_alarms], np.float32(np.inf))
    is_alarm = distances >= value
    rate_size = effective_size(is_high, groups)  # alarms are too few to tell it, or none
    interval = wilson(float(is_alarm.mean()) * rate_size, rate_size)
    return NoveltyLimit(
        value=float(value), num_trained=0, num_images=n, num_groups=len(np.unique(groups)),
        num_alarms=int(is_alarm.sum()), false_alarms=false_alarms, confidence=confidence,
        bound=bound(int(is_alarm.sum())), interval=interval,
    )  # fmt: skip
