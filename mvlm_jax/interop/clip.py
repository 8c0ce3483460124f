"""The vision towers of CLIP, as transformers and open_clip name them."""

import functools

from mvlm_jax.interop.family import (
    HEADS,
    PATCHES,
    SAME,
    TABLE,
    TOKEN,
    Entry,
    Naming,
    named_layer,
    norm,
)
from mvlm_jax.interop.image_family import ImageFamily
from mvlm_jax.models.image_encoder import ImageEncoder

LAYERS = named_layer(
    start="encoder.layers.{n}.",
    projections=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"),
    norms=("layer_norm1", "layer_norm2"),
    mlp=("mlp.fc1", "mlp.fc2"),
)
TEXT_TOWER = "embeddings.token_embedding.weight"
REST_OF_THE_MODEL = (
    (r"text_model\..*", "the text tower"),
    (r"(visual|text)_projection\.weight", "a projection to the space of its own texts"),
    (r"logit_(scale|bias)", "the temperature of its own contrast"),
    (r"embeddings\.position_ids", "a constant, not a weight"),
    HEADS,
)
REFUSED = ((TEXT_TOWER, "is a text tower of CLIP or SigLIP ({name}), which is not read; give the vision tower"),)
NOT_READ = (
    (rf"text_model\.{TEXT_TOWER}", "a text tower of CLIP or SigLIP, which is not read"),
    (r"(text\.)?token_embedding\.weight", "a text tower of open_clip, which is not read"),
)

TRANSFORMERS = Naming(
    title="CLIP's vision tower of transformers",
    entries=(
        Entry("patch_embedding/kernel", "embeddings.patch_embedding.weight", PATCHES),
        Entry("cls_token", "embeddings.class_embedding", TOKEN),
        Entry("mask_token", "embeddings.mask_token", SAME, optional=True),
        Entry("position_embedding", "embeddings.position_embedding.weight", TABLE),
        *norm("pre_norm", "pre_layrnorm"),  # as it is spelt there
        *LAYERS,
        *norm("final_norm", "post_layernorm"),
    ),
    replacements=(),
    ignored=REST_OF_THE_MODEL,
    refused=REFUSED,
    optional=False,
)
OPEN_CLIP = TRANSFORMERS._replace(
    title="CLIP's vision tower of open_clip",
    replacements=(
        ("embeddings.patch_embedding", "visual.conv1"),
        ("embeddings.class_embedding", "visual.class_embedding"),
        ("embeddings.position_embedding.weight", "visual.positional_embedding"),
        ("pre_layrnorm", "visual.ln_pre"),
        ("post_layernorm", "visual.ln_post"),
        ("encoder.layers.", "visual.transformer.resblocks."),
        ("layer_norm1", "ln_1"),
        ("layer_norm2", "ln_2"),
        ("self_attn.q_proj", "attn.query"),
        ("self_attn.k_proj", "attn.key"),
        ("self_attn.v_proj", "attn.value"),
        ("self_attn.out_proj", "attn.out_proj"),
        ("mlp.fc1", "mlp.c_fc"),
        ("mlp.fc2", "mlp.c_proj"),
    ),
    ignored=(
        (r"visual\.proj|text_projection(\..*)?", "a projection to the space of its own texts"),
        (r"logit_(scale|bias)", "the temperature of its own contrast"),
        (r"(transformer|token_embedding|ln_final|text)\..*|positional_embedding|attn_mask", "the text tower"),
        (r"input_resolution|context_length|vocab_size", "a constant, not a weight"),
    ),
    refused=(),
    fused=("query", "key", "value"),
    fused_as="attn.in_proj_",
)

CLIP = ImageFamily(
    kind="clip",
    namings=(TRANSFORMERS, OPEN_CLIP),
    model_types=("clip_vision_model", "clip"),
    architecture="CLIPVisionModel",
    prefixes=("vision_model",),
    anchor="embeddings.class_embedding",
    module=functools.partial(ImageEncoder, pre_norm=True, patch_bias=False),
    wanted="a vision tower of CLIP",
    activation_is_free=True,  # quick_gelu in OpenAI's, gelu in most of LAION's
    config_part="vision_config",
    config_defaults=(("num_attention_heads", 12), ("hidden_act", "quick_gelu"), ("layer_norm_eps", 1e-5)),
    not_exported=("mask_token",),
    export_prefix="vision_model.",
    pooling_layer=False,
    not_read=NOT_READ,
)
