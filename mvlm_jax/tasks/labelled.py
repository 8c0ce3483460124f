"""What the tasks over labelled examples share."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from mvlm_jax.data.labelled import LabelledRow
from mvlm_jax.data.labelled_pipeline import LabelledSplit
from mvlm_jax.data.skipped import in_words
from mvlm_jax.errors import UserError
from mvlm_jax.evaluation import left_out as left_out_lib
from mvlm_jax.evaluation.batching import padded, place, shared_batch_size
from mvlm_jax.tasks.configured import ConfiguredTask
from mvlm_jax.tasks.model import images_of
from mvlm_jax.training import hosts
from mvlm_jax.training.streams import Streams
from mvlm_jax.training.task import Batch, Params, Rows

BLIND_PIXEL = 128  # the grey that normalises to about 0


@runtime_checkable
class Submitting(Protocol):
    """A task whose predictions an evaluation server takes."""

    def predictions(self, params: Params) -> tuple[list[Any], list[tuple[LabelledRow, str]]]: ...

    def results(self, said: Any, left_out: Any, /) -> dict[str, dict[str, Any]]: ...

    def submission(self, said: Any, left_out: Any, /) -> str:
        """The file for the server, from what `predictions` gave."""
        ...


@dataclasses.dataclass(frozen=True)
class LabelledTask(ConfiguredTask):
    """Images and a text in, something to say about them out.

    With `config.hide_modality` it sees the image only, or the text only: the baselines that say what is to be learned
    from one side alone.
    """

    eval_split: Callable[[], LabelledSplit]  # opened when it is first needed
    eval_name: str  # names the files of the results

    @property
    def images(self) -> int:
        """In each example."""
        return images_of(self.config)

    @cached_property
    def split(self) -> LabelledSplit:
        return self.eval_split()

    @property
    def batch_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        rows, size = self.config.batch_size, self.config.image.size
        return {
            "image": jax.ShapeDtypeStruct((rows, self.images, size, size, 3), jnp.uint8),
            "text": jax.ShapeDtypeStruct((rows, self.config.text.max_length), jnp.int32),
            "skipped": jax.ShapeDtypeStruct((rows,), jnp.int32),
            **self.target_shapes(rows),
        }

    def target_shapes(self, rows: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Of the targets in a batch."""
        raise NotImplementedError

    def prepare(self, batch: Batch, streams: Streams) -> Rows:
        return {**batch, **self.seen(batch)}

    def seen(self, batch: Batch) -> dict[str, Array]:
        """The images and texts of a batch as far as the model may see them."""
        image, text = batch["image"], batch["text"]
        if self.config.hide_modality == "image":
            image = jnp.full_like(image, BLIND_PIXEL)
        if self.config.hide_modality == "text":
            ids = self.tokenizer.ids
            nothing = jnp.full_like(text, ids.pad).at[:, 0].set(ids.start).at[:, 1].set(ids.end)
            text = nothing
        return {"image": image, "text": text}

    def predictions(self, params: Params) -> tuple[list[Any], list[tuple[LabelledRow, str]]]:
        """What the model says of each example of the split; and what was left out, with the reason."""
        raise NotImplementedError

    def results(self, said: Sequence[Any], left_out: Sequence[tuple[LabelledRow, str]]) -> dict[str, dict[str, Any]]:
        """Metrics for each file stem, from what `predictions` gave. What was left out counts as wrong."""
        raise NotImplementedError

    def evaluate(self, params: Params) -> dict[str, dict[str, Any]]:
        return self.results(*self.predictions(params))

    def evaluation_batches(
        self, params: Params, left_out: list[tuple[LabelledRow, str]]
    ) -> Iterator[tuple[dict[str, Array], list[LabelledRow]]]:
        """What the model sees of the whole split, on the devices that hold `params`, and whose rows these are.

        Batches are filled up to one size; `left_out` gets what cannot be used, with the reason.

        Raises:
          UserError: no example can be used.
        """
        used = False
        size = shared_batch_size(self.config.eval.batch_size, params=params)
        batches = self.split.batches(size)
        # Where a host lacks an image, its devices would work on rows of other examples than those of the others.
        for batch, rows, unusable in hosts.in_step(batches, name="evaluation split", identity=_examples):
            left_out.extend(unusable)
            if rows:
                used = True
                filled = {name: padded(np.asarray(batch[name]), size) for name in ("image", "text")}
                yield self.seen(place(filled, params=params)), rows
        if not used:
            said = in_words(Counter(reason for _, reason in left_out)) or "empty"
            raise UserError(
                f"none of the {len(left_out)} examples of config.data.eval={self.config.data.eval} can be used ({said})"
            )


def _examples(read: tuple[Batch, list[LabelledRow], list[tuple[LabelledRow, str]]]) -> str:
    """What was read and what of it is used, by name."""
    _, rows, left_out = read
    return repr([[row.example_id for row in of] for of in (rows, [row for row, _ in left_out])])


def reasons(left_out: Sequence[tuple[LabelledRow, str]]) -> dict[str, Any]:
    """How many examples were left out, and why, for the results."""
    return left_out_lib.left_out(Counter(reason for _, reason in left_out))
