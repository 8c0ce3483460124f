"""Reconstruction gain: how much better a masked word or patch is rebuilt beside its own partner.

The paper's central claim as a number: the same masks, the partner its own, a wrong one, or none.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, PyTree

from mvlm_jax.data.pipeline import EvalSplit
from mvlm_jax.errors import UserError
from mvlm_jax.evaluation.batching import fetch, index_batches, padded, place, shared_batch_size
from mvlm_jax.evaluation.bootstrap import ratio_interval
from mvlm_jax.models.maskvlm import MaskVLM
from mvlm_jax.objectives import masking, reconstruction

PARTNERS = ("own", "wrong", "none")


def evaluate_reconstruction(
    model: MaskVLM,
    params: PyTree,
    split: EvalSplit,
    *,
    batch_size: int,
    cell: int,
    image_ratio: float,
    text_ratio: float,
    special_ids: tuple[int, ...],
    mask_id: int,
    seed: int,
    bootstrap: int,
) -> dict[str, Any]:
    """Every pair of the split, once.

    Returns `mlm_accuracy_<partner>` (percent of masked tokens guessed at first) and `mim_l1_<partner>` (mean absolute
    error of masked normalised RGB values), and four gains, each positive where the own partner helps:
    `mlm_gain` and `mim_gain` over a wrong partner, `…_over_none` over none. Each is [value, low, high] with a 95%
    interval bootstrapped over images.

    Raises:
      UserError: a split of one image, in which nothing is a wrong partner.
    """
    if len(split) < 2:
        raise UserError("the evaluation source holds one usable image; a wrong partner needs at least two")
    batch_size = shared_batch_size(batch_size, params=params)
    wrong_caption = wrong_partners(split.caption_image)
    sums = []
    for captions in index_batches(len(split.captions), batch_size):
        own = padded(captions, batch_size)
        wrong = wrong_caption[own]
        # Most are asked for more than once: an image has several captions, and is the wrong one beside others.
        needed, places = np.unique(split.caption_image[np.concatenate([own, wrong])], return_inverse=True)
        images, wrong_images = np.split(split.images(needed)[places], 2)
        batch = place(
            {
                "index": own.astype(np.int32),
                "image": images,
                "text": split.captions[own],
                "wrong_image": wrong_images,
                "wrong_text": split.captions[wrong],
            },
            params=params,
        )
        result = _rebuild(
            model,
            params,
            batch,
            cell=cell,
            image_ratio=image_ratio,
            text_ratio=text_ratio,
            special_ids=special_ids,
            mask_id=mask_id,
            seed=seed,
        )
        sums.append(fetch(result))
    # What the last batch was padded with comes last.
    pairs = len(split.captions)
    per_pair = jax.tree.map(lambda *parts: np.concatenate(parts)[:pairs].astype(np.float64), *sums)
    per_image = jax.tree.map(lambda x: np.bincount(split.caption_image, weights=x, minlength=len(split)), per_pair)
    return {"images": len(split), "captions": len(split.captions)} | _summary(per_image, resamples=bootstrap, seed=seed)


def wrong_partners(caption_image: Int[np.ndarray, " T"]) -> Int[np.ndarray, " T"]:
    """For each caption one of another image: of the next image in order, the last one's next being the first."""
    images = int(caption_image.max()) + 1
    members = [np.flatnonzero(caption_image == image) for image in range(images)]
    place_of = np.concatenate([np.arange(len(own)) for own in members])[np.argsort(np.concatenate(members))]
    following = (members[(image + 1) % images] for image in caption_image)
    return np.array([own[place % len(own)] for own, place in zip(following, place_of, strict=True)])


def _summary(sums: dict[str, Any], *, resamples: int, seed: int) -> dict[str, list[float]]:
    interval = functools.partial(ratio_interval, resamples=resamples, seed=seed)
    tokens, values = sums["tokens"], sums["values"]
    correct, error = sums["correct"], sums["error"]
    result = {f"mlm_accuracy_{partner}": interval(100 * correct[partner], tokens) for partner in PARTNERS}
    result |= {f"mim_l1_{partner}": interval(error[partner], values) for partner in PARTNERS}
    for partner, suffix in (("wrong", ""), ("none", "_over_none")):
        result[f"mlm_gain{suffix}"] = interval(100 * (correct["own"] - correct[partner]), tokens)
        result[f"mim_gain{suffix}"] = interval(error[partner] - error["own"], values)
    return result


@functools.partial(
    jax.jit, static_argnums=0, static_argnames=("cell", "image_ratio", "text_ratio", "special_ids", "mask_id")
)
def _rebuild(model, params, batch, *, cell, image_ratio, text_ratio, special_ids, mask_id, seed):
    run = functools.partial(model.apply, {"params": params})
    text = batch["text"]
    text_mask, wrong_text_mask = run(text, method="text_mask"), run(batch["wrong_text"], method="text_mask")
    patches, wrong_patches = run(batch["image"], method="patches"), run(batch["wrong_image"], method="patches")
    grid = model.image.grid

    def draw(index, caption):
        # A key for each pair: its masks do not depend on the batch it is evaluated in.
        image_key, text_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), index))
        hidden = masking.image_mask(image_key, batch=1, grid=grid, cell=cell, ratio=image_ratio)
        words = masking.text_mask(text_key, caption[None], special_ids=special_ids, mask_id=mask_id, ratio=text_ratio)
        return jax.tree.map(lambda x: x[0], (hidden, words))

    hidden, words = jax.vmap(draw)(batch["index"], text)
    clean = jnp.zeros_like(hidden.patch_mask)
    views = run(patches, jnp.stack([clean, hidden.patch_mask], axis=1), method="encode_image")
    v, v_masked = views[:, 0], views[:, 1]
    w, w_masked = run(text, method="encode_text"), run(words.text, method="encode_text")
    shown_image = {
        "own": v,
        "wrong": run(wrong_patches, clean[:, None], method="encode_image")[:, 0],
        "none": None,
    }
    shown_text = {
        "own": (w, text_mask),
        "wrong": (run(batch["wrong_text"], method="encode_text"), wrong_text_mask),
        "none": (None, text_mask),
    }
    target = jnp.take_along_axis(patches, hidden.slots[:, :, None], axis=1)
    correct, error = {}, {}
    for partner in PARTNERS:
        fused = run(w_masked, text_mask, shown_image[partner], words.slots, method="fuse_text")
        logits = run(fused, method="classify_tokens")
        correct[partner] = reconstruction.masked_text_correct(logits, words.targets, words.weights)
        fused = run(v_masked, *shown_text[partner], method="fuse_image")
        predicted = run(fused, *shown_text[partner], hidden.slots, method="decode_image")
        error[partner], values = reconstruction.masked_image_loss(predicted, target)
    return {"correct": correct, "error": error, "tokens": words.weights.sum(axis=1), "values": values}
