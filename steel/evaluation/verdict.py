"""The verdict of an evaluation: one sentence by the rules in `docs/metrics.md`, and what limits it."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from steel.decision.about import About
from steel.evaluation.judging import Decisions
from steel.evaluation.scores import list_costs, predict_nothing
from steel.evaluation.summary import Summary, format_score
from steel.intervals import Interval, rate
from steel.wording import format_count, name_classes, wrap

Level = Literal["ready", "not ready", "too few images", "do not use"]

# An interval wider than this decides nothing.
WIDEST = 0.2
# What the interval must show: at least this share of defects found, and at most this share of clean images marked.
FEWEST_FOUND, MOST_ALARMS = 0.5, 0.2

# The scores that the terminal shows.
_SCORES = {
    "dice_on_defects": "Dice on defects",
    "kaggle_dice": "Kaggle Dice",
    "false_alarm_rate": "clean images with a false alarm",
    "recall": "defective images detected",
    "accuracy": "accuracy (clean or defective)",
}


class Verdict(NamedTuple):
    """The verdict of an evaluation.

    Attributes:
        level: "do not use", "too few images", "not ready" or "ready"; the first one whose rule applies.
        sentence: The verdict in words, with the numbers that decide.
        limits: Sentences about what else limits the verdict.
    """

    level: Level
    sentence: str
    limits: tuple[str, ...]


class _Rate(NamedTuple):
    """A rate with its 95 % confidence interval; `value` is NaN if it is measured on nothing."""

    value: float
    interval: Interval
    hits: int
    num: int
    num_groups: int

    @property
    def is_vague(self) -> bool:
        return self.interval.high - self.interval.low > WIDEST

    def __str__(self) -> str:
        return f"{self.value:.1%} (95 % interval {self.interval.low:.1%} to {self.interval.high:.1%})"


class _Observed(NamedTuple):
    """Defects found, overall and by class, and clean images with a false alarm; `cost` as given to `steel tune`."""

    found: _Rate
    classes: list[_Rate]
    alarms: _Rate
    cost: float | None
    cost_of_clean: float


def reach_verdict(decisions: Decisions, summary: Summary, about: About, part: str) -> Verdict:
    """Apply the rules in `docs/metrics.md` to the decisions on a part of a dataset: train, val or test."""
    observed = _observe(decisions, about)
    found, alarms = observed.found, observed.alarms
    limits = [*_limit_classes(observed, about), *_limit_promises(summary), *_limit_errors(summary), *summary.warnings]
    level: Level
    if found.num and alarms.num and (fault := _find_fault(observed, summary)):
        level, sentence = "do not use", f"Do not use: {fault}."
    elif doubt := _find_doubt(found, alarms):
        level, sentence = "too few images", f"Too few images to tell: {doubt}."
    elif reasons := _find_obstacles(observed, summary, about, part):
        level, sentence = "not ready", f"Not ready for the line: {reasons[0]}."
        limits = [*reasons[1:], *limits]
    else:
        level = "ready"
        sentence = (
            f"Ready to try on the line, beside the present inspection: it finds {found} of the defects, and marks "
            f"{alarms} of the clean images."
        )
    return Verdict(level, sentence, tuple(limits))


def _observe(decisions: Decisions, about: About) -> _Observed:
    hits, drawn, truth = (tensor.numpy() > 0 for tensor in decisions.counts[:3])
    groups, clean = decisions.groups, decisions.counts.labels.clean.numpy()
    marked = drawn.max(axis=1)
    rows, columns = np.nonzero(truth)
    found = hits[truth]
    classes = [_rate(found[columns == c], groups[rows[columns == c]]) for c in range(truth.shape[1])]
    cost, cost_of_clean = None, 0.0
    if about.tuned and about.tuned.aim.name == "cost":
        aim = about.tuned.aim
        cost, cost_of_clean = (
            float(list_costs(counts, aim).mean()) for counts in (decisions.counts, predict_nothing(decisions.counts))
        )
    alarms = _rate(marked[clean], groups[clean])
    return _Observed(_rate(found, groups[rows]), classes, alarms, cost, cost_of_clean)


def _rate(hits: NDArray[np.bool_], groups: NDArray[np.int64]) -> _Rate:
    value = float(hits.mean()) if len(hits) else np.nan
    return _Rate(value, rate(hits, groups), int(hits.sum()), len(hits), len(np.unique(groups)))


def _find_fault(observed: _Observed, summary: Summary) -> str | None:
    """Return why the inspector is worse than one that ignores the image, or None."""
    found, alarms = observed.found, observed.alarms
    kaggle, nothing = summary.scores["kaggle_dice"], summary.predict_nothing["kaggle_dice"]
    if observed.cost is not None:
        if observed.cost >= observed.cost_of_clean:
            return (
                f"worse than calling every image clean (cost of an image {observed.cost:.3f}, against "
                f"{observed.cost_of_clean:.3f})"
            )
    elif kaggle < nothing:
        return f"worse than calling every image clean (Kaggle Dice {kaggle:.4f}, against {nothing:.4f})"
    if found.value <= alarms.value:
        return (
            f"no better than chance (it finds {found.value:.1%} of the defects and marks {alarms.value:.1%} of the "
            f"clean images)"
        )
    return None


def _find_doubt(found: _Rate, alarms: _Rate) -> str | None:
    """Return which of the two rates the images are too few for, or None."""
    doubts = []
    for one, things, what in ((found, "defects", "found"), (alarms, "clean images", "marked")):
        if one.is_vague and one.num:
            # Groups explain why many images can still be too few.
            groups = f" in {format_count(one.num_groups, 'group')}" if one.num_groups < one.num else ""
            low, high = one.interval
            share = f"the share {what} may be anything from {low:.0%} to {high:.0%}"
            doubts.append(f"with {one.num:,} {things}{groups}, {share}")
        elif one.is_vague:
            doubts.append(f"there are no {things}")
    return "; ".join(doubts) or None


def _find_obstacles(observed: _Observed, summary: Summary, about: About, part: str) -> list[str]:
    """Return why the inspector is not ready, the most important reason first."""
    reasons = []
    if part != "test":
        reasons.append(f"networks or thresholds were chosen on these images, {part}; evaluate on test")
    if observed.found.interval.low < FEWEST_FOUND:
        reasons.append(f"it may miss more than half of the defects (found: {observed.found})")
    for name, one in zip(name_classes(about.classes), observed.classes, strict=True):
        if one.num and one.interval.high < FEWEST_FOUND:
            reasons.append(f"it misses more than half of the defects of class {name} (found: {one})")
    if observed.alarms.interval.high > MOST_ALARMS:
        reasons.append(f"more than one clean image in five may have a false alarm ({observed.alarms})")
    for check in summary.promises:
        name, (low, high) = check.promise.name, check.promise.prediction
        is_worse = {"defects found": check.observed < low, "clean images with a false alarm": check.observed > high}
        if is_worse.get(name):
            reasons.append(
                f'the promise "{name}" did not hold ({check.observed:.3f}, promised {low:.3f} to {high:.3f})'
            )
    if not about.tuned:
        reasons.append("its thresholds are not tuned; choose them with steel tune")
    return reasons


def _limit_classes(observed: _Observed, about: About) -> list[str]:
    vague = [
        f"{name} ({one.hits} of {one.num} found)"
        for name, one in zip(name_classes(about.classes), observed.classes, strict=True)
        if one.is_vague
    ]
    return [f"too few defects of a class to tell how many of them it finds: {', '.join(vague)}"] if vague else []


def _limit_promises(summary: Summary) -> list[str]:
    broken = [f'"{check.promise.name}"' for check in summary.promises if check.held == "no"]
    return [f"outside the promised range on these images: {', '.join(broken)}"] if broken else []


def _limit_errors(summary: Summary) -> list[str]:
    if not summary.errors:
        return []
    worst: dict[Any, Any] = max(summary.errors, key=lambda row: float(row["share"]))
    return [f"most Dice is lost by: {worst['cause']} ({worst['share']:.0%} of the loss)"]


def format_results(report: Mapping[str, Any]) -> str:
    """Format an evaluation for a terminal: the verdict, and five scores beside those of calling every image clean.

    Args:
        report: Content of evaluation.json.
    """
    clean = {**report["predict_nothing"], "accuracy": report["accuracy_calling_all_clean"], "recall": 0.0}
    lines = [f"{'':31}  {'inspector (95 % interval)':26}  all called clean"]
    for name, text in _SCORES.items():
        score = format_score(report["scores"][name], report["intervals"][name])
        lines.append(f"{text:31}  {score:26}  {format_score(clean[name])}")
    return "\n".join([wrap(report["verdict"]["sentence"]), "", *lines])
