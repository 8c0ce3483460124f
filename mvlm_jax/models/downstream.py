"""MaskVLM with what a downstream task puts on top of its cross encoders; parameters that are not used are not made."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

from mvlm_jax.models.answer_decoder import AnswerDecoder
from mvlm_jax.models.dropout import copies, fold
from mvlm_jax.models.heads import ClassificationHead
from mvlm_jax.models.layers import Rows
from mvlm_jax.models.maskvlm import MaskVLM


class FusedMaskVLM(MaskVLM):
    """Images and texts through both encoders and both cross encoders, unmasked."""

    def fuse(
        self,
        image: UInt8[Array, "B n H W 3"],
        text: Int[Array, "B L"],
        rows: Rows | None = None,
        dropout_keys: Key[Array, " B"] | None = None,
    ) -> tuple[Float[Array, "B n R D"], Float[Array, "B n Q D"]]:
        """Tokens of each of the n images, and of the text beside each of them; all tokens, or those in `rows`."""
        batch, images = image.shape[:2]
        of_images = copies(dropout_keys, images)
        v = self.encode_whole_image(image.reshape(batch * images, *image.shape[2:]), of_images)
        # The text is encoded once, however many images it is read beside.
        w = jnp.repeat(self.encode_text(text, dropout_keys), images, axis=0)
        text_mask = jnp.repeat(self.text_mask(text), images, axis=0)
        fused_image, fused_text = self.fuse_both(v, w, text_mask, rows, of_images)
        image_shape, text_shape = ((batch, images, *x.shape[1:]) for x in (fused_image, fused_text))
        return fused_image.reshape(image_shape), fused_text.reshape(text_shape)


class AnsweringModel(FusedMaskVLM):
    """With a causal decoder that attends to both cross encoders' outputs.

    Its words are the text encoder's token embeddings on the way in and the token classifier's on the way out.
    """

    answer_layers: int = 6
    answer_length: int = 10  # tokens of an answer, start and end included

    def setup(self) -> None:
        super().setup()
        self.answer_decoder = AnswerDecoder(
            layers=self.answer_layers,
            width=self.width,
            heads=self.cross.heads,
            mlp_ratio=self.cross.mlp_ratio,
            rates=self.cross.rates,
            positions=self.answer_length - 1,
            # Several images' tokens and their texts alternate here: no length describes which of them are padding.
            compute=dataclasses.replace(self.compute, attention="xla"),
        )

    def __call__(  # type: ignore[override]  # of the parent only the parts are used
        self,
        image: UInt8[Array, "B n H W 3"],
        text: Int[Array, "B L"],
        answers: Int[Array, "B A T"],
        dropout_keys: Key[Array, " B"] | None = None,
    ) -> Float[Array, "B A T V"]:
        return self.next_tokens(answers, *self.read(image, text, dropout_keys), dropout_keys)

    def read(
        self,
        image: UInt8[Array, "B n H W 3"],
        text: Int[Array, "B L"],
        dropout_keys: Key[Array, " B"] | None = None,
    ) -> tuple[Float[Array, "B S D"], Bool[Array, "B S"]]:
        """What the decoder attends to, and where there is something."""
        fused_image, fused_text = self.fuse(image, text, dropout_keys=dropout_keys)
        batch, images, tokens, width = fused_image.shape
        context = jnp.concatenate([fused_image, fused_text], axis=2).reshape(batch, -1, width)
        of_one = jnp.concatenate([jnp.ones((batch, tokens), bool), self.text_mask(text)], axis=1)
        return context, jnp.tile(of_one, (1, images))

    def next_tokens(
        self,
        answers: Int[Array, "B A T"],
        context: Float[Array, "B S D"],
        context_mask: Bool[Array, "B S"],
        dropout_keys: Key[Array, " B"] | None = None,
    ) -> Float[Array, "B A T V"]:
        """Logits of the token after each beginning of each answer."""
        embedded = self.text_encoder.embed_tokens(answers)
        keys = fold(dropout_keys, "answer_decoder")
        return self.classify_tokens(self.answer_decoder(embedded, context, context_mask, keys))


class ClassifyingModel(FusedMaskVLM):
    """With a head on the fused features of one image or more, joined in their order."""

    classes: int = 2

    def setup(self) -> None:
        super().setup()
        self.classification_head = ClassificationHead(self.classes, self.width, self.dtype)

    def __call__(
        self,
        image: UInt8[Array, "B n H W 3"],
        text: Int[Array, "B L"],
        dropout_keys: Key[Array, " B"] | None = None,
    ) -> Float[Array, "B classes"]:
        """Logits, from what matching judges too: the product of both cross encoders' first tokens."""
        fused_image, fused_text = self.fuse(image, text, slice(0, 1), dropout_keys)
        joined = (fused_image * fused_text).reshape(image.shape[0], -1)
        return self.classification_head(joined)
