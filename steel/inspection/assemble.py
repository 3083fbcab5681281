"""An inspector from two checkpoints that belong together."""

from typing import Any, NamedTuple

from steel.errors import InputError
from steel.inspection.inspector import Inspector, OperatingPoint
from steel.training.fit import load_task
from steel.training.tasks import DefectClassifier, DefectSegmenter


class Assembly(NamedTuple):
    """An inspector and where it comes from.

    Attributes:
        inspector: In evaluation mode, on the CPU.
        point: Its operating point.
        classes: The names of the C classes.
        classifier: What the classifier's checkpoint says of itself.
        segmenter: What the segmenter's checkpoint says of itself.
    """

    inspector: Inspector
    point: OperatingPoint
    classes: tuple[str, ...]
    classifier: dict[str, Any]
    segmenter: dict[str, Any]

    def describe(self) -> dict[str, Any]:
        """What stands beside every result: classes, operating point, networks, data and split of both."""

        def summarise(about: dict[str, Any]) -> dict[str, Any]:
            data = {key: value for key, value in about["data"].items() if key not in ("members", "root")}
            return {"task": about["task"], "init": about["init"], "data": data, "versions": about["versions"]}

        return {
            "classes": list(self.classes),
            "operating_point": self.point.to_dict(),
            "classifier": summarise(self.classifier),
            "segmenter": summarise(self.segmenter),
        }


def assemble(classifier: str, segmenter: str) -> Assembly:
    """Loads two checkpoints as an inspector, at the untuned operating point.

    Args:
        classifier: Checkpoint of a DefectClassifier.
        segmenter: Checkpoint of a DefectSegmenter.

    Raises:
        InputError: A file is no such checkpoint, or the two know other classes.
    """
    gate, about_gate = load_task(classifier, DefectClassifier)
    outline, about_outline = load_task(segmenter, DefectSegmenter)
    classes, others = about_gate["data"]["classes"], about_outline["data"]["classes"]
    if classes != others:
        raise InputError(
            f"{classifier} knows the classes {', '.join(classes)}, but {segmenter} knows {', '.join(others)}; "
            f"train both on the same data set"
        )
    point = OperatingPoint.untuned(len(classes))
    inspector = Inspector(gate.network, outline.network, point).eval()
    return Assembly(inspector, point, tuple(classes), about_gate, about_outline)
