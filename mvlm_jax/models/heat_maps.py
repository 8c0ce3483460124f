"""Where in an image the words of a text look: attention times what a score gains by it (Grad-CAM; ALBEF, section 6)."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int, PyTree, UInt8

from mvlm_jax.models.layers import AttentionDense
from mvlm_jax.models.maskvlm import MaskVLM

Probabilities = dict[str, Float[Array, "B N R S"]]  # of attention heads, by the name of their block


def match_heat_maps(
    model: MaskVLM,
    params: PyTree,
    image: UInt8[Array, "B H W 3"],
    text: Int[Array, "B L"],
    *,
    layers: Sequence[int] | None = None,
) -> tuple[Float[Array, "B L rows columns"], Float[Array, " B"]]:
    """For each token the heat of each patch, and the log-odds that image and text match.

    The heat is the probability with which the token attends to the patch in a layer of the text cross encoder, times
    the gradient of the log-odds with respect to it where that is positive: the mean over heads, the sum over layers. It
    is not normalised.

    Args:
      layers: of the text cross encoder, from 0. By default all but the last: of that one matching reads the start
        token alone, so that no other token of it has a gradient.
    """

    def log_odds(bound: MaskVLM) -> Float[Array, " B"]:
        v, w, text_mask = bound.encode_whole_image(image), bound.encode_text(text), bound.text_mask(text)
        fused_image = bound.fuse_image(v, w, text_mask, slice(0, 1))
        fused_text = bound.fuse_text(w, text_mask, v)
        logits = bound.match(fused_image[:, 0], fused_text[:, 0])
        return logits[:, 1] - logits[:, 0]

    return _heat_maps(model, params, log_odds, layers=_but_the_last(model) if layers is None else layers)


def word_heat_maps(
    model: MaskVLM,
    params: PyTree,
    image: UInt8[Array, "H W 3"],
    text: Int[Array, "words L"],
    places: Int[Array, "words K"],
    tokens: Int[Array, "words K"],
    *,
    layers: Sequence[int] | None = None,
) -> tuple[Float[Array, "words rows columns"], Float[Array, " words"]]:
    """For each hidden word the heat of each patch, and the log-probability that the model gives to the word.

    As `match_heat_maps`, but for the gradient, which is that of the log-probability, and for the tokens that look: the
    masks in the places of the word.

    Args:
      text: in each row another word is hidden.
      places: of the word's masks; fewer than K are filled up with repetitions.
      tokens: that are hidden there.
      layers: by default all but the last, or the only one.
    """

    def log_probability(bound: MaskVLM) -> Float[Array, " words"]:
        v = jnp.repeat(bound.encode_whole_image(image[None]), len(text), axis=0)
        fused = bound.fuse_text(bound.encode_text(text), bound.text_mask(text), v)
        logits = bound.classify_tokens(jnp.take_along_axis(fused, places[:, :, None], axis=1))
        return jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, :, None], axis=2)[..., 0].mean(axis=1)

    chosen = (_but_the_last(model) or (0,)) if layers is None else layers
    heat, scores = _heat_maps(model, params, log_probability, layers=chosen)
    return jnp.take_along_axis(heat, places[:, :, None, None], axis=1).mean(axis=1), scores


def _but_the_last(model: MaskVLM) -> Sequence[int]:
    return tuple(range(model.cross.layers - 1))


def _heat_maps(
    model: MaskVLM, params: PyTree, score: Callable[[MaskVLM], Float[Array, " B"]], *, layers: Sequence[int]
) -> tuple[Float[Array, "B L rows columns"], Float[Array, " B"]]:
    # A fused kernel pads its tokens, and arrays cannot leave what is rematerialised.
    plain = model.clone(compute=dataclasses.replace(model.compute, attention="xla", remat="none"))
    names = [f"block_{layer}" for layer in layers]

    def scored(shifts: Probabilities | None) -> tuple[Float[Array, ""], tuple[Probabilities, Float[Array, " B"]]]:
        seen = _CrossAttention(names, shifts)
        with nn.intercept_methods(seen):
            scores = score(plain.bind({"params": params}))
        return scores.sum(), (seen.probabilities, scores)

    _, (shapes, _) = jax.eval_shape(scored, None)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    gradients, (probabilities, scores) = jax.grad(scored, has_aux=True)(zeros)
    side = model.image.grid
    by_layer = [(probabilities[name] * jnp.maximum(gradients[name], 0)).mean(axis=1) for name in names]
    heat = jnp.stack(by_layer).sum(axis=0)[:, :, 1 : 1 + side * side]  # the class token stands in front of the patches
    return heat.reshape(*heat.shape[:2], side, side), scores


class _CrossAttention:
    """Of the text cross encoder, computed with its probabilities in the open; for `nn.intercept_methods`.

    The module itself hands them to a kernel. What enters its output layer is computed again from what its query, key
    and value layers give: by the same formula, with `shifts` added to the probabilities.
    """

    def __init__(self, names: Sequence[str], shifts: Probabilities | None) -> None:
        self.probabilities: Probabilities = {}
        self._names, self._shifts = names, shifts
        self._inputs: dict[tuple[str, str], Any] = {}

    def __call__(self, method, args, kwargs, context: nn.module.InterceptorContext) -> Any:
        part, name, kind, layer = (*context.module.path, "", "", "", "")[:4]
        wanted = part == "text_cross_encoder" and name in self._names and kind == "cross_attention"
        if not wanted or not isinstance(context.module, AttentionDense) or context.method_name != "__call__":
            return method(*args, **kwargs)
        if layer != "out":
            self._inputs[name, layer] = method(*args, **kwargs)
            return self._inputs[name, layer]
        query, key, value = (self._inputs[name, each] for each in ("query", "key", "value"))
        scores = jnp.einsum("brnh,bsnh->bnrs", query, key, preferred_element_type=jnp.float32)
        probabilities = jax.nn.softmax(scores / query.shape[-1] ** 0.5)
        self.probabilities[name] = probabilities
        if self._shifts is not None:
            probabilities += self._shifts[name]
        attended = jnp.einsum("bnrs,bsnh->brnh", probabilities, value, preferred_element_type=jnp.float32)
        return method(attended.astype(value.dtype), *args[1:], **kwargs)
