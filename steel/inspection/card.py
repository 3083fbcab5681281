"""The model card: a page in plain words about an exported file, from its metadata. `steel export` writes it."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from steel.decision.about import About, TrainedNetwork
from steel.decision.drift import Reference
from steel.decision.measures import MEASURES
from steel.decision.tuning import Aim, Promise, Tuning
from steel.pages import Page
from steel.wording import format_count, name_classes

_FEW = 30  # defects or images; promises from fewer are named as a limit


def format_card(path: Path, about: About) -> str:
    """Return the model card of an exported file as a self-contained HTML page.

    Args:
        path: The file.
        about: Its metadata, with its digest.
    """
    page = Page(f"Model card of {path.name}", path.parent)
    _add_purpose(page, about)
    _add_training(page, about)
    _add_performance(page, about)
    _add_limits(page, about)
    _add_drift(page, about)
    _add_checks(page, path.name, about)
    return page.render()


def _add_purpose(page: Page, about: About) -> None:
    page.add_text(
        "This file finds and outlines surface defects on grey images of steel strip. For each image it gives the "
        "probability that the image is defective, the probability of each class, and a mask of each class. A person "
        "decides what happens to the steel."
    )
    page.add_text(f"Classes: {', '.join(name_classes(about.classes))}.")
    stated = about.description or "not stated; give --description to steel export"
    page.add_text(f"Steel and camera that it is for: {stated}.")


def _add_training(page: Page, about: About) -> None:
    page.add_heading("Networks and training data")
    rows = [_describe_network(network) for network in (*about.classifiers, *about.segmenters)]
    page.add_table(pd.DataFrame(rows), "The networks; data and split are digests of the labels and of the split")
    if about.flips:
        page.add_text("Probabilities are averaged over four flips of each image.")


def _describe_network(network: TrainedNetwork) -> dict[str, str]:
    init = network.init
    return {
        "network": f"{network.task} ({init.get('encoder') or init.get('backbone')})",
        "initial weights": str(init.get("weights") or "random"),
        "image scale": str(init.get("scale")),
        "training images": "not stated" if network.num_images is None else f"{network.num_images:,}",
        "data": network.digest,
        "split": network.split,
        "trained with": f"steel {network.versions.get('steel')} ({network.versions.get('commit')})",
    }


def _add_performance(page: Page, about: About) -> None:
    page.add_heading("Operating point and expected performance")
    point = about.operating_point
    table = pd.DataFrame(
        {
            "class": name_classes(about.classes),
            "label threshold": [f"{value:.3f}" for value in point.label],
            "pixel threshold": [f"{value:.3f}" for value in point.pixel],
            "smallest spot": point.smallest_spot,
            "smallest area": point.smallest_area,
        }
    )
    page.add_table(table, f"Operating point: gate threshold {point.gate:.3f}; sizes in pixels")
    if not about.tuned:
        page.add_text("The thresholds were not tuned, and nothing is known about its performance on new images.")
        return
    on = about.tuned.chosen_on
    page.add_text(
        f"The thresholds were chosen on {format_count(on.num_images, 'image')} in "
        f"{format_count(on.num_groups, 'group')} that the networks were not trained on ({on.part}; data {on.data}, "
        f"split {on.split}), for {_describe_aim(about.tuned.aim)}."
    )
    rows = [_describe_promise(promise) for promise in about.tuned.promises]
    page.add_table(pd.DataFrame(rows), "Expected on new images like these, with 95 % intervals")


def _describe_aim(aim: Aim) -> str:
    match aim.name:
        case "cost":
            miss, alarm = map(_list_costs, (aim.miss_cost, aim.alarm_cost))
            return f"the lowest cost, where a missed defect costs {miss} and a false alarm {alarm}"
        case "recall":
            return (
                f"finding at least {aim.share:.1%} of the defects of every class, claimed with {aim.confidence:.0%} "
                f"confidence, at the fewest false alarms"
            )
        case "false_alarms":
            return f"masks on at most {aim.share:.1%} of the clean images and as many defects found as that allows"
        case "kaggle_dice":
            return "the highest Kaggle Dice"


def _list_costs(costs: Sequence[float]) -> str:
    numbers = [f"{cost:g}" for cost in costs]
    return numbers[0] if len(set(numbers)) == 1 else f"{', '.join(numbers)} (by class)"


def _describe_promise(promise: Promise) -> dict[str, str]:
    expected, new = promise.describe()
    new += "" if promise.is_too_wide else f" (of {promise.num_new:,})"
    return {"": promise.name, "measured on": f"{promise.num:,}", "expected": expected, "on new images": new}


def _add_limits(page: Page, about: About) -> None:
    page.add_heading("Limits")
    for limit in _list_limits(about.tuned, about):
        page.add_text(f"{limit}.")


def _list_limits(tuned: Tuning | None, about: About) -> Iterator[str]:
    yield "Nothing is known about another mill, camera, exposure or steel grade: tune and evaluate again there"
    if about.novelty is None:
        yield "It knows only the classes above, and calls every other kind of defect clean or one of these"
    else:
        yield "It names only the classes above; other defects can be reported as unlike clean steel, without a name"
        yield f"Of novelty: {about.novelty.promise}"
    if any(not network.init.get("weights") for network in (*about.classifiers, *about.segmenters)):
        yield "Networks were trained from random weights; pretrained weights are usually better"
    if tuned is None:
        return
    few = [f"{promise.name} ({promise.num:,})" for promise in tuned.promises if promise.num < _FEW]
    if few:
        yield f"Measured on fewer than {_FEW} images or defects, so expect little of: {'; '.join(few)}"
    for warning in tuned.warnings:
        yield warning[:1].upper() + warning[1:]


def _add_drift(page: Page, about: About) -> None:
    page.add_heading("Drift limits")
    if (reference := about.reference) is None:
        page.add_text("Drift is not monitored: the thresholds were chosen on too few images or groups.")
        return
    page.add_text(
        f"steel inspect and steel serve compare every {reference.window:,} images with the {reference.num_images:,} "
        f"images that the thresholds were chosen on, and warn if they differ."
    )
    page.add_text(f"{reference.promise[0].upper()}{reference.promise[1:]}.")
    page.add_table(pd.DataFrame(_describe_reference(reference)), "The images that the thresholds were chosen on")


def _describe_reference(reference: Reference) -> list[dict[str, str]]:
    return [
        {
            "": name,
            "median": f"{sketch.median:.3g}",
            "most images between": f"{sketch.cuts[0]:.3g} and {sketch.cuts[-1]:.3g}",
            "warning above (distance)": f"{sketch.limit:.3g}",
        }
        for name, sketch in zip(MEASURES, reference.sketches, strict=False)
    ]


def _add_checks(page: Page, name: str, about: About) -> None:
    page.add_heading("How to check the file")
    page.add_text(f"SHA-256 of {name}: {about.sha256}. Compare it with the output of: sha256sum {name}")
    if about.format == "torchscript":
        page.add_text(
            "steel inspect and steel serve run the file's self-test whenever they load it, on an example image inside "
            "the file, and refuse a file that gives other results than when it was exported."
        )
    page.add_text("steel export compared the file with the trained networks before writing it.")
    versions = ", ".join(f"{name} {about.versions.get(name)}" for name in ("steel", "commit", "torch"))
    page.add_text(f"Format {about.format}, precision {about.precision}; written by {versions}. {about.license}.")
