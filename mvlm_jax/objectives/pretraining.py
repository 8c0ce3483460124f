"""The four losses of a batch, each part of the model run as seldom as they allow (paper, equation 5)."""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax.core import FrozenDict
from jaxtyping import Array, Float, Int, Key, PyTree, UInt8

from mvlm_jax.models.maskvlm import MaskVLM
from mvlm_jax.objectives import contrastive, masking, matching, reconstruction

Metrics = dict[str, tuple[Float[Array, ""], Float[Array, ""]]]


class Draws(NamedTuple):
    """Everything random in a step: masks, and the key that negatives are sampled with."""

    image: masking.ImageMask
    text: masking.TextMask
    negatives: Key[Array, ""]


def draw(
    mask_key: Key[Array, ""],
    negatives_key: Key[Array, ""],
    text: Int[Array, "B L"],
    *,
    grid: int,
    cell: int,
    image_ratio: float,
    text_ratio: float,
    special_ids: tuple[int, ...],
    mask_id: int,
) -> Draws:
    """The masks of a batch; see `masking` for what the arguments mean."""
    image_key, text_key = jax.random.split(mask_key)
    return Draws(
        image=masking.image_mask(image_key, batch=text.shape[0], grid=grid, cell=cell, ratio=image_ratio),
        text=masking.text_mask(text_key, text, special_ids=special_ids, mask_id=mask_id, ratio=text_ratio),
        negatives=negatives_key,
    )


class Pairs(NamedTuple):
    """Rows of a batch with what was drawn for them."""

    image: UInt8[Array, "B H W 3"]
    text: Int[Array, "B L"]
    image_id: Int[Array, " B"]
    image_mask: masking.ImageMask
    text_mask: masking.TextMask
    negative_noise: Float[Array, "groups 2 G G"]


class Embeddings(NamedTuple):
    """What contrast over the global batch needs of each pair."""

    image: Float[Array, "B E"]
    text: Float[Array, "B E"]


Local = Callable[[PyTree, Pairs], tuple[Metrics, Embeddings | None]]


def pretraining_losses(
    model: MaskVLM,
    params: PyTree,
    image: UInt8[Array, "B H W 3"],
    text: Int[Array, "B L"],
    image_id: Int[Array, " B"],
    draws: Draws,
    *,
    condition_on: str,
    group: int,
    weights: Mapping[str, float],
    per_device: Callable[[Local], Local] = lambda local: local,
) -> tuple[Float[Array, ""], Metrics]:
    """The weighted sum of MIM, MLM, ITC and ITM, and every metric as (sum, count).

    A loss of weight 0 is not computed.

    Args:
      condition_on: what the other modality shows a reconstruction: `unmasked`, `masked` or `none`.
      weights: of `mim`, `mlm`, `itc` and `itm`.
      per_device: runs a function of the parameters and of whole groups of pairs on parts of the batch, and adds up
        the first of its two results; by default it runs on the whole batch.
    """
    noise = matching.negative_noise(draws.negatives, pairs=image.shape[0], group=group)
    pairs = Pairs(image, text, image_id, draws.image, draws.text, noise)
    local = functools.partial(_local_losses, model, condition_on=condition_on, weights=weights)
    metrics, embeddings = per_device(local)(params, pairs)

    if embeddings is not None:
        temperature = model.apply(FrozenDict(params=params), method="temperature")
        metrics["temperature"] = (temperature, jnp.float32(1))
        if weights["itc"]:
            metrics["itc"] = contrastive.contrastive_loss(embeddings.image, embeddings.text, image_id, temperature)

    names = [name for name in ("mim", "mlm", "itc", "itm") if weights[name]]
    loss = sum((weights[name] * mean(*metrics[name]) for name in names), jnp.float32(0))
    return loss, metrics


def _local_losses(
    model: MaskVLM, params: PyTree, pairs: Pairs, *, condition_on: str, weights: Mapping[str, float]
) -> tuple[Metrics, Embeddings | None]:
    """Everything that needs no pair outside the groups of `pairs`.

    Clean and masked images pass the image encoder together, texts likewise; each cross encoder runs once for the
    reconstruction and once for all three matching pairings.
    """
    image_mask, masked_text = pairs.image_mask, pairs.text_mask
    run = functools.partial(model.apply, FrozenDict(params=params))
    patches = run(pairs.image, method="patches")
    text_mask = run(pairs.text, method="text_mask")
    clean = jnp.zeros_like(image_mask.patch_mask)
    v, v_masked = _unstack(run(patches, jnp.stack([clean, image_mask.patch_mask], axis=1), method="encode_image"))
    w, w_masked = _unstack(_encode_texts(run, jnp.stack([pairs.text, masked_text.text], axis=1)))
    metrics: Metrics = {}
    embeddings = None

    if weights["mim"]:
        context = {"unmasked": w, "masked": w_masked, "none": None}[condition_on]
        fused = run(v_masked, context, text_mask, method="fuse_image")
        predicted = run(fused, context, text_mask, image_mask.slots, method="decode_image")
        target = jnp.take_along_axis(patches, image_mask.slots[:, :, None], axis=1)
        metrics["mim"] = _totals(reconstruction.masked_image_loss(predicted, target))

    if weights["mlm"]:
        context = {"unmasked": v, "masked": v_masked, "none": None}[condition_on]
        fused = run(w_masked, text_mask, context, masked_text.slots, method="fuse_text")
        logits = run(fused, method="classify_tokens")
        targets, slot_weights = masked_text.targets, masked_text.weights
        metrics["mlm"] = _totals(reconstruction.masked_text_loss(logits, targets, slot_weights))
        correct = reconstruction.masked_text_correct(logits, targets, slot_weights)
        metrics["mlm_accuracy"] = (correct.sum(), slot_weights.sum())

    if weights["itc"] or weights["itm"]:
        embeddings = Embeddings(run(v, method="project_image"), run(w, method="project_text"))

    if weights["itm"]:
        temperature = run(method="temperature")
        negatives = matching.hard_negatives(pairs.negative_noise, *embeddings, pairs.image_id, temperature)
        wrong_v = matching.take_from_groups(v, negatives.image)
        wrong_w = matching.take_from_groups(w, negatives.text)
        wrong_mask = matching.take_from_groups(text_mask, negatives.text)
        # Stacked behind the batch axis, so that the three pairings of a pair stay on the device that holds it.
        images = _merge(jnp.stack([v, v, wrong_v], axis=1))
        texts = _merge(jnp.stack([w, wrong_w, w], axis=1))
        masks = _merge(jnp.stack([text_mask, wrong_mask, text_mask], axis=1))
        first = slice(0, 1)
        fused_image = run(images, texts, masks, first, method="fuse_image")[:, 0]
        fused_text = run(texts, masks, images, first, method="fuse_text")[:, 0]
        logits = run(fused_image, fused_text, method="match").reshape(-1, 3, 2)
        valid = negatives.valid.reshape(-1)
        metrics["itm"] = matching.matching_loss(logits, valid)
        metrics["itm_accuracy"] = (
            matching.matching_correct(logits, valid),
            matching.matching_weights(valid).sum(),
        )

    return metrics, embeddings


def mean(total: Float[Array, ""], count: Float[Array, ""]) -> Float[Array, ""]:
    """total / count; 0 where nothing was counted."""
    return total / jnp.maximum(count, 1)


def _encode_texts(run, texts: Int[Array, "B views L"]) -> Float[Array, "B views L D"]:
    encoded = run(_merge(texts), method="encode_text")
    return encoded.reshape(*texts.shape, -1)


def _merge(x: Array) -> Array:
    return x.reshape(-1, *x.shape[2:])


def _unstack(x: Float[Array, "B 2 S D"]) -> tuple[Float[Array, "B S D"], Float[Array, "B S D"]]:
    return x[:, 0], x[:, 1]


def _totals(
    pair: tuple[Float[Array, " B"], Float[Array, " B"]],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    return pair[0].sum(), pair[1].sum()
