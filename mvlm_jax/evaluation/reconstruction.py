"""Reconstruction gain: how much better a masked word or patch is rebuilt beside its own partner.

The paper's central claim as a number: the same masks, the partner its own, a wrong one, or none.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, PyTree, UInt8

from mvlm_jax.data.pipeline import EvalSplit
from mvlm_jax.errors import UserError
from mvlm_jax.evaluation.batching import fetch, index_batches, padded, place, shared_batch_size
from mvlm_jax.evaluation.informative import RULES, informative, rule_of
from mvlm_jax.models.maskvlm import MaskVLM
from mvlm_jax.objectives.losses import masked_text_correct
from mvlm_jax.objectives.masking import Masking

PARTNERS = ("own", "wrong", "none")


def evaluate_reconstruction(
    model: MaskVLM,
    params: PyTree,
    split: EvalSplit,
    *,
    masking: Masking,
    batch_size: int,
    seed: int,
    bootstrap: int,
) -> dict[str, Any]:
    """Every pair of the split, once.

    Returns `mlm_accuracy_<partner>` (percent of masked tokens guessed at first) and `mim_l1_<partner>` (mean absolute
    error of masked normalised RGB values), and gains, each positive where the own partner helps: `mlm_gain` and
    `mim_gain` over a wrong partner, `…_over_none` over none. `mim_l1_informative_<partner>` is the error over the
    masked patches that the rule `informative_by` chooses (see `informative.py`), `informative_patches` how many percent
    of all masked ones these are, and `mim_gain_informative` the relative gain over them, 1 - own / wrong. Each of
    accuracy, error and gain is [value, low, high] with a 95% interval bootstrapped over images, nan where there is
    nothing to measure.

    Raises:
      UserError: a split of one image, in which nothing is a wrong partner.
    """
    if len(split) < 2:
        raise UserError("the evaluation source holds one usable image; a wrong partner needs at least two")
    batch_size = shared_batch_size(batch_size, params=params)
    wrong_caption = wrong_partners(split.caption_image)
    plain = np.zeros(len(split), bool)
    sums = []
    for captions in index_batches(len(split.captions), batch_size):
        own = padded(captions, batch_size)
        wrong = wrong_caption[own]
        # An image is decoded once a batch, although it has several captions and is the wrong partner of others.
        needed, places = np.unique(split.caption_image[np.concatenate([own, wrong])], return_inverse=True)
        pixels = split.images(needed)
        images, wrong_images = np.split(pixels[places], 2)
        marks, plain[split.caption_image[own]] = _marked(pixels, places[:batch_size], patch=model.image.patch)
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
        sums.append(_sums(fetch(_rebuild(model, params, batch, masking=masking, seed=seed)), marks))
    # What the last batch was padded with comes last.
    pairs = len(split.captions)
    per_pair = jax.tree.map(lambda *parts: np.concatenate(parts)[:pairs].astype(np.float64), *sums)
    per_image = jax.tree.map(lambda x: np.bincount(split.caption_image, weights=x, minlength=len(split)), per_pair)
    rule = rule_of(plain)
    summary = _summary(per_image, rule, resamples=bootstrap, seed=seed)
    return {"images": len(split), "captions": pairs, **summary, "informative_by": rule}


def wrong_partners(caption_image: Int[np.ndarray, " T"]) -> Int[np.ndarray, " T"]:
    """For each caption one of another image: of the next image in order, the last one's next being the first."""
    images = int(caption_image.max()) + 1
    members = [np.flatnonzero(caption_image == image) for image in range(images)]
    place_of = np.concatenate([np.arange(len(own)) for own in members])[np.argsort(np.concatenate(members))]
    following = (members[(image + 1) % images] for image in caption_image)
    return np.array([own[place % len(own)] for own, place in zip(following, place_of, strict=True)])


def _marked(
    pixels: UInt8[np.ndarray, "images S S 3"], image: Int[np.ndarray, " B"], *, patch: int
) -> tuple[dict[str, Bool[np.ndarray, "B N"]], Bool[np.ndarray, " B"]]:
    """The patches of each pair's image by each rule, and whether its frame is plain."""
    images, of_pair = np.unique(image, return_inverse=True)
    marked = [informative(pixels[number], patch=patch) for number in images]
    marks = {rule: np.stack([getattr(one, rule) for one in marked])[of_pair] for rule in RULES}
    return marks, np.array([one.plain for one in marked])[of_pair]


def _sums(rebuilt: dict[str, Any], marks: dict[str, Bool[np.ndarray, "B N"]]) -> dict[str, Any]:
    """Sums and counts of each pair: of its masked words, and of its masked pixels, all and by each rule."""
    slots, error = rebuilt["patch_slots"], rebuilt["error"]
    chosen = {rule: np.take_along_axis(mark, slots, axis=1) for rule, mark in marks.items()}
    chosen["all"] = np.ones(slots.shape, bool)
    pixels = {
        name: {partner: (error[partner] * part).sum(axis=1) for partner in PARTNERS} | {"patches": part.sum(axis=1)}
        for name, part in chosen.items()
    }
    return {"correct": rebuilt["correct"], "tokens": rebuilt["tokens"], "pixels": pixels}


def _summary(sums: dict[str, Any], rule: str, *, resamples: int, seed: int) -> dict[str, list[float] | float]:
    interval = functools.partial(ratio_interval, resamples=resamples, seed=seed)
    tokens, correct = sums["tokens"], sums["correct"]
    every, chosen = sums["pixels"]["all"], sums["pixels"][rule]
    result: dict[str, list[float] | float] = {}
    for partner in PARTNERS:
        result[f"mlm_accuracy_{partner}"] = interval(100 * correct[partner], tokens)
        result[f"mim_l1_{partner}"] = interval(every[partner], every["patches"])
        result[f"mim_l1_informative_{partner}"] = interval(chosen[partner], chosen["patches"])
    for partner, suffix in (("wrong", ""), ("none", "_over_none")):
        result[f"mlm_gain{suffix}"] = interval(100 * (correct["own"] - correct[partner]), tokens)
        result[f"mim_gain{suffix}"] = interval(every[partner] - every["own"], every["patches"])
        result[f"mim_gain_informative{suffix}"] = interval(chosen[partner] - chosen["own"], chosen[partner])
    result["informative_patches"] = 100 * float(chosen["patches"].sum() / every["patches"].sum())
    return result


def ratio_interval(
    total: Float[np.ndarray, " I"],
    count: Float[np.ndarray, " I"],
    *,
    resamples: int,
    seed: int,
    level: float = 0.95,
) -> list[float]:
    """[sum(total) / sum(count), low, high], a percentile interval by bootstrap; nan where nothing was counted.

    The unit that is drawn with replacement is the image, since its captions and masks are not independent. For the
    difference of two paired measurements pass the difference of their totals.
    """
    if not count.any():
        return [math.nan] * 3
    rng = np.random.default_rng(seed)
    images = len(total)
    weights = rng.multinomial(images, np.full(images, 1 / images), size=resamples).astype(np.float64)
    counts = weights @ count
    # Resamples that drew nothing countable have no ratio.
    ratios = (weights @ total)[counts > 0] / counts[counts > 0]
    tail = 50 * (1 - level)
    low, high = np.percentile(ratios, [tail, 100 - tail])
    return [float(np.divide(total.sum(), count.sum())), float(low), float(high)]


@functools.partial(jax.jit, static_argnums=0, static_argnames="masking")
def _rebuild(model, params, batch, *, masking, seed):
    bound = model.bind({"params": params})
    text, wrong_text = batch["text"], batch["wrong_text"]
    text_mask, patches = bound.text_mask(text), bound.patches(batch["image"])

    def draw(index, caption):
        # A key for each pair: its masks do not depend on the batch it is evaluated in.
        image_key, text_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), index))
        masks = masking.image_mask(image_key, batch=1), masking.text_mask(text_key, caption[None])
        return jax.tree.map(lambda x: x[0], masks)

    (patch_mask, patch_slots), (masked_text, slots, targets, weights) = jax.vmap(draw)(batch["index"], text)
    views = bound.encode_image(patches, jnp.stack([jnp.zeros_like(patch_mask), patch_mask], axis=1))
    v_masked, w_masked = views[:, 1], bound.encode_text(masked_text)
    partner_image = {"own": views[:, 0], "wrong": bound.encode_whole_image(batch["wrong_image"]), "none": None}
    partner_text = {
        "own": (bound.encode_text(text), text_mask),
        "wrong": (bound.encode_text(wrong_text), bound.text_mask(wrong_text)),
        "none": (None, text_mask),
    }
    target = jnp.take_along_axis(patches, patch_slots[:, :, None], axis=1)
    correct, error = {}, {}
    for partner in PARTNERS:
        logits = bound.classify_tokens(bound.fuse_text(w_masked, text_mask, partner_image[partner], slots))
        correct[partner] = masked_text_correct(logits, targets, weights)
        fused = bound.fuse_image(v_masked, *partner_text[partner])
        predicted = bound.decode_image(fused, *partner_text[partner], patch_slots)
        # The mean over a patch: its values are as many in each.
        error[partner] = jnp.abs(predicted - target).mean(axis=2)
    return {"correct": correct, "error": error, "tokens": weights.sum(axis=1), "patch_slots": patch_slots}
