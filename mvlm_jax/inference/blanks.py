"""Texts with hidden tokens, and what may stand in their places."""

import dataclasses
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Int32

from mvlm_jax.data.formats.listed import utf8
from mvlm_jax.data.text import SPECIAL, Tokenizer
from mvlm_jax.errors import UserError
from mvlm_jax.interop.vocabulary import library_tokenizer


@dataclasses.dataclass(frozen=True)
class Blanks:
    """Reads masks in texts, and spells tokens."""

    tokenizer: Tokenizer
    max_length: int

    @cached_property
    def mask_token(self) -> str:
        return SPECIAL[self.tokenizer.kind][-1]

    def encoded(self, text: str) -> tuple[Int32[np.ndarray, " L"], Int[np.ndarray, " masks"]]:
        """The tokens of the text, cut to `max_length`, and the places of its masks among them.

        Raises:
          UserError: it has none.
        """
        pieces = utf8(text).strip().split(self.mask_token)  # the library refuses lone surrogates
        if self.tokenizer.kind == "roberta":
            # A token of byte-level BPE brings the space before it along, and so does the mask in its place.
            pieces = [piece.rstrip() for piece in pieces[:-1]] + pieces[-1:]
        ids: list[int] = []
        for index, piece in enumerate(pieces):
            ids += [self.tokenizer.ids.mask] * (index > 0)
            ids += self._library.encode(piece, add_special_tokens=False).ids
        length, special = self.max_length, self.tokenizer.ids
        row = [special.start, *ids[: length - 2], special.end]
        tokens = np.array(row + [special.pad] * (length - len(row)), np.int32)
        slots = np.flatnonzero(tokens == special.mask)
        if not len(slots):
            raise UserError(f"{text!r:.200} holds no {self.mask_token} among its first {length - 2} tokens; put one in")
        return tokens, slots

    def likeliest(self, probabilities: Float[np.ndarray, "masks V"], *, top: int) -> list[list[tuple[str, float]]]:
        """For each mask the `top` likeliest tokens as they are spelled, with their probabilities."""
        best = np.argsort(-probabilities, axis=-1)[:, :top]
        return [
            [(self._spelled(token), float(row[token])) for token in tokens.tolist()]
            for row, tokens in zip(probabilities, best, strict=True)
        ]

    def _spelled(self, token: int) -> str:
        return self._library.decode([token], skip_special_tokens=False).strip()

    @cached_property
    def _library(self) -> Any:
        return library_tokenizer(self.tokenizer)
