"""Updates that are skipped because the loss or a gradient is not finite."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from absl import logging
from jaxtyping import Array, Bool, PyTree

from mvlm_jax.errors import RunError

IN_A_ROW = "skipped_in_a_row"
SHOWN_IDS = 16  # of the batch, in the message that ends a run


@flax.struct.dataclass
class Skipped:
    """Int32 counts, part of the state so that a resumed run goes on counting."""

    total: Any
    in_a_row: Any  # up to the last step

    @classmethod
    def none(cls) -> "Skipped":
        return cls(total=jnp.int32(0), in_a_row=jnp.int32(0))

    def counted(self, finite: Bool[Array, ""]) -> "Skipped":
        return Skipped(
            total=self.total + ~finite,
            in_a_row=jnp.where(finite, 0, self.in_a_row + 1),
        )


def kept_unless(finite: Bool[Array, ""], new: PyTree, old: PyTree) -> PyTree:
    """`new` where the update is finite, else `old`."""
    return jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, old)


class NonFiniteWatch:
    """Reports skipped updates as their metrics arrive, and ends a run in which too many are skipped in a row."""

    def __init__(self, *, limit: int, example_ids: Callable[[int], Sequence[str]]):
        """`limit` skipped updates in a row end the run; `example_ids` names the examples in the batch of a step."""
        self._limit = limit
        self._example_ids = example_ids

    def check(self, step: int, metrics: dict[str, jax.Array], *, checkpoints: Sequence[int]) -> None:
        """Waits for the step. `checkpoints` are the steps from which the run could be continued.

        Raises:
          RunError: the limit is reached.
        """
        in_a_row = int(metrics[IN_A_ROW])
        if not in_a_row:
            return
        values = f"the loss is {float(metrics['loss']):.4g}, the gradient's norm {float(metrics['grad_norm']):.4g}"
        logging.warning("step %d: %s; its update is skipped (%d in a row)", step, values, in_a_row)
        if in_a_row < self._limit:
            return
        # Steps are counted from 1 here, from 0 in the data.
        ids = list(self._example_ids(step - 1))
        more = f" and {len(ids) - SHOWN_IDS} more" if len(ids) > SHOWN_IDS else ""
        good = [saved for saved in checkpoints if saved <= step - in_a_row]
        checkpoint = f"the last good checkpoint is of step {max(good)}" if good else "there is no good checkpoint yet"
        raise RunError(
            f"step {step}: {values}; {in_a_row} updates in a row were skipped (config.max_skipped_updates="
            f"{self._limit}); the images of its batch are {', '.join(ids[:SHOWN_IDS])}{more}; {checkpoint}"
        )
