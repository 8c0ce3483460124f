"""The Vision Transformer that sees images, whole or with masked patches."""

import dataclasses

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Key

from mvlm_jax.models.attention import pad_tokens
from mvlm_jax.models.dropout import copies
from mvlm_jax.models.layers import Encoder, PreNormBlock, token_init, weight_init
from mvlm_jax.models.norm import LayerNorm


@dataclasses.dataclass(frozen=True)
class ImageFormat:
    """The images that a model reads, and how it normalises their RGB in [0, 1]."""

    size: int  # pixels a side
    patch: int  # pixels a side
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def grid(self) -> int:
        """Patches a side."""
        return self.size // self.patch

    @property
    def patches(self) -> int:
        """Of a whole image."""
        return self.grid**2

    @property
    def pixels(self) -> int:
        """Numbers in a patch."""
        return self.patch**2 * 3


def patchify(pixels: Float[Array, "B H W 3"], *, patch: int) -> Float[Array, "B N pixels"]:
    """Square patches in row-major order, each flattened as (row, column, channel)."""
    batch, height, width, channels = pixels.shape
    grid = pixels.reshape(batch, height // patch, patch, width // patch, patch, channels)
    return grid.transpose(0, 1, 3, 2, 4, 5).reshape(batch, -1, patch * patch * channels)


class ImageEncoder(Encoder):
    """ViT with a class token and learned positions (Dosovitskiy et al., 2021), final norm included.

    Where a patch mask is true the patch's embedding is replaced by one learned token before positions are added, as in
    SimMIM. Each image is embedded once, however many masks it is seen through.

    Registers (Darcet et al., 2024) are tokens without a position that every layer sees. The output does not have them,
    so whatever reads the features finds the same tokens with and without registers.
    """

    patches: int
    activation: str = "gelu"
    registers: int = 0
    layer_scale: bool = False
    class_token: bool = True  # without one, the mean of the patches' features is the first of the output
    patch_bias: bool = True
    pre_norm: bool = False  # of the embeddings

    @nn.compact
    def __call__(
        self,
        patches: Float[Array, "B N pixels"],
        patch_masks: Bool[Array, "B views N"],
        dropout_keys: Key[Array, " B"] | None = None,
    ) -> Float[Array, "B views N+1 D"]:
        dtype = self.compute.dtype
        batch, views, count = patch_masks.shape
        dense = nn.Dense(
            self.width, dtype=dtype, kernel_init=weight_init, use_bias=self.patch_bias, name="patch_embedding"
        )
        embedded = dense(patches)
        mask_token = self.param("mask_token", token_init, (1, 1, self.width))
        x = jnp.where(patch_masks[..., None], mask_token.astype(dtype), embedded[:, None])
        if self.class_token:
            x = jnp.concatenate([self._tokens("cls_token", batch=batch, views=views), x], axis=2)
        read = x.shape[2]
        positions = self.param("position_embedding", token_init, (1, self.patches + read - count, self.width))
        x = x + positions.astype(dtype)
        if self.registers:
            # Behind the patches, where they are as easily left out of the output as padding is.
            x = jnp.concatenate([x, self._tokens("register_tokens", self.registers, batch=batch, views=views)], axis=2)
        # Merged behind the batch axis, so that all views of an image stay on the device that holds it.
        x = x.reshape(batch * views, -1, self.width)
        if self.pre_norm:
            x = LayerNorm(self.epsilon, dtype=dtype, name="pre_norm")(x)
        x, token_mask = pad_tokens(x, None, kernel=self.compute.attention)
        stack = self.stack(PreNormBlock, activation=self.activation, layer_scale=self.layer_scale)
        x = stack(x, token_mask, dropout_keys=copies(dropout_keys, views))
        x = LayerNorm(self.epsilon, dtype=dtype, name="final_norm")(x[:, :read])
        if not self.class_token:
            x = jnp.concatenate([x.mean(axis=1, keepdims=True), x], axis=1)
        return x.reshape(batch, views, count + 1, self.width)

    def _tokens(self, name: str, count: int = 1, *, batch: int, views: int) -> Float[Array, "B views count D"]:
        tokens = self.param(name, token_init, (1, count, self.width)).astype(self.compute.dtype)
        return jnp.broadcast_to(tokens, (batch, views, count, self.width))
