"""The tokenizer that published text weights come with."""

from pathlib import Path

import tokenizers

from mvlm_jax.data.text import Tokenizer
from mvlm_jax.errors import UserError
from mvlm_jax.files import user_path

TOKENIZER_FILES = ("tokenizer.json", "vocab.txt")
# Embedding tables are padded to a multiple of at most this many rows for the sake of the hardware.
_PADDING_ROWS = 128


def tokenizer_file(folder: str | Path) -> Path | None:
    """The tokenizer of a folder of weights; None where it has none, or where the weights are a single file."""
    folder = user_path(folder)
    return next((folder / name for name in TOKENIZER_FILES if (folder / name).is_file()), None)


def check_tokenizer(tokenizer: Tokenizer, *, weights: str | Path, vocab_size: int) -> None:
    """Refuses a tokenizer whose ids are not the rows of the embedding table of `weights`.

    Args:
      vocab_size: rows of the table.

    Raises:
      UserError: more or far fewer tokens than rows, or another vocabulary than that of the weights' own tokenizer.
    """
    size = tokenizer.vocab_size
    if not vocab_size - _PADDING_ROWS < size <= vocab_size:
        raise UserError(
            f"the tokenizer has {size} tokens but the embedding table of {weights} has {vocab_size} rows; "
            "give the tokenizer that the weights were trained with in config.text.tokenizer"
        )
    own_file = tokenizer_file(weights)
    if own_file is None:
        return
    own = _vocabulary(Tokenizer.load(own_file, kind=tokenizer.kind))
    for token, number in sorted(_vocabulary(tokenizer).items(), key=lambda item: item[1]):
        if own.get(token) != number:
            theirs = f"row {own[token]}" if token in own else "no row"
            raise UserError(
                f"the tokenizer gives {token!r} the id {number}, but the embedding table of {weights} has {theirs} "
                f"for it; leave config.text.tokenizer empty to use {own_file.name} of that folder"
            )


def _vocabulary(tokenizer: Tokenizer) -> dict[str, int]:
    return library_tokenizer(tokenizer).get_vocab(with_added_tokens=True)


def library_tokenizer(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    """A copy as the library's own type, in which special tokens in a text are still only text."""
    copy = tokenizers.Tokenizer.from_str(tokenizer.__getstate__()["_tokenizer"])
    copy.encode_special_tokens = True
    return copy
