"""Every parameter of the two encoders beside its name in Hugging Face transformers."""

from typing import NamedTuple

from mvlm_jax.interop.layouts import DENSE, HEADS_BIAS, HEADS_KERNEL, MERGE_KERNEL, PATCHES, SAME, Layout

STACK = "layers/block/"  # parameters of all layers in one array, the layer first


class Entry(NamedTuple):
    path: str  # within the encoder, as "layers/block/attention/query/kernel"
    name: str  # "{n}" stands for the layer
    layout: Layout
    optional: bool = False


def _dense(path: str, name: str) -> tuple[Entry, ...]:
    return Entry(f"{path}/kernel", f"{name}.weight", DENSE), Entry(f"{path}/bias", f"{name}.bias", SAME)


def _norm(path: str, name: str) -> tuple[Entry, ...]:
    return Entry(f"{path}/scale", f"{name}.weight", SAME), Entry(f"{path}/bias", f"{name}.bias", SAME)


def _layer(*, attention: str, norms: tuple[str, str]) -> tuple[Entry, ...]:
    layer = "encoder.layer.{n}."
    projections = [
        entry
        for part in ("query", "key", "value")
        for entry in (
            Entry(f"{STACK}attention/{part}/kernel", f"{layer}{attention}.{part}.weight", HEADS_KERNEL),
            Entry(f"{STACK}attention/{part}/bias", f"{layer}{attention}.{part}.bias", HEADS_BIAS),
        )
    ]
    return (
        *projections,
        Entry(f"{STACK}attention/out/kernel", f"{layer}attention.output.dense.weight", MERGE_KERNEL),
        Entry(f"{STACK}attention/out/bias", f"{layer}attention.output.dense.bias", SAME),
        *_norm(f"{STACK}attention_norm", layer + norms[0]),
        *_norm(f"{STACK}mlp_norm", layer + norms[1]),
        *_dense(f"{STACK}mlp/up", f"{layer}intermediate.dense"),
        *_dense(f"{STACK}mlp/down", f"{layer}output.dense"),
    )


PATCH_KERNEL = "embeddings.patch_embeddings.projection.weight"
CLASS_TOKEN = "embeddings.cls_token"
IMAGE_POSITIONS = "embeddings.position_embeddings"
TOKENS = "embeddings.word_embeddings.weight"
TEXT_POSITIONS = "embeddings.position_embeddings.weight"
TOKEN_TYPES = "embeddings.token_type_embeddings.weight"

IMAGE = (
    Entry("patch_embedding/kernel", PATCH_KERNEL, PATCHES),
    Entry("patch_embedding/bias", "embeddings.patch_embeddings.projection.bias", SAME),
    Entry("cls_token", CLASS_TOKEN, SAME),
    Entry("mask_token", "embeddings.mask_token", SAME, optional=True),
    Entry("position_embedding", IMAGE_POSITIONS, SAME),
    *_layer(attention="attention.attention", norms=("layernorm_before", "layernorm_after")),
    *_norm("final_norm", "layernorm"),
)
TEXT = (
    Entry("token_embedding/embedding", TOKENS, SAME),
    Entry("position_embedding/embedding", TEXT_POSITIONS, SAME),
    Entry("type_embedding/embedding", TOKEN_TYPES, SAME),
    *_norm("embedding_norm", "embeddings.LayerNorm"),
    *_layer(attention="attention.self", norms=("attention.output.LayerNorm", "output.LayerNorm")),
)
