"""The vision towers of SigLIP, as transformers names them.

They have no class token: their pooling head, which is left out, attends to all patches. The mean of the features of the
patches takes the place of the first token.
"""

import functools

from mvlm_jax.interop.clip import LAYERS, NOT_READ, REFUSED, REST_OF_THE_MODEL
from mvlm_jax.interop.family import PATCHES, SAME, TABLE, Entry, Naming, norm
from mvlm_jax.interop.image_family import ImageFamily
from mvlm_jax.models.image_encoder import ImageEncoder

TRANSFORMERS = Naming(
    title="SigLIP's vision tower of transformers",
    entries=(
        Entry("patch_embedding/kernel", "embeddings.patch_embedding.weight", PATCHES),
        Entry("patch_embedding/bias", "embeddings.patch_embedding.bias", SAME),
        Entry("mask_token", "embeddings.mask_token", SAME, optional=True),
        Entry("position_embedding", "embeddings.position_embedding.weight", TABLE),
        *LAYERS,
        *norm("final_norm", "post_layernorm"),
    ),
    replacements=(),
    ignored=(*REST_OF_THE_MODEL, (r"head\..*", "the pooling head; the mean of the patches takes its place")),
    refused=REFUSED,
    optional=False,
)


SIGLIP = ImageFamily(
    kind="siglip",
    namings=(TRANSFORMERS,),
    model_types=("siglip_vision_model", "siglip"),
    architecture="SiglipVisionModel",
    prefixes=("vision_model",),
    anchor="embeddings.patch_embedding.weight",
    module=functools.partial(ImageEncoder, class_token=False),
    wanted="a vision tower of SigLIP",
    activation_is_free=True,  # gelu_tanh in the published ones
    config_part="vision_config",
    config_defaults=(("num_attention_heads", 12), ("hidden_act", "gelu_pytorch_tanh"), ("layer_norm_eps", 1e-6)),
    not_exported=("mask_token",),
    export_prefix="vision_model.",
    pooling_layer=False,
    config_extra=(("vision_use_head", False),),
    own_tokens=0,
    not_read=NOT_READ,
)
