"""Ordered (regex, value) rules over the model's parameter paths; the first full match decides.

Layer stacks of the encoders carry a leading axis, the cross blocks do not, hence two rules for each matrix.
"""

from jax.sharding import PartitionSpec as P

_STACK = r".*_encoder/layers/block"
_BLOCK = r".*/block_\d+"

SHARDING_RULES = (
    (rf"{_STACK}/attention/(query|key|value)/kernel", P(None, "fsdp", "tensor", None)),
    (rf"{_STACK}/attention/out/kernel", P(None, "tensor", None, "fsdp")),
    (rf"{_STACK}/mlp/up/kernel", P(None, "fsdp", "tensor")),
    (rf"{_STACK}/mlp/down/kernel", P(None, "tensor", "fsdp")),
    (rf"{_BLOCK}/(self|cross)_attention/(query|key|value)/kernel", P("fsdp", "tensor", None)),
    (rf"{_BLOCK}/(self|cross)_attention/out/kernel", P("tensor", None, "fsdp")),
    (rf"{_BLOCK}/mlp/up/kernel", P("fsdp", "tensor")),
    (rf"{_BLOCK}/mlp/down/kernel", P("tensor", "fsdp")),
    # The published vocabularies are odd numbers: only the width of an embedding can be split.
    (r"text_encoder/(token|position)_embedding/embedding", P(None, "fsdp")),
    (r"token_classifier/(dense/)?kernel", P("fsdp", None)),
    (r"(.*/)?(bias|scale)", P()),
    (r"text_encoder/(type_embedding|relative_attention_bias)/embedding", P()),
    (r"image_encoder/(cls_token|mask_token|register_tokens|position_embedding)", P()),
    (r"image_encoder/layers/block/(attention|mlp)_scale", P()),
    (r"image_encoder/patch_embedding/kernel", P()),
    (r"(image|text)_projection/dense/kernel", P()),
    (r"(image|text)_to_cross/kernel", P("fsdp", None)),
    (r"answer_decoder/token_projection/kernel", P("fsdp", None)),
    (r"(pixel|matching)_head/kernel", P()),
    (r"answer_decoder/position_embedding", P()),
    (r"classification_head/(dense|out)/kernel", P()),
    (r"temperature", P()),
)

OPTIMIZER_RULES = (
    # Published encoders come without a mask token; it starts from nothing, as the cross encoders do.
    (r"image_encoder/mask_token", "rest"),
    (r"image_encoder/.*", "image_encoder"),
    (r"text_encoder/.*", "text_encoder"),
    (r".*", "rest"),
)

DECAY_RULES = (
    (r"(.*/)?(bias|scale)", False),
    (r"image_encoder/(cls_token|mask_token|register_tokens|position_embedding)", False),
    (r"image_encoder/layers/block/(attention|mlp)_scale", False),
    (r"answer_decoder/position_embedding", False),
    (r"text_encoder/((position|type)_embedding|relative_attention_bias)/embedding", False),
    (r"temperature", False),
    (r".*/(kernel|embedding)", True),
)

# Where in its encoder a parameter lies; layers are the leading axis of their parameters.
LAYER_RULES = (
    (r"image_encoder/mask_token", "behind"),  # as new as what comes behind
    (r"(image|text)_encoder/layers/block/.*", "layers"),
    (r"(image|text)_encoder/final_norm/.*", "behind"),
    (r"(image|text)_encoder/.*", "before"),
    (r".*", "behind"),
)


def frozen_layer_rules(part: str, *, layers: int, trained: int) -> tuple[tuple[str, int], ...]:
    """How much is frozen of an encoder of which the last `trained` layers are trained (-1: all of it, 0: nothing).

    Values are the number of a parameter's first layers, -1 for all of it.

    What comes behind the layers is trained with them. What comes before is frozen, the mask token too: no gradient gets
    past the frozen layers to it.
    """
    if trained < 0:
        return ()
    if trained == 0:
        return ((rf"{part}/.*", -1),)
    return (
        (rf"{part}/final_norm/.*", 0),
        (rf"{part}/layers/block/.*", layers - trained),
        (rf"{part}/.*", -1),
    )
