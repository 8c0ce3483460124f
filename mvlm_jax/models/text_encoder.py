"""The RoBERTa or BERT encoder that sees captions."""

import functools

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int, Key

from mvlm_jax.models.attention import pad_tokens
from mvlm_jax.models.layers import Encoder, PostNormBlock, token_init
from mvlm_jax.models.norm import LayerNorm


class TextEncoder(Encoder):
    """Post-norm Transformer over token, position and type embeddings; padding is never attended to."""

    vocab_size: int
    positions: int
    first_position: int  # row of the first token in the table of positions; those before are never used
    token_types: int

    def setup(self) -> None:
        dtype = self.compute.dtype
        # In float32, as a table's gradient adds up over thousands of tokens; what is looked up is cast.
        embed = functools.partial(nn.Embed, features=self.width, dtype=jnp.float32, embedding_init=token_init)
        self.token_embedding = embed(self.vocab_size)
        self.position_embedding = embed(self.positions + self.first_position)
        self.type_embedding = embed(self.token_types)
        self.embedding_norm = LayerNorm(self.epsilon, dtype=dtype)
        self.layers_ = self.stack(PostNormBlock)

    def __call__(
        self,
        text: Int[Array, "B L"],
        text_mask: Bool[Array, "B L"],
        dropout_keys: Key[Array, " B"] | None = None,
    ) -> Float[Array, "B L D"]:
        positions = jnp.arange(text.shape[1]) + self.first_position
        types = jnp.zeros_like(text)
        embedded = self.token_embedding(text) + self.position_embedding(positions) + self.type_embedding(types)
        embedded = embedded.astype(self.compute.dtype)
        x, mask = pad_tokens(self.embedding_norm(embedded), text_mask, kernel=self.compute.attention)
        x = self.layers_(x, mask, dropout_keys)
        return x[:, : text.shape[1]]

    def embed_tokens(self, text: Int[Array, "..."]) -> Float[Array, "... D"]:
        """The embeddings of the tokens alone, without their positions: what a decoder of the same words starts from."""
        return self.token_embedding(text).astype(self.compute.dtype)

    def token_scores(self, x: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """Products with every token's embedding: the output layer of a tied language-model head."""
        dtype = self.compute.dtype
        return x.astype(dtype) @ self.token_embedding.embedding.astype(dtype).T
