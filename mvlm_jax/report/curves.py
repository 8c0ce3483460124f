"""The log of one run or of several as charts."""

import dataclasses
from collections.abc import Sequence

from mvlm_jax.report.charts import Chart, Mark, Series, chart
from mvlm_jax.report.run import Point, Run, series
from mvlm_jax.report.verdict import HEADLINES

RATE = "learning_rate/"
# Their titles, with the unit; in this order. What is logged under another name comes between the losses and the rates.
LOSSES = {
    "loss": ("Loss", "weighted sum"),
    "mim": ("Masked image modeling", "loss"),
    "mlm": ("Masked language modeling", "loss"),
    "itc": ("Image-text contrast", "loss"),
    "itm": ("Image-text matching", "loss"),
    "classification": ("Classification", "loss"),
    "answer": ("Answering", "loss"),
}
LAST = {
    "grad_norm": ("Gradient norm", ""),
    "temperature": ("Temperature of contrast", ""),
    "skipped_updates": ("Skipped updates", "in all"),
    "skipped_images": ("Skipped images", "in a step"),
    "pairs_per_second": ("Throughput", "examples a second"),
    "seconds_per_step": ("Time of a step", "seconds"),
    "mfu": ("Model FLOP/s utilization", "of the peak, 1 is all"),
}
LEFT_OUT = ("examples", "seconds_left")
WHERE_NOT_ZERO = ("skipped_updates", "skipped_images")
LOGARITHMIC = ("grad_norm", "temperature")
EVALUATED = frozenset(HEADLINES) - {"r_mean"}  # which says no more than the recalls do


@dataclasses.dataclass(frozen=True)
class Curves:
    """The charts of a page, and what they cannot show."""

    charts: list[Chart]
    remarks: list[str]
    has_checkpoints: bool
    has_resumes: bool


def curves(runs: Sequence[Run]) -> Curves:
    """Of several runs each metric in one chart, a line for each run; marks are those of a single run."""
    steps = max(max(run.config.steps, run.last_step) for run in runs)
    marks = marks_of(runs[0]) if len(runs) == 1 else []
    logged = [series(run.training) for run in runs]
    names = list(dict.fromkeys(name for one in logged for name in one))
    rates = [name for name in names if name.startswith(RATE)]
    others = [
        name
        for name in names
        if name not in LOSSES and name not in LAST and name not in LEFT_OUT and not name.startswith(RATE)
    ]
    charts = []

    def draw(title: str, names: Sequence[str], unit: str = "", *, may_be_logarithmic: bool = False) -> None:
        lines = [
            Series(_line_name(run, name, runs=runs, names=names), points)
            for run, one in zip(runs, logged, strict=True)
            for name in names
            if (points := one.get(name))
        ]
        if lines:
            charts.append(
                chart(title, lines, steps=steps, marks=marks, unit=unit, may_be_logarithmic=may_be_logarithmic)
            )

    for name, (title, unit) in LOSSES.items():
        draw(title, [name], unit)
    for name in others:
        draw(name.replace("_", " "), [name], "%" if name.endswith("accuracy") else "")
    draw("Learning rate", _alike_once(rates, logged))
    for name, (title, unit) in LAST.items():
        if name in WHERE_NOT_ZERO and not any(value for one in logged for _, value in one.get(name, [])):
            continue
        draw(title, [name], unit, may_be_logarithmic=name in LOGARITHMIC)
    charts += _evaluated(runs, steps=steps, marks=marks)
    return Curves(
        charts,
        _remarks(runs, names),
        any(mark.kind == "checkpoint" for mark in marks),
        any(mark.kind == "resume" for mark in marks),
    )


def marks_of(run: Run) -> list[Mark]:
    """The end of the warm-up, the checkpoints that are kept, and where the run went on after an interruption."""
    marks = [Mark("checkpoint", step, f"checkpoint of step {step:,}") for step in run.checkpoints]
    marks += [Mark("resume", step, f"resumed after step {step:,}") for step in run.starts[1:]]
    warmup = run.config.optimizer.warmup_steps
    return [*([Mark("warmup", warmup, f"end of the warm-up, step {warmup:,}")] if warmup else []), *marks]


def _alike_once(names: Sequence[str], logged: Sequence[dict[str, list[Point]]]) -> list[str]:
    """The rates that differ from those before; where all agree, one line is drawn."""
    kept: list[str] = []
    for name in names:
        if not any(all(one.get(name) == one.get(other) for one in logged) for other in kept):
            kept.append(name)
    return kept


def _line_name(run: Run, name: str, *, runs: Sequence[Run], names: Sequence[str]) -> str:
    words = [run.name] if len(runs) > 1 else []
    words += [name.removeprefix(RATE)] if len(names) > 1 else []
    return ", ".join(words)


def _evaluated(runs: Sequence[Run], *, steps: int, marks: Sequence[Mark]) -> list[Chart]:
    """Metrics of evaluations that some run made several of."""
    logged = [series(run.evaluation) for run in runs]
    names = dict.fromkeys(name for one in logged for name in one if name.rpartition("/")[2] in EVALUATED)
    charts = []
    for name in names:
        lines = [
            Series(run.name if len(runs) > 1 else "", one[name]) for run, one in zip(runs, logged) if one.get(name)
        ]
        if any(len(line.points) > 1 for line in lines):
            charts.append(chart(name.removeprefix("eval/"), lines, steps=steps, marks=marks, unit="evaluation"))
    return charts


def _remarks(runs: Sequence[Run], names: Sequence[str]) -> list[str]:
    if not any(run.training for run in runs):
        return ["metrics.jsonl holds no line of training."]
    remarks = []
    if "skipped_updates" in names and all(_is_zero(run, "skipped_updates") for run in runs):
        remarks.append("No update was skipped: every loss and gradient was finite.")
    if "skipped_images" in names and all(_is_zero(run, "skipped_images") for run in runs):
        remarks.append("No training image had to be skipped.")
    if "mfu" not in names:
        remarks.append("Model FLOP/s utilization is not recorded: the peak of this device is not known.")
    return remarks


def _is_zero(run: Run, name: str) -> bool:
    return not any(value for _, value in series(run.training).get(name, []))
