"""The encoder in which the tokens of one modality look at the other one."""

import dataclasses

from flax import linen as nn
from jaxtyping import Array, Bool, Float, Key

from mvlm_jax.models.attention import pad_tokens
from mvlm_jax.models.compute import Compute
from mvlm_jax.models.dropout import Rates
from mvlm_jax.models.layers import CrossBlock, Rows, rematerialized
from mvlm_jax.models.norm import LayerNorm


@dataclasses.dataclass(frozen=True)
class CrossSizes:
    """Of the two cross encoders and the image decoder, and of what is built on their features."""

    width: int
    heads: int
    layers: int  # of each cross encoder
    decoder_layers: int  # of the image decoder
    mlp_ratio: int
    dropout: float = 0.0
    stochastic_depth: float = 0.0

    @property
    def rates(self) -> Rates:
        return Rates(self.dropout, self.stochastic_depth)


class CrossEncoder(nn.Module):
    """A few cross blocks and a final norm; the paper's cross-modality encoders and image decoder (section 3.1)."""

    layers: int
    heads: int
    mlp_ratio: int
    compute: Compute
    epsilon: float = 1e-6
    rates: Rates = Rates()

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B S D"],
        mask: Bool[Array, "B S"] | None,
        context: Float[Array, "B T D"] | None,
        context_mask: Bool[Array, "B T"] | None,
        rows: Rows | None = None,
        dropout_keys: Key[Array, " B"] | None = None,
    ) -> Float[Array, "B R D"]:
        """Features of the tokens in `rows` (all of them by default).

        Args:
          dropout_keys: one for each example; None: nothing is dropped.
        """
        kernel, own = self.compute.attention, slice(0, x.shape[1])
        x, mask = pad_tokens(x, mask, kernel=kernel)
        if context is not None:
            context, context_mask = pad_tokens(context, context_mask, kernel=kernel)
        for index in range(self.layers):
            block = CrossBlock(self.heads, self.mlp_ratio, self.epsilon, self.compute, name=f"block_{index}")
            wanted = rows if index == self.layers - 1 else None
            dropout = self.rates.of_layer(dropout_keys, index, layers=self.layers)

            # Rows and dropout are closed over: a slice and a `LayerDropout` are no arguments that remat can take.
            def apply(block, *arguments, wanted=wanted, dropout=dropout):
                return block(*arguments, wanted, dropout)

            x = rematerialized(apply, remat=self.compute.remat)(block, x, mask, context, context_mask)
        if rows is None:
            x = x[:, own]
        return LayerNorm(self.epsilon, dtype=self.compute.dtype, name="final_norm")(x)
