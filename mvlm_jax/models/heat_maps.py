"""Where in an image the tokens of a text look, as far as it makes the two match (Grad-CAM; ALBEF, section 6)."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int, PyTree, UInt8

from mvlm_jax.models.layers import AttentionDense
from mvlm_jax.models.maskvlm import MaskVLM

Probabilities = dict[str, Float[Array, "B N R S"]]  # of attention heads, by the name of their block


def text_heat_maps(
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
    # A fused kernel pads its tokens, and arrays cannot leave what is rematerialised.
    plain = model.clone(compute=dataclasses.replace(model.compute, attention="xla", remat="none"))
    chosen = range(model.cross.layers - 1) if layers is None else layers
    names = [f"block_{layer}" for layer in chosen]

    def log_odds(shifts: Probabilities | None) -> tuple[Float[Array, ""], tuple[Probabilities, Float[Array, " B"]]]:
        seen = _CrossAttention(names, shifts)
        bound = plain.bind({"params": params})
        with nn.intercept_methods(seen):
            v, w, text_mask = bound.encode_whole_image(image), bound.encode_text(text), bound.text_mask(text)
            fused_image = bound.fuse_image(v, w, text_mask, slice(0, 1))
            fused_text = bound.fuse_text(w, text_mask, v)
            logits = bound.match(fused_image[:, 0], fused_text[:, 0])
        odds = logits[:, 1] - logits[:, 0]
        return odds.sum(), (seen.probabilities, odds)

    _, (shapes, _) = jax.eval_shape(log_odds, None)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    gradients, (probabilities, odds) = jax.grad(log_odds, has_aux=True)(zeros)
    side = model.image.grid
    heat = sum(
        (probabilities[name] * jnp.maximum(gradients[name], 0)).mean(axis=1)[:, :, 1 : 1 + side * side]
        for name in names
    )
    assert not isinstance(heat, int)
    return heat.reshape(*text.shape, side, side), odds


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
        part, name, *layer = [*context.module.path[:2], *context.module.path[2:]] + [""] * 2
        wanted = part == "text_cross_encoder" and name in self._names and layer[0] == "cross_attention"
        if not wanted or not isinstance(context.module, AttentionDense) or context.method_name != "__call__":
            return method(*args, **kwargs)
        if layer[1] != "out":
            self._inputs[name, layer[1]] = method(*args, **kwargs)
            return self._inputs[name, layer[1]]
        query, key, value = (self._inputs[name, each] for each in ("query", "key", "value"))
        scores = jnp.einsum("brnh,bsnh->bnrs", query, key, preferred_element_type=jnp.float32)
        probabilities = jax.nn.softmax(scores / query.shape[-1] ** 0.5)
        self.probabilities[name] = probabilities
        if self._shifts is not None:
            probabilities += self._shifts[name]
        attended = jnp.einsum("bnrs,bsnh->brnh", probabilities, value, preferred_element_type=jnp.float32)
        return method(attended.astype(value.dtype), *args[1:], **kwargs)
