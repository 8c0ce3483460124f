"""BERT's WordPiece: a vocabulary, and how a text is normalised before it is looked up."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from mvlm_jax.errors import UserError
from mvlm_jax.files import read_json

CONFIG = "tokenizer_config.json"  # beside a tokenizer.json or vocab.txt, as transformers writes it
NORMALIZER_FIELDS = {  # by their names in the config
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}
# Other values are of tokenizers that read a vocab.txt too, but find the words in a text by other rules than BERT's.
_WORDS = {"word_tokenizer_type": "basic", "subword_tokenizer_type": "wordpiece", "do_basic_tokenize": True}


def with_vocabulary(
    vocabulary: Mapping[str, int], *, special: Sequence[str], **normalizer: bool | None
) -> tokenizers.Tokenizer:
    """
    Args:
      special: tokens that are marked as such, where the vocabulary has them.
      normalizer: fields of the library's `BertNormalizer`; it lowercases where they do not say otherwise.
    """
    tokenizer = tokenizers.Tokenizer(models.WordPiece(dict(vocabulary), unk_token="[UNK]"))
    fields: dict[str, Any] = {"lowercase": True, **normalizer}  # the library's own types leave out None
    tokenizer.normalizer = normalizers.BertNormalizer(**fields)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens([token for token in special if token in vocabulary])
    return tokenizer


def from_vocabulary_file(text: str, *, path: Path, special: Sequence[str]) -> tokenizers.Tokenizer:
    """The tokenizer of a vocab.txt, one token a line, normalised as the config beside it says.

    Raises:
      UserError: a token twice, a config that cannot be followed, or a cased vocabulary whose config does not say so.
    """
    tokens = text.removesuffix("\n").split("\n")
    vocabulary = {token: index for index, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        raise UserError(f"text.tokenizer={str(path)!r} lists a token twice; a vocab.txt has one token a line")
    config = read_config(path)
    for name, needed in _WORDS.items():
        if config.get(name, needed) != needed:
            raise UserError(
                f"text.tokenizer={str(path)!r} has {name}={json.dumps(config[name])} in the {CONFIG} beside it; "
                f"only {name}={json.dumps(needed)} can be read"
            )
    stated = {ours: config[theirs] for theirs, ours in NORMALIZER_FIELDS.items() if theirs in config}
    cased = next((token for token in tokens if token != token.lower() and not token.startswith("[")), None)
    if "lowercase" not in stated and cased is not None:
        raise UserError(
            f"text.tokenizer={str(path)!r} has cased tokens such as {cased!r}; "
            f'put {{"do_lower_case": false}} (or true) into a {CONFIG} beside it'
        )
    return with_vocabulary(vocabulary, special=special, **stated)


def check_config(tokenizer: tokenizers.Tokenizer, *, path: Path) -> None:
    """Refuses a tokenizer.json that contradicts the config beside it: either may be the one that was trained with.

    Raises:
      UserError: the field and both values.
    """
    config, rules = read_config(path), json.loads(tokenizer.to_str())
    normalizer, pre_tokenizer = (rules.get(part) or {} for part in ("normalizer", "pre_tokenizer"))
    pairs = []
    if normalizer.get("type") == "BertNormalizer":
        values = effective(normalizer)
        pairs = [(theirs, values[ours]) for theirs, ours in NORMALIZER_FIELDS.items()]
    if pre_tokenizer.get("type") == "ByteLevel":
        pairs = [("add_prefix_space", pre_tokenizer["add_prefix_space"])]
    for name, value in pairs:
        stated = config.get(name)
        if stated is not None and stated != value:
            raise UserError(
                f"text.tokenizer={str(path)!r} has {name}={json.dumps(value)}, but the {CONFIG} beside it "
                f"{json.dumps(stated)}; give both the value that the weights were trained with"
            )


def effective(normalizer: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of the library's `BertNormalizer` as they act: accents are stripped with the capitals by default."""
    stripped = normalizer["strip_accents"]
    return {**normalizer, "strip_accents": normalizer["lowercase"] if stripped is None else stripped}


def config_fields(tokenizer: tokenizers.Tokenizer) -> dict[str, bool | None]:
    """The normaliser's fields, which a config beside this tokenizer must agree with; empty where it is not BERT's."""
    normalizer = json.loads(tokenizer.to_str())["normalizer"] or {}
    if normalizer.get("type") != "BertNormalizer":
        return {}
    return {theirs: normalizer[ours] for theirs, ours in NORMALIZER_FIELDS.items()}


def read_config(path: Path) -> dict[str, Any]:
    """The config beside a tokenizer's file; empty where there is none.

    Raises:
      UserError: not a JSON object, or a field of another type.
    """
    file = path.with_name(CONFIG)
    if not file.is_file():
        return {}
    try:
        config = read_json(file)
    except UserError as error:
        raise UserError(f"{error}; it says how {path.name} is used") from error
    for name in NORMALIZER_FIELDS:
        value = config.get(name, True)
        if not isinstance(value, bool) and (name, value) != ("strip_accents", None):
            raise UserError(f"{str(file)!r} has {name}={json.dumps(value)}; it must be true or false")
    return config
