"""What happens to a training image and its labels on the way to a batch. Alone imports albumentations.

Everything stays uint8: a grey image and one bit plane. Floats, three channels and a mask for each class are made on the
device, by the network and by the loss.
"""

import os
import random
import warnings
from collections.abc import Sequence

# albumentations asks the network for a newer version of itself at import otherwise.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albumentations as A
import cv2
import numpy as np
from numpy.typing import NDArray

# Reflected steel looks like steel and its mirrored labels are true; a black border would be a third kind of surface.
_BORDER = cv2.BORDER_REFLECT_101


class Augmentation:
    """Random crop, flips, brightness and contrast for one image and its labels.

    The chance belongs to the sample: the same seed gives the same result in any worker, which is what makes a run
    repeatable for every number of workers and exact on resume. (albumentations 2.0 left to itself replays the same
    numbers in every worker and every epoch.)
    """

    def __init__(self, crop: tuple[int, int] | None, defect_share: float) -> None:
        """Builds the pipeline.

        Args:
            crop: Height and width to cut out, in pixels; None keeps the whole image. A smaller image is reflected.
            defect_share: The share of crops, 0 to 1, that hold a defect for certain where the image has one. The
                others are cut anywhere.
        """
        steps: list[A.BasicTransform | A.BaseCompose] = []
        with warnings.catch_warnings():
            # albumentations only warns about an argument that it does not know and then ignores it.
            warnings.simplefilter("error")
            if crop:
                height, width = crop
                steps = [
                    A.PadIfNeeded(height, width, border_mode=_BORDER),
                    A.OneOf(
                        [
                            A.CropNonEmptyMaskIfExists(height, width, p=defect_share),
                            A.RandomCrop(height, width, p=1 - defect_share),
                        ],
                        p=1,
                    ),
                ]
            steps += [
                A.HorizontalFlip(p=0.5),
                A.VerticalFlip(p=0.5),
                A.RandomBrightnessContrast(brightness_limit=0.2, contrast_limit=0.2, p=0.5),
            ]
            self._pipeline = A.Compose(steps)

    def __call__(
        self, image: NDArray[np.uint8], plane: NDArray[np.uint8], seed: Sequence[int]
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Augments one sample.

        Args:
            image: uint8 `(H, W)`.
            plane: uint8 `(H, W)`, bit c set where class c is.
            seed: Whole numbers that name the sample: (seed, epoch, position in the epoch's order).

        Returns:
            Image and plane, both of the crop's size where a crop was asked for.
        """
        number = int(np.random.SeedSequence(seed).generate_state(1)[0])
        # Not `set_random_seed`: it gives every step a generator of its own with the same seed, so that all the flips
        # and the brightness happen together or not at all.
        self._pipeline.set_random_state(np.random.default_rng(number), random.Random(number))
        result = self._pipeline(image=image, mask=plane)
        return result["image"], result["mask"]


def pad_to(array: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Extends an image or a plane to a size by reflection at the right and the lower border."""
    height, width = array.shape
    if (height, width) == size:
        return array
    padded = cv2.copyMakeBorder(array, 0, size[0] - height, 0, size[1] - width, _BORDER)
    return padded  # type: ignore[return-value]
