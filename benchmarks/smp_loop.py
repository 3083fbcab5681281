"""A plain training loop around an SMP U-Net, which `steel fit` is compared with for accuracy.

    python -m benchmarks.smp_loop ROOT --fold 0 --num_steps 4000 --out smp

What SMP's examples show, on the same split, with the same network, pretrained weights and number of crops as a run of
`steel fit`: random crops and flips, BCE + Dice, AdamW and OneCycle, the last weights. It has no classifier, no balanced
sampling and no weight averaging. Two submissions for the test split are written, for `steel score`: submission.csv with
masks at a probability of 0.5, and submission_tuned.csv with the threshold and the smallest area of each class that give
val the best Kaggle Dice.
"""

import argparse
import csv
from itertools import product
from pathlib import Path
from typing import Any

import albumentations as A
import numpy as np
import segmentation_models_pytorch as smp
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, RandomSampler

from steel.data import rle
from steel.data.annotations import Annotations
from steel.data.datamodule import SteelDataModule
from steel.devices import choose_device
from steel.progress import track
from steel.training.networks import SegmenterNetwork

SETTINGS = tuple(product((0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9), (0, 50, 150, 400, 1000)))  # threshold, smallest area


class Crops(Dataset[Any]):
    """Randomly cropped and flipped training images and their masks."""

    def __init__(self, table: Annotations, rows: NDArray[np.int64], crop: int) -> None:
        self._table, self._rows = table, rows
        flips = [A.HorizontalFlip(p=0.5), A.VerticalFlip(p=0.5)]
        self._augment = A.Compose([A.RandomCrop(crop, crop, pad_if_needed=True), *flips])

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image, masks = self._table.read_image(self._rows[index]), self._table.draw_masks(self._rows[index])
        crop = self._augment(image=image, mask=masks.transpose(1, 2, 0).astype(np.uint8))
        return torch.from_numpy(crop["image"][None]), torch.from_numpy(crop["mask"].transpose(2, 0, 1)).float()


def train(network: torch.nn.Module, loader: DataLoader[Any], lr: float, device: torch.device) -> None:
    """Train the network on each batch of the loader once."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=lr, total_steps=len(loader))
    pixelwise, overlap = torch.nn.BCEWithLogitsLoss(), smp.losses.DiceLoss("multilabel")
    network.train()
    for images, masks in track(loader, "training", len(loader)):
        logits, targets = network(images.to(device)), masks.to(device)
        loss = pixelwise(logits, targets) + overlap(logits, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    network.eval()


@torch.inference_mode()
def predict(network: torch.nn.Module, image: NDArray[np.uint8], device: torch.device) -> NDArray[np.float32]:
    """Return the probabilities `(C, H, W)` of one image."""
    return network(torch.from_numpy(image)[None, None].to(device))[0].sigmoid().cpu().numpy()  # type: ignore[no-any-return]


def choose(network: torch.nn.Module, table: Annotations, rows: NDArray[np.int64], device: torch.device) -> list[Any]:
    """Return the threshold and the smallest area of each class with the best mean Dice over the images."""
    dice = np.zeros((len(SETTINGS), table.num_classes))
    for row in track(rows.tolist(), "choosing", len(rows)):
        probabilities, truth = predict(network, table.read_image(row), device), table.draw_masks(row)
        for values, (threshold, area) in zip(dice, SETTINGS, strict=True):
            masks = probabilities >= threshold
            masks &= masks.sum((1, 2), keepdims=True) >= area
            total = (masks.sum((1, 2)) + truth.sum((1, 2))).astype(float)
            values += np.where(total > 0, 2 * (masks & truth).sum((1, 2)) / np.maximum(total, 1), 1)
    return [SETTINGS[best] for best in dice.argmax(0)]


def write(path: Path, network: torch.nn.Module, data: SteelDataModule, chosen: list[Any], device: torch.device) -> None:
    """Write the masks of the test split at the chosen threshold and smallest area of each class."""
    thresholds, areas = (np.array(values)[:, None, None] for values in zip(*chosen, strict=True))
    table = data.annotations
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["ImageId", "ClassId", "EncodedPixels"])
        for row in track(data.split.indices("test").tolist(), path.stem, len(data.split.indices("test"))):
            masks = predict(network, table.read_image(row), device) >= thresholds
            masks &= masks.sum((1, 2), keepdims=True) >= areas
            rows.writerows([table.names[row], c, rle.encode(mask)] for c, mask in enumerate(masks, 1))


def main() -> None:
    """Train the peer and write its submissions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root")
    parser.add_argument("--fold", type=int)
    parser.add_argument("--encoder", default="timm-tf_efficientnet_lite0")
    parser.add_argument("--decoder_channels", type=int, nargs="+", default=[128, 64, 32, 16])
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--crop", type=int, default=256)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--num_steps", type=int, default=4000)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("smp"))
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    device, data = choose_device("auto"), SteelDataModule(args.root, fold=args.fold)
    table, parts = data.annotations, data.split
    network = SegmenterNetwork(table.num_classes, args.encoder, "imagenet", "unet", args.decoder_channels, args.scale)
    crops = Crops(table, parts.indices("train"), args.crop)
    order = RandomSampler(crops, replacement=True, num_samples=args.num_steps * args.batch_size)
    train(network.to(device), DataLoader(crops, args.batch_size, sampler=order), args.lr, device)
    args.out.mkdir(parents=True, exist_ok=True)
    torch.save(network.state_dict(), args.out / "network.pt")
    write(args.out / "submission.csv", network, data, [(0.5, 0)] * table.num_classes, device)
    chosen = choose(network, table, parts.indices("val"), device)
    print("threshold and smallest area of each class:", chosen)
    write(args.out / "submission_tuned.csv", network, data, chosen, device)


if __name__ == "__main__":
    main()
