"""Dropout and stochastic depth, drawn for each example from a key of its own.

Flax draws one mask for a whole batch. What one example loses would then depend on the examples beside it, and change
with microbatches and devices.
"""

import dataclasses
import math
import zlib

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, UInt16

_LEVELS = 1 << 16  # a feature is kept or dropped by 16 random bits


@dataclasses.dataclass(frozen=True)
class Rates:
    """Of a stack of layers."""

    dropout: float = 0.0  # part of the features that is dropped behind each attention and MLP
    stochastic_depth: float = 0.0  # chance to skip a residual branch of the last layer; rises from 0 at the first

    def of_layer(
        self, keys: Key[Array, " B"] | None, index: int | Int[Array, ""], *, layers: int
    ) -> "LayerDropout | None":
        """What a layer drops; None: nothing.

        Args:
          keys: of the whole stack; None: nothing is dropped, as in evaluation.
        """
        if keys is None or self == Rates():
            return None
        skip = self.stochastic_depth * index / (layers - 1) if self.stochastic_depth and layers > 1 else None
        return LayerDropout(_fold(keys, index), self.dropout, skip)


@dataclasses.dataclass(frozen=True)
class LayerDropout:
    """What one layer drops."""

    keys: Key[Array, " B"]
    rate: float  # of features
    skip: float | Float[Array, ""] | None  # chance that an example skips a residual branch


def example_keys(key: Key[Array, ""], examples: int) -> Key[Array, " B"]:
    """A key for each example, by its place in the global batch."""
    return jax.vmap(lambda place: jax.random.fold_in(key, place))(jnp.arange(examples))


def fold(keys: Key[Array, " B"] | None, use: str | int | Int[Array, ""]) -> Key[Array, " B"] | None:
    """The keys of one of several uses, by its name or number."""
    return None if keys is None else _fold(keys, use)


def copies(keys: Key[Array, " B"] | None, count: int) -> Key[Array, " copies"] | None:
    """The keys of `count` copies of each example, of which one follows the other."""
    if keys is None:
        return None
    each = jax.vmap(lambda key: jax.vmap(lambda number: jax.random.fold_in(key, number))(jnp.arange(count)))(keys)
    return each.reshape(-1)


def drop(x: Float[Array, "..."], dropout: LayerDropout | None, branch: str) -> Float[Array, "..."]:
    """The output of a residual branch with dropped features at 0, or all of it; what is left is scaled up.

    Args:
      x: in the order of the examples, each with as many numbers as every other one.
      branch: its name in the layer.
    """
    if dropout is None:
        return x
    keys = _fold(dropout.keys, branch)
    flat = x.reshape(len(keys), -1)
    kept = jnp.ones((), bool)
    scale: float | Float[Array, ""] = 1.0
    # Rounded to what 16 bits can draw, and scaled by what is drawn.
    threshold = min(round(dropout.rate * _LEVELS), _LEVELS - 1)
    if threshold:
        kept = _bits(_fold(keys, "features"), flat.shape[1]) >= threshold
        scale /= 1 - threshold / _LEVELS
    if dropout.skip is not None:
        drawn = jax.vmap(jax.random.uniform)(_fold(keys, "branch"))
        kept, scale = kept & (drawn >= dropout.skip)[:, None], scale / (1 - dropout.skip)
    # In float32: a scale of 16 bits would be wrong by up to 0.4 %.
    return jnp.where(kept, flat.astype(jnp.float32) * scale, 0).astype(x.dtype).reshape(x.shape)


def _fold(keys: Key[Array, " B"], use: str | int | Int[Array, ""]) -> Key[Array, " B"]:
    # Not hash(): Python salts the hash of a string in every process.
    number = zlib.crc32(use.encode()) if isinstance(use, str) else use
    return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)


def _bits(keys: Key[Array, " B"], count: int) -> UInt16[Array, "B count"]:
    """16 random bits for each feature. The first ones are the same for every `count`: padding changes nothing."""
    words = jax.vmap(lambda key: jax.random.bits(key, (math.ceil(count / 2),), jnp.uint32))(keys)
    halves = jnp.stack([words & 0xFFFF, words >> 16], axis=-1)
    return halves.reshape(len(keys), -1)[:, :count].astype(jnp.uint16)
