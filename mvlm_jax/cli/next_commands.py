"""What `mvlm train` ends with: what the run has reached, where it is, and what can be done with it."""

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from mvlm_jax.training.loop import Outcome
from mvlm_jax.training.metrics_log import read_metrics
from mvlm_jax.training.workdir import AVERAGE, METRICS

REPLACED = re.compile(r"--?(workdir|config\.init_from\.\w+)(=|$)")  # flags that the next run has other values of


def closing_lines(
    outcome: Outcome, *, headline: Sequence[str], config: ConfigDict, workdir: Path, argv: Sequence[str]
) -> list[str]:
    """
    Args:
      headline: metrics that say how good the run is; see `Task.headline`.
      argv: what `mvlm train` was called with.
    """
    reached = list(_reached(outcome.results, headline=headline, config=config, workdir=workdir))
    commands = next_commands(config=config, workdir=workdir, argv=argv, stopped=outcome.stopped)
    return [
        *([] if outcome.stopped else reached),
        f"the run is in {workdir}",
        *(f"{what}: {command}" for what, command in commands.items()),
    ]


def next_commands(*, config: ConfigDict, workdir: Path, argv: Sequence[str], stopped: bool) -> dict[str, str]:
    """By what they are for."""
    here, export = f"--workdir={workdir}", _free(workdir.with_name(f"{workdir.name}-export"))
    average = ["--ema"] if config.eval.ema else []
    commands = {
        "to see it as a page": ["mvlm", "report", here],
        "to evaluate it": ["mvlm", "evaluate", here, f"--config.data.eval={config.data.eval}"],
        "to export it for mvlm_jax.load": ["mvlm", "weights", "export", here, f"--output={export}", *average],
    }
    if stopped:
        commands |= {"to continue it": ["mvlm", "train", *argv]}
    else:
        commands |= {"to train a new run from its weights": [*_train_on(config, workdir=workdir, argv=argv)]}
    return {what: shlex.join(words) for what, words in commands.items()}


def _train_on(config: ConfigDict, *, workdir: Path, argv: Sequence[str]) -> Iterator[str]:
    """The command that the run was started with, for a new run from its weights."""
    yield from ("mvlm", "train")
    words = iter(argv)
    for word in words:
        replaced = REPLACED.match(word)
        if replaced is None:
            yield word
        elif not replaced[2]:
            next(words, None)  # its value
    yield f"--workdir={_free(workdir.with_name(f'{workdir.name}-next'))}"
    yield f"--config.init_from.checkpoint={workdir}"
    # A recipe may name encoders, which the checkpoint brings along.
    yield from (f"--config.init_from.{part}=" for part in ("image", "text") if config.init_from[part])


def _reached(
    results: Mapping[str, Mapping[str, Any]], *, headline: Sequence[str], config: ConfigDict, workdir: Path
) -> Iterator[str]:
    """A line for each `<task>-<split>`, with the earlier step that was better in the first of its metrics."""
    suffix = AVERAGE if config.eval.ema else ""
    lines = list(read_metrics(workdir / METRICS))
    for name, metrics in results.items():
        shown = [metric for metric in headline if metric in metrics]
        if not shown:
            continue
        values = ", ".join(f"{metric} {_value(metrics[metric])}" for metric in shown)
        curve = f"eval/{name}{suffix}/{shown[0]}"
        logged = {line["step"]: line[curve] for line in lines if line.get(curve) is not None}
        best = max(logged, key=logged.__getitem__, default=config.steps)
        better = ""
        if config.steps in logged and logged[best] > logged[config.steps]:
            better = f" (the best {shown[0]}, {logged[best]:.4g}, was that of step {best})"
        yield f"reached at step {config.steps}: {name}{suffix} {values}{better}"


def _value(value: Any) -> str:
    if isinstance(value, list | tuple):
        middle, low, high = value
        return f"{middle:.4g} [{low:.4g}, {high:.4g}]"
    return f"{value:.4g}"


def _free(path: Path) -> Path:
    """The path, with a number behind it where something is there."""
    number, free = 2, path
    while free.exists():
        number, free = number + 1, path.with_name(f"{path.name}-{number}")
    return free
