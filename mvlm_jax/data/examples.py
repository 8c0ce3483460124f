"""What a source of captioned images holds, and the protocol of every source."""

from collections.abc import Sequence
from typing import Protocol, TypedDict, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Int32, Int64

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


@runtime_checkable
class WithTexts(Protocol):
    """A source of captioned images that gives captions without reading the image."""

    def texts(self, index: int) -> list[str]:
        """
        Raises:
          UnusableImage: it is known that there is no image, or the captions are damaged.
        """


@runtime_checkable
class ReadsAhead(Protocol):
    """A source that may read many examples in hardly more time than one."""

    @property
    def reads_ahead(self) -> bool:
        """False: `read_ahead` gains nothing."""

    def read_ahead(self, indices: Sequence[int]) -> None:
        """Fetches what this thread will ask for next, all of it at once."""


def reads_ahead(source: object) -> bool:
    return isinstance(source, ReadsAhead) and source.reads_ahead


def read_ahead(source: object, indices: Sequence[int]) -> None:
    if isinstance(source, ReadsAhead) and source.reads_ahead:
        source.read_ahead(indices)


@runtime_checkable
class InFiles(Protocol):
    """A source whose examples are shuffled within a window, in the order of its files, so that neighbours in a file
    are read at about the same time."""

    window: int  # examples; 0: all are shuffled together

    def file_starts(self) -> Int64[np.ndarray, " F"]:
        """The first example of each file."""


def window_of(source: object) -> int:
    return source.window if isinstance(source, InFiles) else 0


def without_blanks(captions: Sequence[str]) -> list[str]:
    return [caption for caption in captions if caption.strip()]
