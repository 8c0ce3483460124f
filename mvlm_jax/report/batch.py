"""The batch of a step of pre-training as a page: the images, captions and masks that its losses get."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int, UInt8
from ml_collections import ConfigDict
from PIL import Image

from mvlm_jax import config as config_lib
from mvlm_jax.objectives.pretraining import Pairs
from mvlm_jax.report.page import picture, render, short, write_page
from mvlm_jax.report.recipe import recipe_of
from mvlm_jax.tasks.pretrain import Pretrain
from mvlm_jax.training.streams import Streams

PREVIEW = "preview.html"
MASKED = (222, 224, 228)  # in place of the learned vector that a hidden patch becomes
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
HOW = ("mesh.", "data.workers", "data.prefetch")  # how a page's own batch is made, which no command has to repeat
CONTEXTS = {  # by config.mask.condition_on
    "unmasked": "Each is rebuilt beside the whole other one.",
    "masked": "Each is rebuilt beside what is left of the other one.",
    "none": "Each is rebuilt alone.",
}


class Word(NamedTuple):
    text: str
    is_hidden: bool
    is_unknown: bool


def write_preview(task: Pretrain, *, directory: Path, step: int, examples: int) -> Path:
    """Writes the page of `preview_page` and returns its path.

    Raises:
      UserError: `directory` cannot be written.
    """
    html = preview_page(task, step=step, examples=examples)
    return write_page(directory / PREVIEW, html, flag="--report_dir")


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
    return render(
        "batch.html",
        title=f"Step {step:,} of {config.data.train}",
        cards=cards,
        batch_size=len(ids),
        step=step,
        masked_patches=int(masks[0].sum()),
        patches=masks.shape[1],
        context=CONTEXTS[config.mask.condition_on],
        settings=[(name, short(value)) for name, value in config_lib.flatten(config) if name.startswith(SETTINGS)],
        commands=_next_commands(config, step=step),
    )


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


def _next_commands(config: ConfigDict, *, step: int) -> list[tuple[str, str]]:
    """(what it does, a command to copy)"""
    recipe = recipe_of(config)
    chosen = recipe._replace(differences=[one for one in recipe.differences if not one.name.startswith(HOW)])
    name, flags = recipe.name or "RECIPE", chosen.flags() if recipe.name else []
    look = [f"mvlm prepare --preview --config={name} --step={step + 100}", *flags]
    train = [f"mvlm train --config={name} --workdir=runs/{name.replace(':', '-')}", *flags]
    return [
        ("Look at another step:", " \\\n  ".join(look)),
        ("Train on it:", " \\\n  ".join(train)),
    ]


def _card(
    task: Pretrain,
    *,
    image: UInt8[np.ndarray, "S S 3"],
    patch_mask: Bool[np.ndarray, " N"],
    text: Int[np.ndarray, " L"],
    hidden: set[int],
    name: str,
) -> dict[str, Any]:
    words = list(_words(task, text, hidden))
    whole = " ".join(word.text for word in words)
    return {
        "image": picture(Image.fromarray(image), alt=f"as augmented: {whole}"),
        "masked": picture(
            Image.fromarray(masked_image(image, patch_mask)), alt="the same with its hidden patches grey"
        ),
        "words": words,
        "name": name,
    }


def _words(task: Pretrain, text: Int[np.ndarray, " L"], hidden: set[int]) -> Iterator[Word]:
    ids = task.tokenizer.ids
    for position, number in enumerate(text.tolist()):
        if position in hidden:
            yield Word(task.tokenizer.decode([number]), True, False)
        elif number == ids.unknown:
            yield Word("unknown", False, True)
        elif number not in ids:
            yield Word(task.tokenizer.decode([number]), False, False)
