"""Examples to batches: the batch of step t is a function of (mixture, seed, t) alone."""

import dataclasses
import hashlib
import math
import multiprocessing
import os
import random
import signal
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import grain
import numpy as np
from absl import logging
from jaxtyping import Int, Int32, Shaped, UInt8

from mvlm_jax.data.augmentation import training_image
from mvlm_jax.data.images import UnusableImage, decode_image, evaluate_transform
from mvlm_jax.data.mixtures import Mixture
from mvlm_jax.data.sources import Example, Source
from mvlm_jax.data.text import Tokenizer
from mvlm_jax.errors import UserError

Batch = dict[str, Shaped[np.ndarray, "B ..."]]

LONGEST_GAP = 1000  # unusable records in a row before the source is taken to be broken
CACHE_BYTES = 2**30  # decoded pixels of an evaluation split that are kept in memory


def train_batches(
    mixture: Mixture,
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
      UserError: a seed that is no 32-bit number.
    """
    if not 0 <= seed < 2**32:
        raise UserError(f"config.seed={seed} must lie between 0 and {2**32 - 1}")
    examples = TrainExamples(
        mixture=mixture,
        seed=seed,
        image_size=image_size,
        max_image_pixels=max_image_pixels,
        min_scale=min_scale,
        flip=flip,
        operations=operations,
        magnitude=magnitude,
    )
    own = tuple(range(batch_size) if rows is None else map(int, rows))
    steps = TrainBatches(examples, tokenizer, max_length=max_length, batch_size=batch_size, rows=own)
    return in_background(grain.MapDataset.source(steps)[start_step:], workers=workers, prefetch=prefetch)


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


class TrainExample(NamedTuple):
    """A pair as a run sees it."""

    image_id: str
    caption: str
    image: UInt8[np.ndarray, "S S 3"]
    skipped: int  # unusable records that were stepped over to reach it


@dataclasses.dataclass(frozen=True)
class TrainExamples:
    """Random access to the pairs of a run, counted from its start; pickled into worker processes."""

    mixture: Mixture
    seed: int
    image_size: int  # pixels a side
    max_image_pixels: int
    min_scale: float
    flip: bool
    operations: int
    magnitude: int
    reported: set[str] = dataclasses.field(default_factory=set)

    def __getitem__(self, index: int) -> TrainExample:
        """
        Raises:
          UserError: so many unusable records in a row that the source must be broken.
        """
        # Each pair has a stream of its own, wherever in a batch it is made. Python's generator draws single numbers
        # ten times as fast as NumPy's; only what it makes of `random()` is the same in every version.
        rng = random.Random(self.seed << 64 | index)
        component, position = self.mixture.locate(index, seed=self.seed)
        reason = ""
        gap = min(len(component), LONGEST_GAP)
        for skipped in range(gap):
            record = component.record(position + skipped)
            try:
                example = _without_blanks(component.source[record])
                if example["captions"]:
                    caption = rng.choices(example["captions"])[0]
                    return TrainExample(example["image_id"], caption, self._image(example, caption, rng), skipped)
                reason = "no_captions"
            except UnusableImage as error:
                reason = str(error)
            example_id = component.source.example_id(record)
            if example_id not in self.reported:
                self.reported.add(example_id)
                logging.warning("record %d (%s) is stepped over: %s", record, example_id, reason)
        first = component.record(position)
        raise UserError(f"{gap} records in a row cannot be used, from record {first} on; the last one: {reason}")

    def _image(self, example: Example, caption: str, rng: random.Random) -> UInt8[np.ndarray, "S S 3"]:
        return training_image(
            example["image"],
            rng=rng,
            caption=caption,
            size=self.image_size,
            max_pixels=self.max_image_pixels,
            min_scale=self.min_scale,
            flip=self.flip,
            operations=self.operations,
            magnitude=self.magnitude,
        )


@dataclasses.dataclass(frozen=True)
class TrainBatches:
    """Random access to the batches of a run by step; pickled into worker processes."""

    examples: TrainExamples
    tokenizer: Tokenizer
    _: dataclasses.KW_ONLY
    max_length: int
    batch_size: int
    rows: tuple[int, ...]  # of each `batch_size` consecutive examples the ones that are read

    def __len__(self) -> int:
        return sys.maxsize // self.batch_size

    def __getitem__(self, step: int) -> Batch:
        first, size = int(step) * self.batch_size, self.examples.image_size
        image = np.empty((len(self.rows), size, size, 3), np.uint8)
        image_id, skipped = np.empty(len(self.rows), np.int32), np.empty(len(self.rows), np.int32)
        captions = []
        for place, row in enumerate(self.rows):
            example_id, caption, image[place], skipped[place] = self.examples[first + row]
            image_id[place] = stable_hash(example_id)
            captions.append(caption)
        text = self.tokenizer.encode(captions, max_length=self.max_length)
        return {"image": image, "text": text, "image_id": image_id, "skipped": skipped}


@dataclasses.dataclass(frozen=True)
class EvalSplit:
    """A whole split in order: all captions as tokens, images on demand.

    Images that are absent, cannot be decoded or have no caption are left out and counted in `left_out` by reason.
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

    def check(index: int) -> tuple[Example, np.ndarray] | str:
        try:
            example = _without_blanks(source[index])
            if not example["captions"]:
                return "no_captions"
            return example, _evaluated(example["image"], image_size=image_size, max_image_pixels=max_image_pixels)
        except UnusableImage as error:
            return error.reason

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        # In chunks: `map` would otherwise hold every image of a large split at once.
        for start in range(0, len(source), 256):
            chunk = range(start, min(start + 256, len(source)))
            for index, checked in zip(chunk, pool.map(check, chunk), strict=True):
                if isinstance(checked, str):
                    left_out[checked] += 1
                    continue
                example, image = checked
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


def _outlive_signals_but_not_the_parent(*_) -> None:
    """Makes a worker process end with its parent, and only with it."""
    # A terminal or a scheduler signals the whole group, while the parent still needs batches to finish its step.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def stable_hash(identity: str) -> int:
    """A signed 32-bit hash that is the same in every process and version of Python."""
    return int.from_bytes(hashlib.blake2b(identity.encode("utf-8", "replace"), digest_size=4).digest(), signed=True)


def _without_blanks(example: Example) -> Example:
    # Prepared datasets have none; a list that is read as it is may.
    return {**example, "captions": [caption for caption in example["captions"] if caption.strip()]}


def _evaluated(data: bytes, *, image_size: int, max_image_pixels: int) -> UInt8[np.ndarray, "S S 3"]:
    pixels = decode_image(data, max_pixels=max_image_pixels, size_hint=image_size)
    return evaluate_transform(pixels, size=image_size)
