"""Places of bars and curves, by hand."""

import pytest

from mvlm_jax.report.bars import Value, bars
from mvlm_jax.report.charts import BOTTOM, LEFT, MOST_POINTS, RIGHT, TOP, Mark, Series, chart, thinned


def test_a_curve_spans_its_axes_and_its_marks_stand_at_their_steps():
    drawn = chart(
        "loss", [Series("", [(0, 0.0), (50, 10.0), (100, 5.0)])], steps=100, marks=[Mark("resume", 25, "here")]
    )
    middle, half = (LEFT + RIGHT) / 2, (TOP + BOTTOM) / 2
    assert drawn.lines[0].points == f"{LEFT},{BOTTOM} {middle:g},{TOP} {RIGHT},{half:g}"
    assert [tick.label for tick in drawn.y_ticks] == ["0", "5", "10"]
    assert drawn.marks == [Mark("resume", LEFT + (RIGHT - LEFT) / 4, "here")]
    assert drawn.summary == "0 → 5"


def test_values_over_several_decades_get_a_logarithmic_axis_where_none_is_negative():
    points = [(0, 100.0), (10, 1.0)]
    drawn = chart("norm", [Series("", points)], steps=10, may_be_logarithmic=True)
    assert [tick.label for tick in drawn.y_ticks] == ["1", "10", "100"]
    assert drawn.y_ticks[1].at == (TOP + BOTTOM) / 2 and drawn.unit == "logarithmic"
    assert chart("norm", [Series("", [*points, (11, 0.0)])], steps=11, may_be_logarithmic=True).unit == ""


@pytest.mark.parametrize("value", [0.0, 3.0, -2.5, 1e-9])
def test_a_curve_of_one_value_is_drawn_within_its_axes(value):
    drawn = chart("flat", [Series("", [(0, value), (1, value)])], steps=1)
    assert TOP <= drawn.lines[0].end[1] <= BOTTOM
    [point] = chart("one", [Series("", [(1, value)])], steps=1).lines
    assert point.is_point


def test_thinning_keeps_every_peak():
    points = [(step, 1.0) for step in range(10_000)]
    points[4321] = (4321, 99.0)
    points[777] = (777, -5.0)
    kept = thinned(points)
    assert len(kept) <= MOST_POINTS and (4321, 99.0) in kept and (777, -5.0) in kept
    assert [step for step, _ in kept] == sorted(step for step, _ in kept)


def test_bars_share_an_axis_that_holds_zero_and_every_interval():
    first, second = bars([Value("a", 10.0, low=-10.0, high=30.0), Value("b", -5.0)])
    # From -10 to 30: zero is at a quarter.
    assert (first.left, first.width, first.interval, first.zero) == (25.0, 25.0, (0.0, 100.0), 25.0)
    assert (second.left, second.width, second.interval) == (12.5, 12.5, None)
    [whole] = bars([Value("c", 40.0, chance=0.5, unit="%")], full=100)
    assert (whole.left, whole.width, whole.zero, whole.chance, whole.text) == (0.0, 40.0, None, 0.5, "40.0%")
