"""The tables and the plot of an ablation, from the lines that its runs have left."""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ablation_statistics import (
    COMPARISONS,
    LIMITED_DATA,
    Estimate,
    Queries,
    Runs,
    Terms,
    decoded,
    estimate,
    holm,
)

LEVELS = (1, 5, 10)
CONTRAST, RERANKED = "", "_rerank"  # behind the names of ranks
RANKED_BY = {CONTRAST: "contrast", RERANKED: "re-ranked"}
RECONSTRUCTION = ("mlm_accuracy_own", "mlm_accuracy_wrong", "mlm_accuracy_none", "mlm_gain") + (
    "mim_l1_own", "mim_l1_wrong", "mim_l1_none", "mim_gain",
)  # fmt: skip
INFORMATIVE = "mim_gain_informative"  # shown where it was measured
LEVEL = 0.05  # of a corrected p-value

Line = Mapping[str, Any]


class Results:
    """The lines of an ablation by arm and fraction, arms in the order of the first line of each."""

    def __init__(self, lines: Sequence[Line]) -> None:
        self._lines = {(line["arm"], line["fraction"], line["seed"]): line for line in lines}
        self.arms = list(dict.fromkeys(line["arm"] for line in lines))
        self.fractions = sorted({line["fraction"] for line in lines}, reverse=True)

    def of(self, arm: str, fraction: float) -> list[Line]:
        return [line for (a, f, _), line in sorted(self._lines.items(), key=_seed) if (a, f) == (arm, fraction)]

    def queries(self, arm: str, fraction: float, *, by: str) -> Runs:
        """The ranks of each seed; empty where the arm trains no head that ranks so."""
        return {
            line["seed"]: Queries(decoded(ranks[f"text{by}"]), decoded(ranks[f"image{by}"]), decoded(ranks["captions"]))
            for line in self.of(arm, fraction)
            if f"text{by}" in (ranks := line["ranks"])
        }

    def terms(self, first: str, second: str, fraction: float) -> Terms:
        """Of the difference of two arms, by the rule that both have; none where they share no seed."""
        for by in (RERANKED, CONTRAST):
            runs = self.queries(first, fraction, by=by), self.queries(second, fraction, by=by)
            if set(runs[0]) & set(runs[1]):
                return [(1, runs[0]), (-1, runs[1])]
        return []


def tables(lines: Sequence[Line], **options: Any) -> str:
    """All of them as Markdown; `options` are those of `estimate`."""
    results = Results(lines)
    parts = [recall_table(results), reconstruction_table(results), difference_table(results, **options)]
    return "\n\n".join(part for part in parts if part) + "\n"


def recall_table(results: Results) -> str:
    """Means over seeds; behind R@1 the standard deviation over seeds."""
    rows = []
    for fraction, arm in _runs(results):
        for by, name in RANKED_BY.items():
            runs = list(results.queries(arm, fraction, by=by).values())
            if not runs:
                continue
            recalls = {k: list(zip(*(run.recalls(at=k) for run in runs))) for k in LEVELS}
            cells = [_mean(recalls[k][way], spread=k == 1) for way in (0, 1) for k in LEVELS]
            rows.append([f"{fraction:g}", arm, name, *cells, str(len(runs))])
    columns = [f"{way}@{k}" for way in ("TR", "IR") for k in LEVELS]
    return _table(["data", "arm", "ranked by", *columns, "seeds"], rows)


def reconstruction_table(results: Results) -> str:
    """Means over seeds: what was rebuilt beside the own partner, a wrong one and none, by the losses of the arm."""
    measured = {
        name for arm in results.arms for f in results.fractions for line in results.of(arm, f) for name in _gains(line)
    }
    names = [name for name in (*RECONSTRUCTION, INFORMATIVE) if name in measured]
    rows = []
    for fraction, arm in _runs(results):
        found = [_gains(line) for line in results.of(arm, fraction)]
        cells = [[values[name] for values in found if name in values] for name in names]
        if any(cells):
            digits = [1 if name.startswith("mlm") else 3 for name in names]
            shown = [_mean(c, digits=d, spread="gain" in n) if c else "" for c, d, n in zip(cells, digits, names)]
            rows.append([f"{fraction:g}", arm, *shown, str(len(found))])
    return _table(["data", "arm", *names, "seeds"], rows) if rows else ""


def difference_table(results: Results, **options: Any) -> str:
    named = [
        (f"{fraction:g}", f"{first} - {second}", results.terms(first, second, fraction))
        for first, second in COMPARISONS
        for fraction in results.fractions
    ]
    if len(results.fractions) > 1:
        most, least = results.fractions[0], results.fractions[-1]
        little, much = results.terms(*LIMITED_DATA, least), results.terms(*LIMITED_DATA, most)
        name = f"({' - '.join(LIMITED_DATA)}), more at {least:g} than at {most:g}"
        named.append(("both", name, [*little, *[(-sign, runs) for sign, runs in much]] if little and much else []))
    found = [(data, name, estimate(terms, **options)) for data, name, terms in named if _shared(terms)]
    corrected = holm([of.p for _, _, of in found])
    rows = [
        [data, name, f"{of.value:+.1f}", _interval(of), _number(of.p), _number(p), _verdict(of, p), _signs(of)]
        for (data, name, of), p in zip(found, corrected)
    ]
    header = ["data", "difference of the mean R@1", "points", "95%", "p", "Holm's p", "", "seeds above zero"]
    return _table(header, rows) if rows else ""


def draw(lines: Sequence[Line], *, output: Path, **options: Any) -> None:
    """The mean R@1 of each arm over the part of the training data, with 95% intervals. Needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    results = Results(lines)
    figure, panels = plt.subplots(1, 2, figsize=(10, 4), sharey=True)
    for panel, (by, name) in zip(panels, RANKED_BY.items()):
        for place, arm in enumerate(results.arms):
            points = [(f, runs) for f in results.fractions if (runs := results.queries(arm, f, by=by))]
            if not points:
                continue
            of = [estimate([(1, runs)], **options) for _, runs in points]
            # Side by side, so that no error bar hides another.
            at = [fraction * 1.03 ** (place - len(results.arms) / 2) for fraction, _ in points]
            bars = [[_finite(e.value - e.low) for e in of], [_finite(e.high - e.value) for e in of]]
            panel.errorbar(at, [e.value for e in of], yerr=bars, marker="o", capsize=3, linewidth=1.2, label=arm)
        panel.set_xscale("log")
        panel.set_xticks(results.fractions, [f"{fraction:g}" for fraction in results.fractions])
        panel.minorticks_off()
        panel.set_xlabel("part of the training data")
        panel.set_title(name)
    panels[0].set_ylabel("mean R@1, %")
    panels[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(output, dpi=90)
    plt.close(figure)


def _runs(results: Results) -> Iterator[tuple[float, str]]:
    return ((fraction, arm) for fraction in results.fractions for arm in results.arms)


def _gains(line: Line) -> dict[str, float]:
    """What an evaluation of the reconstruction gives for the losses that the arm trains; intervals as their values."""
    return {
        name: value[0] if isinstance(value, list) else value
        for name, value in line.get("reconstruction", {}).items()
        if name.partition("_")[0] in line["losses"] and value is not None
    }


def _shared(terms: Terms) -> bool:
    return bool(terms) and bool(set.intersection(*(set(runs) for _, runs in terms)))


def _seed(item: tuple[tuple[str, float, int], Line]) -> int:
    return item[0][2]


def _mean(values: Sequence[float], *, digits: int = 1, spread: bool = False) -> str:
    mean = f"{statistics.fmean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if spread and len(values) > 1 else mean


def _interval(of: Estimate) -> str:
    return "" if math.isnan(of.low) else f"{of.low:+.1f} to {of.high:+.1f}"


def _number(p: float) -> str:
    return "" if math.isnan(p) else f"{p:.4f}"


def _verdict(of: Estimate, p: float) -> str:
    if math.isnan(p):
        return "one seed"
    return ("higher" if of.value > 0 else "lower") if p < LEVEL else "not told apart"


def _signs(of: Estimate) -> str:
    return f"{sum(value > 0 for value in of.of_seeds.values())} of {len(of.of_seeds)}"


def _finite(value: float) -> float:
    return 0.0 if math.isnan(value) else max(0.0, value)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows))
