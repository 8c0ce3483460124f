"""What the evaluations of a run say: recalls against chance, gains with their intervals."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from mvlm_jax.report.bars import Bar, Value, bars
from mvlm_jax.report.confusion import CONFUSION, Confusion, confusion
from mvlm_jax.report.page import short
from mvlm_jax.tasks.registry import task_type
from mvlm_jax.training.workdir import ORIGIN

PER_CLASS = "per_class"  # the metric that holds those of each class
MOST_CLASSES = 40  # that are listed
# The metrics that say how good a run is, the first of all first.
HEADLINES = (
    *("tr_r1_rerank", "ir_r1_rerank", "tr_r1", "ir_r1", "r_mean"),
    *("mlm_gain", "mim_gain", "mim_gain_informative", "accuracy", "top1"),
)
LEVELS = (1, 5, 10)
DIRECTIONS = {"tr": "image → caption", "ir": "caption → image"}
PARTNERS = {"own": "its own partner", "wrong": "a wrong partner", "none": "no partner"}
ACCURACIES = {  # what is right, and the number of guesses
    "accuracy": ("Right", 1),
    "top1": ("Right at first", 1),
    "top5": ("Right among the first 5", 5),
}
Number = int | float | list[Any]  # a value, or [value, low, high]


class Said(NamedTuple):
    """What one kind of metric says."""

    sentences: list[str]
    groups: list["Group"]


@dataclasses.dataclass(frozen=True)
class Group:
    """Bars on one axis."""

    title: str
    bars: list[Bar]
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Result:
    """One evaluation."""

    stem: str  # of its file
    task: str
    source: str
    step: int | None
    is_of_average: bool
    sentences: list[str]
    groups: list[Group]
    metrics: list[tuple[str, str]]  # every number, for a table
    confusion: Confusion | None
    classes: list[tuple[str, str, str]]  # (class, images, percent right), the worst first


class Rebuilt(NamedTuple):
    """How the reconstruction of one modality is measured."""

    hidden: str
    measure: str  # its metric for each partner
    title: str
    gain: str  # its metric
    of_gain: str  # what the gain counts
    unit: str
    digits: int
    full: int | float | None = None  # right end of the axis
    gain_unit: str = ""
    gain_digits: int = 4
    gain_scale: int = 1


REBUILT = {
    "words": Rebuilt(
        "word", "mlm_accuracy", "Hidden words guessed",
        "mlm_gain", "more hidden words guessed",
        unit="%", digits=1, full=100, gain_unit=" points", gain_digits=1,
    ),
    "pixels": Rebuilt(
        "pixel", "mim_l1", "Error of hidden pixels (less is better)",
        "mim_gain", "smaller error of hidden pixels",
        unit="", digits=4,
    ),
    "informative pixels": Rebuilt(
        "pixel that tells something", "mim_l1_informative",
        "Error of hidden pixels where the image tells something (less is better)",
        "mim_gain_informative", "smaller error of hidden pixels where the image tells something",
        unit="", digits=4, gain_unit="%", gain_digits=0, gain_scale=100,
    ),
}  # fmt: skip


def results(evaluations: Mapping[str, Mapping[str, Any]], *, config: ConfigDict) -> list[Result]:
    """Of each file by its stem; the last evaluated step first, and of a step retrieval first."""
    found = [_result(stem, content, config=config) for stem, content in evaluations.items()]
    return sorted(found, key=lambda one: (-(one.step or 0), one.task != "retrieval", one.stem))


def chance(name: str, *, images: int | float, captions: int | float) -> int | float | None:
    """Percent that a recall has where the order is random; None for another metric.

    A caption has one right image. An image has captions / images right captions, of which one is enough.
    """
    direction, _, rest = name.partition("_r")
    level = rest.partition("_")[0]
    if direction not in DIRECTIONS or not level.isdecimal() or not images or not captions:
        return None
    k = int(level)
    if direction == "ir":
        return 100 * min(1.0, k / images)
    own = max(1, round(captions / images))
    if k > captions - own:
        return 100.0
    return 100 * (1 - math.prod((captions - own - drawn) / (captions - drawn) for drawn in range(k)))


def numbers(content: Mapping[str, Any], prefix: str = "") -> dict[str, Number]:
    """The numbers and intervals of an evaluation by name; what lies within a mapping as `name/key`."""
    found: dict[str, Number] = {}
    for name, value in content.items():
        if not prefix and name in (*ORIGIN, CONFUSION, PER_CLASS):
            continue
        if isinstance(value, Mapping):
            found |= numbers(value, f"{prefix}{name}/")
        elif is_number(value) or is_interval(value):
            found[prefix + name] = value
    return found


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_interval(value: Any) -> bool:
    """[value, low, high]"""
    return isinstance(value, list) and len(value) == 3 and all(map(is_number, value))


def in_words(value: Number) -> str:
    if isinstance(value, list):
        return f"{short(value[0])} ({short(value[1])} to {short(value[2])})"
    return short(value)


def _result(stem: str, content: Mapping[str, Any], *, config: ConfigDict) -> Result:
    said = [
        _recalls(content),
        *(_rebuilt(content, kind) for kind in REBUILT),
        _other_gains(content),
        _accuracies(content, config=config),
    ]
    return Result(
        stem=stem,
        task=str(content.get("task", stem.partition("-")[0])),
        source=str(content.get("source", "")),
        step=content["step"] if isinstance(content.get("step"), int) else None,
        is_of_average=content.get("ema") is True,
        sentences=[sentence for one in said for sentence in one.sentences],
        groups=[group for one in said for group in one.groups],
        metrics=[(name, in_words(value)) for name, value in numbers(content).items()],
        confusion=confusion(content),
        classes=_classes(content),
    )


def _recalls(content: Mapping[str, Any]) -> Said:
    said = Said([], [])
    counts = {name: content[name] if is_number(content.get(name)) else 0 for name in ("images", "captions")}
    for suffix, how in (("_rerank", "re-ranked by matching"), ("", "by similarity alone")):
        values = [
            Value(
                f"{what}, among the first {k}" if k > 1 else f"{what}, first",
                content[name],
                chance=chance(name, **counts),
                unit="%",
            )
            for direction, what in DIRECTIONS.items()
            for k in LEVELS
            if is_number(content.get(name := f"{direction}_r{k}{suffix}"))
        ]
        if not values:
            continue
        sorted_again = content.get("rerank_candidates") if suffix else None
        note = f" The {sorted_again} best by similarity are sorted again." if sorted_again else ""
        said.groups.append(
            Group(f"Found, {how}", bars(values, full=100), "The red line is what a random order finds." + note)
        )
        if not said.sentences:
            said.sentences.append(_of_retrieval(content, suffix, how, **counts))
    return said


def _of_retrieval(
    content: Mapping[str, Any], suffix: str, how: str, *, images: int | float, captions: int | float
) -> str:
    ranked = {"tr": ("images", images, "caption"), "ir": ("captions", captions, "image")}
    parts = [
        f"for {content[name]:.1f}% of {count:,} {queries} the {found} ranked first is right"
        for direction, (queries, count, found) in ranked.items()
        if is_number(content.get(name := f"{direction}_r1{suffix}"))
    ]
    text, by_chance = "; ".join(parts), chance("ir_r1", images=images, captions=captions)
    expected = "" if by_chance is None else f"; chance gives {by_chance:.2g}%"
    return f"{text[:1].upper()}{text[1:]} ({how}{expected})."


def _rebuilt(content: Mapping[str, Any], kind: str) -> Said:
    """Of reconstruction: how much a partner helps."""
    said, about = Said([], []), REBUILT[kind]
    gains = [
        _bar(
            f"over {PARTNERS[partner]}",
            [about.gain_scale * value for value in content[name]],
            unit=about.gain_unit,
            digits=about.gain_digits,
            signed=True,
        )
        for partner, suffix in (("wrong", ""), ("none", "_over_none"))
        if is_interval(content.get(name := about.gain + suffix))
    ]
    if gains:
        title = f"Gain from the own partner: {about.of_gain}"
        said.groups.append(Group(title, bars(gains), "The line is the 95% interval."))
        said.sentences.append(_of_gain(about, gains[0]))
    levels = [
        _bar(f"beside {PARTNERS[partner]}", content[name], unit=about.unit, digits=about.digits, kind=partner)
        for partner in PARTNERS
        if is_interval(content.get(name := f"{about.measure}_{partner}"))
    ]
    if levels:
        said.groups.append(Group(about.title, bars(levels, full=about.full)))
    return said


def _of_gain(about: Rebuilt, gain: Value) -> str:
    assert gain.low is not None and gain.high is not None
    digits = about.gain_digits
    interval = f"(95% interval {gain.low:.{digits}f} to {gain.high:.{digits}f})"
    if gain.low <= 0 <= gain.high:
        return f"Whether a hidden {about.hidden} is rebuilt better beside its own partner is open {interval}."
    how = "better" if gain.low > 0 else "worse"
    amount = f"by {abs(gain.value):.{digits}f}{about.gain_unit}"
    return (
        f"A hidden {about.hidden} is rebuilt {how} beside its own partner than {gain.label[5:]}, {amount} {interval}."
    )


def _accuracies(content: Mapping[str, Any], *, config: ConfigDict) -> Said:
    """Of answers, labels and classes."""
    said = Said([], [])
    by_guessing = _by_guessing(content, config=config)
    values = [
        _bar(
            label,
            content[name],
            unit="%",
            digits=1,
            chance=None if by_guessing is None else min(100.0, k * by_guessing),
        )
        for name, (label, k) in ACCURACIES.items()
        if is_number(content.get(name)) or is_interval(content.get(name))
    ]
    if not values:
        return said
    count = next((content[name] for name in ("examples", "questions", "images") if is_number(content.get(name))), None)
    of = "" if count is None else f" of {count:,}"
    chance_is = "" if by_guessing is None else f" (chance: {by_guessing:.3g}%)"
    said.sentences.append(f"{values[0].value:.1f}%{of} {values[0].label.lower()}{chance_is}.")
    note = "" if by_guessing is None else "The red line is what guessing gives."
    said.groups.append(Group("Accuracy", bars(values, full=100), note))
    return said


def _by_guessing(content: Mapping[str, Any], *, config: ConfigDict) -> int | float | None:
    """Percent that are right where every label or class is as likely; None where the answers are open."""
    classes = content.get("classes")
    if content.get("task") == "classification" and is_number(classes) and classes:
        return 100 / classes
    task = task_type(config)
    return 100 / len(task.labels) if content.get("task") == task.name and task.labels else None


def _classes(content: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Empty where the evaluation has no classes."""
    classes = content.get(PER_CLASS)
    if not isinstance(classes, Mapping):
        return []
    rows = [
        (str(name), one.get("images", 0), one["top1"])
        for name, one in classes.items()
        if isinstance(one, Mapping) and is_number(one.get("top1"))
    ]
    rows.sort(key=lambda row: row[2])
    return [(name, short(images), f"{right:.1f}%") for name, images, right in rows[:MOST_CLASSES]]


def _other_gains(content: Mapping[str, Any]) -> Said:
    """Gains that have no words of their own here."""
    known = {about.gain + suffix for about in REBUILT.values() for suffix in ("", "_over_none")}
    names = [name for name in content if "_gain" in name and name not in known and is_interval(content[name])]
    drawn = [
        Group(name, bars([_bar("", content[name], unit="", digits=4, signed=True)]), "The line is the 95% interval.")
        for name in names
    ]
    return Said([], drawn)


def _bar(label: str, value: Number, *, unit: str, digits: int, **about: Any) -> Value:
    if not isinstance(value, list):
        return Value(label, value, unit=unit, digits=digits, **about)
    middle, low, high = value
    return Value(label, middle, low=low, high=high, unit=unit, digits=digits, **about)
