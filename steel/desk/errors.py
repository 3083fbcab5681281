"""Errors of a single request, independent of HTTP; `service` maps each class to a status."""


class DeskError(Exception):
    """Base class: a request that cannot be answered. The message is one sentence for the client."""


class InvalidRequestError(DeskError):
    """An option, a form, an image or a verdict is invalid."""


class UnsupportedImageError(DeskError):
    """The file is not in an accepted image format."""


class ImageTooLargeError(DeskError):
    """The image has more pixels than the service accepts."""


class NameTakenError(DeskError):
    """Another image with the same name already has a verdict; labels identify images by name."""


class VerdictChangedError(DeskError):
    """The verdict on an image is not the one that the client has seen."""

    def __init__(self) -> None:
        super().__init__("the verdict on this image has changed; read it at /v1/verdicts/DIGEST and decide again")


class NotInspectedError(DeskError):
    """The image of a verdict has not been inspected, or had another size."""

    def __init__(self) -> None:
        super().__init__("the service has not inspected this image since it was started; inspect it first")


class QueueFullError(DeskError):
    """No places are left in the queue, or the service is stopping or occupied by slow images."""

    def __init__(self) -> None:
        super().__init__("the service is full, stopping, or busy with slow images; try again in a second")


class InspectorError(DeskError):
    """The inspector raised an error or returned NaN for an image."""
