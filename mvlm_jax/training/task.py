"""What the trainer knows of the thing it trains."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key, Num, PyTree

from mvlm_jax.training.streams import Streams

Params = PyTree[Any]
Batch = Mapping[str, Any]
Rows = PyTree[Any]  # arrays with one row an example
SumAndCount = tuple[Num[Array, ""], Num[Array, ""]]
Sums = dict[str, SumAndCount]


class StartWeights(NamedTuple):
    """Values for some of the parameters of a new run."""

    params: Mapping[str, Float[np.ndarray, "..."]]  # by "/"-joined path
    report: Mapping[str, Any]  # kept in the run's directory, as JSON
    lines: Sequence[str]  # the same for a reader


@runtime_checkable
class Objective(Protocol):
    """Losses that are means over the global batch, in the parts that many devices and microbatches need.

    Nothing random happens in it: that is drawn for the whole batch before, as rows (`Task.rows`).
    """

    weights: Mapping[str, float]  # of the losses among the sums; the other sums are metrics only
    dtype: DTypeLike  # of the computation
    group: int  # consecutive rows that `row_losses` needs together

    def row_losses(self, params: Params, rows: Rows) -> tuple[Sums, Rows]:
        """Sums over these rows, their counts a matter of `rows` alone, and the embeddings that `batch_losses` reads."""
        ...

    def embed(self, params: Params, rows: Rows) -> Rows:
        """The embeddings alone."""
        ...

    def batch_losses(self, params: Params, embeddings: Rows, rows: Rows) -> Sums:
        """Sums that compare all rows of the batch, under names of their own."""
        ...


@runtime_checkable
class Task(Protocol):
    """A model with its objective, its data and its evaluation.

    Rules are ordered (regular expression, value) pairs over "/"-joined parameter paths, as in
    `image_encoder/layers/attention/query/kernel`; see `rules.match_rules`.
    """

    sharding_rules: Sequence[tuple[str, PartitionSpec]]
    optimizer_rules: Sequence[tuple[str, str]]  # the group whose learning rate a parameter follows: encoder or rest
    decay_rules: Sequence[tuple[str, bool]]  # whether weight decay applies
    flops_per_step: float  # of the model, forward and backward, over the global batch
    batch_shapes: Mapping[str, jax.ShapeDtypeStruct]  # of the global batch
    objective: Objective

    def init(self, key: Key[Array, ""]) -> Params:
        """New parameters; traced by `jax.jit`, so that they are born sharded."""
        ...

    def start_weights(self, shapes: PyTree[jax.ShapeDtypeStruct]) -> StartWeights | None:
        """What a new run starts from instead of some of the parameters that `init` makes; None: those it makes.

        Raises:
          UserError: weights that cannot be read, or do not fit parameters of these `shapes`.
        """
        ...

    def rows(self, batch: Batch, streams: Streams) -> Rows:
        """The global batch as its objective takes it, with everything random that a step needs."""
        ...

    def train_batches(self, start_step: int) -> Iterator[Mapping[str, np.ndarray]]:
        """This host's rows of the batches of steps `start_step`, `start_step + 1`, …; the first step is 0."""
        ...

    def example_ids(self, step: int) -> Sequence[str]:
        """What the global batch of a step is made of, as the source names it; for messages."""
        ...

    def evaluate(self, params: Params) -> dict[str, dict[str, Any]]:
        """Metrics for each `<task>-<split>`, such as `retrieval-val`; no metric is called as `workdir.ORIGIN` is."""
        ...

    def save_assets(self, workdir: Path) -> None:
        """Writes what the parameters are useless without, such as the tokenizer; called at every start."""
        ...
