"""Scaled dot-product attention, by the kernel that a platform has for it."""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

from mvlm_jax.models import pallas_attention

# cuDNN refuses odd numbers of tokens in training; a multiple of 8 also keeps rows aligned to 16 bytes. On a TPU the
# tokens of an example then fill whole tiles of memory, and those of all examples are rows of one matrix without a copy.
TOKENS_MULTIPLE = {"xla": 1, "cudnn": 8, "pallas": 8}
# Below this many queries the scores are small: materialising them is cheaper than launching a fused kernel.
FEWEST_QUERIES = 32
FUSED = "fused attention"  # the name of what the Pallas kernel computes, for policies of rematerialisation


@jax.named_scope("attend")  # by which `aot.costs` knows it
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
      kernel: `xla`, `cudnn` or `pallas`; the last two leave to XLA what they cannot take, and whatever has a bias.
        cuDNN is not asked for few queries.
    """
    (_, queries, heads, width), keys = query.shape, key.shape[1]
    if kernel == "pallas" and bias is None and not causal:
        if pallas_attention.takes(queries=queries, keys=keys, heads=heads, width=width):
            return checkpoint_name(pallas_attention.attention(query, key, value, mask), FUSED)
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
