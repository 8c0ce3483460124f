"""DINOv2, without and with registers, as transformers, timm and its own release name it."""

import dataclasses
import functools
from typing import Any

from ml_collections import ConfigDict

from mvlm_jax.errors import UserError
from mvlm_jax.interop.family import (
    HEADS,
    PATCHES,
    SAME,
    STACK,
    TOKEN_ROW,
    ConfigNames,
    Entry,
    Naming,
    Params,
    Resizable,
    Shapes,
    named_layer,
    norm,
)
from mvlm_jax.interop.image_family import ImageFamily
from mvlm_jax.interop.reader import Reader
from mvlm_jax.models.image_encoder import ImageEncoder, ImageFormat

_REGISTERS, _UP, _DOWN = "register_tokens", f"{STACK}mlp/up/kernel", f"{STACK}mlp/down/kernel"
_SWIGLU = "has SwiGLU layers ({name}), as the giant DINOv2 has; only its small, base and large ones can be read"
_LAYER = "encoder.layer.{n}."

TRANSFORMERS = Naming(
    title="DINOv2 of transformers",
    entries=(
        Entry("patch_embedding/kernel", "embeddings.patch_embeddings.projection.weight", PATCHES),
        Entry("patch_embedding/bias", "embeddings.patch_embeddings.projection.bias", SAME),
        Entry("cls_token", "embeddings.cls_token", SAME),
        Entry("mask_token", "embeddings.mask_token", TOKEN_ROW, optional=True),
        Entry(_REGISTERS, "embeddings.register_tokens", SAME, optional=True),
        Entry("position_embedding", "embeddings.position_embeddings", SAME),
        *named_layer(
            projections=(
                "attention.attention.query",
                "attention.attention.key",
                "attention.attention.value",
                "attention.output.dense",
            ),
            norms=("norm1", "norm2"),
            mlp=("mlp.fc1", "mlp.fc2"),
        ),
        Entry(f"{STACK}attention_scale", f"{_LAYER}layer_scale1.lambda1", SAME),
        Entry(f"{STACK}mlp_scale", f"{_LAYER}layer_scale2.lambda1", SAME),
        *norm("final_norm", "layernorm"),
    ),
    replacements=(),
    ignored=(HEADS,),
    refused=(
        ("encoder.layer.0.mlp.weights_in.weight", _SWIGLU),
        ("encoder.layer.0.mlp.gate_proj.weight", _SWIGLU),
    ),
)
# transformers 5 names the layers so in memory, though it still writes the names above.
TRANSFORMERS_5 = TRANSFORMERS._replace(
    title="DINOv2 of transformers 5",
    replacements=(
        ("attention.attention.query", "attention.q_proj"),
        ("attention.attention.key", "attention.k_proj"),
        ("attention.attention.value", "attention.v_proj"),
        ("attention.output.dense", "attention.o_proj"),
    ),
)
TIMM = TRANSFORMERS._replace(
    title="DINOv2 of timm",
    replacements=(
        ("embeddings.cls_token", "cls_token"),
        ("embeddings.mask_token", "mask_token"),
        ("embeddings.register_tokens", "reg_token"),
        ("embeddings.position_embeddings", "pos_embed"),
        ("embeddings.patch_embeddings.projection", "patch_embed.proj"),
        ("encoder.layer.", "blocks."),
        ("layernorm.", "norm."),
        ("attention.attention.", "attn."),
        ("attention.output.dense", "attn.proj"),
        ("layer_scale1.lambda1", "ls1.gamma"),
        ("layer_scale2.lambda1", "ls2.gamma"),
    ),
    ignored=((r"head\..*", "a classifier"),),
    # The giant's first layer has no name of its own in timm; its shape tells, see `Dinov2Family.fit`.
    refused=(("blocks.0.mlp.w12.weight", _SWIGLU),),
    fused=("query", "key", "value"),
    aliases=((r"^register_tokens$", "reg_token"),),  # of DINOv2's own release
)


@dataclasses.dataclass(frozen=True)
class Dinov2Family(ImageFamily):
    def fit(self, reader: Reader, *, shapes: Shapes) -> list[Resizable]:
        path, ours = reader.path, reader.encoder.registers
        if reader.config.get("use_swiglu_ffn"):
            raise UserError(f"{path} {_SWIGLU.format(name='use_swiglu_ffn in its config.json')}")
        up, down = (reader.shape(kernel, dimensions=2) for kernel in (_UP, _DOWN))
        if up is not None and down is not None and up[0] == 2 * down[1]:
            raise UserError(f"{path} {_SWIGLU.format(name=f'{reader.name(_UP)}, twice as wide as the other')}")
        registers = reader.shape(_REGISTERS, dimensions=3)
        theirs = 0 if registers is None else registers[1]
        if theirs != ours:
            flag = "config.image_encoder.registers"
            raise UserError(f"{path} has {theirs or 'no'} registers; {flag}={ours}, give --{flag}={theirs}")
        return super().fit(reader, shapes=shapes)

    def smooths(self, encoder: ConfigDict) -> bool:
        # So do transformers, and the authors' own code: with registers only.
        return encoder.registers > 0

    def folder_fields(self, params: Params, *, encoder: ConfigDict, image: ImageFormat) -> dict[str, Any]:
        fields = super().folder_fields(params, encoder=encoder, image=image)
        fields |= {"mlp_ratio": encoder.mlp_ratio, "use_swiglu_ffn": False}
        if not encoder.registers:
            return fields | {"use_mask_token": "mask_token" in params}
        return fields | {"num_register_tokens": encoder.registers}

    def architecture_of(self, encoder: ConfigDict) -> str:
        return "Dinov2WithRegistersModel" if encoder.registers else self.architecture

    def model_type_of(self, encoder: ConfigDict) -> str:
        return "dinov2_with_registers" if encoder.registers else "dinov2"


DINOV2 = Dinov2Family(
    kind="dinov2",
    namings=(TRANSFORMERS, TRANSFORMERS_5, TIMM),
    model_types=("dinov2", "dinov2_with_registers"),
    architecture="Dinov2Model",
    prefixes=("dinov2", "dinov2_with_registers"),
    anchor="embeddings.cls_token",
    config_extra=(("qkv_bias", True),),
    module=functools.partial(ImageEncoder, layer_scale=True),
    wanted="a DINOv2",
    config_names=ConfigNames(hidden=""),
    config_defaults=(("num_attention_heads", 12), ("hidden_act", "gelu"), ("layer_norm_eps", 1e-6)),
    pooling_layer=False,
    registers_are_free=True,
    class_position_optional=True,  # timm adds it to the token itself where there are registers
)
