"""Examples to batches: the batch of step t is a function of (mixture, seed, t) alone."""

import dataclasses
import functools
import hashlib
import random
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from absl import logging
from jaxtyping import Int32, UInt8

from mvlm_jax.data.augmentation import PlannedImage
from mvlm_jax.data.background import Batch
from mvlm_jax.data.examples import Example, Source, without_blanks
from mvlm_jax.data.images import ImageSpec, UnusableImage
from mvlm_jax.data.processes import available_cpus
from mvlm_jax.data.skipped import in_words
from mvlm_jax.data.text import Tokenizer
from mvlm_jax.data.training_examples import TrainingBatches, TrainingExamples, UnusableExample
from mvlm_jax.errors import UserError


class Pair(NamedTuple):
    """One caption of an image, and how the image is augmented."""

    image_id: str  # unique to an image, also across the components of a mixture
    caption: str
    images: tuple[PlannedImage]
    skipped: int = 0  # unusable records that were stepped over to reach it


class PairExamples(TrainingExamples):
    """The pairs of a run."""

    def example(self, index: int, *, decode: bool) -> Pair:
        made, skipped, number = self.first_usable(index, functools.partial(self._made, decode=decode))
        image_id, caption, images, _ = made
        return Pair(self.mixture.identity(number, image_id), caption, images, skipped)

    def _made(self, example: Example, rng: random.Random, *, decode: bool) -> Pair:
        # Prepared datasets have no blank captions; a list that is read as it is may.
        captions = without_blanks(example["captions"])
        if not captions:
            raise UnusableExample("no_captions")
        caption = captions[int(rng.random() * len(captions))]
        image = self.planned(example["image"], text=caption, rng=rng, decode=decode)
        return Pair(example["image_id"], caption, (image,))


class PairBatches(TrainingBatches):
    """The pairs of a run.

    A batch is `image` uint8 [b, size, size, 3], `text` int32 [b, L], `image_id` int32 [b] (a hash) and `skipped`
    int32 [b], the unusable records stepped over for that pair. Epochs run on through the borders of batches.
    """

    def __getitem__(self, step: int) -> Batch:
        size = self.examples.spec.size
        with self.new_array((len(self.rows), size, size, 3), np.uint8) as image:
            pairs = self.filled(np.asarray(image)[:, None], step=step)
            return {
                "image": image,
                "text": self.tokenizer.encode([pair.caption for pair in pairs], max_length=self.max_length),
                "image_id": np.array([stable_hash(pair.image_id) for pair in pairs], np.int32),
                "skipped": np.array([pair.skipped for pair in pairs], np.int32),
            }


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
    spec: ImageSpec
    pixels: UInt8[np.ndarray, "I S S 3"] | None  # None: too many to keep, decoded again at each pass

    def __len__(self) -> int:
        return len(self.image_ids)

    def image_batches(self, batch_size: int) -> Iterator[tuple[UInt8[np.ndarray, "B S S 3"], Int32[np.ndarray, " B"]]]:
        """(images, their indices) in order; the last batch is shorter."""
        for start in range(0, len(self), batch_size):
            indices = np.arange(start, min(start + batch_size, len(self)), dtype=np.int32)
            yield self.images(indices), indices

    def images(self, indices: Int32[np.ndarray, " B"]) -> UInt8[np.ndarray, "B S S 3"]:
        if self.pixels is not None:
            return self.pixels[indices]

        def decode(index: int) -> UInt8[np.ndarray, "S S 3"]:
            return self.spec.unaugmented(self.source[self.records[index]]["image"])

        with ThreadPoolExecutor(available_cpus()) as pool:
            return np.stack(list(pool.map(decode, indices.tolist())))


def eval_split(source: Source, tokenizer: Tokenizer, *, max_length: int, spec: ImageSpec, host_bytes: int) -> EvalSplit:
    """Reads and checks a whole split.

    Args:
      host_bytes: decoded images are kept where all of them fit into it.

    Raises:
      UserError: no image of it can be used.
    """
    captions: list[str] = []
    caption_image: list[int] = []
    image_ids: list[str] = []
    records: list[int] = []
    pixels: list[np.ndarray] = []
    left_out: Counter[str] = Counter()
    keep_pixels = len(source) * spec.size * spec.size * 3 <= host_bytes

    def check(index: int) -> tuple[Example, np.ndarray] | str:
        try:
            read: Example = source[index]
            example: Example = {**read, "captions": without_blanks(read["captions"])}
            if not example["captions"]:
                return "no_captions"
            return example, spec.unaugmented(example["image"])
        except UnusableImage as error:
            return error.reason

    with ThreadPoolExecutor(available_cpus()) as pool:
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
        reasons = in_words(left_out) or "empty"
        raise UserError(f"none of the {len(source)} images of the evaluation source can be used ({reasons})")
    if left_out:
        logging.warning("%d images are left out of the evaluation: %s", left_out.total(), dict(left_out))
    return EvalSplit(
        captions=tokenizer.encode(captions, max_length=max_length),
        caption_image=np.array(caption_image, np.int32),
        image_ids=image_ids,
        left_out=dict(left_out),
        source=source,
        records=records,
        spec=spec,
        pixels=np.stack(pixels) if keep_pixels else None,
    )


def stable_hash(identity: str) -> int:
    """A signed 32-bit hash that is the same in every process and version of Python."""
    return int.from_bytes(hashlib.blake2b(identity.encode("utf-8", "replace"), digest_size=4).digest(), signed=True)
