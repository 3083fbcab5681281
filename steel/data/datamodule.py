"""`SteelDataModule`: the train, val and test loaders of a dataset, the same for both tasks."""

from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_lightning import LightningDataModule

from steel.data.annotations import Annotations, list_unlabelled, read_annotations
from steel.data.batches import Place, ShuffledBatches, build_sized_batches
from steel.data.cache import DecodedImages, Where, open_images
from steel.data.images import find_images, read_grey, read_size
from steel.data.loader import Loader, Samples
from steel.data.record import DataRecord
from steel.data.splits import DEFAULT_FRACTIONS, Split, choose_split, has_folds, recall_split, require_fold
from steel.data.transforms import Augmentation, Pipeline
from steel.errors import InputError, require_at_least
from steel.progress import count_cores
from steel.wording import format_count

_MAX_CROP = 1 << 26  # pixels; a larger crop is a typing error that would fill the memory


class SteelDataModule(LightningDataModule):
    """A dataset in Severstal's layout, as loaders of uint8 batches.

    Args:
        root: Folder with train.csv and train_images.
        num_classes: Number of classes; by default that of classes.csv, or else the largest class in train.csv.
        crop: Height and width in pixels of the random crops for training; by default whole images.
        defect_share: Share (0 to 1) of the crops of defective images that are certain to hold a defect of the class
            that the image was drawn for, by default its rarest class.
        shares: Shares of clean images and of each class in an epoch, which sum to 1, as [0.4,0.2,0.2,0.1,0.1]; or even,
            for half clean images and half defective ones in equal classes. By default every image comes once.
        blackout: Share of training images (0 to 1) in which the defects of one class are painted over with steel.
        paste: Share of training images (0 to 1) into which a defect of another image is blended, preferably a rare one.
        augmentation: File with an albumentations pipeline (albumentations.save as YAML) for training images, applied
            after crop, flips, brightness and contrast; conf/surfaces.yaml is shipped with steel.
        batch_size: Images per batch and device.
        fractions: Shares of train, val and test; used if there is no splits.csv.
        split_seed: Seed of the split; used if there is no splits.csv.
        fold: The fold to test on, if splits.csv has folds; the next fold is val, the others are train.
        seed: Seed of order and augmentation.
        num_workers: Number of threads that load images, or of processes if a CUDA GPU trains with an augmentation file;
            by default one less than the number of cores, at most 8.
        pin_memory: Whether to load into page-locked memory; by default if a CUDA GPU reads it.
        cache: Where to keep all images decoded. Memory keeps them in each process; disk keeps them in ~/.cache/steel
            (or under XDG_CACHE_HOME) for all processes and later runs. By default images are decoded when needed.
        predict: Images without labels for trainer.predict, which does not read the root: a folder, a file or a pattern.

    Raises:
        InputError: A value is out of range.
    """

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
        predict: str | None = None,
    ) -> None:
        super().__init__()
        require_at_least(1, **{"data.batch_size": batch_size, "data.num_classes": num_classes})
        require_at_least(0, **{"data.seed": seed, "data.split_seed": split_seed, "data.num_workers": num_workers})
        for name, share in (("defect_share", defect_share), ("blackout", blackout), ("paste", paste)):
            if not 0 <= share <= 1:
                raise InputError(f"data.{name} must be in [0, 1], got {share}")
        if crop and (min(crop) < 1 or crop[0] * crop[1] > _MAX_CROP):
            raise InputError(
                f"data.crop must be a height and width of at least 1 pixel and at most {_MAX_CROP:,} pixels in all, "
                f"got {list(crop)}"
            )
        self.root = Path(root)
        self.batch_size = batch_size
        self.seed = seed
        self._num_classes = num_classes
        self._crop = crop
        self._build_augmentation = partial(Augmentation, crop, defect_share, blackout=blackout, paste=paste)
        self._has_paste = paste > 0
        self._pipeline = augmentation
        self._shares = shares
        self._fractions = fractions
        self._split_seed = split_seed
        self._fold = fold
        self._num_workers = min(8, count_cores() - 1) if num_workers is None else num_workers
        self._pin_memory = pin_memory
        self._cache = cache
        self._predict = predict
        self._decoded: DecodedImages | None = None
        self._annotations: Annotations | None = None
        self._split: Split | None = None

    @property
    def annotations(self) -> Annotations:
        """The table of labels, read on first access; an error in the dataset raises InputError."""
        if self._annotations is None:
            self._annotations = read_annotations(self.root, self._num_classes)
        return self._annotations

    @property
    def split(self) -> Split:
        """The split of `recall`, or else of splits.csv, or else a new one; see `splits.choose_split`."""
        if self._split is None:
            self._split = choose_split(self.annotations, self._fractions, self._split_seed, self._fold)
        return self._split

    @property
    def has_fixed_size(self) -> bool:
        """True if all training batches have the same shape."""
        sizes = self.annotations.sizes[self.split.indices("train")]
        return self._crop is not None or bool((sizes == sizes[0]).all())

    def recall(self, data: DataRecord, source: Path) -> None:
        """Use the split of a checkpoint (`source`) with this result of `describe`; see `splits.recall_split`.

        Raises:
            InputError: The checkpoint's classes or split do not fit the dataset.
        """
        self.require_classes(data, source)
        self._split = recall_split(self.annotations, data, source, self._fold)

    def recall_fold(self, fold: int | None, source: str) -> None:
        """Use the fold of a network (`source`) if splits.csv has folds. The split must not be in use yet.

        Raises:
            InputError: The file has folds, but the network was trained without.
        """
        if has_folds(path := self.root / "splits.csv", self.annotations):
            self._fold = require_fold(fold, source, path)

    def require_classes(self, data: DataRecord, source: Path) -> None:
        """Check that the dataset has the classes of a checkpoint (`source`) with this result of `describe`.

        Raises:
            InputError: The classes differ.
        """
        unnamed = [str(c + 1) for c in range(len(data["classes"]))]
        if list(self.annotations.classes) not in (list(data["classes"]), unnamed):
            raise InputError(
                f"{source} has the classes {', '.join(data['classes'])}, but {self.root} has "
                f"{', '.join(self.annotations.classes)}; set --data.num_classes or use another checkpoint or dataset"
            )

    def describe(self) -> DataRecord:
        """Return the record of the data that a checkpoint stores."""
        return {
            "root": str(self.root),
            "classes": list(self.annotations.classes),
            "digest": self.annotations.digest,
            "split": self.split.digest,
            "members": self.split.members(),
            "groups": self.split.name_groups(),
            "fold": self._fold,
            "seed": self.seed,
            "batch_size": self.batch_size,
        }

    def setup(self, stage: str) -> None:
        """Read the dataset and check that the parts for a stage have an image for every process.

        Raises:
            InputError: A part has too few images, the dataset has an error, or there is no image to predict.
        """
        if stage == "predict":
            assert self.predict_paths  # not empty, else it raises
            return
        for part in {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}[stage]:
            num_images, num_processes = len(self.split.indices(part)), self._ranks()[1]
            if num_images == 0:
                raise InputError(f"the part {part} of {self.root} has no image; add some in splits.csv")
            if num_images < num_processes:
                raise InputError(
                    f"the part {part} of {self.root} has {format_count(num_images, 'image')}, but each of "
                    f"{num_processes} processes needs one; add some in splits.csv, or lower --trainer.devices"
                )

    def train_dataloader(self) -> Loader:
        """Return the loader of shuffled, augmented batches; after a resume it starts where the run stopped."""
        annotations, train = self.annotations, self.split.indices("train")
        pipeline = Pipeline(self._pipeline) if self._pipeline else None
        augmentation = self._build_augmentation(num_classes=annotations.num_classes, pipeline=pipeline)
        donors = [train[has_class[train]] for has_class in annotations.labels.T] if self._has_paste else []
        progress, ranks, labels = self._progress, self._ranks(), annotations.labels
        batches = ShuffledBatches(
            train, self.batch_size, self.seed, progress, ranks=ranks, labels=labels, shares=self._shares
        )
        # A CPU takes many times as long to train on a crop as a thread takes to load it, in spite of the lock.
        use_processes = pipeline is not None and self._feeds_gpu()
        return self._build_loader(batches, augmentation, donors, use_processes=use_processes)

    def val_dataloader(self) -> Loader:
        """Return the loader of val; see `images_dataloader`."""
        return self.part_dataloader("val")

    def test_dataloader(self) -> Loader:
        """Return the loader of test; see `images_dataloader`."""
        return self.part_dataloader("test")

    @cached_property
    def predict_paths(self) -> list[Path]:
        """The images of `predict`, sorted by size and then by name; predictions are in this order.

        Raises:
            InputError: No images are given or found, or one is unreadable.
        """
        if self._predict is None:
            raise InputError(
                "there are no images to predict; give SteelDataModule(..., predict=FOLDER), or a loader, as in "
                "trainer.predict(task, data.test_dataloader())"
            )
        return sorted(find_images(self._predict), key=lambda path: (read_size(path), path))

    def predict_dataloader(self) -> Loader:
        """Return the loader of `predict_paths`, whose masks are empty; a batch has one image size."""
        paths = self.predict_paths
        table = list_unlabelled(paths)
        batches = build_sized_batches(np.arange(len(paths)), table.sizes, self.batch_size, self._ranks())
        samples = Samples(table, None, self.seed, read_image=lambda i: read_grey(paths[i]))
        return Loader(samples, batches, self._num_workers, self._should_pin())

    def part_dataloader(self, part: str) -> Loader:
        """Return the loader of any part; see `images_dataloader`."""
        return self.images_dataloader(self.split.indices(part))

    def images_dataloader(self, indices: NDArray[np.int64]) -> Loader:
        """Return a loader of whole images without augmentation, by rows of the table; a batch has one image size."""
        return self._build_loader(build_sized_batches(indices, self.annotations.sizes, self.batch_size, self._ranks()))

    def _build_loader(
        self,
        batches: ShuffledBatches | Sequence[list[Place]],
        augmentation: Augmentation | None = None,
        donors: Sequence[NDArray[np.int64]] = (),
        *,
        use_processes: bool = False,
    ) -> Loader:
        table = self.annotations
        if self._cache and self._decoded is None:
            self._decoded = open_images(self._cache, table.list_paths(), table.sizes, table.read_image)
        samples = Samples(table, augmentation, self.seed, donors=donors, read_image=self._decoded)
        return Loader(samples, batches, self._num_workers, self._should_pin(), use_processes)

    def _should_pin(self) -> bool:
        return self._feeds_gpu() if self._pin_memory is None else self._pin_memory

    def _feeds_gpu(self) -> bool:
        # Without a trainer, the device is not known.
        return torch.cuda.is_available() and (self.trainer is None or self.trainer.strategy.root_device.type == "cuda")

    def _progress(self) -> tuple[int, int]:
        if self.trainer is None:
            return 0, 0
        return self.trainer.current_epoch, self.trainer.fit_loop.epoch_loop.batch_progress.current.ready

    def _ranks(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
