"""Labelled examples to batches: the batch of step t is a function of (mixture, seed, t) alone."""

import dataclasses
import functools
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int32, UInt8

from mvlm_jax.data.augmentation import PlannedImage
from mvlm_jax.data.background import Batch
from mvlm_jax.data.images import ImageSpec, UnusableImage
from mvlm_jax.data.labelled import LabelledExample, LabelledRow, LabelledSource, row_of
from mvlm_jax.data.processes import available_cpus
from mvlm_jax.data.text import Tokenizer
from mvlm_jax.data.training_examples import TrainingBatches, TrainingExamples, UnusableExample
from mvlm_jax.errors import UserError


@runtime_checkable
class Targets(Protocol):
    """Turns the annotators' answers into the targets of a model; pickled into worker processes."""

    def encode(self, answers: Sequence[str]) -> dict[str, np.ndarray] | None:
        """Arrays of one example; None where nothing can be learned from these answers."""


@dataclasses.dataclass(frozen=True)
class Classes:
    """One of a few labels, as its place among them."""

    labels: tuple[str, ...]

    def encode(self, answers: Sequence[str]) -> dict[str, np.ndarray] | None:
        if not answers or answers[0] not in self.labels:
            return None
        return {"label": np.array(self.labels.index(answers[0]), np.int32)}


@dataclasses.dataclass(frozen=True)
class WeightedAnswers:
    """Each answer that was given, as tokens, weighted by the part of the annotators that gave it.

    The most frequent `slots` of them, the first one in their order where they are as frequent; empty slots weigh 0.
    """

    tokenizer: Tokenizer
    slots: int
    length: int  # tokens of an answer, start and end included

    def encode(self, answers: Sequence[str]) -> dict[str, np.ndarray] | None:
        counts = Counter(answers).most_common(self.slots)
        if not counts:
            return None
        tokens: Int32[np.ndarray, "slots length"] = np.full((self.slots, self.length), self.tokenizer.ids.pad, np.int32)
        weights: Float32[np.ndarray, " slots"] = np.zeros(self.slots, np.float32)
        given = [answer for answer, _ in counts]
        tokens[: len(given)] = self.tokenizer.encode(given, max_length=self.length, continuing=True)
        weights[: len(counts)] = [count / len(answers) for _, count in counts]
        return {"answers": tokens, "answer_weights": weights}


class TargetExample(NamedTuple):
    """A labelled example with encoded targets, and how its images are augmented."""

    example_id: str
    images: tuple[PlannedImage, ...]
    text: str
    targets: dict[str, np.ndarray]
    skipped: int = 0  # unusable examples that were stepped over to reach it


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelledExamples(TrainingExamples):
    """The labelled examples of a run.

    Raises:
      UserError: an example with another number of images than `images`.
    """

    targets: Targets

    def example(self, index: int, *, decode: bool) -> TargetExample:
        made, skipped, _ = self.first_usable(index, functools.partial(self._made, decode=decode))
        return made._replace(skipped=skipped)

    def _made(self, example: LabelledExample, rng: random.Random, *, decode: bool) -> TargetExample:
        targets = self.targets.encode(example["answers"])
        if targets is None:
            raise UnusableExample("its answers are none that can be learned")
        _check_images(example, images=self.images)
        # An answer that says left or right is as wrong for a flipped image as a question that does.
        text = " ".join([example["text"], *example["answers"]])
        images = tuple(self.planned(image, text=text, rng=rng, decode=decode) for image in example["images"])
        return TargetExample(example["example_id"], images, example["text"], targets)


class LabelledBatches(TrainingBatches):
    """The labelled examples of a run.

    A batch is `image` uint8 [b, images, size, size, 3], `text` int32 [b, L], what `targets` makes, and `skipped`
    int32 [b], the unusable examples stepped over for that example.
    """

    def __getitem__(self, step: int) -> Batch:
        count, size = self.examples.images, self.examples.spec.size
        with self.new_array((len(self.rows), count, size, size, 3), np.uint8) as image:
            made = self.filled(np.asarray(image), step=step)
            return {
                "image": image,
                "text": self.tokenizer.encode([example.text for example in made], max_length=self.max_length),
                "skipped": np.array([example.skipped for example in made], np.int32),
                **{name: np.stack([example.targets[name] for example in made]) for name in made[0].targets},
            }


@dataclasses.dataclass(frozen=True)
class LabelledSplit:
    """A whole split in order; examples with an image that cannot be decoded are left out."""

    source: LabelledSource
    tokenizer: Tokenizer
    images: int
    spec: ImageSpec
    max_length: int

    def batches(self, batch_size: int) -> Iterator[tuple[Batch, list[LabelledRow], list[tuple[LabelledRow, str]]]]:
        """(`image` and `text` of at most `batch_size` examples, their rows, the rows left out with the reason)."""
        with ThreadPoolExecutor(available_cpus()) as pool:
            for start in range(0, len(self.source), batch_size):
                read = list(pool.map(self._read, range(start, min(start + batch_size, len(self.source)))))
                used = [(row, pixels) for row, pixels in read if not isinstance(pixels, str)]
                left_out = [(row, reason) for row, reason in read if isinstance(reason, str)]
                rows = [row for row, _ in used]
                batch = {
                    "image": np.stack([pixels for _, pixels in used]) if used else self._no_images(),
                    "text": self.tokenizer.encode([row.text for row in rows], max_length=self.max_length),
                }
                yield batch, rows, left_out

    def _read(self, index: int) -> tuple[LabelledRow, UInt8[np.ndarray, "n S S 3"] | str]:
        try:
            example = self.source[index]
            _check_images(example, images=self.images)
            images = list(map(self.spec.unaugmented, example["images"]))
        except UnusableImage as error:
            return self._row(index), error.reason
        return row_of(example), np.stack(images)

    def _row(self, index: int) -> LabelledRow:
        try:
            return self.source.row(index)
        except UnusableImage:  # the record itself is damaged: only its id is known
            return LabelledRow((), "", (), "", "", self.source.example_id(index))

    def _no_images(self) -> UInt8[np.ndarray, "0 n S S 3"]:
        return np.zeros((0, self.images, self.spec.size, self.spec.size, 3), np.uint8)


def training_texts(rows: Iterable[LabelledRow]) -> Iterator[str]:
    """Every text, with the answers as they are encoded, after it; for training a tokenizer."""
    for row in rows:
        yield " ".join((row.text, *row.answers))


def _check_images(example: LabelledExample, *, images: int) -> None:
    if len(example["images"]) != images:
        raise UserError(f"example {example['example_id']} has {len(example['images'])} images; the task takes {images}")
