"""What the trainer knows of the thing it trains."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Key, Num, PyTree

from mvlm_jax.training.streams import Streams

Params = PyTree[Any]
Batch = Mapping[str, Any]
SumAndCount = tuple[Num[Array, ""], Num[Array, ""]]


class StartWeights(NamedTuple):
    """Values for some of the parameters of a new run."""

    params: Mapping[str, Float[np.ndarray, "..."]]  # by "/"-joined path
    report: Mapping[str, Any]  # kept in the run's directory, as JSON
    lines: Sequence[str]  # the same for a reader


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

    def init(self, key: Key[Array, ""]) -> Params:
        """New parameters; traced by `jax.jit`, so that they are born sharded."""
        ...

    def start_weights(self, shapes: PyTree[jax.ShapeDtypeStruct]) -> StartWeights | None:
        """What a new run starts from instead of some of the parameters that `init` makes; None: those it makes.

        Raises:
          UserError: weights that cannot be read, or do not fit parameters of these `shapes`.
        """
        ...

    def loss(self, params: Params, batch: Batch, streams: Streams) -> tuple[Float[Array, ""], dict[str, SumAndCount]]:
        """The scalar to minimise over the global batch, and metrics as (sum, count), divided once by the trainer."""
        ...

    def train_batches(self, start_step: int) -> Iterator[Mapping[str, np.ndarray]]:
        """This host's rows of the batches of steps `start_step`, `start_step + 1`, …; the first step is 0."""
        ...

    def example_ids(self, step: int) -> Sequence[str]:
        """What the global batch of a step is made of, as the source names it; for messages."""
        ...

    def evaluate(self, params: Params) -> dict[str, dict[str, Any]]:
        """Metrics for each file stem, such as `retrieval-val`."""
        ...

    def save_assets(self, workdir: Path) -> None:
        """Writes what the parameters are useless without, such as the tokenizer; called at every start."""
        ...
