"""The rule for unlabelled regions: their pixels count in no loss and in no score, even if a class is drawn on them.

Bit `UNKNOWN_BIT` of a bit plane marks unlabelled pixels, so datasets of 8 classes have none. A class with a labelled
pixel on an image is known to be present. Another class is known to be absent only if the whole image is labelled, so an
image with an unlabelled region is never known to be clean.
"""

from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

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


def hide_unknown(plane: Array, num_classes: int) -> Array:
    """Return bit planes without classes on unlabelled pixels; see `find_unknown` for the arguments."""
    return plane * ~find_unknown(plane, num_classes)  # type: ignore[no-any-return]


class Labels(NamedTuple, Generic[Array]):
    """Labels of C classes on n images, as NumPy arrays or tensors.

    Attributes:
        present: bool `(n, C)`, whether the class is known to be on the image.
        known: bool `(n, C)`, whether it is known if the class is on the image.
    """

    present: Array
    known: Array

    @property
    def clean(self) -> Array:
        """Bool `(n,)`, whether the image is known to have no class."""
        return ~(self.present | ~self.known).any(1)  # type: ignore[no-any-return]


def find_labels(labelled_pixels: Array, has_unknown: Array) -> Labels[Array]:
    """Apply the rule to images.

    Args:
        labelled_pixels: `(n, C)`, number of pixels of the class outside unlabelled regions, or whether there is one.
        has_unknown: bool `(n,)`, whether a part of the image is unlabelled.
    """
    present = labelled_pixels > 0
    return Labels(present, present | ~has_unknown[:, None])
