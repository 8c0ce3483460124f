"""Scaled dot-product attention, by the kernel that a platform has for it."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

# cuDNN refuses odd numbers of tokens in training; a multiple of 8 also keeps rows aligned to 16 bytes.
TOKENS_MULTIPLE = {"xla": 1, "cudnn": 8}
# Below this many queries the scores are small: materialising them is cheaper than launching a fused kernel.
FEWEST_QUERIES = 32


def attend(
    query: Float[Array, "B R N H"],
    key: Float[Array, "B S N H"],
    value: Float[Array, "B S N H"],
    mask: Bool[Array, "B S"] | None,
    *,
    bias: Float[Array, "1 N R S"] | None = None,
    causal: bool = False,
    kernel: str,
) -> Float[Array, "B R N H"]:
    """softmax(query key / sqrt(H) + bias) value, the softmax in float32.

    Args:
      mask: true where a key may be attended to; `cudnn` reduces it to a length, so the true ones must come first.
      kernel: `xla` or `cudnn`; the latter leaves to XLA what it cannot take, few queries, and whatever has a bias.
    """
    queries, keys, width = query.shape[1], key.shape[1], query.shape[3]
    takes = queries % 2 == 0 and keys % 2 == 0 and width % 8 == 0 and width <= 128
    if kernel != "cudnn" or not takes or queries < FEWEST_QUERIES or bias is not None:
        wide = None if mask is None else mask[:, None, None, :]
        return jax.nn.dot_product_attention(query, key, value, bias=bias, mask=wide, is_causal=causal)
    # A length of 0 would divide by an empty sum; with no legal key the result has no meaning, but must be finite.
    lengths = None if mask is None else jnp.maximum(mask.sum(axis=1, dtype=jnp.int32), 1)
    return jax.nn.dot_product_attention(
        query, key, value, is_causal=causal, key_value_seq_lengths=lengths, implementation="cudnn"
    )


def pad_tokens(
    x: Float[Array, "B S D"], mask: Bool[Array, "B S"] | None, *, kernel: str
) -> tuple[Float[Array, "B T D"], Bool[Array, "B T"] | None]:
    """Tokens and their mask, lengthened to a number of tokens that the kernel takes; nothing attends to the new ones.

    The caller cuts them off again: features, masks and checkpoints have the same shapes with every kernel.
    """
    missing = -x.shape[1] % TOKENS_MULTIPLE[kernel]
    if not missing:
        return x, mask
    if mask is None:
        mask = jnp.ones(x.shape[:2], bool)
    return jnp.pad(x, ((0, 0), (0, missing), (0, 0))), jnp.pad(mask, ((0, 0), (0, missing)))
