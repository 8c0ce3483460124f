"""Attention, MLP and the three residual blocks that the encoders are made of.

Compute dtype is a module field; parameters are float32, and so are LayerNorm's statistics and the softmax.
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

# Scaled by width (as the original ViT): a fixed deviation of 0.02 all but silences the layers of a narrow model.
weight_init = nn.initializers.xavier_uniform()
token_init = nn.initializers.truncated_normal(0.02)

Rows = slice | Int[Array, "B R"]


def select_rows(x: Float[Array, "B S D"], rows: Rows | None) -> Float[Array, "B R D"]:
    """The tokens whose outputs are wanted: a slice, positions per example, or all (`None`)."""
    if rows is None:
        return x
    if isinstance(rows, slice):
        return x[:, rows]
    return jnp.take_along_axis(x, rows[:, :, None], axis=1)


class Attention(nn.Module):
    """Multi-head attention from `x` to `context`; where `context_mask` is false nothing is attended to.

    A `causal` one is from tokens to themselves and those before them.
    """

    heads: int
    dtype: DTypeLike
    causal: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B R D"],
        context: Float[Array, "B S D"],
        context_mask: Bool[Array, "B S"] | None = None,
    ) -> Float[Array, "B R D"]:
        width = x.shape[-1]
        project = functools.partial(
            nn.DenseGeneral, (self.heads, width // self.heads), dtype=self.dtype, kernel_init=weight_init
        )
        attended = jax.nn.dot_product_attention(
            project(name="query")(x),
            project(name="key")(context),
            project(name="value")(context),
            mask=None if context_mask is None else context_mask[:, None, None, :],
            is_causal=self.causal,
        )
        return nn.DenseGeneral(width, axis=(-2, -1), dtype=self.dtype, kernel_init=weight_init, name="out")(attended)


@jax.custom_jvp
def gelu(x: Float[Array, "*dims"]) -> Float[Array, "*dims"]:
    """The exact GELU, x times the normal distribution function.

    Its derivative is written out because that of `lax.erfc` in float32 fails under `shard_map` from jax 0.12 on.
    """
    return x * _normal_cdf(x)


@gelu.defjvp
def _gelu_jvp(primals, tangents):
    (x,), (tangent,) = primals, tangents
    cdf = _normal_cdf(x)
    density = jnp.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    return x * cdf, tangent * (cdf + x * density)


def _normal_cdf(x: Float[Array, "*dims"]) -> Float[Array, "*dims"]:
    return 0.5 * jax.lax.erfc(-x * math.sqrt(0.5))


class Mlp(nn.Module):
    """Two dense layers with an exact (erf) GELU between."""

    ratio: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
        dense = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=weight_init)
        hidden = dense(x.shape[-1] * self.ratio, name="up")(x)
        return dense(x.shape[-1], name="down")(gelu(hidden))


class PreNormBlock(nn.Module):
    """A ViT layer: x + attention(norm(x)), then x + mlp(norm(x))."""

    heads: int
    mlp_ratio: int
    epsilon: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B S D"], mask: Bool[Array, "B S"] | None) -> Float[Array, "B S D"]:
        normed = nn.LayerNorm(self.epsilon, dtype=self.dtype, name="attention_norm")(x)
        x = x + Attention(self.heads, self.dtype, name="attention")(normed, normed, mask)
        normed = nn.LayerNorm(self.epsilon, dtype=self.dtype, name="mlp_norm")(x)
        return x + Mlp(self.mlp_ratio, self.dtype, name="mlp")(normed)


class PostNormBlock(nn.Module):
    """A BERT layer: norm(x + attention(x)), then norm(x + mlp(x))."""

    heads: int
    mlp_ratio: int
    epsilon: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B S D"], mask: Bool[Array, "B S"] | None) -> Float[Array, "B S D"]:
        x = x + Attention(self.heads, self.dtype, name="attention")(x, x, mask)
        x = nn.LayerNorm(self.epsilon, dtype=self.dtype, name="attention_norm")(x)
        x = x + Mlp(self.mlp_ratio, self.dtype, name="mlp")(x)
        return nn.LayerNorm(self.epsilon, dtype=self.dtype, name="mlp_norm")(x)


class CrossBlock(nn.Module):
    """Self-attention, cross-attention to the other modality, MLP; each pre-normed and residual.

    Without a context the cross-attention is left out and nothing of the other modality is seen. With `rows` only
    those tokens are computed: what the last block of an encoder needs when only some of its outputs are read.
    """

    heads: int
    mlp_ratio: int
    epsilon: float
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B S D"],
        mask: Bool[Array, "B S"] | None,
        context: Float[Array, "B T D"] | None,
        context_mask: Bool[Array, "B T"] | None,
        rows: Rows | None = None,
    ) -> Float[Array, "B R D"]:
        norm = functools.partial(nn.LayerNorm, self.epsilon, dtype=self.dtype)
        normed = norm(name="self_norm")(x)
        attended = Attention(self.heads, self.dtype, name="self_attention")(select_rows(normed, rows), normed, mask)
        x = select_rows(x, rows) + attended
        if context is not None:
            normed = norm(name="cross_norm")(x)
            x = x + Attention(self.heads, self.dtype, name="cross_attention")(normed, context, context_mask)
        return x + Mlp(self.mlp_ratio, self.dtype, name="mlp")(norm(name="mlp_norm")(x))


def rematerialized(target, *, remat: str, prevent_cse: bool = True):
    """`nn.remat` of a block, or of a function of one, with the policy of that name.

    Args:
      remat: what the backward pass computes anew: `none`, `dots` (all but matrix products), `full` (everything).
    """
    if remat == "none":
        return target
    policies = {
        "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        "full": jax.checkpoint_policies.nothing_saveable,
    }
    return nn.remat(target, policy=policies[remat], prevent_cse=prevent_cse)


def scanned_layers(
    block: type[PreNormBlock] | type[PostNormBlock], *, layers: int, remat: str, **block_fields
) -> nn.Module:
    """`layers` blocks of one kind in a `lax.scan`, parameters stacked on a leading axis, named `layers`.

    Args:
      remat: see `rematerialized`.
    """
    # The scan itself keeps the compiler from merging both computations.
    block = rematerialized(block, remat=remat, prevent_cse=False)

    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x, mask):
            return block(**block_fields, name="block")(x, mask), None

    return nn.scan(
        Layer, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=nn.broadcast, length=layers
    )(name="layers")
