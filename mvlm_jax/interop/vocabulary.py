"""The tokenizer that published text weights come with."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tokenizers

from mvlm_jax.data import wordpiece
from mvlm_jax.data.text import Tokenizer
from mvlm_jax.errors import UserError
from mvlm_jax.interop import hub

TOKENIZER_FILES = ("tokenizer.json", "vocab.txt")
# Embedding tables are padded to a multiple of at most this many rows for the sake of the hardware.
_PADDING_ROWS = 128
_LONG = ("model.merges", "added_tokens")  # rules too long to show in a message


def tokenizer_file(folder: str | Path) -> Path | None:
    """The tokenizer of a folder of weights, or of a name on the Hub; None where it has none, or where the weights are a
    single file."""
    folder = hub.local_path(folder, weights=False)
    return next((folder / name for name in TOKENIZER_FILES if (folder / name).is_file()), None)


def check_tokenizer(tokenizer: Tokenizer, *, weights: str | Path, vocab_size: int) -> None:
    """Refuses a tokenizer whose ids are not the rows of the embedding table of `weights`, or not for the same text.

    Args:
      vocab_size: rows of the table.

    Raises:
      UserError: more or far fewer tokens than rows, or another tokenizer than the weights' own: another vocabulary,
        or other rules by which a text is cut into it.
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
    own_tokenizer = Tokenizer.load(own_file, kind=tokenizer.kind)
    own = _vocabulary(own_tokenizer)
    remedy = f"leave config.text.tokenizer empty to use {own_file.name} of that folder"
    for token, number in sorted(_vocabulary(tokenizer).items(), key=lambda item: item[1]):
        if own.get(token) != number:
            theirs = f"row {own[token]}" if token in own else "no row"
            raise UserError(
                f"the tokenizer gives {token!r} the id {number}, but the embedding table of {weights} has {theirs} "
                f"for it; {remedy}"
            )
    rules, own_rules = text_rules(tokenizer), text_rules(own_tokenizer)
    for name in sorted(rules | own_rules):
        if rules.get(name) != own_rules.get(name):
            both = (json.dumps(of_one.get(name, False)) for of_one in (rules, own_rules))
            values = "" if name in _LONG else f" ({', not '.join(both)})"
            raise UserError(
                f"the tokenizer has the vocabulary of {weights}, but cuts a text into other tokens of it: "
                f"another {name}{values}; {remedy}"
            )


def text_rules(tokenizer: Tokenizer) -> dict[str, Any]:
    """What decides, beside the vocabulary, which tokens a text becomes, by dotted name.

    Two tokenizers with the same rules and vocabulary give every text the same ids, however their files were made.
    """
    parts = json.loads(library_tokenizer(tokenizer).to_str())
    if (parts["normalizer"] or {}).get("type") == "BertNormalizer":
        parts["normalizer"] = wordpiece.effective(parts["normalizer"])
    added = [token for token in parts["added_tokens"] if not token["special"]]
    rules = dict(
        _flat({name: parts[name] for name in ("normalizer", "pre_tokenizer", "model")} | {"added_tokens": added})
    )
    # Offsets are not used here, and byte-level BPE never yields an unknown token.
    unread = (
        "pre_tokenizer.trim_offsets",
        *(("model.unk_token", "model.fuse_unk") if tokenizer.kind == "roberta" else ()),
    )
    return {name: value for name, value in rules.items() if name not in unread}


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Without what is switched off, which files leave out or write as null, false or empty."""
    for name, value in values.items():
        if isinstance(value, Mapping) and name != "vocab":
            yield from _flat(value, f"{prefix}{name}.")
        elif value and name != "vocab":
            yield f"{prefix}{name}", value


def _vocabulary(tokenizer: Tokenizer) -> dict[str, int]:
    return library_tokenizer(tokenizer).get_vocab(with_added_tokens=True)


def library_tokenizer(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    """A copy as the library's own type, in which special tokens in a text are still only text."""
    copy = tokenizers.Tokenizer.from_str(tokenizer.__getstate__()["_tokenizer"])
    copy.encode_special_tokens = True
    return copy
