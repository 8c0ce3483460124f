"""All that the trainer knows of what it trains: a task and its objective."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import jax
import numpy as np
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key, Num, PyTree

from mvlm_jax.training.streams import Streams

Params: TypeAlias = PyTree[Any]
Batch = Mapping[str, Any]
Rows: TypeAlias = PyTree[Any]  # arrays with one row an example
SumAndCount = tuple[Num[Array, ""], Num[Array, ""]]
Sums = dict[str, SumAndCount]


class StartWeights(NamedTuple):
    """Values for some of the parameters of a new run."""

    params: Mapping[str, Float[np.ndarray, "..."]]  # by "/"-joined path
    report: Mapping[str, Any]  # kept in the run's directory, as JSON
    lines: Sequence[str]  # the same for a reader


class DataSizes(NamedTuple):
    """Numbers of examples."""

    train: tuple[int, ...]  # that a run uses of each training source
    epoch: int
    evaluated: int  # in the evaluation source


@runtime_checkable
class Objective(Protocol):
    """Losses that are means over the global batch, in the parts that many devices and microbatches need.

    It draws nothing at random: `Task.prepare` has drawn everything for the whole batch before.
    """

    @property
    def weights(self) -> Mapping[str, float]:
        """Of the losses among the sums; the other sums are metrics only."""

    @property
    def dtype(self) -> DTypeLike:
        """That the losses compute in."""

    @property
    def group(self) -> int:
        """Consecutive rows that `row_losses` needs together."""

    def row_losses(self, params: Params, rows: Rows) -> tuple[Sums, Rows]:
        """Sums over these rows, and the embeddings that `batch_losses` reads. The counts depend on `rows` alone."""

    def embed(self, params: Params, rows: Rows) -> Rows:
        """The embeddings alone."""

    def batch_losses(self, params: Params, embeddings: Rows, rows: Rows) -> Sums:
        """Sums that compare all rows of the batch, under names that `row_losses` does not use."""


@runtime_checkable
class Task(Protocol):
    """A model with its objective, its data and its evaluation.

    The trainer uses all but `embeds`, `submits`, `submission` and `classify`, which are for commands.

    Rules are ordered (regular expression, value) pairs over "/"-joined parameter paths, as in
    `image_encoder/layers/attention/query/kernel`; see `rules.match_rules`.
    """

    @property
    def name(self) -> str: ...

    @property
    def embeds(self) -> bool:
        """Whether images and texts are embedded by themselves, so that they can be ranked."""

    @property
    def submits(self) -> bool:
        """Whether an evaluation server takes what the model predicts."""

    @property
    def headline(self) -> Sequence[str]:
        """The metrics of an evaluation that say how good a run is, the first of all first; more is better."""
        return ()

    @property
    def sharding_rules(self) -> Sequence[tuple[str, PartitionSpec]]: ...

    @property
    def optimizer_rules(self) -> Sequence[tuple[str, str]]:
        """The group whose learning rate a parameter follows: image_encoder, text_encoder or rest."""

    @property
    def decay_rules(self) -> Sequence[tuple[str, bool]]:
        """Whether weight decay applies."""

    @property
    def layer_rules(self) -> Sequence[tuple[str, str]]:
        """Where in its encoder a parameter lies: before the layers, in the layers, or behind; see `layer_scales`."""

    @property
    def frozen_rules(self) -> Sequence[tuple[str, int]]:
        """How many of a parameter's first layers are frozen, -1 for all of it; what no rule covers is trained."""

    @property
    def flops_per_step(self) -> float:
        """Of the model, forward and backward, over the global batch."""

    @property
    def batch_shapes(self) -> Mapping[str, jax.ShapeDtypeStruct]:
        """Of the global batch."""

    @property
    def objective(self) -> Objective: ...

    def init(self, key: Key[Array, ""]) -> Params:
        """New parameters; traced by `jax.jit`, so that they are born sharded."""

    def start_weights(self, shapes: PyTree[jax.ShapeDtypeStruct]) -> StartWeights | None:
        """Values for a new run, in place of some of those that `init` makes; None where `init` makes them all.

        Raises:
          UserError: weights that cannot be read, or do not fit parameters of these `shapes`.
        """

    def prepare(self, batch: Batch, streams: Streams) -> Rows:
        """The global batch as the objective takes it, with everything random that a step needs."""

    def data_sizes(self) -> DataSizes | None:
        """None where they are not known.

        Raises:
          UserError: a source that cannot be opened.
        """
        return None

    def input_workers(self) -> int | None:
        """Processes that make the batches of `train_batches` here; 0: threads of this one. None: not known."""
        return None

    def train_batches(self, start_step: int) -> Iterator[Mapping[str, np.ndarray]]:
        """This host's rows of the batches of steps `start_step`, `start_step + 1` and so on; the first step is 0.

        As generators, it has a `close`, which ends its threads or processes.
        """

    def example_ids(self, step: int) -> Sequence[str]:
        """The ids of the examples in the global batch of a step, as the source gives them; for messages."""

    def evaluate(self, params: Params) -> dict[str, dict[str, Any]]:
        """Metrics for each `<task>-<split>`: numbers, [value, low, high], texts, or maps of these.

        No metric has a name of `workdir.ORIGIN`.
        """

    def submission(self, params: Params) -> tuple[dict[str, dict[str, Any]], str]:
        """As `evaluate`, and the file for the evaluation server.

        Raises:
          UserError: there is no such server.
        """

    def classify(
        self, params: Params, directory: Path, *, class_names: Path | None, templates: Path | None
    ) -> dict[str, dict[str, Any]]:
        """Zero-shot classification of the images in a folder, which holds a folder for each class.

        Args:
          class_names: file with the name of the class in each folder.
          templates: file with the prompts that the names are put into.

        Raises:
          UserError: the model does not embed images and texts.
        """

    def save_assets(self, workdir: Path) -> None:
        """Writes the files without which the parameters are useless, such as the tokenizer; called at every start."""
