"""What a loaded model computes for one batch, beside the methods of the model itself."""

import functools

import jax
import jax.numpy as jnp

from mvlm_jax.models import heat_maps

match_heat_maps = jax.jit(heat_maps.match_heat_maps, static_argnums=0)
word_heat_maps = jax.jit(heat_maps.word_heat_maps, static_argnums=0)


def log_odds(model, pixels, tokens):
    """Of a match, for each pair."""
    logits = model.pair_logits(pixels, tokens)
    return logits[:, 1] - logits[:, 0]


@functools.partial(jax.jit, static_argnums=(0, 5))
def fill_mask(model, params, pixels, tokens, slots, vocab_size):
    """Probabilities of the tokens in the slots; `pixels=None`: beside no image."""
    bound = model.bind({"params": params})
    v = None if pixels is None else bound.encode_whole_image(pixels)
    fused = bound.fuse_text(bound.encode_text(tokens), bound.text_mask(tokens), v, slots)
    # The embedding table may have more rows than the tokenizer has tokens.
    return jax.nn.softmax(bound.classify_tokens(fused)[..., :vocab_size])


def reconstruct(model, pixels, tokens, patch_mask):
    """The images with their masked patches painted; `tokens=None`: beside no text."""
    if tokens is None:
        w, text_mask = None, jnp.ones((len(pixels), 1), bool)  # a mask of nothing, which is not looked at
    else:
        w, text_mask = model.encode_text(tokens), model.text_mask(tokens)
    patches = model.patches(pixels)
    fused = model.fuse_image(model.encode_image(patches, patch_mask[:, None])[:, 0], w, text_mask)
    slots = jnp.broadcast_to(jnp.arange(patch_mask.shape[1]), patch_mask.shape)
    painted = jnp.where(patch_mask[:, :, None], model.decode_image(fused, w, text_mask, slots), patches)
    side, patch = model.image.grid, model.image.patch
    grid = painted.reshape(-1, side, side, patch, patch, 3).transpose(0, 1, 3, 2, 4, 5)
    colours = grid.reshape(pixels.shape) * jnp.asarray(model.image.std) + jnp.asarray(model.image.mean)
    return jnp.round(jnp.clip(colours, 0, 1) * 255).astype(jnp.uint8)
