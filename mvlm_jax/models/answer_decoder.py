"""The decoder that writes answers about an image and a question that both cross encoders have fused."""

import functools

from flax import linen as nn
from jaxtyping import Array, Bool, Float, Key

from mvlm_jax.models.compute import Compute
from mvlm_jax.models.dropout import LayerDropout, Rates, drop
from mvlm_jax.models.layers import Attention, Block, Mlp, token_init, weight_init
from mvlm_jax.models.norm import LayerNorm


class AnswerBlock(Block):
    """Causal self-attention, cross-attention to what is fused, MLP; each pre-normed and residual."""

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B A T D"],
        context: Float[Array, "B S D"],
        context_mask: Bool[Array, "B S"],
        dropout: LayerDropout | None = None,
    ) -> Float[Array, "B A T D"]:
        batch, answers, tokens, width = x.shape
        norm = functools.partial(LayerNorm, self.epsilon, dtype=self.compute.dtype)
        # Answers do not see each other.
        apart = norm(name="self_norm")(x).reshape(batch * answers, tokens, width)
        attended = Attention(self.heads, self.compute, causal=True, name="self_attention")(apart, apart)
        x = x + drop(attended.reshape(x.shape), dropout, "self_attention")
        # All answers to a question ask the same context, whose keys and values are computed once.
        together = norm(name="cross_norm")(x).reshape(batch, answers * tokens, width)
        attended = Attention(self.heads, self.compute, name="cross_attention")(together, context, context_mask)
        x = x + drop(attended.reshape(x.shape), dropout, "cross_attention")
        flat = norm(name="mlp_norm")(x).reshape(-1, width)
        transformed = Mlp(self.mlp_ratio, self.compute, name="mlp")(flat)
        return x + drop(transformed.reshape(x.shape), dropout, "mlp")


class AnswerDecoder(nn.Module):
    """A causal Transformer over the beginnings of several answers to each question."""

    width: int
    layers: int
    heads: int
    mlp_ratio: int
    positions: int  # tokens of the longest beginning
    compute: Compute
    epsilon: float = 1e-6
    rates: Rates = Rates()

    @nn.compact
    def __call__(
        self,
        embedded: Float[Array, "B A T E"],
        context: Float[Array, "B S D"],
        context_mask: Bool[Array, "B S"],
        dropout_keys: Key[Array, " B"] | None = None,
    ) -> Float[Array, "B A T D"]:
        """Features from which the token after each beginning is predicted.

        Args:
          embedded: the tokens of the answers; no token sees what comes after it.
          dropout_keys: one for each example; None: nothing is dropped.
        """
        if embedded.shape[-1] != self.width:
            embedded = nn.Dense(self.width, dtype=self.compute.dtype, kernel_init=weight_init, name="token_projection")(
                embedded
            )
        positions = self.param("position_embedding", token_init, (self.positions, self.width))
        x = embedded + positions[: embedded.shape[2]].astype(self.compute.dtype)
        for index in range(self.layers):
            block = AnswerBlock(self.heads, self.mlp_ratio, self.epsilon, self.compute, name=f"block_{index}")
            dropout = self.rates.of_layer(dropout_keys, index, layers=self.layers)
            x = block(x, context, context_mask, dropout)
        return LayerNorm(self.epsilon, dtype=self.compute.dtype, name="final_norm")(x)
