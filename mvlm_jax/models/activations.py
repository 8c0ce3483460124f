"""The activations of an MLP, each computed in float32, with a backward pass that keeps only the input.

What JAX would derive keeps the slope of each value beside it, too.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Pointwise = Callable[[Float[Array, "*dims"]], Float[Array, "*dims"]]


def _activation(name: str, doc: str, value: Pointwise, slope: Pointwise) -> Pointwise:
    """
    Args:
      value, slope: of float32 numbers.
    """

    def forward(x: Float[Array, "*dims"]) -> Float[Array, "*dims"]:
        return value(x.astype(jnp.float32)).astype(x.dtype)

    def backward(x: Float[Array, "*dims"], gradient: Float[Array, "*dims"]) -> tuple[Float[Array, "*dims"]]:
        # Without this barrier XLA would find the same function in the forward pass, and keep its float32 values.
        wide = jax.lax.optimization_barrier(x).astype(jnp.float32)
        of_x = (gradient.astype(jnp.float32) * slope(wide)).astype(x.dtype)
        # Without this barrier XLA computes it twice, for the gradients of the layer's kernel and of its bias.
        return (jax.lax.optimization_barrier(of_x),)

    forward.__name__, forward.__doc__ = name, doc
    function = jax.custom_vjp(forward)
    function.defvjp(lambda x: (function(x), x), backward)
    return function


def _normal_cdf(x: Float[Array, "*dims"]) -> Float[Array, "*dims"]:
    # Not by `lax.erfc`, which is more exact far below 0: it takes a GPU longer than reading and writing the values.
    # PyTorch computes the same.
    return 0.5 * (1 + jax.lax.erf(x * math.sqrt(0.5)))


def _normal_density(x: Float[Array, "*dims"]) -> Float[Array, "*dims"]:
    return jnp.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)


_QUICK = 1.702


def _quick_slope(x: Float[Array, "*dims"]) -> Float[Array, "*dims"]:
    gate = jax.nn.sigmoid(_QUICK * x)
    return gate * (1 + _QUICK * x * (1 - gate))


_CUBIC, _SCALE = 0.044715, math.sqrt(2 / math.pi)


def _tanh_of(x: Float[Array, "*dims"]) -> Float[Array, "*dims"]:
    return jnp.tanh(_SCALE * (x + _CUBIC * x * x * x))


def _tanh_slope(x: Float[Array, "*dims"]) -> Float[Array, "*dims"]:
    tanh = _tanh_of(x)
    inner = _SCALE * (1 + 3 * _CUBIC * x * x)
    return 0.5 * (1 + tanh) + 0.5 * x * (1 - tanh * tanh) * inner


gelu = _activation(
    "gelu",
    "The exact GELU, x times the normal distribution function.",
    lambda x: x * _normal_cdf(x),
    lambda x: _normal_cdf(x) + x * _normal_density(x),
)
quick_gelu = _activation(
    "quick_gelu",
    "OpenAI's CLIP: x times the sigmoid of 1.702 x.",
    lambda x: x * jax.nn.sigmoid(_QUICK * x),
    _quick_slope,
)
gelu_tanh = _activation(
    "gelu_tanh",
    "GELU with the distribution function approximated by a tanh.",
    lambda x: 0.5 * x * (1 + _tanh_of(x)),
    _tanh_slope,
)

ACTIVATIONS: dict[str, Pointwise] = {"gelu": gelu, "quick_gelu": quick_gelu, "gelu_tanh": gelu_tanh}
