"""The training input pipeline as it is commonly written for PyTorch: a map-style dataset of image files, Pillow for
everything done to an image, and a DataLoader. The same crop, flip, operations and tokens as mvlm_jax.data.
"""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch.utils.data import DataLoader, Dataset

from mvlm_jax.data.augmentation import GREY, OPERATION_PROBABILITY, RATIO, SHIFT, SIDE_WORDS
from mvlm_jax.data.text import Tokenizer


class Pairs(Dataset):
    """Rows of `image` uint8 [size, size, 3] and `text` int64 [L]; normalisation is left to the device."""

    def __init__(
        self,
        pairs: Sequence[tuple[Path, Sequence[str]]],
        tokenizer: Tokenizer,
        *,
        size: int,
        max_length: int,
        min_scale: float,
        operations: int,
        magnitude: float,
    ) -> None:
        self.pairs, self.tokenizer = pairs, tokenizer
        self.size, self.max_length, self.min_scale = size, max_length, min_scale
        self.operations, self.level = operations, magnitude / 10

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        path, captions = self.pairs[index]
        caption = random.choice(captions)
        with open(path, "rb") as file:
            image = Image.open(file).convert("RGB")
        image = random_resized_crop(image, size=self.size, min_scale=self.min_scale)
        if random.random() < 0.5 and not SIDE_WORDS.search(caption):
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        for operation in random.choices(OPERATIONS, k=self.operations):
            if random.random() < OPERATION_PROBABILITY:
                image = operation(image, self.level, random.choice((-1, 1)))
        text = self.tokenizer.encode([caption], max_length=self.max_length)[0]
        return {"image": torch.from_numpy(np.array(image)), "text": torch.from_numpy(text)}


def batches(dataset: Pairs, *, batch_size: int, workers: int, seed: int) -> Iterator[dict[str, torch.Tensor]]:
    """One shuffled epoch, in one thread or in worker processes, which are spawned, not forked, as mvlm_jax's are."""
    torch.set_num_threads(1)  # idle threads of a pool would count as processor time
    return iter(
        DataLoader(
            dataset,
            batch_size=batch_size,
            shuffle=True,
            num_workers=workers,
            drop_last=True,
            multiprocessing_context="spawn" if workers else None,
            generator=torch.Generator().manual_seed(seed),
        )
    )


def random_resized_crop(image: Image.Image, *, size: int, min_scale: float) -> Image.Image:
    """As in torchvision, to a square."""
    width, height = image.size
    box = None
    for _ in range(10):
        area = width * height * random.uniform(min_scale, 1.0)
        ratio = math.exp(random.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = random.randint(0, width - w), random.randint(0, height - h)
            box = (left, top, left + w, top + h)
            break
    return image.resize((size, size), Image.Resampling.BICUBIC, box=box)


def _affine(image: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, resample=Image.Resampling.BILINEAR, fillcolor=GREY
    )


OPERATIONS: tuple[Callable[[Image.Image, float, int], Image.Image], ...] = (
    lambda image, level, sign: image,
    lambda image, level, sign: ImageOps.autocontrast(image),
    lambda image, level, sign: ImageOps.equalize(image),
    lambda image, level, sign: ImageEnhance.Brightness(image).enhance(level * 1.8 + 0.1),
    lambda image, level, sign: ImageEnhance.Sharpness(image).enhance(level * 1.8 + 0.1),
    lambda image, level, sign: _affine(image, (1, sign * 0.3 * level, 0, 0, 1, 0)),
    lambda image, level, sign: _affine(image, (1, 0, 0, sign * 0.3 * level, 1, 0)),
    lambda image, level, sign: _affine(image, (1, 0, sign * SHIFT * image.width * level, 0, 1, 0)),
    lambda image, level, sign: _affine(image, (1, 0, 0, 0, 1, sign * SHIFT * image.height * level)),
    lambda image, level, sign: image.rotate(sign * 30 * level, resample=Image.Resampling.BILINEAR, fillcolor=GREY),
)
