"""Curves over steps as the places of lines, ticks and marks in an SVG."""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mvlm_jax.report.page import short

WIDTH, HEIGHT = 360, 190  # of the SVG's own units; it is scaled to the page
LEFT, RIGHT, TOP, BOTTOM = 48, 350, 8, 164  # of the axes
MOST_POINTS = 400  # of a line; a longer one is drawn by the least and the greatest value of each stretch
DECADES = 1.5  # positive values that span more are drawn on a logarithmic axis where the curve allows it


Point = tuple[int | float, int | float]


class Series(NamedTuple):
    """Values over steps."""

    name: str
    points: Sequence[Point]  # (step, value), in order; finite


class Tick(NamedTuple):
    at: int | float
    label: str
    anchor: str = "middle"


class Mark(NamedTuple):
    """Something that happened at a step; `at` is the step, or the place on the page in a drawn chart."""

    kind: str  # warmup, checkpoint, resume
    at: int | float
    label: str


@dataclasses.dataclass(frozen=True)
class Line:
    points: str  # as SVG has them
    end: Point
    is_point: bool
    summary: str
    colour: int


@dataclasses.dataclass(frozen=True)
class Chart:
    """A chart to draw."""

    title: str
    unit: str
    lines: list[Line]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    marks: list[Mark]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = RIGHT
    top: int = TOP
    bottom: int = BOTTOM

    @property
    def summary(self) -> str:
        """The chart in words."""
        return "; ".join(line.summary for line in self.lines)


def chart(
    title: str,
    series: Sequence[Series],
    *,
    steps: int,
    marks: Sequence[Mark] = (),
    unit: str = "",
    may_be_logarithmic: bool = False,
) -> Chart:
    """The series, none of them empty, in one chart from step 0 to `steps`."""
    values = [value for one in series for _, value in one.points]
    low, high = min(values), max(values)
    logarithmic = may_be_logarithmic and low > 0 and math.log10(high / low) > DECADES
    ticks = _powers(low, high) if logarithmic else _round_numbers(low, high)
    low, high = min(low, ticks[0]), max(high, ticks[-1])
    scale = math.log10 if logarithmic else float
    height = (scale(high) - scale(low)) or 1.0

    def x(step: int | float) -> float:
        return round(LEFT + (RIGHT - LEFT) * step / max(1, steps), 1)

    def y(value: int | float) -> float:
        return round(BOTTOM - (BOTTOM - TOP) * (scale(value) - scale(low)) / height, 1)

    lines = []
    for colour, one in enumerate(series):
        places = [(x(step), y(value)) for step, value in thinned(one.points)]
        lines.append(
            Line(
                points=" ".join(f"{across:g},{down:g}" for across, down in places),
                end=places[-1],
                is_point=len(places) == 1,
                summary=_in_words(one),
                colour=colour % 4,
            )
        )
    x_ticks = _round_numbers(0, steps, most=4)
    return Chart(
        title=title,
        unit=unit + (", logarithmic" if unit and logarithmic else "logarithmic" if logarithmic else ""),
        lines=lines,
        x_ticks=[
            Tick(x(step), f"{step:,.0f}", "end" if step == steps else "middle")
            for step in x_ticks
            if 0 <= step <= steps
        ],
        y_ticks=[Tick(y(value), _tick(value)) for value in ticks],
        marks=[mark._replace(at=x(mark.at)) for mark in marks if 0 <= mark.at <= steps],
    )


def thinned(points: Sequence[Point]) -> list[Point]:
    """At most `MOST_POINTS` of them: no peak is lost, however short."""
    if len(points) <= MOST_POINTS:
        return list(points)
    kept: list[int] = []
    for part in np.array_split(np.arange(len(points)), MOST_POINTS // 2):
        values = [points[index][1] for index in part]
        kept += sorted({int(part[int(np.argmin(values))]), int(part[int(np.argmax(values))])})
    return [points[index] for index in kept]


def _in_words(series: Series) -> str:
    values = [value for _, value in series.points]
    name = f"{series.name}: " if series.name else ""
    if len(values) == 1 or min(values) == max(values):
        return f"{name}{short(values[-1])}"
    return f"{name}{short(values[0])} → {short(values[-1])}"


def _round_numbers(low: int | float, high: int | float, *, most: int = 5) -> list[int | float]:
    """Multiples of 1, 2 or 5 times a power of ten, from below `low` to above `high`."""
    if high == low:
        high, low = high + (abs(high) or 1) / 2, low - (abs(low) or 1) / 2
    rough = (high - low) / (most - 1)
    power = 10 ** math.floor(math.log10(rough))
    step = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


def _powers(low: int | float, high: int | float) -> list[int | float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = -(-(last - first) // 5)
    return [10.0**power for power in range(first, last + every, every)]


def _tick(value: int | float) -> str:
    size = abs(value)
    if size >= 1_000_000:
        return f"{value / 1_000_000:g}M"
    if size >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:.3g}" if size >= 1e-3 or value == 0 else f"{value:.0e}"
