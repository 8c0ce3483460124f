"""The words of a text, and which tokens of the model stand for each."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from mvlm_jax.data.formats.listed import utf8
from mvlm_jax.data.text import Tokenizer
from mvlm_jax.interop.vocabulary import library_tokenizer


class Word(NamedTuple):
    """A word as it is written, and the places of its tokens in the text that the model reads."""

    text: str
    tokens: tuple[int, ...]


def words_of(text: str, tokenizer: Tokenizer, *, max_length: int) -> list[Word]:
    """The words of the text as the tokenizer separates them; punctuation and what is cut off are left out."""
    text = utf8(text)  # the library refuses lone surrogates
    encoding = library_tokenizer(tokenizer).encode(text, add_special_tokens=False)
    places: dict[int, list[int]] = {}
    for place, number in enumerate(encoding.word_ids[: max_length - 2]):
        if number is not None:
            places.setdefault(number, []).append(place)
    words = []
    for tokens in places.values():
        start, end = encoding.offsets[tokens[0]][0], encoding.offsets[tokens[-1]][1]
        written = text[start:end].strip()
        if any(letter.isalnum() for letter in written):
            words.append(Word(written, tuple(place + 1 for place in tokens)))  # behind the start token
    return words


def by_word(maps: Float[np.ndarray, "L rows columns"], words: list[Word]) -> Float[np.ndarray, "words rows columns"]:
    """The mean over the tokens of each word."""
    return np.stack([maps[list(word.tokens)].mean(axis=0) for word in words])
