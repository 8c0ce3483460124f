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
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Key

from mvlm_jax.models.activations import ACTIVATIONS
from mvlm_jax.models.attention import FUSED, attend
from mvlm_jax.models.compute import Compute
from mvlm_jax.models.dropout import LayerDropout, Rates, drop
from mvlm_jax.models.norm import LayerNorm

# Scaled by width (as the original ViT): a fixed deviation of 0.02 all but silences the layers of a narrow model.
weight_init = nn.initializers.xavier_uniform()
token_init = nn.initializers.truncated_normal(0.02)
layer_scale_init = nn.initializers.constant(1e-5)  # as DINOv2: a new layer hardly changes what it is given

Rows = slice | Int[Array, "B R"]

# Arrays with this name are what remat=inputs keeps of a layer: the inputs of every matrix product follow from them
# without another product.
kept = functools.partial(checkpoint_name, name="kept")


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
            kept(into_heads(name="query")(x)),
            kept(into_heads(name="key")(context)),
            kept(into_heads(name="value")(context)),
            context_mask,
            bias=bias,
            causal=self.causal,
            kernel=self.compute.attention,
        )
        return AttentionDense((*by_head, width), inputs=2, dtype=self.compute.dtype, name="out")(kept(attended))


class Mlp(nn.Module):
    """Two dense layers with an activation between, the exact (erf) GELU unless told otherwise."""

    ratio: int
    compute: Compute
    activation: str = "gelu"  # a name of `activations.ACTIVATIONS`

    @nn.compact
    def __call__(self, x: Float[Array, "rows D"]) -> Float[Array, "rows D"]:
        dense = functools.partial(nn.Dense, dtype=self.compute.dtype, kernel_init=weight_init)
        hidden = kept(dense(x.shape[-1] * self.ratio, name="up")(x))
        return dense(x.shape[-1], name="down")(ACTIVATIONS[self.activation](hidden))


class Block(nn.Module):
    """What every kind of layer is made from."""

    heads: int
    mlp_ratio: int
    epsilon: float
    compute: Compute


class PreNormBlock(Block):
    """A ViT layer: x + attention(norm(x)), then x + mlp(norm(x)).

    With `layer_scale` a learned vector multiplies what is added, each time (Touvron et al., 2021).
    """

    activation: str = "gelu"
    layer_scale: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "B S D"], mask: Bool[Array, "B S"] | None, dropout: LayerDropout | None = None
    ) -> Float[Array, "B S D"]:
        norm = functools.partial(LayerNorm, self.epsilon, dtype=self.compute.dtype)
        tokens = in_rows(x)
        normed = norm(name="attention_norm")(tokens).reshape(x.shape)
        attended = in_rows(Attention(self.heads, self.compute, name="attention")(normed, normed, mask))
        tokens = kept(tokens + drop(self._scaled(attended, "attention_scale"), dropout, "attention"))
        transformed = Mlp(self.mlp_ratio, self.compute, self.activation, name="mlp")(norm(name="mlp_norm")(tokens))
        tokens += drop(self._scaled(transformed, "mlp_scale"), dropout, "mlp")
        return tokens.reshape(x.shape)

    def _scaled(self, x: Float[Array, "rows D"], name: str) -> Float[Array, "rows D"]:
        if not self.layer_scale:
            return x
        return x * self.param(name, layer_scale_init, x.shape[-1:], jnp.float32).astype(x.dtype)


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
        dropout: LayerDropout | None = None,
    ) -> Float[Array, "B S D"]:
        norm = functools.partial(LayerNorm, self.epsilon, dtype=self.compute.dtype)
        attention = Attention(self.heads, self.compute, name="attention")
        tokens = in_rows(x) + drop(in_rows(attention(x, x, mask, bias)), dropout, "attention")
        tokens = norm(name="attention_norm")(kept(tokens))
        tokens += drop(Mlp(self.mlp_ratio, self.compute, name="mlp")(tokens), dropout, "mlp")
        return norm(name="mlp_norm")(kept(tokens)).reshape(x.shape)


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
        dropout: LayerDropout | None = None,
    ) -> Float[Array, "B R D"]:
        norm = functools.partial(LayerNorm, self.epsilon, dtype=self.compute.dtype)
        attention = functools.partial(Attention, self.heads, self.compute)
        normed = norm(name="self_norm")(in_rows(x)).reshape(x.shape)
        attended = attention(name="self_attention")(select_rows(normed, rows), normed, mask)
        shape = attended.shape
        tokens = kept(in_rows(select_rows(x, rows)) + drop(in_rows(attended), dropout, "self_attention"))
        if context is not None:
            normed = norm(name="cross_norm")(tokens).reshape(shape)
            attended = in_rows(attention(name="cross_attention")(normed, context, context_mask))
            tokens = kept(tokens + drop(attended, dropout, "cross_attention"))
        transformed = Mlp(self.mlp_ratio, self.compute, name="mlp")(norm(name="mlp_norm")(tokens))
        tokens += drop(transformed, dropout, "mlp")
        return tokens.reshape(shape)


def rematerialized(target, *, remat: str, prevent_cse: bool = True, transform=nn.remat):
    """`nn.remat` of a function of a block, or `jax.checkpoint` of a pure one, with the policy of that name.

    Args:
      remat: what the backward pass recomputes: `none`, `inputs` (norms, activations and softmax), `dots` (all but
        matrix products), `full` (everything).
    """
    if remat == "none":
        return target
    saveable = jax.checkpoint_policies
    policies = {
        "inputs": _or_fused_attention(saveable.save_only_these_names("kept")),
        "dots": _or_fused_attention(saveable.dots_with_no_batch_dims_saveable),
        "full": saveable.nothing_saveable,
    }
    return transform(target, policy=policies[remat], prevent_cse=prevent_cse)


def _or_fused_attention(policy: Callable[..., Any]) -> Callable[..., bool]:
    """Keeps the results of a fused attention too: its scores are never stored, so recomputing it would save nothing."""
    named = jax.checkpoint_policies.save_only_these_names(FUSED)

    def saveable(primitive, *arguments, **parameters) -> bool:
        # cuDNN's is one primitive; ours is named.
        cudnn = primitive.name.startswith("dot_product_attention_fwd")
        return cudnn or named(primitive, *arguments, **parameters) or policy(primitive, *arguments, **parameters)

    return saveable


class LayerStack(nn.Module):
    """Blocks of one kind, one after the other, with their parameters stacked on a leading axis.

    `compute.layer_loop` says how they run: a `lax.scan` compiles one layer; unrolled, XLA sees them all and copies
    nothing into stacks and out of them. Frozen layers drop nothing, as in evaluation: they are a fixed function.
    """

    make_block: Callable[..., Block]  # called with a parent or a name
    layers: int
    frozen_layers: int  # the first ones, through which nothing is differentiated
    compute: Compute
    rates: Rates = Rates()

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B S D"],
        mask: Bool[Array, "B S"] | None,
        bias: Float[Array, "1 N S S"] | None = None,
        dropout_keys: Key[Array, " B"] | None = None,
    ) -> Float[Array, "B S D"]:
        """
        Args:
          bias: of the attention scores, the same in all layers; for blocks that take one.
          dropout_keys: one for each example; None: nothing is dropped.
        """
        if self.is_initializing():
            return self._initialized(x, mask)
        unrolled = self.compute.layer_loop == "unroll"
        block = self.make_block(parent=None)

        def layer(x, part):
            params, index = part
            # A block that knows of neither is called without them.
            options: dict[str, Any] = {} if bias is None else {"bias": bias}
            if index is not None:
                options["dropout"] = self.rates.of_layer(dropout_keys, index, layers=self.layers)
            return block.apply({"params": params}, x, mask, **options), None

        # Inside a loop XLA cannot merge the recomputation with the forward pass; unrolled, it has to be kept from it.
        layer = rematerialized(layer, remat=self.compute.remat, prevent_cse=unrolled, transform=jax.checkpoint)
        stacked = self.variables["params"]["block"]
        frozen = jax.tree.map(lambda leaf: jax.lax.stop_gradient(leaf[: self.frozen_layers]), stacked)
        trained = jax.tree.map(lambda leaf: leaf[self.frozen_layers :], stacked)
        drops = dropout_keys is not None and self.rates != Rates()
        indices = jnp.arange(self.frozen_layers, self.layers) if drops else None
        if self.frozen_layers:
            x = jax.lax.stop_gradient(x)
            x, _ = jax.lax.scan(layer, x, (frozen, None), unroll=self.frozen_layers if unrolled else 1)
        if self.frozen_layers < self.layers:
            trained_layers = self.layers - self.frozen_layers
            x, _ = jax.lax.scan(layer, x, (trained, indices), unroll=trained_layers if unrolled else 1)
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
    rates: Rates  # at which its layers drop features and branches in training

    def stack(self, block: type[Block], **fields: Any) -> LayerStack:
        """
        Args:
          fields: of the block, beside the sizes of the encoder.
        """
        make = functools.partial(block, self.heads, self.mlp_ratio, self.epsilon, self.compute, **fields)
        return LayerStack(make, self.layers, self.frozen_layers, compute=self.compute, rates=self.rates, name="layers")
