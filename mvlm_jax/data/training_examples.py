"""The examples and batches of a training run: what all tasks have in common."""

import dataclasses
import random
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from absl import logging
from jaxtyping import UInt8

from mvlm_jax.data.augmentation import Augment, PlannedImage, planned_image
from mvlm_jax.data.background import Batch, NewArray, in_this_process
from mvlm_jax.data.images import ImageSpec, UnusableImage
from mvlm_jax.data.mixtures import Mixture
from mvlm_jax.data.text import Tokenizer
from mvlm_jax.errors import UserError

LONGEST_GAP = 1000  # consecutive unusable records after which a run stops
READ_TOGETHER = 64  # examples, before the first of their images is decoded
FETCHED_TOGETHER = 8 * READ_TOGETHER  # examples, from a store, whose encoded images are held meanwhile

Made = TypeVar("Made")


class UnusableExample(ValueError):
    """An example that no training is possible with; the message is the reason."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingExamples:
    """Random access to the examples of a run, counted from its start; pickled into worker processes.

    Raises:
      UserError: a seed that is no 32-bit number.
    """

    mixture: Mixture
    seed: int
    spec: ImageSpec
    augment: Augment
    images: int = 1  # in each example
    reported: set[str] = dataclasses.field(default_factory=set)

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**32:
            raise UserError(f"config.seed={self.seed} must lie between 0 and {2**32 - 1}")

    def __getitem__(self, index: int) -> Any:
        return self.example(index, decode=True)

    def example(self, index: int, *, decode: bool) -> Any:
        """An example that begins with its id, and has its `images` planned.

        Args:
          decode: True makes sure that the images can be made. False leaves that to whoever makes them: where one is
            broken, the example is the one that True gives.

        Raises:
          UserError: so many unusable records in a row that the source must be broken.
        """
        raise NotImplementedError

    def first_usable(self, index: int, make: Callable[[Any, random.Random], Made]) -> tuple[Made, int, int]:
        """What is made of the first usable example from `index` on, how many unusable ones were stepped over, and the
        number of the component that they are from.

        Args:
          make: called with an example and the random stream of `index`; raises UnusableExample or UnusableImage.

        Raises:
          UserError: so many unusable records in a row that the source must be broken.
        """
        # Each index has its own random numbers, so an example does not depend on its batch. Python's generator is
        # ten times as fast as NumPy's for single numbers; only `random()` is the same in every version of Python.
        rng = random.Random(self.seed << 64 | index)
        number, position = self.mixture.locate(index, seed=self.seed)
        component = self.mixture.components[number]
        reason = ""
        gap = min(len(component), LONGEST_GAP)
        for skipped in range(gap):
            record = component.record(position + skipped)
            try:
                return make(component.source[record], rng), skipped, number
            except (UnusableExample, UnusableImage) as error:
                reason = str(error)
            example_id = component.source.example_id(record)
            if example_id not in self.reported:
                self.reported.add(example_id)
                logging.warning("record %d (%s) is stepped over: %s", record, example_id, reason)
        first = component.record(position)
        raise UserError(f"{gap} records in a row cannot be used, from record {first} on; the last one: {reason}")

    def planned(self, image: bytes, *, text: str, rng: random.Random, decode: bool) -> PlannedImage:
        """
        Raises:
          UndecodableImage: as `planned_image`.
        """
        return planned_image(image, rng=rng, caption=text, spec=self.spec, augment=self.augment, decode=decode)


@dataclasses.dataclass(frozen=True)
class TrainingBatches:
    """Random access to the batches of a run by step; pickled into worker processes."""

    examples: TrainingExamples
    tokenizer: Tokenizer
    _: dataclasses.KW_ONLY
    max_length: int
    batch_size: int
    rows: tuple[int, ...]  # positions in the global batch that this process reads
    new_array: NewArray = in_this_process  # for the images

    def with_arrays_from(self, new_array: NewArray) -> "TrainingBatches":
        return dataclasses.replace(self, new_array=new_array)

    def __len__(self) -> int:
        return sys.maxsize // self.batch_size

    def __getitem__(self, step: int) -> Batch:
        raise NotImplementedError

    @property
    def image_bytes(self) -> int:
        """Of a batch."""
        return len(self.rows) * self.examples.images * 3 * self.examples.spec.size**2

    def filled(self, images: UInt8[np.ndarray, "b n S S 3"], *, step: int) -> list[Any]:
        """The examples of a step; their images are written to `images`."""
        first, examples = int(step) * self.batch_size, []
        for start in range(0, len(self.rows), READ_TOGETHER):
            if start % FETCHED_TOGETHER == 0 and self.examples.mixture.reads_ahead:
                fetched = self.rows[start : start + FETCHED_TOGETHER]
                self.examples.mixture.read_ahead((first + row for row in fetched), seed=self.examples.seed)
            indices = [first + row for row in self.rows[start : start + READ_TOGETHER]]
            # Each of the two has code and data of its own; taken in turns, they push each other out of the caches.
            read = [self.examples.example(index, decode=False) for index in indices]
            for place, (index, example) in enumerate(zip(indices, read), start):
                try:
                    _make(example.images, images[place])
                except UnusableImage:
                    example = self.examples.example(index, decode=True)
                    _make(example.images, images[place])
                examples.append(example)
        return examples


def _make(images: Sequence[PlannedImage], out: UInt8[np.ndarray, "n S S 3"]) -> None:
    for image, place in zip(images, out, strict=True):
        image.made(out=place)
