"""The encoder in which the tokens of one modality look at the other one."""

from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from mvlm_jax.models.layers import CrossBlock, Rows, rematerialized


class CrossEncoder(nn.Module):
    """A few cross blocks and a final norm; the paper's cross-modality encoders and image decoder (section 3.1)."""

    layers: int
    heads: int
    mlp_ratio: int
    remat: str
    dtype: DTypeLike
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
        for index in range(self.layers):
            block = CrossBlock(self.heads, self.mlp_ratio, self.epsilon, self.dtype, name=f"block_{index}")
            last = index == self.layers - 1
            x = self._apply(block, x, mask, context, context_mask, rows if last else None)
        return nn.LayerNorm(self.epsilon, dtype=self.dtype, name="final_norm")(x)

    def _apply(self, block: CrossBlock, x, mask, context, context_mask, rows):
        # Rows are closed over, as a slice is not an argument that remat can take.
        call = rematerialized(lambda block, *arguments: block(*arguments, rows), remat=self.remat)
        return call(block, x, mask, context, context_mask)
