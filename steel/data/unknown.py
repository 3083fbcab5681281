"""The rule for unlabelled regions: they count in no loss and in no score.

Bit `UNKNOWN_BIT` of a bit plane marks unlabelled pixels, so datasets of 8 classes have none. A class that is visible on
an image is known to be present. A class that is not visible is known to be absent only if the whole image is labelled.
"""

from typing import TYPE_CHECKING, Any, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from steel.data.rle import UNKNOWN_BIT

if TYPE_CHECKING:
    from torch import Tensor

Mask = TypeVar("Mask", NDArray[np.bool_], "Tensor")


@overload
def find_unknown(plane: "Tensor", num_classes: int) -> "Tensor": ...
@overload
def find_unknown(plane: NDArray[np.uint8], num_classes: int) -> NDArray[np.bool_]: ...
def find_unknown(plane: Any, num_classes: int) -> Any:
    """Return which pixels of bit planes are unlabelled.

    Args:
        plane: uint8 `(..., H, W)`, NumPy or torch.
        num_classes: C. With 8 classes every bit is a class, so every pixel is labelled.

    Returns:
        bool, with the shape of `plane`.
    """
    if num_classes > UNKNOWN_BIT:
        return plane != plane
    return plane >= 1 << UNKNOWN_BIT


def find_known_labels(labels: Mask, has_unknown: Mask) -> Mask:
    """Return which labels of images are known.

    Args:
        labels: bool `(n, C)`, whether the class is visible on the image; NumPy or torch.
        has_unknown: bool `(n,)`, whether a part of the image is unlabelled.

    Returns:
        bool `(n, C)`.
    """
    return labels | ~has_unknown[:, None]
