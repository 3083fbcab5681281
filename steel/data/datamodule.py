"""`SteelDataModule`: a data set on disk as the loaders of train, val and test, the same for both tasks."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_lightning import LightningDataModule

from steel.data.annotations import Annotations, read_annotations
from steel.data.batches import ShuffledBatches, SizedBatches
from steel.data.cache import DecodedImages, Where, open_images
from steel.data.loader import Batch, Loader, Samples
from steel.data.splits import DEFAULT_FRACTIONS, Split, choose_split, recall_split
from steel.data.transforms import Augmentation, Pipeline
from steel.errors import InputError, require_at_least
from steel.progress import count_cores

__all__ = ["Batch", "SteelDataModule"]


class SteelDataModule(LightningDataModule):
    """A data set in Severstal's layout as loaders of uint8 batches."""

    def __init__(
        self,
        root: str,
        num_classes: int | None = None,
        crop: tuple[int, int] | None = None,
        defect_share: float = 0.8,
        shares: tuple[float, ...] | Literal["even"] | None = None,
        blackout: float = 0.0,
        paste: float = 0.0,
        augmentation: str | None = None,
        batch_size: int = 8,
        fractions: tuple[float, float, float] = DEFAULT_FRACTIONS,
        split_seed: int = 0,
        fold: int | None = None,
        seed: int = 0,
        num_workers: int | None = None,
        pin_memory: bool | None = None,
        cache: Where | None = None,
    ) -> None:
        """Takes the settings; reads nothing yet.

        Args:
            root: Folder with train.csv and train_images.
            num_classes: Number of classes; by default what classes.csv names, or else the largest in train.csv.
            crop: Height and width in pixels that training cuts out of an image; by default whole images.
            defect_share: Share of crops (0 to 1) that hold a defect for certain, among those of images with one; the
                rarest class of the image, or the one that it was drawn for.
            shares: Shares of clean images and of each class in an epoch, which sum to 1, as [0.4,0.2,0.2,0.1,0.1];
                even: half of it clean, the other half as much of every class; by default every image comes once.
            blackout: Share of training images (0 to 1) of which the defects of one class are painted over with steel.
            paste: Share of training images (0 to 1) into which a defect of another is blended, rare classes more often.
            augmentation: File with an albumentations pipeline (written by albumentations.save as YAML) that training
                images go through as well, after crop, flips, brightness and contrast.
            batch_size: Images in a batch, on each device.
            fractions: Shares of train, val and test; used when there is no splits.csv.
            split_seed: Seed of the split; used when there is no splits.csv.
            fold: The fold that judges, where splits.csv has folds; the next one chooses, the others train.
            seed: Seed of order and augmentation.
            num_workers: Threads that load; by default one fewer than there are cores, 8 at the most.
            pin_memory: Load into page-locked memory; by default where a GPU is.
            cache: Keep all images decoded: in the memory of each process, or on disk in ~/.cache/steel (or under
                XDG_CACHE_HOME), for all processes and later runs; by default they are decoded whenever they are needed.
        """
        super().__init__()
        require_at_least(1, **{"data.batch_size": batch_size, "data.num_classes": num_classes})
        require_at_least(0, **{"data.seed": seed, "data.split_seed": split_seed, "data.num_workers": num_workers})
        for name, share in (("defect_share", defect_share), ("blackout", blackout), ("paste", paste)):
            if not 0 <= share <= 1:
                raise InputError(f"data.{name} lies between 0 and 1, but {share} came")
        if crop and min(crop) < 1:
            raise InputError(f"data.crop is height and width in pixels, but {list(crop)} came")
        self.root = Path(root)
        self.batch_size = batch_size
        self.seed = seed
        self._num_classes = num_classes
        self._crop = crop
        self._defect_share = defect_share
        self._shares = shares
        self._blackout = blackout
        self._paste = paste
        self._augmentation = augmentation
        self._fractions = fractions
        self._split_seed = split_seed
        self._fold = fold
        self._num_workers = min(8, count_cores() - 1) if num_workers is None else num_workers
        self._pin_memory = torch.cuda.is_available() if pin_memory is None else pin_memory
        self._cache = cache
        self._decoded: DecodedImages | None = None
        self._annotations: Annotations | None = None
        self._split: Split | None = None

    @property
    def annotations(self) -> Annotations:
        """The table; read when first asked for.

        Raises:
            InputError: Something in the data set is wrong.
        """
        if self._annotations is None:
            self._annotations = read_annotations(self.root, self._num_classes)
        return self._annotations

    @property
    def split(self) -> Split:
        """Who trains, chooses and judges: `recall`'s, else splits.csv, else a new one."""
        if self._split is None:
            self._split = choose_split(self.annotations, self._fractions, self._split_seed, self._fold)
        return self._split

    def recall(self, data: Mapping[str, Any], source: Path) -> None:
        """Takes over the split of a checkpoint; see `splits.recall_split`.

        Args:
            data: What `describe` said when the checkpoint was written.
            source: The checkpoint, for errors.
        """
        self.require_classes(data, source)
        self._split = recall_split(self.annotations, data, source, self._fold)

    def require_classes(self, data: Mapping[str, Any], source: Path) -> None:
        """Refuses a checkpoint that knows other classes.

        Args:
            data: What `describe` said when the checkpoint was written.
            source: The checkpoint, for errors.

        Raises:
            InputError: It does.
        """
        unnamed = [str(c + 1) for c in range(len(data["classes"]))]
        if list(self.annotations.classes) not in (list(data["classes"]), unnamed):
            raise InputError(
                f"{source} knows the classes {', '.join(data['classes'])}, but {self.root} has "
                f"{', '.join(self.annotations.classes)}; set --data.num_classes or give the other one"
            )

    def describe(self) -> dict[str, Any]:
        """What a checkpoint keeps of the data: enough to rebuild the split and to notice another data set."""
        return {
            "root": str(self.root),
            "classes": list(self.annotations.classes),
            "digest": self.annotations.digest,
            "split": self.split.digest,
            "members": self.split.members(),
            "fold": self._fold,
            "seed": self.seed,
            "batch_size": self.batch_size,
        }

    def setup(self, stage: str) -> None:
        """Reads the data set and makes sure that the parts which a stage needs hold an image."""
        needed = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}[stage]
        for part in needed:
            if len(self.split.indices(part)) == 0:
                raise InputError(f"no image of {self.root} is in the part {part}; give it some in splits.csv")

    def train_dataloader(self) -> Loader:
        """Shuffled, augmented batches; on resume from where the run stopped."""
        annotations, train = self.annotations, self.split.indices("train")
        further = Pipeline(self._augmentation) if self._augmentation else None
        augmentation = Augmentation(
            self._crop, self._defect_share, self._blackout, self._paste, annotations.num_classes, further
        )
        donors = [train[annotations.labels[train, c]] for c in range(annotations.num_classes)] if self._paste else []
        batches = ShuffledBatches(
            train,
            self.batch_size,
            self.seed,
            self._progress,
            *self._rank_and_world(),
            labels=annotations.labels,
            shares=self._shares,
        )
        return self._load(batches, augmentation, donors)

    def val_dataloader(self) -> Loader:
        """Whole images of val, one size a batch."""
        return self.part_dataloader("val")

    def test_dataloader(self) -> Loader:
        """Whole images of test, one size a batch."""
        return self.part_dataloader("test")

    def part_dataloader(self, part: str) -> Loader:
        """Whole images of any part, as they are, one size a batch."""
        return self.images_dataloader(self.split.indices(part))

    def images_dataloader(self, indices: NDArray[np.int64]) -> Loader:
        """Whole images by their rows in the table, as they are, one size a batch."""
        batches = SizedBatches(indices, self.annotations.sizes, self.batch_size, *self._rank_and_world())
        return self._load(batches)

    def _load(
        self,
        batches: ShuffledBatches | SizedBatches,
        augmentation: Augmentation | None = None,
        donors: Sequence[NDArray[np.int64]] = (),
    ) -> Loader:
        table = self.annotations
        if self._cache and self._decoded is None:
            paths = [table.path(i) for i in range(len(table))]
            self._decoded = open_images(self._cache, paths, table.sizes, table.read_image)
        samples = Samples(table, augmentation, self.seed, donors, self._decoded)
        return Loader(samples, batches, self._num_workers, self._pin_memory)

    def _progress(self) -> tuple[int, int]:
        """The epoch that begins, and how many of its batches are done."""
        if self.trainer is None:
            return 0, 0
        return self.trainer.current_epoch, self.trainer.fit_loop.epoch_loop.batch_progress.current.ready

    def _rank_and_world(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
