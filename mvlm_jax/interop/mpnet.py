"""MPNet, as transformers names it: BERT without token types, with a bias for the distance of two tokens."""

import dataclasses
import functools
from typing import Any

from mvlm_jax.data.text import Tokenizer
from mvlm_jax.errors import UserError
from mvlm_jax.interop.family import HEADS, POOLER, SAME, Entry, Naming, Params, Resizable, Shapes, named_layer, norm
from mvlm_jax.interop.reader import Reader
from mvlm_jax.interop.text_family import TextFamily
from mvlm_jax.models.text_encoder import BUCKETS, TextEncoder

_DISTANCES, _BUCKETS = "relative_attention_bias/embedding", "relative_attention_num_buckets"

NAMING = Naming(
    title="MPNet of transformers",
    entries=(
        Entry("token_embedding/embedding", "embeddings.word_embeddings.weight", SAME),
        Entry("position_embedding/embedding", "embeddings.position_embeddings.weight", SAME),
        Entry(_DISTANCES, "encoder.relative_attention_bias.weight", SAME),
        *norm("embedding_norm", "embeddings.LayerNorm"),
        *named_layer(
            projections=("attention.attn.q", "attention.attn.k", "attention.attn.v", "attention.attn.o"),
            norms=("attention.LayerNorm", "output.LayerNorm"),
        ),
    ),
    replacements=(),
    ignored=(
        POOLER,
        HEADS,
        (r"lm_head\..*", "the head of MPNet's pre-training"),
        (r"embeddings\.position_ids", "a constant, not a weight"),
    ),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MpnetFamily(TextFamily):
    def fit(self, reader: Reader, *, shapes: Shapes) -> list[Resizable]:
        table = reader.shape(_DISTANCES, dimensions=2)
        buckets = reader.config.get(_BUCKETS, BUCKETS) if table is None else table[0]
        if buckets != BUCKETS:
            raise UserError(f"{reader.path} has {buckets} buckets of distances; MPNet has {BUCKETS}")
        return super().fit(reader, shapes=shapes)

    def folder_fields(self, params: Params, tokenizer: Tokenizer) -> dict[str, Any]:
        return super().folder_fields(params, tokenizer) | {_BUCKETS: BUCKETS}


MPNET = MpnetFamily(
    kind="mpnet",
    namings=(NAMING,),
    model_types=("mpnet",),
    architecture="MPNetModel",
    prefixes=("mpnet",),
    anchor="embeddings.word_embeddings.weight",
    module=functools.partial(TextEncoder, relative_positions=True),
    tokenizer="mpnet",
    epsilon=1e-5,
    first_position=2,
)
