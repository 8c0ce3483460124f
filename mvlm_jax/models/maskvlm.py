"""MaskVLM: two encoders, two cross encoders, an image decoder and the heads, each callable by itself."""

import functools
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

from mvlm_jax.models.compute import Compute
from mvlm_jax.models.cross_encoder import CrossEncoder, CrossSizes
from mvlm_jax.models.dropout import fold
from mvlm_jax.models.heads import INITIAL_TEMPERATURE, Projection, TiedTokenHead, clip_temperature, pooled
from mvlm_jax.models.image_encoder import ImageFormat, patchify
from mvlm_jax.models.layers import Rows, in_rows, weight_init


class MaskVLM(nn.Module):
    """The model of arXiv 2208.02131, figure 2. Its methods are the parts; tasks compose them.

    Encoders have the fields `width`, `layers` and `mlp_ratio`, that of texts `vocab_size` too. A dense layer leads from
    the width of an encoder to that of `cross` where they differ. Features are in `dtype`; embeddings, logits and pixels
    leave the model in float32.

    Encoders, cross encoders and decoders drop features only where they are given `dropout_keys`, one for each example:
    training gives them, evaluation and inference do not. Each part draws from keys of its own, made from these.
    """

    image_encoder: nn.Module  # each built by the family of its kind
    text_encoder: nn.Module
    cross: CrossSizes
    image: ImageFormat
    pad_id: int
    projection: int
    image_pooling: str  # what is compared: first (token), mean (of the patches)
    text_pooling: str  # first (token), mean (of all but padding)
    token_head: str
    compute: Compute

    @property
    def width(self) -> int:
        """Of the features of both encoders and all that is built on them."""
        return self.cross.width

    @property
    def dtype(self) -> DTypeLike:
        """Of the computation, not of the parameters."""
        return self.compute.dtype

    def setup(self) -> None:
        sizes, dense = self.cross, functools.partial(nn.Dense, dtype=self.dtype, kernel_init=weight_init)
        cross = functools.partial(
            CrossEncoder, heads=sizes.heads, mlp_ratio=sizes.mlp_ratio, compute=self.compute, rates=sizes.rates
        )
        self.image_to_cross = None if self.image_encoder.width == sizes.width else dense(sizes.width)
        self.text_to_cross = None if self.text_encoder.width == sizes.width else dense(sizes.width)
        self.image_cross_encoder = cross(layers=sizes.layers)
        self.text_cross_encoder = cross(layers=sizes.layers)
        self.image_decoder = cross(layers=sizes.decoder_layers)
        self.pixel_head = dense(self.image.pixels)
        vocab_size = self.text_encoder.vocab_size
        self.token_classifier: Any = (
            TiedTokenHead(vocab_size, self.text_encoder.width, self.dtype)
            if self.token_head == "tied"
            else dense(vocab_size)
        )
        self.image_projection = Projection(self.projection, self.dtype)
        self.text_projection = Projection(self.projection, self.dtype)
        self.matching_head = dense(2)
        self.temperature_ = self.param("temperature", nn.initializers.constant(INITIAL_TEMPERATURE), ())

    def __call__(self, image: UInt8[Array, "B H W 3"], text: Int[Array, "B L"]) -> Float[Array, "B 2"]:
        """Passes through every part once, so that `init` makes every parameter."""
        v, w, text_mask = self.encode_whole_image(image), self.encode_text(text), self.text_mask(text)
        self.project_image(v), self.project_text(w, text_mask), self.temperature()
        fused_v, fused_w = self.fuse_both(v, w, text_mask)
        self.decode_image(fused_v, w, text_mask, jnp.zeros((image.shape[0], 1), jnp.int32))
        self.classify_tokens(fused_w)
        return self.match(fused_v[:, 0], fused_w[:, 0])

    def text_mask(self, text: Int[Array, "B L"]) -> Bool[Array, "B L"]:
        """True where a token is, false where padding is."""
        return text != self.pad_id

    def patches(self, image: UInt8[Array, "B H W 3"]) -> Float[Array, "B N pixels"]:
        """Normalised RGB in patches: what the encoder reads and what MIM rebuilds; float32."""
        mean, std = jnp.asarray(self.image.mean, jnp.float32), jnp.asarray(self.image.std, jnp.float32)
        return patchify((image.astype(jnp.float32) / 255 - mean) / std, patch=self.image.patch)

    def encode_image(
        self,
        patches: Float[Array, "B N pixels"],
        patch_masks: Bool[Array, "B views N"],
        dropout_keys: Key[Array, " B"] | None = None,
    ) -> Float[Array, "B views N+1 D"]:
        """Each image seen through each of its masks; views drop other features, the first view the same however many
        there are.
        """
        keys = fold(dropout_keys, "image_encoder")
        return _resized(self.image_encoder(patches, patch_masks, keys), self.image_to_cross)

    def encode_whole_image(
        self, image: UInt8[Array, "B H W 3"], dropout_keys: Key[Array, " B"] | None = None
    ) -> Float[Array, "B S D"]:
        """Features of images of which nothing is masked."""
        patches = self.patches(image)
        whole = jnp.zeros((image.shape[0], 1, patches.shape[1]), bool)
        return self.encode_image(patches, whole, dropout_keys)[:, 0]

    def encode_text(
        self, text: Int[Array, "B L"], dropout_keys: Key[Array, " B"] | None = None
    ) -> Float[Array, "B L D"]:
        keys = fold(dropout_keys, "text_encoder")
        return _resized(self.text_encoder(text, self.text_mask(text), keys), self.text_to_cross)

    def fuse_image(
        self,
        v: Float[Array, "B S D"],
        w: Float[Array, "B L D"] | None,
        text_mask: Bool[Array, "B L"],
        rows: Rows | None = None,
        dropout_keys: Key[Array, " B"] | None = None,
    ) -> Float[Array, "B R D"]:
        """Image tokens that have looked at the text (`w=None`: that were shown none)."""
        return self.image_cross_encoder(v, None, w, text_mask, rows, fold(dropout_keys, "image_cross_encoder"))

    def fuse_text(
        self,
        w: Float[Array, "B L D"],
        text_mask: Bool[Array, "B L"],
        v: Float[Array, "B S D"] | None,
        rows: Rows | None = None,
        dropout_keys: Key[Array, " B"] | None = None,
    ) -> Float[Array, "B R D"]:
        """Text tokens that have looked at the image (`v=None`: that were shown none)."""
        return self.text_cross_encoder(w, text_mask, v, None, rows, fold(dropout_keys, "text_cross_encoder"))

    def fuse_both(
        self,
        v: Float[Array, "B S D"],
        w: Float[Array, "B L D"],
        text_mask: Bool[Array, "B L"],
        rows: Rows | None = None,
        dropout_keys: Key[Array, " B"] | None = None,
    ) -> tuple[Float[Array, "B R D"], Float[Array, "B Q D"]]:
        """`fuse_image` and `fuse_text` of the same pairs."""
        fused_image = self.fuse_image(v, w, text_mask, rows, dropout_keys)
        return fused_image, self.fuse_text(w, text_mask, v, rows, dropout_keys)

    def decode_image(
        self,
        fused: Float[Array, "B S D"],
        w: Float[Array, "B L D"] | None,
        text_mask: Bool[Array, "B L"],
        patch_slots: Int[Array, "B M"],
        dropout_keys: Key[Array, " B"] | None = None,
    ) -> Float[Array, "B M pixels"]:
        """Normalised RGB of the patches in `patch_slots`."""
        keys = fold(dropout_keys, "image_decoder")
        decoded = self.image_decoder(fused, None, w, text_mask, patch_slots + 1, keys)
        return self.pixel_head(decoded).astype(jnp.float32)

    def classify_tokens(self, fused: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        if self.token_head == "tied":
            return self.token_classifier(fused, self.text_encoder.token_scores)
        return self.token_classifier(fused).astype(jnp.float32)

    def project_image(self, v: Float[Array, "B S D"]) -> Float[Array, "B E"]:
        if self.image_pooling == "mean":
            v = v[:, 1 : 1 + self.image.patches]  # the class token stands in front of the patches
        return self.image_projection(pooled(v, pooling=self.image_pooling))

    def project_text(self, w: Float[Array, "B L D"], text_mask: Bool[Array, "B L"]) -> Float[Array, "B E"]:
        return self.text_projection(pooled(w, text_mask, pooling=self.text_pooling))

    def embed_image(
        self, image: UInt8[Array, "B H W 3"], dropout_keys: Key[Array, " B"] | None = None
    ) -> Float[Array, "B E"]:
        return self.project_image(self.encode_whole_image(image, dropout_keys))

    def embed_text(self, text: Int[Array, "B L"], dropout_keys: Key[Array, " B"] | None = None) -> Float[Array, "B E"]:
        return self.project_text(self.encode_text(text, dropout_keys), self.text_mask(text))

    def temperature(self) -> Float[Array, ""]:
        return clip_temperature(self.temperature_)

    def match(self, fused_image: Float[Array, "B D"], fused_text: Float[Array, "B D"]) -> Float[Array, "B 2"]:
        """Logits of (no match, match)."""
        return self.matching_head(fused_image * fused_text).astype(jnp.float32)

    def match_features(
        self,
        v: Float[Array, "B S D"],
        w: Float[Array, "B L D"],
        text_mask: Bool[Array, "B L"],
        dropout_keys: Key[Array, " B"] | None = None,
    ) -> Float[Array, "B 2"]:
        """`match` of encoded images and texts, fused; the last cross blocks compute the first tokens only."""
        fused_image, fused_text = self.fuse_both(v, w, text_mask, slice(0, 1), dropout_keys)
        return self.match(fused_image[:, 0], fused_text[:, 0])

    def pair_logits(self, image: UInt8[Array, "B H W 3"], text: Int[Array, "B L"]) -> Float[Array, "B 2"]:
        """Logits of (no match, match) of whole images and texts."""
        return self.match_features(self.encode_whole_image(image), self.encode_text(text), self.text_mask(text))


def _resized(x: Float[Array, "*tokens E"], dense: nn.Dense | None) -> Float[Array, "*tokens D"]:
    return x if dense is None else dense(in_rows(x)).reshape(*x.shape[:-1], -1)
