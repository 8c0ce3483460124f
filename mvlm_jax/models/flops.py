"""How many floating-point operations the losses need: the numerator of model FLOPs utilisation.

A multiply-add counts as two operations; norms, softmax and biases are left out, as is usual.
"""

from collections.abc import Collection

from flax import linen as nn

from mvlm_jax.models.maskvlm import MaskVLM

# Passes, in forward ones. The gradient of the kernel alone is half of a backward pass.
_FORWARD, _OF_KERNEL, _BACKWARD, _BOTH = 1.0, 1.0, 2.0, 3.0


def _block(*, rows: int, tokens: int, context: int, width: int, ratio: int) -> float:
    """One layer's forward pass for `rows` of `tokens` (self-attention), with cross-attention to `context` tokens."""
    projections = 2 * rows * width * width + 2 * tokens * width * width  # query, out; key, value
    scores = 2 * rows * tokens * width
    if context:
        projections += 2 * rows * width * width + 2 * context * width * width
        scores += 2 * rows * context * width
    return 2.0 * (projections + scores + 2 * ratio * rows * width * width)


def _encoder(model: MaskVLM, encoder: nn.Module, *, tokens: int) -> float:
    """Both passes of the layers, and of the dense layer to the width of the cross encoders where there is one."""
    width = encoder.width
    layer = _block(rows=tokens, tokens=tokens, context=0, width=width, ratio=encoder.mlp_ratio)
    resized = 2.0 * tokens * width * model.width if width != model.width else 0.0
    return _BOTH * (encoder.layers * layer + resized) - _BACKWARD * encoder.frozen_layers * layer


def _images(model: MaskVLM, *, views: int, patches_trained: bool) -> float:
    """Both passes of one image, embedded once and seen through so many masks."""
    image, encoder = model.image, model.image_encoder
    embedding = 2.0 * image.patches * image.pixels * encoder.width
    # Pixels need no gradient.
    passes = _FORWARD + (_OF_KERNEL if patches_trained and not encoder.frozen_layers else 0)
    # Not every family has these fields: its module need not be an `ImageEncoder`.
    tokens = image.patches + int(getattr(encoder, "class_token", True)) + getattr(encoder, "registers", 0)
    return passes * embedding + views * _encoder(model, encoder, tokens=tokens)


def _cross(model: MaskVLM, *, layers: int, rows: int, tokens: int, context: int) -> float:
    """A stack of cross blocks, the last of which computes only `rows`."""
    width, ratio = model.width, model.cross.mlp_ratio
    full = _block(rows=tokens, tokens=tokens, context=context, width=width, ratio=ratio)
    return (layers - 1) * full + _block(rows=rows, tokens=tokens, context=context, width=width, ratio=ratio)


def _token_classifier(model: MaskVLM, *, tokens: int) -> float:
    words = model.text_encoder
    if model.token_head == "tied":
        return 2.0 * tokens * words.width * (model.width + words.vocab_size)
    return 2.0 * tokens * model.width * words.vocab_size


def pretraining_step_flops(
    model: MaskVLM,
    *,
    losses: Collection[str],
    batch_size: int,
    max_length: int,
    masked_patches: int,
    text_slots: int,
    patches_trained: bool = True,
) -> float:
    """Forward and backward pass over a global batch; a backward pass counts twice a forward one.

    An encoder's frozen layers have no backward pass.

    Args:
      losses: those that are computed, of mim, mlm, itc and itm.
      patches_trained: whether the patch embedding is; below frozen layers it never is.
    """
    sizes, d, text = model.cross, model.width, max_length
    image, views = model.image.patches + 1, 2 if {"mim", "mlm"} & set(losses) else 1
    encoders = _images(model, views=views, patches_trained=patches_trained)
    encoders += views * _encoder(model, model.text_encoder, tokens=text)
    mim = _cross(model, layers=sizes.layers, rows=image, tokens=image, context=text)
    mim += _cross(model, layers=sizes.decoder_layers, rows=masked_patches, tokens=image, context=text)
    mim += 2.0 * masked_patches * d * model.image.pixels
    mlm = _cross(model, layers=sizes.layers, rows=text_slots, tokens=text, context=image)
    mlm += _token_classifier(model, tokens=text_slots)
    itc = 2 * 2.0 * d * model.projection + 2.0 * batch_size * model.projection
    itm = _cross(model, layers=sizes.layers, rows=1, tokens=image, context=text)
    itm += _cross(model, layers=sizes.layers, rows=1, tokens=text, context=image)
    above = {"mim": mim, "mlm": mlm, "itc": itc, "itm": 3 * itm}
    return batch_size * (encoders + _BOTH * sum(above[name] for name in losses))


def fused_step_flops(
    model: MaskVLM,
    *,
    batch_size: int,
    max_length: int,
    images: int,
    every_token: bool,
    decoded: int = 0,
    decoder_layers: int = 0,
    patches_trained: bool = True,
) -> float:
    """Forward and backward pass of a downstream task: whole images beside a text through both cross encoders.

    Args:
      images: beside each text.
      every_token: whether all fused tokens are read, or the first of each.
      decoded: tokens of answers to each question, the slots of all of them.
      patches_trained: as in `pretraining_step_flops`.
    """
    layers, d, text, image = model.cross.layers, model.width, max_length, model.image.patches + 1
    encoded = images * _images(model, views=1, patches_trained=patches_trained)
    encoded += _encoder(model, model.text_encoder, tokens=text)
    fused = _cross(model, layers=layers, rows=image if every_token else 1, tokens=image, context=text)
    fused += _cross(model, layers=layers, rows=text if every_token else 1, tokens=text, context=image)
    # Answers do not see each other; their few tokens are counted as if they did, which hardly changes the sum.
    answers = decoder_layers * _block(
        rows=decoded, tokens=decoded, context=images * (image + text), width=d, ratio=model.cross.mlp_ratio
    )
    words = model.text_encoder.width
    answers += 2.0 * decoded * words * d if words != d else 0.0
    answers += _token_classifier(model, tokens=decoded)
    return batch_size * (encoded + _BOTH * (images * fused + answers))
