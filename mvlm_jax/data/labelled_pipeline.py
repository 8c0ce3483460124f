"""Labelled examples to batches: the batch of step t is a function of (source, seed, t) alone."""

import dataclasses
import functools
import os
import random
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, runtime_checkable

import grain
import numpy as np
from absl import logging
from jaxtyping import Float32, Int32, UInt8

from mvlm_jax.data.augmentation import training_image
from mvlm_jax.data.images import UnusableImage, decode_image, evaluate_transform
from mvlm_jax.data.labelled import LabelledExample, LabelledRow, LabelledSource
from mvlm_jax.data.pipeline import LONGEST_GAP, Batch, in_background
from mvlm_jax.data.text import Tokenizer
from mvlm_jax.errors import UserError


@runtime_checkable
class Targets(Protocol):
    """What a model is to say, from what annotators said; pickled into worker processes."""

    def encode(self, answers: Sequence[str]) -> dict[str, np.ndarray] | None:
        """Arrays of one row; None where nothing can be learned from these answers."""
        ...


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
        tokens[: len(counts)] = self.tokenizer.encode([answer for answer, _ in counts], max_length=self.length)
        weights[: len(counts)] = [count / len(answers) for _, count in counts]
        return {"answers": tokens, "answer_weights": weights}


@dataclasses.dataclass(frozen=True)
class LabelledBatches:
    """Random access to the batches of a run; pickled into worker processes.

    A batch is `image` uint8 [b, images, size, size, 3], `text` int32 [b, L], what `targets` makes, and `skipped`
    int32 [b], the unusable examples stepped over for that row.
    """

    source: LabelledSource
    tokenizer: Tokenizer
    targets: Targets
    images: int  # in each example
    rows: tuple[int, ...]  # those b rows of each batch that are made
    batch_size: int
    seed: int
    image_size: int
    max_length: int
    max_image_pixels: int
    min_scale: float
    flip: bool
    operations: int
    magnitude: int
    reported: set[str] = dataclasses.field(default_factory=set)

    def __len__(self) -> int:
        return sys.maxsize // self.batch_size

    def __getitem__(self, step: int) -> Batch:
        made = [self._row(int(step) * self.batch_size + row) for row in self.rows]
        batch = {name: np.stack([row[name] for row in made]) for name in made[0] if name != "text"}
        texts = [row["text"] for row in made]
        return {**batch, "text": self.tokenizer.encode(texts, max_length=self.max_length)}

    def example_ids(self, step: int) -> list[str]:
        """Of all rows of a batch, as the source spells them."""
        return [self._usable(step * self.batch_size + row)[0]["example_id"] for row in range(self.batch_size)]

    def _row(self, index: int) -> dict[str, Any]:
        example, images, targets, skipped = self._usable(index)
        skipped = np.array(skipped, np.int32)
        return {"image": np.stack(images), "text": example["text"], "skipped": skipped, **targets}

    def _usable(self, index: int) -> tuple[LabelledExample, list[UInt8[np.ndarray, "S S 3"]], dict[str, Any], int]:
        """The first usable example from place `index` of the training order on, and how many were stepped over."""
        epoch, place = divmod(index, len(self.source))
        order = _order(len(self.source), self.seed, epoch)
        # Each example has a stream of its own, wherever in a batch it is made.
        rng = random.Random(self.seed << 64 | index)
        reason = ""
        gap = min(len(self.source), LONGEST_GAP)
        for skipped in range(gap):
            record = int(order[(place + skipped) % len(order)])
            try:
                example = self.source[record]
                targets = self.targets.encode(example["answers"])
                if targets is not None:
                    return example, self._images(example, rng), targets, skipped
                reason = "its answers are none that can be learned"
            except UnusableImage as error:
                reason = str(error)
            example_id = self.source.row(record).example_id
            if example_id not in self.reported:
                self.reported.add(example_id)
                logging.warning("example %s is stepped over: %s", example_id, reason)
        raise UserError(f"{gap} examples in a row cannot be used; the last one: {reason}")

    def _images(self, example: LabelledExample, rng: random.Random) -> list[UInt8[np.ndarray, "S S 3"]]:
        return [
            training_image(
                image,
                rng=rng,
                caption=example["text"],
                size=self.image_size,
                max_pixels=self.max_image_pixels,
                min_scale=self.min_scale,
                flip=self.flip,
                operations=self.operations,
                magnitude=self.magnitude,
            )
            for image in _checked(example, images=self.images)
        ]


def labelled_batches(batches: LabelledBatches, *, start_step: int, workers: int, prefetch: int) -> Iterator[Batch]:
    """Endless batches from `start_step` on; `close()` ends its threads or worker processes.

    Raises:
      UserError: an empty source.
    """
    if len(batches.source) == 0:
        raise UserError("the training source holds no example; a run needs at least one")
    return in_background(grain.MapDataset.source(batches)[start_step:], workers=workers, prefetch=prefetch)


@dataclasses.dataclass(frozen=True)
class LabelledSplit:
    """A whole split in order; examples with an image that cannot be decoded are left out."""

    source: LabelledSource
    tokenizer: Tokenizer
    images: int
    image_size: int
    max_length: int
    max_image_pixels: int

    def batches(self, batch_size: int) -> Iterator[tuple[Batch, list[LabelledRow], list[tuple[LabelledRow, str]]]]:
        """(`image` and `text` of at most `batch_size` examples, what these are, those left out with the reason)."""
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for start in range(0, len(self.source), batch_size):
                found = list(pool.map(self._read, range(start, min(start + batch_size, len(self.source)))))
                used = [(row, pixels) for row, pixels in found if not isinstance(pixels, str)]
                left_out = [(row, reason) for row, reason in found if isinstance(reason, str)]
                rows = [row for row, _ in used]
                batch = {
                    "image": np.stack([pixels for _, pixels in used]) if used else self._no_images(),
                    "text": self.tokenizer.encode([row.text for row in rows], max_length=self.max_length),
                }
                yield batch, rows, left_out

    def _read(self, index: int) -> tuple[LabelledRow, UInt8[np.ndarray, "n S S 3"] | str]:
        row = self.source.row(index)
        try:
            decoded = [
                decode_image(image, max_pixels=self.max_image_pixels, size_hint=self.image_size)
                for image in _checked(self.source[index], images=self.images)
            ]
        except UnusableImage as error:
            return row, error.reason
        return row, np.stack([evaluate_transform(image, size=self.image_size) for image in decoded])

    def _no_images(self) -> UInt8[np.ndarray, "0 n S S 3"]:
        return np.zeros((0, self.images, self.image_size, self.image_size, 3), np.uint8)


def training_texts(source: LabelledSource) -> Iterator[str]:
    """Every text and every answer, for training a tokenizer."""
    for index in range(len(source)):
        row = source.row(index)
        yield row.text
        yield from row.answers


def _checked(example: LabelledExample, *, images: int) -> list[bytes]:
    if len(example["images"]) != images:
        raise UserError(f"example {example['example_id']} has {len(example['images'])} images; the task takes {images}")
    return example["images"]


@functools.lru_cache(maxsize=2)
def _order(count: int, seed: int, epoch: int) -> Int32[np.ndarray, " count"]:
    """The examples of an epoch in the order of training."""
    return np.random.default_rng((seed, epoch)).permutation(count).astype(np.int32)
