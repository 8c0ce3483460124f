"""The Transformer encoder that sees captions: RoBERTa, BERT, DistilBERT or MPNet."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int, Key

from mvlm_jax.models.attention import pad_tokens
from mvlm_jax.models.layers import Encoder, PostNormBlock, token_init
from mvlm_jax.models.norm import LayerNorm

BUCKETS = 32  # of distances between tokens


def relative_buckets(tokens: int) -> Int[np.ndarray, "S S"]:
    """For each query and each key the bucket of their distance, as T5 and MPNet number them.

    Keys behind the query have the upper half. In each half distances below 8 have a bucket each, longer ones share one
    with all up to the next power of the square root of 2; from 91 on all are in the last one.
    """
    distance = np.arange(tokens)[None, :] - np.arange(tokens)[:, None]
    near, half, exact = np.abs(distance), BUCKETS // 2, BUCKETS // 4
    far = exact + np.floor(2 * np.log2(np.maximum(near, exact) / exact)).astype(int)
    return np.where(near < exact, near, np.minimum(far, half - 1)) + half * (distance > 0)


class TextEncoder(Encoder):
    """Post-norm Transformer over token, position and type embeddings; padding is never attended to."""

    vocab_size: int
    positions: int
    first_position: int  # row of the first token in the table of positions; those before are never used
    token_types: int  # 0: there is no table of them
    relative_positions: bool = False  # whether a learned bias for the distance of two tokens is added to their score

    def setup(self) -> None:
        dtype = self.compute.dtype
        # In float32, as a table's gradient adds up over thousands of tokens; what is looked up is cast.
        embed = functools.partial(nn.Embed, features=self.width, dtype=jnp.float32, embedding_init=token_init)
        self.token_embedding = embed(self.vocab_size)
        self.position_embedding = embed(self.positions + self.first_position)
        if self.token_types:
            self.type_embedding = embed(self.token_types)
        if self.relative_positions:
            # One table for all layers.
            self.relative_attention_bias = nn.Embed(BUCKETS, self.heads, embedding_init=token_init)
        self.embedding_norm = LayerNorm(self.epsilon, dtype=dtype)
        self.layers_ = self.stack(PostNormBlock)

    def __call__(
        self,
        text: Int[Array, "B L"],
        text_mask: Bool[Array, "B L"],
        dropout_keys: Key[Array, " B"] | None = None,
    ) -> Float[Array, "B L D"]:
        positions = jnp.arange(text.shape[1]) + self.first_position
        embedded = self.token_embedding(text) + self.position_embedding(positions)
        if self.token_types:
            embedded += self.type_embedding(jnp.zeros_like(text))
        embedded = embedded.astype(self.compute.dtype)
        x, mask = pad_tokens(self.embedding_norm(embedded), text_mask, kernel=self.compute.attention)
        bias = None
        if self.relative_positions:
            bias = self.relative_attention_bias(relative_buckets(x.shape[1])).transpose(2, 0, 1)[None]
            if self.frozen_layers:
                # All layers read the table: if it changed, the frozen ones would.
                bias = jax.lax.stop_gradient(bias)
        x = self.layers_(x, mask, bias, dropout_keys)
        return x[:, : text.shape[1]]

    def embed_tokens(self, text: Int[Array, "..."]) -> Float[Array, "... D"]:
        """The embeddings of the tokens alone, without their positions: what a decoder of the same words starts from."""
        return self.token_embedding(text).astype(self.compute.dtype)

    def token_scores(self, x: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
        """Products with every token's embedding: the output layer of a tied language-model head."""
        dtype = self.compute.dtype
        return x.astype(dtype) @ self.token_embedding.embedding.astype(dtype).T
