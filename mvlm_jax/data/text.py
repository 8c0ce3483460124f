"""Captions to token ids and back."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

# Set before the library starts its threads: Grain's workers would each start one per core.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import tokenizers
from jaxtyping import Int, Int32
from tokenizers import decoders, models, pre_tokenizers, trainers

from mvlm_jax.data import wordpiece
from mvlm_jax.data.formats.texts import decoded
from mvlm_jax.errors import UserError
from mvlm_jax.files import write_text
from mvlm_jax.stores.mirror import fetched

SPECIAL = {  # start, padding, end, unknown, mask
    "roberta": ("<s>", "<pad>", "</s>", "<unk>", "<mask>"),
    "bert": ("[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]"),
    "mpnet": ("<s>", "<pad>", "</s>", "[UNK]", "<mask>"),
}
WORDPIECE = ("bert", "mpnet")  # the kinds that cut words as BERT does
MPNET_PAD = 1  # where its embeddings expect the padding, whatever a config says
# What a caption can hold in one token is far below this; the rest of an endless caption is not even looked at.
CHARACTERS_PER_TOKEN = 256


class TokenIds(NamedTuple):
    """Ids of the special tokens."""

    pad: int
    start: int
    end: int
    mask: int
    unknown: int


class Tokenizer:
    """A trained `tokenizers.Tokenizer` that knows its special tokens and writes fixed-length arrays.

    Raises:
      UserError: `tokenizer` lacks a special token of `kind`.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, *, kind: str) -> None:
        self.kind = kind
        self._tokenizer = tokenizer
        self._set_up()
        ids = {token: tokenizer.token_to_id(token) for token in _special(kind)}
        missing = [token for token, number in ids.items() if number is None]
        if missing:
            raise UserError(
                f"the tokenizer has no {', '.join(missing)}; that of a text encoder such as {kind} has {' '.join(ids)}"
            )
        if kind == "mpnet" and ids["<pad>"] != MPNET_PAD:
            raise UserError(f"the tokenizer has <pad> as token {ids['<pad>']}; MPNet needs it as token {MPNET_PAD}")
        start, pad, end, unknown, mask = (number for number in ids.values() if number is not None)
        self.ids = TokenIds(pad=pad, start=start, end=end, mask=mask, unknown=unknown)
        # Ids need not be dense: the rows that the embedding table must have.
        self.vocab_size = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values())

    def encode(self, captions: Sequence[str], *, max_length: int, continuing: bool = False) -> Int32[np.ndarray, "B L"]:
        """start, tokens, end, padding up to `max_length`; a longer caption is cut and keeps its end token.

        Args:
          continuing: the texts go on from others, as answers from questions. To a byte-level vocabulary the space
            before a word is part of it: at the beginning of a caption the same word is another token, often several.
        """
        cleaned = [_clean(caption, limit=CHARACTERS_PER_TOKEN * max_length) for caption in captions]
        if continuing and self.kind == "roberta":
            cleaned = [text and f" {text}" for text in cleaned]
        ids = np.full((len(captions), max_length), self.ids.pad, np.int32)
        for row, encoding in zip(
            ids, self._tokenizer.encode_batch_fast(cleaned, add_special_tokens=False), strict=True
        ):
            tokens = encoding.ids[: max_length - 2]
            row[: len(tokens) + 2] = [self.ids.start, *tokens, self.ids.end]
        return ids

    def decode(self, ids: Int[np.ndarray, " L"] | Sequence[int]) -> str:
        """The caption without its special tokens."""
        return self._tokenizer.decode([int(number) for number in ids if number not in self.ids]).strip()

    def save(self, path: str | Path) -> None:
        """Writes a `tokenizer.json` that `load` reads back unchanged."""
        write_text(Path(path), self.to_json())

    def to_json(self) -> str:
        """What `save` writes."""
        return self._tokenizer.to_str(pretty=True)

    @classmethod
    def load(cls, path: str | Path, *, kind: str) -> "Tokenizer":
        """Reads a `tokenizer.json`, or the `vocab.txt` of BERT or MPNet (one token a line).

        What a `tokenizer_config.json` beside a vocab.txt says of capitals, accents and Chinese characters is followed.

        Raises:
          UserError: the file is missing, is neither of the two, does not fit `kind`, or contradicts the config beside
            it.
        """
        _special(kind)
        try:
            path = fetched(path)
            text = decoded(path.read_bytes(), errors="strict")
        except (OSError, UnicodeError) as error:
            raise UserError(f"text.tokenizer={str(path)!r} cannot be read ({error}); give a tokenizer.json or vocab.txt"
                            ) from error  # fmt: skip
        if Path(path).suffix == ".txt":
            if kind not in WORDPIECE:
                raise UserError(
                    f"text.tokenizer={str(path)!r} is a vocabulary of WordPiece, of tokenizers such as "
                    f"{', '.join(WORDPIECE)}, not of {kind!r}"
                )
            tokenizer = wordpiece.from_vocabulary_file(text, path=Path(path), special=SPECIAL[kind])
        else:
            try:
                tokenizer = tokenizers.Tokenizer.from_str(text)
            except Exception as error:  # the library raises nothing narrower
                raise UserError(f"text.tokenizer={str(path)!r} is not a tokenizer.json: {error}") from error
            wordpiece.check_config(tokenizer, path=Path(path))
        try:
            return cls(tokenizer, kind=kind)
        except UserError as error:
            raise UserError(f"text.tokenizer={str(path)!r}: {error}") from error

    def _set_up(self) -> None:
        # Neither the library's JSON nor its pickles keep these; published files come with settings of their own.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        # A caption that spells "<mask>" or "[SEP]" is text like any other.
        self._tokenizer.encode_special_tokens = True

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tokenizer": self._tokenizer.to_str()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _tokenizer=tokenizers.Tokenizer.from_str(state["_tokenizer"]))
        self._set_up()


def train_tokenizer(captions: Iterable[str], *, kind: str, vocab_size: int) -> Tokenizer:
    """Byte-level BPE (roberta) or WordPiece (bert, mpnet) with at most `vocab_size` entries; the same for the same
    captions.

    Raises:
      UserError: no caption to train on, an unknown `kind`, or a `vocab_size` below the alphabet's.
    """
    _special(kind)
    texts = [text for text in (_clean(caption, limit=10_000) for caption in captions) if text]
    if not texts:
        raise UserError("no caption to train a tokenizer on; name a tokenizer.json or vocab.txt in text.tokenizer")
    if kind in WORDPIECE:
        tokenizer = _word_pieces(texts, vocab_size, special=SPECIAL[kind])
    else:
        tokenizer = _byte_pairs(texts, vocab_size)
    trained = Tokenizer(tokenizer, kind=kind)
    if trained.vocab_size > vocab_size:
        raise UserError(
            f"text_encoder.vocab_size={vocab_size} must be at least {trained.vocab_size}, the alphabet's size"
        )
    return trained


def _byte_pairs(texts: Sequence[str], vocab_size: int) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL["roberta"]),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _word_pieces(texts: Sequence[str], vocab_size: int, *, special: Sequence[str]) -> tokenizers.Tokenizer:
    tokenizer = wordpiece.with_vocabulary({}, special=())
    words = {
        word
        for text in texts
        for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(text))
    }
    # The trainer numbers continuing characters in the order of a hash table, which differs from run to run;
    # named beforehand, they keep the order they are given in.
    continuing = sorted({f"##{character}" for word in words for character in word[1:]})
    start, pad, end, unknown, mask = special
    # In the order of the published vocabularies.
    first = [pad, unknown, start, end, mask] if special == SPECIAL["bert"] else special
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, special_tokens=[*first, *continuing], show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return wordpiece.with_vocabulary(tokenizer.get_vocab(), special=special)


def _special(kind: str) -> tuple[str, ...]:
    if kind not in SPECIAL:
        raise UserError(f"text_encoder.kind={kind!r} is not one of {', '.join(SPECIAL)}")
    return SPECIAL[kind]


def _clean(caption: str, *, limit: int) -> str:
    # Lone surrogates cannot be passed on to the library.
    return caption[:limit].encode("utf-8", "replace").decode("utf-8").strip()
