"""Examples to batches: the batch of step t is a function of (source, seed, t) alone."""

import dataclasses
import functools
import hashlib
import math
import multiprocessing
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import grain
import numpy as np
from absl import logging
from jaxtyping import Int, Int32, Shaped, UInt8

from mvlm_jax.data.images import UndecodableImage, augment, decode_image, evaluate_transform
from mvlm_jax.data.sources import Example, Source
from mvlm_jax.data.text import Tokenizer
from mvlm_jax.errors import UserError

Batch = dict[str, Shaped[np.ndarray, "B ..."]]

LONGEST_GAP = 1000  # unusable records in a row before the source is taken to be broken
CACHE_BYTES = 2**30  # decoded pixels of an evaluation split that are kept in memory


def train_batches(
    source: Source,
    tokenizer: Tokenizer,
    *,
    image_size: int,
    max_length: int,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    rows: Sequence[int] | Int[np.ndarray, " rows"] | None = None,
    workers: int = 0,
    prefetch: int = 2,
    max_image_pixels: int,
    min_scale: float,
    flip: bool,
    operations: int,
    magnitude: int,
) -> Iterator[Batch]:
    """Endless batches from `start_step` on; `close()` ends its threads or worker processes.

    A batch is `image` uint8 [b, size, size, 3], `text` int32 [b, L], `image_id` int32 [b] (a hash) and `skipped`
    int32 [b], the unusable records stepped over for that slot. Epochs run on through the borders of batches.

    Args:
      rows: those b of the `batch_size` pairs of each step that this process reads; None: all.

    Raises:
      UserError: an empty source.
    """
    if len(source) == 0:
        raise UserError("the training source holds no example; a run needs at least one")
    if not 0 <= seed < 2**32:
        raise UserError(f"config.seed={seed} must lie between 0 and {2**32 - 1}")
    load = _Load(
        source=source,
        tokenizer=tokenizer,
        image_size=image_size,
        max_length=max_length,
        max_image_pixels=max_image_pixels,
        min_scale=min_scale,
        flip=flip,
        operations=operations,
        magnitude=magnitude,
    )
    records = _records(source, seed=seed).random_map(load)
    own = tuple(range(batch_size) if rows is None else map(int, rows))
    batches = _Rows(records, batch_size=batch_size, rows=own).batch(len(own))[start_step:]
    return in_background(batches, workers=workers, prefetch=prefetch)


def in_background(batches: grain.MapDataset, *, workers: int, prefetch: int) -> Iterator[Batch]:
    """The batches in order, `prefetch` of them made ahead by threads, or by `workers` processes."""
    threads = min(prefetch, os.cpu_count() or 1)
    if not workers:
        return iter(batches.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)))
    ready = max(1, math.ceil(prefetch / workers))
    # A worker's own buffer is what it works ahead; threads inside it would only fight for its lock.
    in_turn = batches.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=ready)
    return iter(in_turn.mp_prefetch(options, _outlive_signals_but_not_the_parent))


def train_image_ids(
    source: Source, *, step: int, batch_size: int, seed: int, image_size: int, max_image_pixels: int, min_scale: float
) -> list[str]:
    """Of the pairs of one step in `train_batches`, over all processes, as the source spells them."""
    records = _records(source, seed=seed)[step * batch_size : (step + 1) * batch_size]
    usable = functools.partial(
        _usable, source, image_size=image_size, max_image_pixels=max_image_pixels, min_scale=min_scale
    )
    return [usable(int(index))[0]["image_id"] for index in records]


def training_captions(source: Source) -> Iterator[str]:
    """Every caption of every record, for training a tokenizer."""
    for index in range(len(source)):
        yield from source[index]["captions"]


@dataclasses.dataclass(frozen=True)
class EvalSplit:
    """A whole split in order: all captions as tokens, images on demand.

    Images that cannot be decoded or have no caption are left out and counted in `left_out` by reason.
    """

    captions: Int32[np.ndarray, "M L"]
    caption_image: Int32[np.ndarray, " M"]  # index of the image that a caption belongs to
    image_ids: list[str]
    left_out: dict[str, int]
    source: Source
    records: list[int]  # of the source, one for each image
    image_size: int  # pixels a side
    max_image_pixels: int
    pixels: UInt8[np.ndarray, "I S S 3"] | None  # None: too many to keep, decoded again at each pass

    def __len__(self) -> int:
        return len(self.image_ids)

    def image_batches(self, batch_size: int) -> Iterator[tuple[UInt8[np.ndarray, "B S S 3"], Int32[np.ndarray, " B"]]]:
        """(images, their indices) in order; the last batch is shorter."""
        for start in range(0, len(self), batch_size):
            indices = np.arange(start, min(start + batch_size, len(self)), dtype=np.int32)
            yield self._images(indices), indices

    def _images(self, indices: Int32[np.ndarray, " B"]) -> UInt8[np.ndarray, "B S S 3"]:
        if self.pixels is not None:
            return self.pixels[indices]
        return np.stack(
            [
                _evaluated(
                    self.source[self.records[i]]["image"],
                    image_size=self.image_size,
                    max_image_pixels=self.max_image_pixels,
                )
                for i in indices
            ]
        )


def eval_split(
    source: Source,
    tokenizer: Tokenizer,
    *,
    max_length: int,
    max_image_pixels: int,
    image_size: int,
) -> EvalSplit:
    """Reads and checks a whole split.

    Raises:
      UserError: no image of it can be used.
    """
    captions: list[str] = []
    caption_image: list[int] = []
    image_ids: list[str] = []
    records: list[int] = []
    pixels: list[np.ndarray] = []
    left_out: Counter[str] = Counter()
    keep_pixels = len(source) * image_size * image_size * 3 <= CACHE_BYTES

    def check(index: int) -> tuple[Example, np.ndarray | str]:
        example = source[index]
        if not example["captions"]:
            return example, "no_captions"
        try:
            return example, _evaluated(example["image"], image_size=image_size, max_image_pixels=max_image_pixels)
        except UndecodableImage as error:
            return example, error.reason

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        # In chunks: `map` would otherwise hold every image of a large split at once.
        for start in range(0, len(source), 256):
            chunk = range(start, min(start + 256, len(source)))
            for index, (example, image) in zip(chunk, pool.map(check, chunk), strict=True):
                if isinstance(image, str):
                    left_out[image] += 1
                    continue
                captions.extend(example["captions"])
                caption_image.extend([len(image_ids)] * len(example["captions"]))
                image_ids.append(example["image_id"])
                records.append(index)
                if keep_pixels:
                    pixels.append(image)
    if not image_ids:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in sorted(left_out.items()))
        raise UserError(f"none of the {len(source)} images of the evaluation source can be used ({reasons or 'empty'})")
    if left_out:
        logging.warning("%d images are left out of the evaluation: %s", left_out.total(), dict(left_out))
    return EvalSplit(
        captions=tokenizer.encode(captions, max_length=max_length),
        caption_image=np.array(caption_image, np.int32),
        image_ids=image_ids,
        left_out=dict(left_out),
        source=source,
        records=records,
        image_size=image_size,
        max_image_pixels=max_image_pixels,
        pixels=np.stack(pixels) if keep_pixels else None,
    )


def _records(source: Source, *, seed: int) -> grain.MapDataset:
    """Indices of records in the order of training, epoch after epoch."""
    return grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat()


def _outlive_signals_but_not_the_parent(*_) -> None:
    """Makes a worker process end with its parent, and only with it."""
    # A terminal or a scheduler signals the whole group, while the parent still needs batches to finish its step.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


class _Rows(grain.MapDataset):
    """Of each `batch_size` consecutive elements of another dataset those in the places `rows`."""

    def __init__(self, parent: grain.MapDataset, *, batch_size: int, rows: tuple[int, ...]):
        super().__init__(parent)
        self._batch_size, self._rows = batch_size, rows

    def __len__(self) -> int:
        return len(self._parent) // self._batch_size * len(self._rows)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.slice(index)
        step, place = divmod(index, len(self._rows))
        return self._parent[step * self._batch_size + self._rows[place]]


@dataclasses.dataclass(frozen=True)
class _Load:
    """(record index, random generator) -> one row of a batch; pickled into worker processes."""

    source: Source
    tokenizer: Tokenizer
    image_size: int
    max_length: int
    max_image_pixels: int
    min_scale: float
    flip: bool
    operations: int
    magnitude: int
    reported: set[int] = dataclasses.field(default_factory=set)

    def __call__(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        example, image, skipped = _usable(
            self.source,
            int(index),
            image_size=self.image_size,
            max_image_pixels=self.max_image_pixels,
            min_scale=self.min_scale,
            reported=self.reported,
        )
        caption = example["captions"][rng.integers(len(example["captions"]))]
        augmented = augment(
            image,
            rng=rng,
            caption=caption,
            size=self.image_size,
            min_scale=self.min_scale,
            flip=self.flip,
            operations=self.operations,
            magnitude=self.magnitude,
        )
        return {
            "image": augmented,
            "text": self.tokenizer.encode([caption], max_length=self.max_length)[0],
            "image_id": np.array(stable_hash(example["image_id"]), np.int32),
            "skipped": np.array(skipped, np.int32),
        }


def _usable(
    source: Source,
    index: int,
    *,
    image_size: int,
    max_image_pixels: int,
    min_scale: float,
    reported: set[int] | None = None,
) -> tuple[Example, np.ndarray, int]:
    """The first usable record from `index` on, its pixels, and how many were stepped over."""
    reason = ""
    # The smallest crop still has the pixels that its resized copy needs.
    size_hint = math.ceil(image_size / math.sqrt(min_scale))
    gap = min(len(source), LONGEST_GAP)
    for skipped in range(gap):
        record = (index + skipped) % len(source)
        example = source[record]
        if not example["captions"]:
            reason = "no_captions"
        else:
            try:
                pixels = decode_image(example["image"], max_pixels=max_image_pixels, size_hint=size_hint)
                return example, pixels, skipped
            except UndecodableImage as error:
                reason = str(error)
        if reported is not None and record not in reported:
            reported.add(record)
            logging.warning("record %d (%s) is stepped over: %s", record, example["image_id"], reason)
    raise UserError(f"{gap} records in a row cannot be used, from record {index} on; the last one: {reason}")


def stable_hash(identity: str) -> int:
    """A signed 32-bit hash that is the same in every process and version of Python."""
    return int.from_bytes(hashlib.blake2b(identity.encode("utf-8", "replace"), digest_size=4).digest(), signed=True)


def _evaluated(data: bytes, *, image_size: int, max_image_pixels: int) -> UInt8[np.ndarray, "S S 3"]:
    pixels = decode_image(data, max_pixels=max_image_pixels, size_hint=image_size)
    return evaluate_transform(pixels, size=image_size)
