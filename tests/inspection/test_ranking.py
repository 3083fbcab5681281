"""Doubt at the operating point, the order of images, and the sentences that explain it."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from bright import write_png
from steel.decision.inspector import Inspector, Probabilities
from steel.decision.point import OperatingPoint
from steel.inspection.doubt import compare_masks, measure_label_doubt
from steel.inspection.ranking import choose_distinct, combine, explain, rank_images
from steel.inspection.records import Record, Unreadable

POINT = replace(OperatingPoint.untuned(2), gate=0.5, label=(0.0, 0.8))


def record(name: str, probabilities: tuple[float, float], **more: object) -> Record:
    is_defective = max(probabilities) >= POINT.gate
    areas = [10 if is_defective else 0, 0]
    found = Record(name, is_defective, max(probabilities), probabilities, areas, (4, 4), ["", ""], [])
    return found._replace(**{"mask_doubt": 0.0, **more})


@pytest.mark.parametrize(
    ("probabilities", "value", "class_index", "threshold"),
    [
        ((0.5, 0.1), 1.0, 0, 0.5),
        ((0.2, 0.731058), 0.80924, 1, 0.8),  # 1 from the gate, but nearer to its label threshold
        ((0.731058, 0.0), 2 * 0.268941, 0, 0.5),
        ((0.268941, 0.0), 2 * 0.268941, 0, 0.5),
        ((0.1, 0.2), 0.4, 1, 0.5),  # the label threshold does not count on an image that the gate rejects
        ((1.0, 0.0), 2e-6, 0, 0.5),
    ],
)
def test_doubt_about_labels_is_the_distance_to_the_nearest_threshold(
    probabilities: tuple[float, float], value: float, class_index: int, threshold: float
) -> None:
    doubt = measure_label_doubt(probabilities, POINT)
    assert (doubt.class_index, doubt.threshold) == (class_index, threshold)
    assert doubt.value == pytest.approx(value, rel=1e-3)


def test_doubt_about_masks_equals_brute_force() -> None:
    generator = torch.Generator().manual_seed(0)
    point = replace(OperatingPoint.untuned(2), gate=0.3, pixel=(0.4, 0.9), smallest_spot=(2, 0), smallest_area=(3, 30))
    pixels = torch.rand(40, 2, 6, 7, generator=generator) ** 2
    classes = torch.rand(40, 2, generator=generator)
    pixels[0], classes[0] = 0, 1.0  # passes the gate, but nothing is outlined
    inspector = Inspector(nn.Identity(), nn.Identity(), point).eval()
    found = compare_masks(inspector, Probabilities(classes, pixels)).numpy()
    for i in range(40):
        if classes[i].max() < 0.3:
            assert found[i] == 0
            continue
        areas = []
        for step in (-1, 1):
            total = 0
            for c in range(2):
                t = point.pixel[c]
                mask = pixels[i, c].numpy() >= 1 / (1 + np.exp(-(np.log(t / (1 - t)) + step)))
                num, spots = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
                sizes = [int((spots == spot).sum()) for spot in range(1, num)]
                area = sum(size for size in sizes if size >= point.smallest_spot[c])
                total += area if area >= point.smallest_area[c] else 0
            areas.append(total)
        assert found[i] == pytest.approx(1 - areas[1] / max(1, areas[0])), i
    assert found[0] == 1
    assert np.count_nonzero((found > 0) & (found < 1)) > 5


def test_the_score_is_the_larger_share_of_images_below() -> None:
    scores, is_novel = combine(np.array([0.1, 0.9, 0.5, 0.5]), np.array([3.0, 0.1, 0.2, 0.3]))
    assert scores.tolist() == [1.0, 1.0, 0.625, 0.75]
    assert is_novel.tolist() == [True, False, False, True]
    scores, is_novel = combine(np.array([0.1, 0.9]), np.array([np.nan, np.nan]))
    assert scores.tolist() == [0.5, 1.0]
    assert not is_novel.any()


def test_images_are_ranked_and_unreadable_ones_are_left_out() -> None:
    records = [record("a", (0.9, 0.0)), Unreadable("b", "broken"), record("c", (0.5, 0.0)), record("d", (0.01, 0.0))]
    ranking = rank_images(iter(records), POINT)
    assert ranking.images == ["c", "a", "d"]
    assert ranking.scores.tolist() == pytest.approx([1, 2 / 3, 1 / 3])
    doubtful = [*records, record("e", (0.99, 0.0), mask_doubt=1.0)]
    assert set(rank_images(doubtful, POINT).images[:2]) == {"c", "e"}
    assert rank_images([], POINT).images == []


def test_scenes_are_searched_until_there_are_enough(tmp_path: Path) -> None:
    """The first eight images are one scene, so that more than twice the number must be compared."""
    rng = np.random.default_rng(0)
    scenes = [cv2.GaussianBlur(rng.normal(128, 60, (64, 96)), (3, 3), 0).clip(0, 255) for _ in range(3)]
    paths = [tmp_path / f"{i}.png" for i in range(10)]
    for i, path in enumerate(paths):
        write_png(path, np.roll(scenes[max(0, i - 7)], i, axis=1).astype(np.uint8))
    assert choose_distinct(paths, [], 3) == [0, 8, 9]
    assert choose_distinct(paths, [paths[9]], 3) == [0, 8]
    assert choose_distinct([], [], 3) == []


@pytest.mark.parametrize(
    ("found", "is_novel", "part"),
    [
        (record("a", (0.52, 0.1)), False, "shows pits: the probability is 0.52, and the gate is 0.50."),
        (record("a", (0.1, 0.79)), False, "shows crack: the probability is 0.79, and the threshold is 0.80."),
        (record("a", (0.9, 0.1), mask_doubt=0.62), False, "other pixel thresholds would change 62% of their pixels."),
        (
            record("a", (0.9, 0.1), mask_doubt=1.0, areas=[0, 0]),
            False,
            "passes the gate, but nothing is outlined on it.",
        ),
        (record("a", (0.1, 0.1), novelty=1.5), True, "It is unlike any clean steel seen: its novelty is 1.50"),
        (
            record("a", (0.1, 0.1), novelty=0.8),
            True,
            "It is among the images least like clean steel: its novelty is 0.80",
        ),
    ],
)
def test_the_sentence_names_what_decided(found: Record, is_novel: bool, part: str) -> None:
    sentence = explain(found, is_novel, POINT, ["pits", "crack"])
    assert part in sentence
    assert sentence.endswith(".")
