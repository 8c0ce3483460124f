"""Attention, MLP and the three residual blocks that the encoders are made of.

Parameters are float32, and so are LayerNorm's statistics and the softmax.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Key

from mvlm_jax.models.attention import attend
from mvlm_jax.models.compute import Compute
from mvlm_jax.models.norm import LayerNorm

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


def in_rows(x: Float[Array, "*tokens D"]) -> Float[Array, "rows D"]:
    """The tokens of all examples as rows of one matrix.

    With two axes of tokens XLA would sum over both for the gradients of kernels and norms, and transposes features for
    that on GPUs.
    """
    return x.reshape(-1, x.shape[-1])


class AttentionDense(nn.Module):
    """A dense layer between tokens and attention heads, as one product of two matrices.

    `nn.DenseGeneral` adds the bias to an array of four axes, which keeps XLA from adding it in the product itself.
    """

    kernel_shape: tuple[int, int, int]  # (width, heads, head width) into the heads, (heads, head width, width) out
    inputs: int  # how many leading axes of the kernel are summed over
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B S *inputs"]) -> Float[Array, "B S *outputs"]:
        summed, outputs = self.kernel_shape[: self.inputs], self.kernel_shape[self.inputs :]
        matrix = math.prod(summed), math.prod(outputs)

        def init(key: Key[Array, ""], shape: tuple[int, ...], dtype: DTypeLike) -> Float[Array, "..."]:
            return weight_init(key, matrix, dtype).reshape(shape)

        kernel = self.param("kernel", init, self.kernel_shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, outputs, jnp.float32)
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        flat = x.reshape(-1, matrix[0]) @ kernel.reshape(matrix) + bias.reshape(-1)
        return flat.reshape(*x.shape[:2], *outputs)


class Attention(nn.Module):
    """Multi-head attention from `x` to `context`; where `context_mask` is false nothing is attended to.

    A `causal` one is from tokens to themselves and those before them. `bias` is added to the scores of every head.
    """

    heads: int
    compute: Compute
    causal: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B R D"],
        context: Float[Array, "B S D"],
        context_mask: Bool[Array, "B S"] | None = None,
        bias: Float[Array, "1 N R S"] | None = None,
    ) -> Float[Array, "B R D"]:
        width = x.shape[-1]
        by_head = self.heads, width // self.heads
        into_heads = functools.partial(AttentionDense, (width, *by_head), inputs=1, dtype=self.compute.dtype)
        attended = attend(
            into_heads(name="query")(x),
            into_heads(name="key")(context),
            into_heads(name="value")(context),
            context_mask,
            bias=bias,
            causal=self.causal,
            kernel=self.compute.attention,
        )
        return AttentionDense((*by_head, width), inputs=2, dtype=self.compute.dtype, name="out")(attended)


@jax.custom_vjp
def gelu(x: Float[Array, "*dims"]) -> Float[Array, "*dims"]:
    """The exact GELU, x times the normal distribution function; computed in float32.

    The backward pass keeps only `x`: what JAX would derive keeps the slope of each value beside it, too.
    """
    wide = x.astype(jnp.float32)
    return (wide * _normal_cdf(wide)).astype(x.dtype)


def _gelu_backward(x: Float[Array, "*dims"], gradient: Float[Array, "*dims"]) -> tuple[Float[Array, "*dims"]]:
    # Without this barrier XLA would find the same function in the forward pass, and keep its float32 values.
    wide = jax.lax.optimization_barrier(x).astype(jnp.float32)
    density = jnp.exp(-0.5 * wide * wide) / math.sqrt(2 * math.pi)
    slope = _normal_cdf(wide) + wide * density
    of_x = (gradient.astype(jnp.float32) * slope).astype(x.dtype)
    # Without this barrier XLA computes it twice, for the gradients of the layer's kernel and of its bias.
    return (jax.lax.optimization_barrier(of_x),)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_backward)


def _normal_cdf(x: Float[Array, "*dims"]) -> Float[Array, "*dims"]:
    # Not by `lax.erfc`, which is more exact far below 0: it takes a GPU longer than reading and writing the values.
    # PyTorch computes the same.
    return 0.5 * (1 + jax.lax.erf(x * math.sqrt(0.5)))


class Mlp(nn.Module):
    """Two dense layers with an exact (erf) GELU between."""

    ratio: int
    compute: Compute

    @nn.compact
    def __call__(self, x: Float[Array, "rows D"]) -> Float[Array, "rows D"]:
        dense = functools.partial(nn.Dense, dtype=self.compute.dtype, kernel_init=weight_init)
        hidden = dense(x.shape[-1] * self.ratio, name="up")(x)
        return dense(x.shape[-1], name="down")(gelu(hidden))


class Block(nn.Module):
    """What every kind of layer is made from."""

    heads: int
    mlp_ratio: int
    epsilon: float
    compute: Compute


class PreNormBlock(Block):
    """A ViT layer: x + attention(norm(x)), then x + mlp(norm(x))."""

    @nn.compact
    def __call__(self, x: Float[Array, "B S D"], mask: Bool[Array, "B S"] | None) -> Float[Array, "B S D"]:
        norm = functools.partial(LayerNorm, self.epsilon, dtype=self.compute.dtype)
        tokens = in_rows(x)
        normed = norm(name="attention_norm")(tokens).reshape(x.shape)
        tokens += in_rows(Attention(self.heads, self.compute, name="attention")(normed, normed, mask))
        tokens += Mlp(self.mlp_ratio, self.compute, name="mlp")(norm(name="mlp_norm")(tokens))
        return tokens.reshape(x.shape)


class PostNormBlock(Block):
    """A BERT layer: norm(x + attention(x)), then norm(x + mlp(x)).

    `bias` is added to the attention scores, as MPNet does with one for each distance.
    """

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B S D"],
        mask: Bool[Array, "B S"] | None,
        bias: Float[Array, "1 N S S"] | None = None,
    ) -> Float[Array, "B S D"]:
        norm = functools.partial(LayerNorm, self.epsilon, dtype=self.compute.dtype)
        tokens = in_rows(x) + in_rows(Attention(self.heads, self.compute, name="attention")(x, x, mask, bias))
        tokens = norm(name="attention_norm")(tokens)
        tokens += Mlp(self.mlp_ratio, self.compute, name="mlp")(tokens)
        return norm(name="mlp_norm")(tokens).reshape(x.shape)


class CrossBlock(Block):
    """Self-attention, cross-attention to the other modality, MLP; each pre-normed and residual.

    Without a context the cross-attention is left out and nothing of the other modality is seen. With `rows` only
    those tokens are computed: what the last block of an encoder needs when only some of its outputs are read.
    """

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B S D"],
        mask: Bool[Array, "B S"] | None,
        context: Float[Array, "B T D"] | None,
        context_mask: Bool[Array, "B T"] | None,
        rows: Rows | None = None,
    ) -> Float[Array, "B R D"]:
        norm = functools.partial(LayerNorm, self.epsilon, dtype=self.compute.dtype)
        attention = functools.partial(Attention, self.heads, self.compute)
        normed = norm(name="self_norm")(in_rows(x)).reshape(x.shape)
        attended = attention(name="self_attention")(select_rows(normed, rows), normed, mask)
        shape, tokens = attended.shape, in_rows(select_rows(x, rows)) + in_rows(attended)
        if context is not None:
            normed = norm(name="cross_norm")(tokens).reshape(shape)
            tokens += in_rows(attention(name="cross_attention")(normed, context, context_mask))
        tokens += Mlp(self.mlp_ratio, self.compute, name="mlp")(norm(name="mlp_norm")(tokens))
        return tokens.reshape(shape)


def rematerialized(target, *, remat: str, prevent_cse: bool = True, transform=nn.remat):
    """`nn.remat` of a function of a block, or `jax.checkpoint` of a pure one, with the policy of that name.

    Args:
      remat: what the backward pass recomputes: `none`, `dots` (all but matrix products), `full` (everything).
    """
    if remat == "none":
        return target
    policies = {"dots": _matrix_products_saveable, "full": jax.checkpoint_policies.nothing_saveable}
    return transform(target, policy=policies[remat], prevent_cse=prevent_cse)


def _matrix_products_saveable(primitive, *arguments, **parameters) -> bool:
    # A fused attention is one primitive, whose scores are never stored: recomputing it would save nothing.
    fused = primitive.name.startswith("dot_product_attention_fwd")
    return fused or jax.checkpoint_policies.dots_with_no_batch_dims_saveable(primitive, *arguments, **parameters)


class LayerStack(nn.Module):
    """Blocks of one kind, one after the other, with their parameters stacked on a leading axis.

    `compute.layer_loop` says how they run: a `lax.scan` compiles one layer; unrolled, XLA sees them all and copies
    nothing into stacks and out of them.
    """

    make_block: Callable[..., Block]  # called with a parent or a name
    layers: int
    frozen_layers: int  # the first ones, through which nothing is differentiated
    compute: Compute

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B S D"],
        mask: Bool[Array, "B S"] | None,
        bias: Float[Array, "1 N S S"] | None = None,
    ) -> Float[Array, "B S D"]:
        """
        Args:
          bias: of the attention scores, the same in all layers; for blocks that take one.
        """
        if self.is_initializing():
            return self._initialized(x, mask)
        unrolled = self.compute.layer_loop == "unroll"
        block = self.make_block(parent=None)

        shared = {} if bias is None else {"bias": bias}

        def layer(x, params):
            return block.apply({"params": params}, x, mask, **shared), None

        # Inside a loop XLA cannot merge the recomputation with the forward pass; unrolled, it has to be kept from it.
        layer = rematerialized(layer, remat=self.compute.remat, prevent_cse=unrolled, transform=jax.checkpoint)
        stacked = self.variables["params"]["block"]
        frozen = jax.tree.map(lambda leaf: jax.lax.stop_gradient(leaf[: self.frozen_layers]), stacked)
        trained = jax.tree.map(lambda leaf: leaf[self.frozen_layers :], stacked)
        if self.frozen_layers:
            x, _ = jax.lax.scan(layer, jax.lax.stop_gradient(x), frozen, unroll=self.frozen_layers if unrolled else 1)
        if self.frozen_layers < self.layers:
            x, _ = jax.lax.scan(layer, x, trained, unroll=self.layers - self.frozen_layers if unrolled else 1)
        return x

    def _initialized(self, x, mask):
        stack = nn.scan(
            lambda self, x, _: (self.make_block(name="block")(x, mask), None),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=self.layers,
        )
        return stack(self, x, None)[0]


class Encoder(nn.Module):
    """The sizes of a stack of layers."""

    width: int
    heads: int
    layers: int
    mlp_ratio: int
    epsilon: float
    compute: Compute
    frozen_layers: int  # the first ones, through which nothing is differentiated

    def stack(self, block: type[Block], **fields: Any) -> LayerStack:
        """
        Args:
          fields: of the block, beside the sizes of the encoder.
        """
        make = functools.partial(block, self.heads, self.mlp_ratio, self.epsilon, self.compute, **fields)
        return LayerStack(make, self.layers, self.frozen_layers, compute=self.compute, name="layers")
