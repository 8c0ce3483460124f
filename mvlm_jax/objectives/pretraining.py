"""The four losses of a batch, each part of the model run as seldom as they allow (paper, equation 5)."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax.core import FrozenDict
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Key, Num, PyTree, UInt8

from mvlm_jax.models.maskvlm import MaskVLM
from mvlm_jax.objectives import contrastive, masking, matching, reconstruction
from mvlm_jax.objectives.counts import example_counts

Sums = dict[str, tuple[Num[Array, ""], Num[Array, ""]]]


class Pairs(NamedTuple):
    """A batch, or whole groups of it, with everything random that was drawn for its pairs."""

    image: UInt8[Array, "B H W 3"]
    text: Int[Array, "B L"]
    image_id: Int[Array, " B"]
    image_mask: masking.ImageMask
    text_mask: masking.TextMask
    negative_noise: Float[Array, "B 2 G"]
    skipped: Int[Array, " B"]  # unusable records stepped over for each pair


class Embeddings(NamedTuple):
    """Whole images and texts in the space in which they are compared."""

    image: Float[Array, "B E"]
    text: Float[Array, "B E"]


def draw(
    mask_key: Key[Array, ""],
    negatives_key: Key[Array, ""],
    image: UInt8[Array, "B H W 3"],
    text: Int[Array, "B L"],
    image_id: Int[Array, " B"],
    skipped: Int[Array, " B"],
    *,
    grid: int,
    cell: int,
    image_ratio: float,
    text_ratio: float,
    special_ids: tuple[int, ...],
    mask_id: int,
    group: int,
) -> Pairs:
    """The batch with its masks and the noise that negatives are sampled with; see `masking` for the arguments."""
    image_key, text_key = jax.random.split(mask_key)
    pairs = text.shape[0]
    return Pairs(
        image,
        text,
        image_id,
        masking.image_mask(image_key, batch=pairs, grid=grid, cell=cell, ratio=image_ratio),
        masking.text_mask(text_key, text, special_ids=special_ids, mask_id=mask_id, ratio=text_ratio),
        matching.negative_noise(negatives_key, pairs=pairs, group=group),
        skipped,
    )


@dataclasses.dataclass(frozen=True)
class Pretraining:
    """MIM, MLM, ITC and ITM of pairs, and every metric, as (sum, count); an `Objective` of training/task.py.

    Accuracies are in percent, as those of an evaluation are.

    Clean and masked images pass the image encoder together, texts likewise; each cross encoder runs once for the
    reconstruction and once for all three matching pairings. A loss of weight 0 is not computed.
    """

    model: MaskVLM
    condition_on: str  # what the other modality shows a reconstruction: unmasked, masked, none
    group: int  # consecutive pairs among which hard negatives are sought
    weights: Mapping[str, float]  # of mim, mlm, itc and itm

    @property
    def dtype(self) -> DTypeLike:
        return self.model.dtype

    def row_losses(self, params: PyTree, pairs: Pairs) -> tuple[Sums, Embeddings | tuple[()]]:
        """MIM, MLM and ITM; the embeddings are there where ITC needs them."""
        run = self._bound(params)
        patches = run(pairs.image, method="patches")
        text_mask = run(pairs.text, method="text_mask")
        masked = pairs.image_mask.patch_mask
        if self.weights["mim"] or self.weights["mlm"]:
            patch_masks = jnp.stack([jnp.zeros_like(masked), masked], axis=1)
            v, v_masked = _unstack(run(patches, patch_masks, method="encode_image"))
            w, w_masked = _unstack(_encode_texts(run, jnp.stack([pairs.text, pairs.text_mask.text], axis=1)))
        else:
            v = run(patches, jnp.zeros_like(masked[:, None]), method="encode_image")[:, 0]
            w = run(pairs.text, method="encode_text")
        sums: Sums = {}

        if self.weights["mim"]:
            context = {"unmasked": w, "masked": w_masked, "none": None}[self.condition_on]
            slots = pairs.image_mask.slots
            fused = run(v_masked, context, text_mask, method="fuse_image")
            predicted = run(fused, context, text_mask, slots, method="decode_image")
            target = jnp.take_along_axis(patches, slots[:, :, None], axis=1)
            sums["mim"] = _totals(reconstruction.masked_image_loss(predicted, target))

        if self.weights["mlm"]:
            context = {"unmasked": v, "masked": v_masked, "none": None}[self.condition_on]
            hidden = pairs.text_mask
            fused = run(w_masked, text_mask, context, hidden.slots, method="fuse_text")
            logits = run(fused, method="classify_tokens")
            sums["mlm"] = _totals(reconstruction.masked_text_loss(logits, hidden.targets, hidden.weights))
            correct = reconstruction.masked_text_correct(logits, hidden.targets, hidden.weights)
            sums["mlm_accuracy"] = (100 * correct.sum(), hidden.weights.sum())

        wanted = self.weights["itc"] or self.weights["itm"]
        embeddings: Embeddings | tuple[()] = _project(run, v, w) if wanted else ()
        if self.weights["itm"]:
            assert embeddings
            temperature = run(method="temperature")
            negatives = matching.hard_negatives(pairs.negative_noise, *embeddings, pairs.image_id, temperature)
            sums |= _match(run, v, w, text_mask, negatives)
        return sums, embeddings if self.weights["itc"] else ()

    def embed(self, params: PyTree, pairs: Pairs) -> Embeddings | tuple[()]:
        """The embeddings of `row_losses` alone."""
        if not self.weights["itc"]:
            return ()
        run = self._bound(params)
        whole = jnp.zeros_like(pairs.image_mask.patch_mask[:, None])
        v = run(run(pairs.image, method="patches"), whole, method="encode_image")[:, 0]
        return _project(run, v, run(pairs.text, method="encode_text"))

    def batch_losses(self, params: PyTree, embeddings: Embeddings | tuple[()], pairs: Pairs) -> Sums:
        """ITC."""
        sums: Sums = example_counts(pairs.skipped)
        temperature = self._bound(params)(method="temperature")
        if self.weights["itc"] or self.weights["itm"]:
            sums["temperature"] = (temperature, jnp.float32(1))
        if self.weights["itc"]:
            assert embeddings
            sums["itc"] = contrastive.contrastive_loss(*embeddings, pairs.image_id, temperature)
        return sums

    def _bound(self, params: PyTree) -> Callable[..., Any]:
        return functools.partial(self.model.apply, FrozenDict(params=params))


def _match(
    run: Callable[..., Any],
    v: Float[Array, "B S D"],
    w: Float[Array, "B L D"],
    text_mask: Bool[Array, "B L"],
    negatives: matching.HardNegatives,
) -> Sums:
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
    return {
        "itm": matching.matching_loss(logits, valid),
        "itm_accuracy": (100 * matching.matching_correct(logits, valid), matching.matching_weights(valid).sum()),
    }


def _project(run: Callable[..., Any], v: Float[Array, "B S D"], w: Float[Array, "B L D"]) -> Embeddings:
    return Embeddings(run(v, method="project_image"), run(w, method="project_text"))


def _encode_texts(run: Callable[..., Any], texts: Int[Array, "B views L"]) -> Float[Array, "B views L D"]:
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
