"""What the tasks over labelled examples share: questions, statements and hypotheses about images."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any, ClassVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from ml_collections import ConfigDict

from mvlm_jax.data import skipped
from mvlm_jax.data.background import Batch as HostBatch
from mvlm_jax.data.images import UnusableImage
from mvlm_jax.data.labelled import LabelledRow, LabelledSource
from mvlm_jax.data.labelled_pipeline import LabelledBatches, LabelledExamples, LabelledSplit, Targets, training_texts
from mvlm_jax.data.sources import open_labelled
from mvlm_jax.errors import UserError
from mvlm_jax.evaluation.batching import padded, place, shared_batch_size
from mvlm_jax.objectives.losses import example_counts
from mvlm_jax.tasks.base import BaseTask
from mvlm_jax.training import hosts
from mvlm_jax.training.accumulation import Independent
from mvlm_jax.training.streams import Streams
from mvlm_jax.training.task import Batch, Params, Rows, Sums

HIDDEN_PIXEL = 128  # the grey that normalises to about 0

LeftOut = list[tuple[LabelledRow, str]]  # examples that cannot be used, with the reason
Predictions = tuple[list[tuple[LabelledRow, Any]], LeftOut]


@dataclasses.dataclass(frozen=True)
class LabelledTask(BaseTask):
    """Images and a text in, an answer out.

    With `config.hide_modality` the model sees the image only, or the text only: baselines that measure what can be
    learned from one side alone.
    """

    loss: ClassVar[str]  # which of its `losses` is minimised; the others are metrics
    verbs: ClassVar[tuple[str, ...]] = ("predict",)
    headline: ClassVar[tuple[str, ...]] = ("accuracy",)
    batch_type = LabelledBatches
    open_source = staticmethod(open_labelled)

    @classmethod
    def training_texts(cls, config: ConfigDict) -> Iterable[str]:
        return training_texts(cls.training_rows(config))

    @classmethod
    def training_rows(cls, config: ConfigDict) -> Iterator[LabelledRow]:
        """Of the training source, those that the run sees and can read."""
        for source, record in cls.mixture(config).records():
            try:
                yield cast(LabelledSource, source).row(record)
            except UnusableImage:
                continue

    @classmethod
    def model_inputs(cls, config: ConfigDict) -> tuple[Array, ...]:
        size = config.image.size
        text = jnp.zeros((1, config.text.max_length), jnp.int32)
        return jnp.zeros((1, cls.images, size, size, 3), jnp.uint8), text

    @property
    def targets(self) -> Targets:
        """What the model is to answer, from what the annotators answered."""
        raise NotImplementedError

    def target_shapes(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Of the targets in a batch."""
        raise NotImplementedError

    def losses(self, params: Params, rows: Rows) -> Sums:
        """Over examples that are not compared with each other."""
        raise NotImplementedError

    def predict(self, params: Params, image: Array, text: Array) -> list[Any]:
        """What the model answers to each example of a batch, as its images and texts are on the devices."""
        raise NotImplementedError

    def results(self, predicted: Sequence[tuple[LabelledRow, Any]], left_out: LeftOut) -> dict[str, dict[str, Any]]:
        """Metrics for each file stem. What was left out counts as wrong."""
        raise NotImplementedError

    @property
    def batch_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        batch_size, size = self.config.batch_size, self.config.image.size
        return {
            "image": jax.ShapeDtypeStruct((batch_size, self.images, size, size, 3), jnp.uint8),
            "text": jax.ShapeDtypeStruct((batch_size, self.config.text.max_length), jnp.int32),
            "skipped": jax.ShapeDtypeStruct((batch_size,), jnp.int32),
            **self.target_shapes(batch_size),
        }

    @cached_property
    def objective(self) -> Independent:
        return Independent(
            self.losses,
            weights={self.loss: 1.0},
            dtype=self.model.dtype,
            counts=lambda rows: example_counts(rows["skipped"]),
        )

    def prepare(self, batch: Batch, streams: Streams) -> Rows:
        keys = self.dropout_keys(streams, examples=len(batch["text"]))
        return {**batch, **self.shown(batch), "dropout_keys": keys}

    def shown(self, batch: Batch) -> dict[str, Array]:
        """The images and texts of a batch as far as the model may see them."""
        image, text = batch["image"], batch["text"]
        if self.config.hide_modality == "image":
            image = jnp.full_like(image, HIDDEN_PIXEL)
        if self.config.hide_modality == "text":
            ids = self.tokenizer.ids
            text = jnp.full_like(text, ids.pad).at[:, 0].set(ids.start).at[:, 1].set(ids.end)
        return {"image": image, "text": text}

    @property
    def training_examples(self) -> LabelledExamples:
        return LabelledExamples(targets=self.targets, images=self.images, **self.example_fields)

    @cached_property
    def split(self) -> LabelledSplit:
        config = self.config
        with hosts.together():
            source = cast(LabelledSource, self.eval_source)
        return LabelledSplit(
            source=source,
            tokenizer=self.tokenizer,
            images=self.images,
            spec=self.image_spec,
            max_length=config.text.max_length,
        )

    def submission_file(self, predicted: Sequence[tuple[LabelledRow, Any]], left_out: LeftOut) -> str:
        """What the evaluation server reads; only for tasks whose `submits` is true."""
        raise NotImplementedError

    def evaluate(self, params: Params) -> dict[str, dict[str, Any]]:
        return self.results(*self.predictions(params))

    def submission(self, params: Params) -> tuple[dict[str, dict[str, Any]], str]:
        predicted, left_out = self.predictions(params)
        return self.results(predicted, left_out), self.submission_file(predicted, left_out)

    def predictions(self, params: Params) -> Predictions:
        """What the model answers to each example of the evaluation split, and what was left out.

        Raises:
          UserError: no example can be used.
        """
        predicted: list[tuple[LabelledRow, Any]] = []
        left_out: LeftOut = []
        size = shared_batch_size(self.config.eval.batch_size, params=params)
        # Where a host lacks an image, its devices would work on other examples than those of the others.
        for batch, rows, unusable in hosts.in_step(
            self.split.batches(size), name="evaluation split", identity=_examples
        ):
            left_out.extend(unusable)
            if rows:
                filled = {name: padded(np.asarray(batch[name]), size) for name in ("image", "text")}
                shown = self.shown(place(filled, params=params))
                predicted += zip(rows, self.predict(params, shown["image"], shown["text"]))
        if not predicted:
            reasons = skipped.in_words(Counter(reason for _, reason in left_out)) or "empty"
            raise UserError(
                f"none of the {len(left_out)} examples of config.data.eval={self.config.data.eval} can be used "
                f"({reasons})"
            )
        return predicted, left_out


def _examples(read: tuple[HostBatch, list[LabelledRow], LeftOut]) -> str:
    """What was read and what of it is used, by name."""
    _, rows, left_out = read
    return repr([[row.example_id for row in part] for part in (rows, [row for row, _ in left_out])])


def reasons(left_out: LeftOut) -> dict[str, Any]:
    """How many examples were left out, and why, for the results."""
    return skipped.left_out(Counter(reason for _, reason in left_out))
