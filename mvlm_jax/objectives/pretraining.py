"""The four losses of a batch, with as few passes through the model as they need (paper, equation 5)."""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Key, Num, PyTree, UInt8

from mvlm_jax.models.dropout import copies, fold
from mvlm_jax.models.maskvlm import MaskVLM
from mvlm_jax.objectives import losses, matching
from mvlm_jax.objectives.masking import ImageMask, Masking, TextMask
from mvlm_jax.training.task import SumAndCount, Sums


class Pairs(NamedTuple):
    """A batch, or whole groups of it, with everything random that was drawn for its pairs."""

    image: UInt8[Array, "B H W 3"]
    text: Int[Array, "B L"]
    image_id: Int[Array, " B"]
    image_mask: ImageMask
    text_mask: TextMask
    negative_noise: Float[Array, "B 2 G"]
    dropout_keys: Key[Array, " B"] | None  # None: nothing is dropped
    skipped: Int[Array, " B"]  # unusable records stepped over for each pair


class Embeddings(NamedTuple):
    """Whole images and texts in the space in which they are compared."""

    image: Float[Array, "B E"]
    text: Float[Array, "B E"]


def draw(
    mask_key: Key[Array, ""],
    negatives_key: Key[Array, ""],
    batch: Mapping[str, Num[Array, "B ..."]],
    *,
    masking: Masking,
    group: int,
    dropout_keys: Key[Array, " B"] | None = None,
) -> Pairs:
    """The batch with its masks, the noise that negatives are sampled with, and the keys of its dropout."""
    image_key, text_key = jax.random.split(mask_key)
    pairs = len(batch["text"])
    return Pairs(
        **{name: batch[name] for name in ("image", "text", "image_id", "skipped")},
        image_mask=masking.image_mask(image_key, batch=pairs),
        text_mask=masking.text_mask(text_key, batch["text"]),
        negative_noise=matching.negative_noise(negatives_key, pairs=pairs, group=group),
        dropout_keys=dropout_keys,
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
    pixel_loss: str = "l1"  # of MIM: l1 or l2

    @property
    def dtype(self) -> DTypeLike:
        return self.model.dtype

    def row_losses(self, params: PyTree, pairs: Pairs) -> tuple[Sums, Embeddings | tuple[()]]:
        """MIM, MLM and ITM; the embeddings are there where ITC needs them."""
        model = self._bound(params)
        text_mask, keys = model.text_mask(pairs.text), pairs.dropout_keys
        rebuilding = fold(keys, "reconstruction")
        if self.weights["mim"] or self.weights["mlm"]:
            patches, masked = model.patches(pairs.image), pairs.image_mask.patch_mask
            views = model.encode_image(patches, jnp.stack([jnp.zeros_like(masked), masked], axis=1), keys)
            v, v_masked = views[:, 0], views[:, 1]
            texts = jnp.stack([pairs.text, pairs.text_mask.text], axis=1)
            encoded = model.encode_text(_merge(texts), copies(keys, 2)).reshape(*texts.shape, -1)
            w, w_masked = encoded[:, 0], encoded[:, 1]
        else:
            v, w = model.encode_whole_image(pairs.image, keys), model.encode_text(pairs.text, copies(keys, 1))
        sums: Sums = {}

        if self.weights["mim"]:
            context = {"unmasked": w, "masked": w_masked, "none": None}[self.condition_on]
            slots = pairs.image_mask.slots
            fused = model.fuse_image(v_masked, context, text_mask, None, rebuilding)
            predicted = model.decode_image(fused, context, text_mask, slots, rebuilding)
            target = jnp.take_along_axis(patches, slots[:, :, None], axis=1)
            power = {"l1": 1, "l2": 2}[self.pixel_loss]
            sums["mim"] = _totals(losses.masked_image_loss(predicted, target, power=power))

        if self.weights["mlm"]:
            context = {"unmasked": v, "masked": v_masked, "none": None}[self.condition_on]
            slots, targets, weights = pairs.text_mask[1:]
            fused = model.fuse_text(w_masked, text_mask, context, slots, rebuilding)
            logits = model.classify_tokens(fused)
            sums["mlm"] = _totals(losses.masked_text_loss(logits, targets, weights))
            correct = losses.masked_text_correct(logits, targets, weights)
            sums["mlm_accuracy"] = (100 * correct.sum(), weights.sum())

        embeddings: Embeddings | tuple[()] = ()
        if self.weights["itc"] or self.weights["itm"]:
            embeddings = Embeddings(model.project_image(v), model.project_text(w, text_mask))
        if self.weights["itm"]:
            assert embeddings
            noise, temperature = pairs.negative_noise, model.temperature()
            negatives = matching.hard_negatives(noise, *embeddings, pairs.image_id, temperature)
            sums |= _match(model, v, w, text_mask, negatives, fold(keys, "matching"))
        return sums, embeddings if self.weights["itc"] else ()

    def embed(self, params: PyTree, pairs: Pairs) -> Embeddings | tuple[()]:
        """The embeddings of `row_losses` alone; they have dropped the same features."""
        if not self.weights["itc"]:
            return ()
        model, keys = self._bound(params), pairs.dropout_keys
        return Embeddings(model.embed_image(pairs.image, keys), model.embed_text(pairs.text, copies(keys, 1)))

    def batch_losses(self, params: PyTree, embeddings: Embeddings | tuple[()], pairs: Pairs) -> Sums:
        """ITC."""
        sums = losses.example_counts(pairs.skipped)
        temperature = self._bound(params).temperature()
        if self.weights["itc"] or self.weights["itm"]:
            sums["temperature"] = (temperature, jnp.float32(1))
        if self.weights["itc"]:
            assert embeddings
            sums["itc"] = losses.contrastive_loss(*embeddings, pairs.image_id, temperature)
        return sums

    def _bound(self, params: PyTree) -> MaskVLM:
        return self.model.bind({"params": params})


def _match(
    model: MaskVLM,
    v: Float[Array, "B S D"],
    w: Float[Array, "B L D"],
    text_mask: Bool[Array, "B L"],
    negatives: matching.HardNegatives,
    dropout_keys: Key[Array, " B"] | None,
) -> Sums:
    wrong_v = matching.take_from_groups(v, negatives.image)
    wrong_w = matching.take_from_groups(w, negatives.text)
    wrong_mask = matching.take_from_groups(text_mask, negatives.text)
    # Stacked behind the batch axis, so that the three pairings of a pair stay on the device that holds it.
    images = _merge(jnp.stack([v, v, wrong_v], axis=1))
    texts = _merge(jnp.stack([w, wrong_w, w], axis=1))
    masks = _merge(jnp.stack([text_mask, wrong_mask, text_mask], axis=1))
    logits = model.match_features(images, texts, masks, copies(dropout_keys, 3)).reshape(-1, 3, 2)
    valid = negatives.valid.reshape(-1)
    return {
        "itm": matching.matching_loss(logits, valid),
        "itm_accuracy": (100 * matching.matching_correct(logits, valid), matching.matching_weights(valid).sum()),
    }


def _merge(x: Array) -> Array:
    return x.reshape(-1, *x.shape[2:])


def _totals(of_examples: tuple[Float[Array, " B"], Float[Array, " B"]]) -> SumAndCount:
    return of_examples[0].sum(), of_examples[1].sum()
