"""A source by captions: an example is one caption with its image, not an image with all its captions."""

import dataclasses
from collections.abc import Sequence
from typing import cast

import numpy as np
from absl import logging
from jaxtyping import Int32, Int64

from mvlm_jax.data.examples import Counted, Example, InFiles, Source, read_ahead, reads_ahead, window_of, without_blanks
from mvlm_jax.data.images import UnusableImage
from mvlm_jax.data.mixtures import Component, Mixture

MANY = 20_000  # records; reading more takes seconds


@dataclasses.dataclass(frozen=True, eq=False)
class SingleCaptions:
    """The captions of some records of a source, in order; all captions of an image have its id."""

    source: Source[Example]
    records: Int32[np.ndarray, " M"]
    ends: Int64[np.ndarray, " M"]  # where the captions of each record end among all

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def __getitem__(self, index: int) -> Example:
        """Without a caption where the record has fewer than it had when they were counted.

        Raises:
          UnusableImage: as the source.
        """
        row = self._row(index)
        example = self.source[int(self.records[row])]
        nth = index - (int(self.ends[row - 1]) if row else 0)
        return cast(Example, {**example, "captions": without_blanks(example["captions"])[nth : nth + 1]})

    def example_id(self, index: int) -> str:
        return self.source.example_id(int(self.records[self._row(index)]))

    @property
    def window(self) -> int:
        return window_of(self.source)

    def file_starts(self) -> Int64[np.ndarray, " F"]:
        assert isinstance(self.source, InFiles)
        rows = np.searchsorted(self.records, self.source.file_starts())
        starts = np.unique(np.concatenate([[0], self.ends])[rows])
        return starts[starts < len(self)]

    @property
    def reads_ahead(self) -> bool:
        return reads_ahead(self.source)

    def read_ahead(self, indices: Sequence[int]) -> None:
        read_ahead(self.source, [int(self.records[self._row(index)]) for index in indices])

    def _row(self, index: int) -> int:
        return int(np.searchsorted(self.ends, index, side="right"))


def by_caption(mixture: Mixture) -> Mixture:
    """The mixture in which an epoch holds every caption once, each time with its image, and not every image once.

    A weight counts captions too.
    """
    return Mixture([_by_caption(component) for component in mixture.components])


def _by_caption(component: Component) -> Component:
    records = component.records
    if records is None:
        records = np.arange(len(component.source), dtype=np.int32)
    # What cannot be used comes once, so that it is stepped over and reported as it is elsewhere.
    counts = np.maximum(caption_counts(component.source, records), 1)
    if (counts == 1).all():
        return component
    captions = SingleCaptions(component.source, records, np.cumsum(counts, dtype=np.int64))
    return dataclasses.replace(component, source=captions, records=None)


def caption_counts(source: Source[Example], records: Int32[np.ndarray, " M"]) -> Int32[np.ndarray, " M"]:
    """How many captions each of the records has, blank ones left out; 0 where it cannot be read.

    Every one of them is read, with its image, where the source does not know better.
    """
    known = source.caption_counts() if isinstance(source, Counted) else None
    if known is not None:
        return known[records]
    if len(records) > MANY:
        logging.info("counting the captions of %d examples; a dataset prepared today keeps these numbers", len(records))

    def count(record: int) -> int:
        try:
            return len(without_blanks(source[record]["captions"]))
        except UnusableImage:
            return 0

    return np.fromiter(map(count, records.tolist()), np.int32, len(records))
