"""Where the metrics of a run go beside its metrics.jsonl: TensorBoard, Weights & Biases, or a tracker of your own."""

import dataclasses
import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from absl import logging
from jaxtyping import UInt8
from ml_collections import ConfigDict

from mvlm_jax.errors import UserError

FAILURES = 3  # in a row, after which a tracker is left out


@dataclasses.dataclass(frozen=True)
class TrackedRun:
    """What a tracker is told when it is opened."""

    directory: Path
    identity: str  # the same at each start of the run, and in no other run
    resumed_step: int  # steps after it are logged again; 0 in a new run
    config: Mapping[str, Any]  # values by dotted names
    environment: Mapping[str, Any]  # this start in environment.json


class Examples(NamedTuple):
    """What the model makes of some examples, to be looked at; both by a name such as `examples/reconstruction`."""

    images: Mapping[str, UInt8[np.ndarray, "H W 3"]]
    texts: Mapping[str, str]  # Markdown


@runtime_checkable
class Tracker(Protocol):
    """A subclass has the methods that it needs; the others do nothing.

    It is opened with a `TrackedRun`, in process 0 alone. The run waits for each call. An exception is reported as a
    warning, and the run goes on.
    """

    def log(self, step: int, values: Mapping[str, float | int]) -> None:
        """Values by names such as `loss/mim`; nan where one is not known."""

    def show(self, step: int, examples: Examples) -> None: ...

    def close(self) -> None: ...


Opener = Callable[[TrackedRun], Tracker]


class Trackers(Tracker):
    """Several trackers; what one of them fails at stops neither the others nor the run."""

    def __init__(self, openers: Sequence[Opener] = (), *, run: TrackedRun | None = None):
        """`run` is needed where there are openers."""
        self._used: list[Tracker] = []
        self._failures: dict[int, int] = {}  # in a row, by the id of each
        for opener in openers:
            assert run is not None
            try:
                self._used.append(opener(run))
            except Exception as error:
                _warn(f"{_name(opener)} cannot be opened, and the run goes on without it", error)

    def __enter__(self) -> "Trackers":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def log(self, step: int, values: Mapping[str, float | int]) -> None:
        self._each(lambda tracker: tracker.log(step, values))

    def show(self, step: int, examples: Examples) -> None:
        self._each(lambda tracker: tracker.show(step, examples))

    def close(self) -> None:
        self._each(lambda tracker: tracker.close())
        self._used = []

    def _each(self, call: Callable[[Tracker], None]) -> None:
        for tracker in list(self._used):
            try:
                call(tracker)
                self._failures[id(tracker)] = 0
            except Exception as error:
                name, failures = _name(type(tracker)), self._failures.get(id(tracker), 0) + 1
                self._failures[id(tracker)] = failures
                if failures < FAILURES:
                    _warn(f"{name} has failed", error)
                else:
                    self._used = [other for other in self._used if other is not tracker]
                    _warn(f"{name} has failed {failures} times in a row, and is left out from here on", error)


def openers_of(config: ConfigDict) -> list[Opener]:
    """Those of the trackers that a config names; nothing is opened yet.

    Raises:
      UserError: one of them is not installed.
    """
    openers: list[Opener] = []
    if config.log.wandb:
        openers.append(_weights_and_biases(config.log.wandb))
    if config.log.tracker:
        openers.append(_own(config.log.tracker))
    return openers


def _weights_and_biases(project: str) -> Opener:
    from mvlm_jax.training.weights_and_biases import WeightsAndBiases

    try:
        importlib.import_module("wandb")
    except ImportError as error:
        raise UserError(
            f"config.log.wandb={project!r} needs wandb, which cannot be imported ({error}): "
            "pip install 'mvlm-jax[wandb]'"
        ) from error

    def weights_and_biases(run: TrackedRun) -> Tracker:
        return WeightsAndBiases(run, project=project)

    return weights_and_biases


def _own(name: str) -> Opener:
    module, _, attribute = name.partition(":")
    form = "give module:name of a class in a module on PYTHONPATH, which is called with a TrackedRun"
    if not module or not attribute:
        raise UserError(f"config.log.tracker={name!r} is not of the form module:name; {form}")
    try:
        opener = getattr(importlib.import_module(module), attribute)
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UserError(f"config.log.tracker={name!r} cannot be imported ({reason}); {form}") from error
    if not callable(opener):
        raise UserError(f"config.log.tracker={name!r} is a {type(opener).__name__}; {form}")
    return opener


def _name(opener: Any) -> str:
    return f"the tracker {getattr(opener, '__name__', opener)}"


def _warn(what: str, error: Exception) -> None:
    logging.warning("%s (%s: %s)", what, type(error).__name__, " ".join(str(error).split())[:300])
