"""What a source of captioned images holds, and the protocol of every source."""

from collections.abc import Sequence
from typing import Protocol, TypedDict, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Int32

ExampleT = TypeVar("ExampleT", covariant=True)


class Example(TypedDict):
    """One image, encoded, with all its captions."""

    image: bytes
    captions: list[str]
    image_id: str


@runtime_checkable
class Source(Protocol[ExampleT]):
    """Random access to examples; pickled into worker processes.

    A source whose reading leaves something out counts it in a `left_out` of its own (see `left_out_of`).
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> ExampleT:
        """
        Raises:
          UnusableImage: an image is not where the source says, or the record is damaged.
        """

    def example_id(self, index: int) -> str:
        """The id of an example (of a pair its `image_id`), without reading an image where the format permits."""


@runtime_checkable
class Counted(Protocol):
    """A source of captioned images that keeps captions, or their numbers, apart from the images."""

    def caption_counts(self) -> Int32[np.ndarray, " M"] | None:
        """How many captions that are not blank each example has; None: not known without reading them all."""


def without_blanks(captions: Sequence[str]) -> list[str]:
    return [caption for caption in captions if caption.strip()]
