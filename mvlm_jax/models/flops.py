"""How many floating-point operations the losses need: the numerator of model FLOPs utilisation."""

import functools

from mvlm_jax.models.maskvlm import MaskVLM


def _block(*, rows: int, tokens: int, context: int, width: int, ratio: int) -> float:
    """One layer's forward pass for `rows` of `tokens` (self-attention), with cross-attention to `context` tokens.

    A multiply-add counts as two operations; norms, softmax and biases are left out, as is usual.
    """
    projections = 2 * rows * width * width + 2 * tokens * width * width  # query, out; key, value
    scores = 2 * rows * tokens * width
    if context:
        projections += 2 * rows * width * width + 2 * context * width * width
        scores += 2 * rows * context * width
    return 2.0 * (projections + scores + 2 * ratio * rows * width * width)


def _cross(*, layers: int, rows: int, tokens: int, context: int, width: int, ratio: int) -> float:
    full = _block(rows=tokens, tokens=tokens, context=context, width=width, ratio=ratio)
    return (layers - 1) * full + _block(rows=rows, tokens=tokens, context=context, width=width, ratio=ratio)


def _token_classifier(model: MaskVLM, *, tokens: int) -> float:
    return 2.0 * tokens * model.width * (model.vocab_size + (model.width if model.token_head == "tied" else 0))


def pretraining_step_flops(
    model: MaskVLM, *, batch_size: int, max_length: int, masked_patches: int, text_slots: int
) -> float:
    """Forward and backward pass of all four losses over a global batch; a backward pass counts twice a forward one."""
    d, ratio, text = model.width, model.mlp_ratio, max_length
    patches = (model.image_size // model.patch) ** 2
    image, pixels = patches + 1, model.patch * model.patch * 3

    def encoder(tokens: int) -> float:
        return model.layers * _block(rows=tokens, tokens=tokens, context=0, width=d, ratio=ratio)

    def cross(*, layers: int, rows: int, tokens: int, context: int) -> float:
        return _cross(layers=layers, rows=rows, tokens=tokens, context=context, width=d, ratio=ratio)

    encoders = 2.0 * patches * pixels * d + 2 * encoder(image) + 2 * encoder(text)
    mim = cross(layers=model.cross_layers, rows=image, tokens=image, context=text)
    mim += cross(layers=model.decoder_layers, rows=masked_patches, tokens=image, context=text)
    mim += 2.0 * masked_patches * d * pixels
    mlm = cross(layers=model.cross_layers, rows=text_slots, tokens=text, context=image)
    mlm += _token_classifier(model, tokens=text_slots)
    itc = 2 * 2.0 * d * model.projection + 2.0 * batch_size * model.projection
    itm = cross(layers=model.cross_layers, rows=1, tokens=image, context=text)
    itm += cross(layers=model.cross_layers, rows=1, tokens=text, context=image)
    return 3.0 * batch_size * (encoders + mim + mlm + itc + 3 * itm)


def fused_step_flops(
    model: MaskVLM,
    *,
    batch_size: int,
    max_length: int,
    images: int,
    every_token: bool,
    decoded: int = 0,
    decoder_layers: int = 0,
) -> float:
    """Forward and backward pass of a downstream task: whole images beside a text through both cross encoders.

    Args:
      images: beside each text.
      every_token: whether all fused tokens are read, or the first of each.
      decoded: tokens of answers to each question, the slots of all of them.
    """
    d, ratio, text = model.width, model.mlp_ratio, max_length
    patches = (model.image_size // model.patch) ** 2
    image = patches + 1
    encoder = functools.partial(_block, context=0, width=d, ratio=ratio)
    encoded = images * (2.0 * patches * model.patch**2 * 3 * d + model.layers * encoder(rows=image, tokens=image))
    encoded += model.layers * encoder(rows=text, tokens=text)
    cross = functools.partial(_cross, layers=model.cross_layers, width=d, ratio=ratio)
    fused = cross(rows=image if every_token else 1, tokens=image, context=text)
    fused += cross(rows=text if every_token else 1, tokens=text, context=image)
    # Answers do not see each other; their few tokens are counted as if they did, which hardly changes the sum.
    answers = decoder_layers * _block(
        rows=decoded, tokens=decoded, context=images * (image + text), width=d, ratio=ratio
    )
    answers += _token_classifier(model, tokens=decoded)
    return 3.0 * batch_size * (encoded + images * fused + answers)
