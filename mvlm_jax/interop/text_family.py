"""A family of text encoders: a vocabulary and a table of positions."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from mvlm_jax.data.text import Tokenizer
from mvlm_jax.errors import UserError
from mvlm_jax.interop.family import Family, Params, Resizable, Shapes
from mvlm_jax.interop.reader import Reader
from mvlm_jax.interop.tensors import Tensors
from mvlm_jax.interop.transformers_folder import write_model, write_tokenizer
from mvlm_jax.models.compute import Compute
from mvlm_jax.models.image_encoder import ImageFormat

_POSITIONS = "position_embedding/embedding"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextFamily(Family):
    tokenizer: str  # kind of tokenizer, of `data.text`
    epsilon: float  # that norms add to the variance
    first_position: int = 0  # the table's row of the first token
    token_types: int = 0  # 0: there is no table of them

    part = "text_encoder"

    def build(self, encoder: ConfigDict, *, compute: Compute) -> nn.Module:
        own = {"vocab_size": encoder.vocab_size, "positions": encoder.positions, "epsilon": self.epsilon}
        counted = {"first_position": self.first_position, "token_types": self.token_types}
        return self.sized(encoder, compute=compute, **counted, **own)

    def fit(self, reader: Reader, *, shapes: Shapes) -> list[Resizable]:
        path, first = reader.path, self.first_position
        tokens = reader.shape("token_embedding/embedding", dimensions=2)
        reader.check_size(tokens)
        if tokens is not None and tokens[0] != reader.encoder.vocab_size:
            raise UserError(
                f"{path} has a vocabulary of {tokens[0]} tokens; "
                f"config.text_encoder.vocab_size={reader.encoder.vocab_size}, "
                f"give --config.text_encoder.vocab_size={tokens[0]} and its tokenizer"
            )
        rows, width = shapes[_POSITIONS]
        table = reader.shape(_POSITIONS, dimensions=2) or shapes[_POSITIONS]
        if table[0] < rows:
            raise UserError(
                f"{path} has positions for {table[0] - first} tokens; config.text_encoder.positions={rows - first}, "
                f"give --config.text_encoder.positions={table[0] - first} or less"
            )
        change = f"position_embedding: cut from {table[0] - first} to {rows - first} positions"
        return [
            Resizable(_POSITIONS, (table[0], width), lambda table: table[:rows], "" if table[0] == rows else change)
        ]

    def notes(self, source: Tensors, *, encoder: ConfigDict, image: ImageFormat) -> list[str]:
        return self.epsilon_note(source, ours=self.epsilon)

    def write(self, folder: Path, params: Params, *, encoder: ConfigDict, tokenizer: Tokenizer) -> None:
        """A folder that transformers loads."""
        table, first, pad = params[_POSITIONS], self.first_position, tokenizer.ids.pad
        if first and pad + 1 != first:
            # There, positions are counted from the padding's id + 1.
            before = np.zeros((pad + 1, table.shape[1]), table.dtype)
            params = {**params, _POSITIONS: np.concatenate([before, table[first:]])}
        fields = self.folder_fields(params, tokenizer)
        write_model(folder, params, family=self, encoder=encoder, fields=fields)
        write_tokenizer(folder, tokenizer, max_length=len(table) - first)

    def folder_fields(self, params: Params, tokenizer: Tokenizer) -> dict[str, Any]:
        """What config.json says beside the sizes."""
        fields = {
            "vocab_size": len(params["token_embedding/embedding"]),
            "max_position_embeddings": len(params[_POSITIONS]),
            self.config_names.epsilon: self.epsilon,
            "pad_token_id": tokenizer.ids.pad,
            "bos_token_id": tokenizer.ids.start,
            "eos_token_id": tokenizer.ids.end,
        }
        return {name: value for name, value in fields.items() if name}
