"""Two runs side by side."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mvlm_jax.report.curves import curves
from mvlm_jax.report.examples import Examples, examples_of
from mvlm_jax.report.origin import cost, origin
from mvlm_jax.report.page import render, short, write_page
from mvlm_jax.report.recipe import differences
from mvlm_jax.report.run import Run
from mvlm_jax.report.run_page import state
from mvlm_jax.report.verdict import HEADLINES, Number, in_words, numbers

COMPARISON = "comparison.html"
Two = tuple[Run, Run]


class Row(NamedTuple):
    """A metric of both runs."""

    name: str
    first: str
    second: str
    difference: str
    remark: str


@dataclasses.dataclass(frozen=True)
class Compared:
    """An evaluation that both runs have."""

    stem: str
    steps: tuple[object, object]
    headlines: list[Row]
    others: list[Row]


def write_comparison(runs: Two, *, count: int, output: Path | None = None) -> Path:
    """Writes the page of two runs, into the directory of the first by default, and returns its path.

    Raises:
      UserError: as `run_page.write_report`.
    """
    html = comparison_page(runs, examples=[examples_of(run, count=count) for run in runs])
    return write_page(output or runs[0].directory / COMPARISON, html, flag="--output")


def comparison_page(runs: Two, *, examples: Sequence[Examples]) -> str:
    """The whole page."""
    runs = labelled(runs)
    first, second = runs
    # A stem says of which source it is. Retrieval first, as in the page of a run.
    stems = sorted(first.evaluations, key=lambda stem: not stem.startswith("retrieval"))
    compared = [_compared(stem, runs) for stem in stems if stem in second.evaluations]
    alone = [
        (run.name, stem)
        for run, other in (runs, runs[::-1])
        for stem in run.evaluations
        if stem not in other.evaluations
    ]
    return render(
        "comparison.html",
        title=f"{first.name} and {second.name}",
        runs=runs,
        states=[state(run) for run in runs],
        compared=compared,
        alone=alone,
        curves=curves(runs),
        differences=[
            (one.name, short(one.value), short(one.other)) for one in differences(first.config, second.config)
        ],
        facts=[
            (fact.name, fact.value, other.value)
            for read in (origin, cost)
            for fact, other in _beside(read(first), read(second))
        ],
        examples=examples,
        both_rebuilt=list(zip(examples[0].rebuilt, examples[1].rebuilt))
        if examples[0].source == examples[1].source
        else [],
    )


def labelled(runs: Two) -> Two:
    """The runs with names that differ."""
    first, second = runs
    if first.name != second.name:
        return runs
    names = [f"{run.directory.parent.name}/{run.directory.name}" for run in runs]
    if names[0] == names[1]:
        names = [str(run.directory) for run in runs]
    return dataclasses.replace(first, label=names[0]), dataclasses.replace(second, label=names[1])


def _compared(stem: str, runs: Two) -> Compared:
    contents = [run.evaluations[stem] for run in runs]
    first, second = (numbers(content) for content in contents)
    names = [name for name in first if name in second]
    heads = [name for name in HEADLINES if name in names]
    return Compared(
        stem=stem,
        steps=(contents[0].get("step"), contents[1].get("step")),
        headlines=[_row(name, first[name], second[name]) for name in heads],
        others=[_row(name, first[name], second[name]) for name in names if name not in heads],
    )


def _row(name: str, first: Number, second: Number) -> Row:
    middle = [value[0] if isinstance(value, list) else value for value in (first, second)]
    difference = middle[1] - middle[0]
    remark = ""
    if isinstance(first, list) and isinstance(second, list):
        apart = first[2] < second[1] or second[2] < first[1]
        remark = "intervals apart" if apart else "intervals overlap"
    sign = "+" if difference > 0 else ""
    return Row(name, in_words(first), in_words(second), "0" if not difference else f"{sign}{short(difference)}", remark)


def _beside(first: list, second: list) -> list[tuple]:
    """The facts of the same name."""
    others = {fact.name: fact for fact in second}
    return [(fact, others[fact.name]) for fact in first if fact.name in others]
