"""Several sources as one endless sequence of examples, and the part of a source that a limited-data run uses."""

import bisect
import dataclasses
import functools
import hashlib
import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from absl import logging
from grain.experimental import index_shuffle
from jaxtyping import Int32

from mvlm_jax.data.examples import InFiles, Source, WithTexts, read_ahead, reads_ahead, window_of
from mvlm_jax.data.images import UnusableImage
from mvlm_jax.data.order import ROUNDS, WindowedOrder, interleaved
from mvlm_jax.data.sources import FRACTION, open_source, without_option
from mvlm_jax.errors import UserError

MANY = 200_000  # ids; hashing more takes seconds
FORM = "[weight*]uri, several of them joined by ' + '"


@dataclasses.dataclass(frozen=True, eq=False)
class Component:
    """The part of a source that a run uses."""

    source: Source
    _: dataclasses.KW_ONLY
    weight: float = 1.0  # times that each example comes in an epoch
    records: Int32[np.ndarray, " M"] | None = None  # the ones that the run uses; None: all

    def __len__(self) -> int:
        return len(self.source) if self.records is None else len(self.records)

    def record(self, position: int) -> int:
        """The index in the source of the example at a position; positions past the end start over."""
        position %= len(self)
        return position if self.records is None else int(self.records[position])

    @property
    def examples_per_epoch(self) -> int:
        return max(1, round(self.weight * len(self)))

    def order(self) -> WindowedOrder | None:
        """None: all its examples are shuffled together."""
        window = window_of(self.source)
        if not window:
            return None
        assert isinstance(self.source, InFiles)
        starts = self.source.file_starts()
        if self.records is not None:  # files of which none is used have no place
            starts = np.unique(np.searchsorted(self.records, starts))
            starts = starts[starts < len(self)]
        return WindowedOrder(starts.astype(np.int64), len(self), window)


class Mixture:
    """All components shuffled together, in another order each epoch, with random access to any epoch.

    A component's examples come in passes that hold each of them exactly once. Where its weight is no whole number, an
    epoch ends within a pass and the next epoch goes on with it.

    Where a component is to be read in the order of its files, all components are spread evenly over the epoch instead,
    and each is shuffled on its own.

    Raises:
      UserError: no component, or one without an example.
    """

    def __init__(self, components: Sequence[Component]) -> None:
        self.components = tuple(components)
        if not self.components or not all(map(len, self.components)):
            raise UserError("the training source holds no example; a run needs at least one of each source")
        self._lengths = [len(component) for component in self.components]
        self._counts = [component.examples_per_epoch for component in self.components]
        self._ends = list(itertools.accumulate(self._counts))
        self._orders = [component.order() for component in self.components]
        self.reads_ahead = any(reads_ahead(component.source) for component in self.components)

    @property
    def epoch_size(self) -> int:
        """Examples in an epoch."""
        return self._ends[-1]

    def locate(self, index: int, *, seed: int) -> tuple[int, int]:
        """The number of the component, and the position in it, of the example at `index` from the start of the run."""
        epoch, place = divmod(index, self.epoch_size)
        if any(self._orders):
            return self._locate_in_order(epoch, place, seed=seed)
        place = index_shuffle(place, self.epoch_size - 1, _seed(seed, "epoch", epoch), ROUNDS)
        number = bisect.bisect_right(self._ends, place)
        count, length = self._counts[number], self._lengths[number]
        nth = epoch * count + place - (self._ends[number] - count)
        turn, position = divmod(nth, length)
        if count % length:
            # An epoch uses a part of a pass: it is shuffled, because the start of a file is no fair sample of it.
            position = index_shuffle(position, length - 1, _seed(seed, f"pass of {number}", turn), ROUNDS)
        return number, position

    def _locate_in_order(self, epoch: int, place: int, *, seed: int) -> tuple[int, int]:
        number, nth = interleaved(place, self._counts) if len(self._counts) > 1 else (0, place)
        length, order = self._lengths[number], self._orders[number]
        turn, position = divmod(epoch * self._counts[number] + nth, length)
        if order is not None:
            return number, order.position(
                position, turn=turn, seed=lambda stream, nth: _seed(seed, f"{stream} of {number}", nth)
            )
        if length > 1:
            position = index_shuffle(position, length - 1, _seed(seed, f"pass of {number}", turn), ROUNDS)
        return number, position

    def read_ahead(self, indices: Iterable[int], *, seed: int) -> None:
        """Fetches the examples at these places of the run at once, from sources that can."""
        wanted: dict[int, list[int]] = {}
        for index in indices:
            number, position = self.locate(index, seed=seed)
            wanted.setdefault(number, []).append(self.components[number].record(position))
        for number, records in wanted.items():
            read_ahead(self.components[number].source, records)

    def identity(self, number: int, example_id: str) -> str:
        """An id that no example of another component has: `example_id` where there is only one component."""
        return example_id if len(self.components) == 1 else f"{number}/{example_id}"

    def records(self) -> Iterator[tuple[Source, int]]:
        """Every example that the run uses, once: its source, and the index in it."""
        for component in self.components:
            for position in range(len(component)):
                yield component.source, component.record(position)

    def captions(self) -> Iterator[str]:
        """Every caption of every pair that the run uses and can read, for training a tokenizer."""
        for source, record in self.records():
            try:
                yield from source.texts(record) if isinstance(source, WithTexts) else source[record]["captions"]
            except UnusableImage:
                continue


def open_mixture(
    text: str,
    *,
    data_dir: str,
    fraction: float = 1.0,
    fraction_seed: int = 0,
    opener: Callable[..., Source] = open_source,
) -> Mixture:
    """Opens `uri`, or several of them as in `2*tfds:coco:train + tfds:vg:train`; of each source only a fraction.

    Args:
      fraction: of the sources without one of their own, as `tfds:vg:train?fraction=0.5` has it.
      opener: called with a URI and the `data_dir`.

    Raises:
      UserError: not of this form, a source that cannot be opened, or nothing left of one.
    """
    components = []
    for weight, term in parse_mixture(text):
        uri, own = without_option(term, FRACTION)
        part = fraction if own is None else _fraction(own, term=term)
        source = opener(uri, data_dir=data_dir)
        records = None if part == 1 else subset(source, fraction=part, seed=fraction_seed)
        if len(source) and records is not None and not len(records):
            name = f"config.data.fraction={part:g}" if own is None else f"{FRACTION}={own}"
            raise UserError(
                f"{name} leaves none of the {len(source)} examples of {uri}; give more than {0.5 / len(source):.2g}"
            )
        components.append(Component(source, weight=weight, records=records))
    return Mixture(components)


def parse_mixture(text: str) -> list[tuple[float, str]]:
    """(weight, URI) of each source, not yet opened.

    Raises:
      UserError: a weight that is no positive number, or no source where there must be one.
    """
    terms = []
    for term in re.split(r"\s\+(?=\s|$)", text):
        match = re.fullmatch(r"\s*(?:([^*:]*)\*)?(.*)", term, re.DOTALL)
        assert match  # the pattern matches any text
        weight, uri = match[1], match[2].strip()
        try:
            number = 1.0 if weight is None else float(weight)
        except ValueError:
            number = math.nan
        if not 0 < number < math.inf:
            raise UserError(f"source {text!r} has the weight {weight.strip()!r}; give a number above 0, as in 2*{uri}")
        if not uri:
            raise UserError(f"source {text!r} has an empty term; the form is {FORM}")
        terms.append((number, uri))
    return terms


def _fraction(value: str, *, term: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0 < number <= 1:
        raise UserError(f"source {term!r} has {FRACTION}={value}; give a number above 0 and at most 1")
    return number


def subset(source: Source, *, fraction: float, seed: int) -> Int32[np.ndarray, " M"]:
    """The records of round(fraction * length) examples, in order: the ones whose ids have the smallest hashes.

    Ids and `seed` alone decide, wherever in the files they are; a smaller fraction is part of every larger one.
    No image is read where the format keeps ids apart; elsewhere every record is read once.
    """
    if len(source) > MANY:
        logging.info("choosing a fraction of %g by the ids of %d examples", fraction, len(source))
    salt = seed.to_bytes(8, "little")
    hashes = np.fromiter((_hash(source.example_id(i), salt=salt) for i in range(len(source))), np.uint64, len(source))
    smallest = np.argsort(hashes, kind="stable")[: round(fraction * len(source))]
    return np.sort(smallest).astype(np.int32)


def _hash(identity: str, *, salt: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(identity.encode("utf-8", "replace"), digest_size=8, salt=salt).digest())


@functools.lru_cache(maxsize=64)
def _seed(seed: int, stream: str, number: int) -> int:
    digest = hashlib.blake2b(f"{seed} {stream} {number}".encode(), digest_size=4).digest()
    return int.from_bytes(digest)
