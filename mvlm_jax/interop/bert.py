"""BERT and RoBERTa, as transformers names them."""

import dataclasses
from typing import Any

from mvlm_jax.data.text import Tokenizer
from mvlm_jax.errors import UserError
from mvlm_jax.interop.family import HEADS, POOLER, SAME, Entry, Naming, Params, Resizable, Shapes, layer, norm
from mvlm_jax.interop.reader import Reader
from mvlm_jax.interop.text_family import TextFamily
from mvlm_jax.models.text_encoder import TextEncoder

NAMING = Naming(
    title="BERT or RoBERTa of transformers",
    entries=(
        Entry("token_embedding/embedding", "embeddings.word_embeddings.weight", SAME),
        Entry("position_embedding/embedding", "embeddings.position_embeddings.weight", SAME),
        Entry("type_embedding/embedding", "embeddings.token_type_embeddings.weight", SAME),
        *norm("embedding_norm", "embeddings.LayerNorm"),
        *layer(attention="attention.self", norms=("attention.output.LayerNorm", "output.LayerNorm")),
    ),
    replacements=(),
    ignored=(
        POOLER,
        HEADS,
        (r"cls\..*", "the heads of BERT's pre-training"),
        (r"lm_head\..*", "the head of RoBERTa's pre-training"),
        (r"embeddings\.(position_ids|token_type_ids)", "a constant, not a weight"),
    ),
    # Checkpoints that were converted from TensorFlow; transformers renames them while loading.
    aliases=((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias")),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BertFamily(TextFamily):
    def fit(self, reader: Reader, *, shapes: Shapes) -> list[Resizable]:
        path, config = reader.path, reader.config
        types = reader.shape("type_embedding/embedding", dimensions=2)
        if types is not None and types[0] != self.token_types:
            other = next((family.kind for family in (ROBERTA, BERT) if family.token_types == types[0]), None)
            flag = f", give --config.text_encoder.kind={other}" if other else ""
            raise UserError(
                f"{path} has {types[0]} token types, as {other or 'neither'} has; "
                f"config.text_encoder.kind={self.kind!r}{flag}"
            )
        if self.first_position and config.get("pad_token_id", 1) != self.first_position - 1:
            raise UserError(
                f"{path} has pad_token_id={config['pad_token_id']}; positions are counted from "
                f"pad_token_id + 1, which must be {self.first_position}"
            )
        if config.get("position_embedding_type", "absolute") != "absolute":
            raise UserError(f"{path} has {config['position_embedding_type']} positions; absolute ones are needed")
        if config.get("is_decoder"):
            raise UserError(f"{path} is a decoder, whose tokens see only those before them; give an encoder")
        return super().fit(reader, shapes=shapes)

    def folder_fields(self, params: Params, tokenizer: Tokenizer) -> dict[str, Any]:
        return super().folder_fields(params, tokenizer) | {"type_vocab_size": self.token_types}


ROBERTA = BertFamily(
    kind="roberta",
    namings=(NAMING,),
    model_types=("roberta", "xlm-roberta", "camembert"),  # the latter two are built, and named, exactly so
    architecture="RobertaModel",
    prefixes=("roberta",),
    anchor="embeddings.word_embeddings.weight",
    module=TextEncoder,
    tokenizer="roberta",
    epsilon=1e-5,
    # Positions are numbered from pad_id + 1, and the rows before are never used: fairseq's convention.
    first_position=2,
    token_types=1,
)
BERT = dataclasses.replace(
    ROBERTA,
    kind="bert",
    model_types=("bert",),
    architecture="BertModel",
    prefixes=("bert",),
    tokenizer="bert",
    epsilon=1e-12,
    first_position=0,
    token_types=2,
)
