"""A collection as large as photos are, for measurements that may download nothing."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

PHOTOS = "photos.json"
WIDTH, HEIGHT = 500, 375  # pixels, as most photos of Flickr8k have
WORDS = "dog cat man girl boat tree hill road ball car red blue green old young small runs sits jumps waits".split()


def write_photos(directory: Path, *, count: int) -> None:
    """JPEGs of smooth noise, about as many bytes as photos of this size, with five captions each in `PHOTOS`."""
    rng, entries = np.random.default_rng(0), []
    for index in range(count):
        pixels = np.zeros((HEIGHT, WIDTH, 3), np.float32)
        for side in (4, 16, 64, 256):  # coarse shapes strong, fine ones weak, as in photos
            coarse = Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8))
            pixels += np.asarray(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), np.float32) / side**0.5
        pixels *= 255 / pixels.max()
        Image.fromarray(pixels.astype(np.uint8)).save(directory / f"{index}.jpg", quality=90)
        captions = [" ".join(rng.choice(WORDS, rng.integers(6, 16))) for _ in range(5)]
        entries.append({"image": f"{index}.jpg", "caption": captions, "image_id": str(index)})
    (directory / PHOTOS).write_text(json.dumps(entries))
