"""The encoder in which the tokens of one modality look at the other one."""

import dataclasses

from flax import linen as nn
from jaxtyping import Array, Bool, Float

from mvlm_jax.models.attention import pad_tokens
from mvlm_jax.models.compute import Compute
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


class CrossEncoder(nn.Module):
    """A few cross blocks and a final norm; the paper's cross-modality encoders and image decoder (section 3.1)."""

    layers: int
    heads: int
    mlp_ratio: int
    compute: Compute
    epsilon: float = 1e-6

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B S D"],
        mask: Bool[Array, "B S"] | None,
        context: Float[Array, "B T D"] | None,
        context_mask: Bool[Array, "B T"] | None,
        rows: Rows | None = None,
    ) -> Float[Array, "B R D"]:
        """Features of the tokens in `rows` (all of them by default)."""
        kernel, own = self.compute.attention, slice(0, x.shape[1])
        x, mask = pad_tokens(x, mask, kernel=kernel)
        if context is not None:
            context, context_mask = pad_tokens(context, context_mask, kernel=kernel)
        for index in range(self.layers):
            block = CrossBlock(self.heads, self.mlp_ratio, self.epsilon, self.compute, name=f"block_{index}")
            last = index == self.layers - 1
            x = self._apply(block, x, mask, context, context_mask, rows if last else None)
        if rows is None:
            x = x[:, own]
        return LayerNorm(self.epsilon, dtype=self.compute.dtype, name="final_norm")(x)

    def _apply(self, block: CrossBlock, x, mask, context, context_mask, rows):
        # Rows are closed over, as a slice is not an argument that remat can take.
        call = rematerialized(lambda block, *arguments: block(*arguments, rows), remat=self.compute.remat)
        return call(block, x, mask, context, context_mask)
