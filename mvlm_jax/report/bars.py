"""Numbers as horizontal bars, with their intervals and what chance would give."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple


class Bar(NamedTuple):
    """A bar to draw; all places in percent of the track."""

    label: str
    text: str  # the number, in words
    left: int | float
    width: int | float
    interval: tuple[int | float, int | float] | None  # left end and width
    zero: int | float | None  # where 0 is, unless it is at the left end
    chance: int | float | None
    kind: str  # "", or a class of the style sheet that sets the colour


@dataclasses.dataclass(frozen=True)
class Value:
    """A number to be drawn as a bar."""

    label: str
    value: int | float
    _: dataclasses.KW_ONLY
    low: int | float | None = None  # of the 95% interval
    high: int | float | None = None
    chance: int | float | None = None
    unit: str = ""
    digits: int = 1  # after the point
    signed: bool = False
    kind: str = ""

    @property
    def text(self) -> str:
        sign = "+" if self.signed else ""
        text = f"{self.value:{sign}.{self.digits}f}{self.unit}"
        if self.low is not None and self.high is not None:
            text += f" ({self.low:.{self.digits}f} to {self.high:.{self.digits}f})"
        return text


def bars(values: Sequence[Value], *, full: int | float | None = None) -> list[Bar]:
    """Bars on one axis, which holds 0 and every interval.

    Args:
      full: the right end of the axis; None: the largest value.
    """
    ends = [end for value in values for end in (value.value, value.low, value.high) if end is not None]
    low, high = min(0.0, *ends), max(0.0, *ends) if full is None else max(full, *ends)
    span = (high - low) or 1.0

    def place(number: int | float) -> float:
        return round(100 * (number - low) / span, 2)

    drawn = []
    for value in values:
        left, right = sorted((place(0), place(value.value)))
        interval = None
        if value.low is not None and value.high is not None:
            interval = place(value.low), round(place(value.high) - place(value.low), 2)
        drawn.append(
            Bar(
                label=value.label,
                text=value.text,
                left=left,
                width=round(right - left, 2),
                interval=interval,
                zero=place(0) if low < 0 else None,
                chance=None if value.chance is None else place(value.chance),
                kind=value.kind,
            )
        )
    return drawn
