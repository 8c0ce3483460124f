"""Layer normalisation with a backward pass that keeps as little as it can."""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float


class LayerNorm(nn.Module):
    """Over the last axis, statistics in float32; named and initialised as `nn.LayerNorm`.

    The backward pass keeps the input alone, where what JAX derives for `nn.LayerNorm` keeps float32 copies of it.
    """

    epsilon: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "*tokens D"]) -> Float[Array, "*tokens D"]:
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:], jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:], jnp.float32)
        rows = x.reshape(-1, x.shape[-1])
        return normalize(rows, scale, bias, self.epsilon, self.dtype).reshape(x.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def normalize(
    x: Float[Array, "rows D"], scale: Float[Array, " D"], bias: Float[Array, " D"], epsilon: float, dtype: DTypeLike
) -> Float[Array, "rows D"]:
    """(x - mean) / sqrt(variance + epsilon) * scale + bias, each row by itself."""
    return _forward(x, scale, bias, epsilon, dtype)[0]


def _forward(x, scale, bias, epsilon, dtype):
    wide = x.astype(jnp.float32)
    mean = wide.mean(axis=1, keepdims=True)
    variance = jnp.maximum((wide * wide).mean(axis=1, keepdims=True) - mean * mean, 0.0)
    inverse = jax.lax.rsqrt(variance + epsilon)
    normed = ((wide - mean) * (inverse * scale) + bias).astype(dtype)
    return normed, (x, scale, mean, inverse)


def _backward(epsilon, dtype, kept, gradient):
    x, scale, mean, inverse = kept
    gradient = gradient.astype(jnp.float32)
    # Without this barrier XLA would keep the float32 differences of the forward pass.
    normed = (jax.lax.optimization_barrier(x).astype(jnp.float32) - mean) * inverse
    scaled = gradient * scale
    along = (scaled * normed).mean(axis=1, keepdims=True)
    of_x = inverse * (scaled - scaled.mean(axis=1, keepdims=True) - normed * along)
    return of_x.astype(x.dtype), (gradient * normed).sum(axis=0), gradient.sum(axis=0)


normalize.defvjp(_forward, _backward)
