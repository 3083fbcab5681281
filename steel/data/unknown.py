"""The rule for unlabelled regions: they count in no loss and in no score.

Bit `UNKNOWN_BIT` of a bit plane marks unlabelled pixels, so datasets of 8 classes have none. A class that is visible on
an image is known to be present. A class that is not visible is known to be absent only if the whole image is labelled.
"""

from typing import TYPE_CHECKING, Any, TypeVar

from numpy.typing import NDArray

from steel.data.rle import UNKNOWN_BIT

if TYPE_CHECKING:
    from torch import Tensor

Array = TypeVar("Array", NDArray[Any], "Tensor")


def find_unknown(plane: Array, num_classes: int) -> Array:
    """Return which pixels are unlabelled, bool with the shape of `plane`.

    Args:
        plane: Bit planes, uint8 `(..., H, W)`, NumPy or torch.
        num_classes: C. With 8 classes every bit is a class, so every pixel is labelled.
    """
    return plane != plane if num_classes > UNKNOWN_BIT else plane >= 1 << UNKNOWN_BIT


def find_known_labels(labels: Array, has_unknown: Array) -> Array:
    """Return which labels of images are known, bool `(n, C)`, NumPy or torch.

    Args:
        labels: bool `(n, C)`, whether the class is visible on the image.
        has_unknown: bool `(n,)`, whether a part of the image is unlabelled.
    """
    return labels | ~has_unknown[:, None]  # type: ignore[no-any-return]
