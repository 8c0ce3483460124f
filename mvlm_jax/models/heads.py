"""The small layers that turn features into embeddings, words, pixels and verdicts."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from mvlm_jax.models.activations import gelu
from mvlm_jax.models.layers import weight_init
from mvlm_jax.models.norm import LayerNorm

INITIAL_TEMPERATURE = 0.07
TEMPERATURE_RANGE = (0.001, 0.5)


def pooled(
    tokens: Float[Array, "B S D"], mask: Bool[Array, "B S"] | None = None, *, pooling: str
) -> Float[Array, "B D"]:
    """One feature for each example, the mean of which is taken in float32.

    Args:
      mask: true at the tokens that count for the mean; None: all do.
      pooling: `first` (token) or `mean`.
    """
    if pooling == "first":
        return tokens[:, 0]
    wide = tokens.astype(jnp.float32)
    if mask is None:
        return wide.mean(axis=1).astype(tokens.dtype)
    count = jnp.maximum(mask.sum(axis=1, keepdims=True), 1)
    return (jnp.where(mask[:, :, None], wide, 0).sum(axis=1) / count).astype(tokens.dtype)


class Projection(nn.Module):
    """To the space in which images and texts are compared; float32, of unit norm."""

    features: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B D"]) -> Float[Array, "B E"]:
        z = nn.Dense(self.features, dtype=self.dtype, kernel_init=weight_init, name="dense")(x).astype(jnp.float32)
        # rsqrt of a sum that cannot be 0: the gradient of a norm at 0 is not a number.
        return z * jax.lax.rsqrt(jnp.sum(z * z, axis=-1, keepdims=True) + 1e-12)


class TiedTokenHead(nn.Module):
    """BERT's head: dense, GELU, norm, then the token embeddings as the output layer; float32 logits."""

    vocab_size: int
    width: int
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Float[Array, "*B D"], token_scores: Callable[[Float[Array, "*B D"]], Float[Array, "*B V"]]
    ) -> Float[Array, "*B V"]:
        x = nn.Dense(self.width, dtype=self.dtype, kernel_init=weight_init, name="dense")(x)
        x = LayerNorm(1e-5, dtype=self.dtype, name="norm")(gelu(x))
        bias = self.param("bias", nn.initializers.zeros, (self.vocab_size,))
        return token_scores(x).astype(jnp.float32) + bias


class ClassificationHead(nn.Module):
    """Two dense layers with a GELU between; float32 logits."""

    classes: int
    width: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B F"]) -> Float[Array, "B classes"]:
        hidden = nn.Dense(self.width, dtype=self.dtype, kernel_init=weight_init, name="dense")(x)
        out = nn.Dense(self.classes, dtype=self.dtype, kernel_init=weight_init, name="out")
        return out(gelu(hidden)).astype(jnp.float32)


def clip_temperature(temperature: Float[Array, ""]) -> Float[Array, ""]:
    """The temperature in its legal range; the gradient passes, so that a value outside can come back."""
    clipped = jax.lax.stop_gradient(jnp.clip(temperature, *TEMPERATURE_RANGE))
    return clipped + (temperature - jax.lax.stop_gradient(temperature))
