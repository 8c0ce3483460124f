"""ViT, DeiT and MAE, as transformers and timm name them."""

from mvlm_jax.interop.family import HEADS, PATCHES, POOLER, SAME, Entry, Naming, layer, norm
from mvlm_jax.interop.image_family import ImageFamily
from mvlm_jax.models.image_encoder import ImageEncoder

_DISTILLED = (
    "is a distilled DeiT: its layers expect {name} beside the class token; give a plain ViT, DeiT or MAE encoder"
)

TRANSFORMERS = Naming(
    title="ViT of transformers",
    entries=(
        Entry("patch_embedding/kernel", "embeddings.patch_embeddings.projection.weight", PATCHES),
        Entry("patch_embedding/bias", "embeddings.patch_embeddings.projection.bias", SAME),
        Entry("cls_token", "embeddings.cls_token", SAME),
        Entry("mask_token", "embeddings.mask_token", SAME, optional=True),
        Entry("position_embedding", "embeddings.position_embeddings", SAME),
        *layer(attention="attention.attention", norms=("layernorm_before", "layernorm_after")),
        *norm("final_norm", "layernorm"),
    ),
    replacements=(),
    ignored=(POOLER, HEADS, (r"decoder\..*", "a decoder of pixels; the model has its own")),
    refused=(("embeddings.distillation_token", _DISTILLED),),
)
# transformers 5 names the layers so in memory, though it still writes the names above.
TRANSFORMERS_5 = TRANSFORMERS._replace(
    title="ViT of transformers 5",
    replacements=(
        ("encoder.layer.", "layers."),
        ("attention.attention.query", "attention.q_proj"),
        ("attention.attention.key", "attention.k_proj"),
        ("attention.attention.value", "attention.v_proj"),
        ("attention.output.dense", "attention.o_proj"),
        ("intermediate.dense", "mlp.fc1"),
        ("output.dense", "mlp.fc2"),
    ),
)
TIMM = TRANSFORMERS._replace(
    title="ViT of timm (also DeiT, MAE)",
    replacements=(
        ("embeddings.cls_token", "cls_token"),
        ("embeddings.position_embeddings", "pos_embed"),
        ("embeddings.patch_embeddings.projection", "patch_embed.proj"),
        ("encoder.layer.", "blocks."),
        ("layernorm_before", "norm1"),
        ("layernorm_after", "norm2"),
        ("layernorm.", "norm."),
        ("attention.attention.", "attn."),
        ("attention.output.dense", "attn.proj"),
        ("intermediate.dense", "mlp.fc1"),
        ("output.dense", "mlp.fc2"),
    ),
    ignored=(
        (r"head\..*", "a classifier"),
        (r"pre_logits\..*", "a layer that only a classifier reads"),
        (r"decoder_(pos_embed|embed\..*|blocks\..*|norm\..*|pred\..*)", "MAE's decoder"),
        (r"mask_token", "the mask token of MAE's decoder, which no encoder sees"),
    ),
    refused=(("dist_token", _DISTILLED),),
    fused=("query", "key", "value"),
    optional=False,
)

VIT = ImageFamily(
    kind="vit",
    namings=(TRANSFORMERS, TRANSFORMERS_5, TIMM),
    model_types=("vit", "vit_mae", "deit"),
    architecture="ViTModel",
    prefixes=("vit", "deit"),
    anchor="cls_token",
    config_extra=(("qkv_bias", True),),
    module=ImageEncoder,
    wanted="a ViT",
    not_exported=("mask_token",),
)
