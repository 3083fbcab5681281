"""The model card says in plain words what an exported file was made from, what to expect, and how to check it."""

import html
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from steel.decision.about import About, TrainedNetwork
from steel.decision.drift import build_reference
from steel.decision.plain import to_plain
from steel.decision.point import OperatingPoint
from steel.decision.tuning import Aim, ChosenOn, NetworkHashes, Promise, Tuning
from steel.inspection.card import format_card
from steel.intervals import Interval

DATA = {"digest": "d" * 16, "split": "e" * 16, "num_images": 1200}
VERSIONS = {"steel": "0.2", "commit": "abc123", "torch": "2.11"}


@pytest.fixture
def about() -> About:
    promises = (
        Promise("defects found, 1 a", 200, 0.95, 0.96, Interval(0.91, 0.98), Interval(0.9, 0.99), 200),
        Promise("defects found, 2 <b>", 4, 0.5, 0.5, Interval(0.15, 0.85), Interval(0, 1), 4),
    )
    chosen_on = ChosenOn("data", "val", "d" * 16, "e" * 16, 300, 60)
    tuned = Tuning(Aim("recall", share=0.9), chosen_on, NetworkHashes((), (), False), promises, ("recall is low",))
    rng = np.random.default_rng(0)
    reference = build_reference(rng.random((60, 4)), rng.random((60, 2)), np.arange(60))
    networks = tuple(
        TrainedNetwork(task, {"encoder": "resnet18", "weights": None, "scale": 0.5}, DATA, VERSIONS)
        for task in ("DefectClassifier", "DefectSegmenter")
    )
    return About(
        ("a", "<b>"), OperatingPoint.untuned(2), tuned, False, networks[:1], networks[1:], reference,
        versions=VERSIONS, license="Apache-2.0", description="cold-rolled, camera 3 of line 2",
    )  # fmt: skip


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "inspector.pt").write_bytes(b"the program")
    return tmp_path / "inspector.pt"


def read(page: str) -> str:
    return " ".join(html.unescape(re.sub("<style>.*?</style>|<[^>]+>", " ", page, flags=re.DOTALL)).split())


def test_the_card_names_purpose_data_performance_and_limits(path: Path, about: About) -> None:
    text = read(format_card(path, about))
    for part in (
        "Classes: 1 a, 2 <b>.",
        "cold-rolled, camera 3 of line 2",
        "DefectSegmenter (resnet18) random 0.5 1,200 dddddddddddddddd eeeeeeeeeeeeeeee steel 0.2 (abc123)",
        "chosen on 300 images in 60 groups",
        "at least 90.0% of the defects of every class",
        "defects found, 1 a 200 0.950 (0.910 to 0.980) 0.900 to 0.990 (of 200)",
        "defects found, 2 <b> 4 0.500 (0.150 to 0.850) too wide to tell",
        "fewer than 30 images or defects, so expect little of: defects found, 2 <b> (4).",
        "Recall is low.",
        "every 200 images with the 60 images",
        "sharpness",
    ):
        assert part in text, part


def test_the_number_of_training_images_is_that_of_the_checkpoint(path: Path, about: About) -> None:
    [network] = about.segmenters
    members = {"train": ["a.png", "b.png"], "val": ["c.png"], "test": []}
    saved = {"task": network.task, "init": network.init, "versions": VERSIONS}
    for data, num in (({"members": members, "groups": {}, "root": "data"}, "2"), ({}, "not stated")):
        data = {"digest": "d", "split": "e", **data}
        trained = TrainedNetwork.from_dict({**saved, "data": data})
        assert TrainedNetwork.from_dict(to_plain(trained)) == trained
        assert f" random 0.5 {num} d e " in read(format_card(path, replace(about, segmenters=(trained,))))


def test_the_card_promises_nothing_about_drift_if_no_group_is_known(path: Path, about: About) -> None:
    assert about.reference is not None
    assert "Without drift, at most 1% of the windows" in read(format_card(path, about))
    ungrouped = replace(about.reference, level=np.nan, run_length=np.nan)
    text = read(format_card(path, replace(about, reference=ungrouped)))
    assert "Nothing is promised about false drift warnings, because the groups of the images are not known." in text
    assert "nan" not in text


def test_the_card_has_the_hash_of_the_file(path: Path, about: About) -> None:
    assert "SHA-256 of inspector.pt: 12ab." in read(format_card(path, replace(about, sha256="12ab")))


def test_an_untuned_file_promises_nothing(path: Path, about: About) -> None:
    text = read(format_card(path, replace(about, tuned=None, reference=None, description="")))
    assert "not tuned, and nothing is known about its performance" in text
    assert "not stated; give --description to steel export" in text
    assert "Drift is not monitored" in text
    assert "on new images" not in text.replace("performance on new images", "")


@pytest.mark.parametrize(
    ("aim", "words"),
    [
        (Aim("cost", (5.0, 2.0), (1.0, 1.0)), "a missed defect costs 5, 2 (by class) and a false alarm 1"),
        (Aim("false_alarms", share=0.02), "masks on at most 2.0% of the clean images"),
        (Aim("kaggle_dice"), "the highest Kaggle Dice"),
    ],
)
def test_the_aim_is_in_words(path: Path, about: About, aim: Aim, words: str) -> None:
    assert about.tuned
    assert words in read(format_card(path, replace(about, tuned=replace(about.tuned, aim=aim))))
