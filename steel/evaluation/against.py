"""`steel evaluate --against`: whether a new inspector is better than the old one, on the same images.

Both inspectors judge every image, and the scores are compared image by image. What makes an image hard for both drops
out of the difference, so a difference can be shown with fewer images than two separate intervals need.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from steel.decision.about import About
from steel.decision.tuning import Aim
from steel.evaluation.judging import Decisions
from steel.evaluation.scores import list_costs
from steel.intervals import Interval, Ratio, bootstrap
from steel.pages import Page
from steel.training.metrics import list_mask_ratios
from steel.wording import format_table, wrap

Outcome = Literal["better", "worse", "no difference"]


class Difference(NamedTuple):
    """A score of two inspectors on the same images.

    Attributes:
        name: The score in words.
        new: Score of the new inspector.
        old: Score of the old inspector.
        interval: 95 % confidence interval of new minus old, over groups; NaN if fewer than two groups differ.
        sign: 1 if a higher score is better, -1 if a lower one is.
    """

    name: str
    new: float
    old: float
    interval: Interval
    sign: int

    @property
    def outcome(self) -> Outcome:
        """The difference that the interval shows."""
        low, high = sorted(self.sign * end for end in self.interval)
        return "better" if low > 0 else "worse" if high < 0 else "no difference"

    def __str__(self) -> str:
        return f"{self.name} {self.new:.4f} instead of {self.old:.4f}, difference {self.format_difference()}"

    def format_difference(self) -> str:
        """Format the difference with its interval."""
        difference = f"{self.new - self.old:+.4f}"
        if np.isnan(self.interval.low):
            return f"{difference} (no interval: fewer than two groups differ)"
        return f"{difference} (95 % interval {self.interval.low:+.4f} to {self.interval.high:+.4f})"


class Comparison(NamedTuple):
    """The comparison of two inspectors.

    Attributes:
        against: Name of the old inspector's file.
        outcome: "better" or "worse" if the interval of the deciding score shows it, else "no difference".
        sentence: The outcome in words.
        differences: All scores; the first one decides.
        notes: Sentences about what limits the comparison.
    """

    against: str
    outcome: Outcome
    sentence: str
    differences: tuple[Difference, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Convert to the types and keys of evaluation.json."""
        rows = {one.name: {"new": one.new, "old": one.old, "interval": one.interval} for one in self.differences}
        return self._asdict() | {"differences": rows}


def compare(new: Decisions, old: Decisions, aim: Aim | None, against: str, notes: Sequence[str] = ()) -> Comparison:
    """Compare two inspectors by their decisions on the same images.

    The cost of an image decides if the aim is a cost, otherwise the Kaggle Dice. One score decides, chosen beforehand:
    of several, one would often differ by chance.

    Args:
        new: Decisions of the new inspector.
        old: Decisions of the old inspector.
        aim: The aim of the new inspector's operating point; None if it is not tuned.
        against: Name of the old inspector's file.
        notes: Sentences about what limits the comparison.
    """
    differences = tuple(_list_differences(new, old, aim))
    deciding, *others = differences
    worse = "; ".join(str(other) for other in others if other.outcome == "worse")
    match deciding.outcome:
        case "better":
            sentence = f"The new inspector is better: {deciding}." + (
                f" But it is worse in this: {worse}." if worse else ""
            )
        case "worse":
            sentence = f"The new inspector is worse: {deciding}."
        case _:
            sentence = f"No difference can be shown: {deciding}."
    return Comparison(against, deciding.outcome, sentence, differences, tuple(notes))


def _list_differences(new: Decisions, old: Decisions, aim: Aim | None) -> Iterator[Difference]:
    """Yield the deciding score first."""
    groups, decided = new.groups, new.decided.numpy()
    masks = [list_mask_ratios(decisions.counts) for decisions in (new, old)]
    if aim is not None and aim.name == "cost":
        every = np.ones(len(groups))
        costs = [Ratio(list_costs(decisions.counts, aim), every, largest=np.inf) for decisions in (new, old)]
        yield _compare("cost of an image", costs[0], costs[1], groups, -1)
    for key, name, sign in (
        ("kaggle_dice", "Kaggle Dice", 1),
        ("dice_on_defects", "Dice on defects", 1),
        ("false_alarm_rate", "clean images with a false alarm", -1),
    ):
        yield _compare(name, masks[0][key][0], masks[1][key][0], groups, sign)
    yield _compare("defective images detected", _find_recall(new), _find_recall(old), groups[decided], 1)


def _find_recall(decisions: Decisions) -> Ratio:
    defective = decisions.labels[decisions.decided].any(1)
    found = decisions.called[decisions.decided] & defective
    return Ratio(found.double().numpy(), defective.double().numpy())


def _compare(name: str, new: Ratio, old: Ratio, groups: NDArray[np.int64], sign: int) -> Difference:
    """Return the difference of two scores of the same images, which count in the same images of both."""
    change, whole = new.part - old.part, new.whole

    def subtract(rows: NDArray[np.int64]) -> NDArray[np.float64]:
        total = whole[rows].sum()
        return np.array([change[rows].sum() / total if total > 0 else np.nan])

    # Widened intervals can be longer than the range of the score.
    ends = bootstrap(subtract, len(groups), groups)[0].clip(-new.largest, new.largest)
    return Difference(name, new.value, old.value, Interval(*ends.tolist()), sign)


def tabulate_differences(comparison: Comparison) -> pd.DataFrame:
    """Return a table with the scores of both inspectors and the differences."""
    return pd.DataFrame(
        [
            {
                "": one.name,
                "new": f"{one.new:.4f}",
                "old": f"{one.old:.4f}",
                "difference": one.format_difference(),
                "the new one is": "-" if one.outcome == "no difference" else one.outcome,
            }
            for one in comparison.differences
        ]
    )


def note_unknown_images(abouts: Iterable[About], digest: str) -> list[str]:
    """Return a note if an inspector was trained on other labels, so that its split cannot be compared with this one.

    Args:
        abouts: The metadata of the inspectors.
        digest: Hash of the labels of the dataset.
    """
    networks = [network for about in abouts for network in (*about.classifiers, *about.segmenters)]
    if all(network.digest == digest for network in networks):
        return []
    return [
        "an inspector was trained on other labels than these, so whether it has seen some of the images cannot be "
        "checked; keep the images of test in test when labels are added"
    ]


def add_comparison(page: Page, comparison: Comparison) -> None:
    """Add a section about a comparison to a report."""
    page.add_heading(f"Compared with {comparison.against}")
    page.add_text(comparison.sentence)
    page.add_table(tabulate_differences(comparison), "Both inspectors on the same images; the first score decides")
    for note in comparison.notes:
        page.add_text(f"Note: {note}.")


def format_comparison(comparison: Comparison) -> str:
    """Format a comparison for a terminal."""
    rows = [("", "new", "old", "difference, 95 % interval")]
    for one in comparison.differences:
        low, high = one.interval
        interval = "" if np.isnan(low) else f" ({low:+.3f} to {high:+.3f})"
        rows.append((one.name, f"{one.new:.4f}", f"{one.old:.4f}", f"{one.new - one.old:+.3f}{interval}"))
    return "\n".join([wrap(comparison.sentence), "", format_table(rows)])
