"""The batch of a step of pre-training as a page: the images, captions and masks that its losses get."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int, UInt8
from PIL import Image

from mvlm_jax import config as config_lib
from mvlm_jax.errors import UserError
from mvlm_jax.files import write_text
from mvlm_jax.objectives.pretraining import Pairs
from mvlm_jax.report import page
from mvlm_jax.tasks.pretrain import Pretrain
from mvlm_jax.training.streams import Streams

PREVIEW = "preview.html"
MASKED = (222, 224, 228)  # in place of the learned vector that a hidden patch becomes
SIDE = 200  # pixels; smaller images are shown enlarged by a whole number
SETTINGS = (
    "data.train",
    "data.augment.",
    "image.size",
    "image_encoder.patch",
    "text.max_length",
    "mask.",
    "batch_size",
    "seed",
)
CONTEXTS = {  # by config.mask.condition_on
    "unmasked": "Each is rebuilt beside the whole other one.",
    "masked": "Each is rebuilt beside what is left of the other one.",
    "none": "Each is rebuilt alone.",
}
STYLE = (
    "<style>.hidden { background: #1c2430; color: #fff; border-radius: 3px; padding: 0 3px; } "
    ".unknown { color: #a0a8b4; }</style>"
)


def write_preview(task: Pretrain, *, directory: Path, step: int, examples: int) -> Path:
    """Writes the page of `preview_page` and returns its path.

    Raises:
      UserError: `directory` cannot be written.
    """
    html = preview_page(task, step=step, examples=examples)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        write_text(directory / PREVIEW, html, errors="replace")
    except OSError as error:
        raise UserError(f"the page cannot be written to {str(directory)!r}: {error.strerror}") from error
    return directory / PREVIEW


def preview_page(task: Pretrain, *, step: int, examples: int) -> str:
    """The first `examples` pairs of the batch of a step, each as augmented and as masked."""
    pairs, ids = step_pairs(task, step=step), task.example_ids(step)
    count = min(examples, len(ids))
    images, texts, masks, slots, weights = (
        np.asarray(array)
        for array in (
            pairs.image, pairs.text, pairs.image_mask.patch_mask, pairs.text_mask.slots, pairs.text_mask.weights
        )
    )  # fmt: skip
    cards = [
        _card(
            task,
            image=images[row],
            patch_mask=masks[row],
            text=texts[row],
            hidden={int(slot) for slot, weight in zip(slots[row], weights[row]) if weight},
            name=ids[row],
        )
        for row in range(count)
    ]
    config = task.config
    settings = [
        [page.text(name), page.text(value)] for name, value in config_lib.flatten(config) if name.startswith(SETTINGS)
    ]
    body = [
        STYLE,
        f"<p>The first {count} of the {len(ids)} pairs of step {step}. Left: the image as augmented. Right: the same "
        f"without the {int(masks[0].sum())} of {masks.shape[1]} patches that are hidden from it; in the captions, "
        f'<span class="hidden">hidden</span> words. {CONTEXTS[config.mask.condition_on]}</p>',
        '<div class="cards">',
        *cards,
        "</div><h2>Settings</h2>",
        page.table(settings, head=["field", "value"]),
    ]
    return page.page(title=f"Step {step} of {config.data.train}", body="\n".join(body))


def step_pairs(task: Pretrain, *, step: int) -> Pairs:
    """The batch of a step with what is hidden of it."""
    iterator: Any = task.train_batches(step)  # it ends its threads or processes in `close`
    with contextlib.closing(iterator) as batches:
        batch = {name: jnp.asarray(values) for name, values in next(batches).items()}
    return task.prepare(batch, Streams(seed=task.config.seed, step=jnp.int32(step)))


def masked_image(image: UInt8[np.ndarray, "S S 3"], patch_mask: Bool[np.ndarray, " N"]) -> UInt8[np.ndarray, "S S 3"]:
    """The image with its hidden patches, which lie row by row, painted over."""
    grid = round(len(patch_mask) ** 0.5)
    patch = image.shape[0] // grid
    pixels = patch_mask.reshape(grid, grid).repeat(patch, axis=0).repeat(patch, axis=1)
    return np.where(pixels[:, :, None], np.array(MASKED, np.uint8), image)


def _card(
    task: Pretrain,
    *,
    image: UInt8[np.ndarray, "S S 3"],
    patch_mask: Bool[np.ndarray, " N"],
    text: Int[np.ndarray, " L"],
    hidden: set[int],
    name: str,
) -> str:
    pictures = "".join(_picture(pixels) for pixels in (image, masked_image(image, patch_mask)))
    width = 2 * image.shape[0] * _enlargement(image.shape[0]) + 4
    return (
        f'<figure style="width:{width}px"><div class="pair">{pictures}</div>'
        f'<figcaption>{" ".join(_words(task, text, hidden))}<br><span class="id">{page.text(name)}</span></figcaption>'
        "</figure>"
    )


def _words(task: Pretrain, text: Int[np.ndarray, " L"], hidden: set[int]) -> Iterator[str]:
    ids = task.tokenizer.ids
    for position, number in enumerate(text.tolist()):
        if position in hidden:
            yield f'<span class="hidden">{page.text(task.tokenizer.decode([number]))}</span>'
        elif number == ids.unknown:
            yield '<span class="unknown">unknown</span>'
        elif number not in ids:
            yield page.text(task.tokenizer.decode([number]))


def _picture(pixels: UInt8[np.ndarray, "S S 3"]) -> str:
    picture = Image.fromarray(pixels)
    side = picture.width * _enlargement(picture.width)
    return page.image(picture.resize((side, side), Image.Resampling.NEAREST))


def _enlargement(side: int) -> int:
    return max(1, round(SIDE / side))
