"""The tokenizer of a run."""

from collections.abc import Callable, Iterable
from pathlib import Path

from ml_collections import ConfigDict

from mvlm_jax.data.text import Tokenizer, train_tokenizer
from mvlm_jax.errors import UserError
from mvlm_jax.interop import hub
from mvlm_jax.interop.families import text_family
from mvlm_jax.interop.importing import open_encoder
from mvlm_jax.interop.text_family import TextFamily
from mvlm_jax.interop.vocabulary import TOKENIZER_FILES, tokenizer_file
from mvlm_jax.training.workdir import has_checkpoint

TOKENIZER_FILE = "tokenizer.json"


def open_tokenizer(config: ConfigDict, *, workdir: str | Path | None, texts: Callable[[], Iterable[str]]) -> Tokenizer:
    """The run's own tokenizer where it has one, else the configured file, else the one beside the weights that the run
    starts from, else one trained on `texts`.

    Raises:
      UserError: the file is missing, unreadable, or has more tokens than the embedding table has rows; or the run has
        checkpoints, but its tokenizer is missing.
    """
    size, file = config.text_encoder.vocab_size, _file(config, workdir=workdir)
    family = text_family(config.text_encoder.kind)
    if file is not None:
        tokenizer = Tokenizer.load(file, kind=family.tokenizer)
    elif config.init_from.text:
        tokenizer = _of_weights(config.init_from.text, family=family)
    else:
        tokenizer = train_tokenizer(texts(), kind=family.tokenizer, vocab_size=size)
    if tokenizer.vocab_size > size:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} tokens but config.text_encoder.vocab_size={size}; "
            "the embedding table needs a row for each"
        )
    return tokenizer


def _file(config: ConfigDict, *, workdir: str | Path | None) -> str | Path | None:
    """None: neither the run nor the config has one."""
    if workdir and (own := Path(workdir) / TOKENIZER_FILE).is_file():
        return own
    if workdir and has_checkpoint(Path(workdir)):
        # Parameters mean nothing with another vocabulary.
        raise UserError(f"{workdir} has checkpoints but no {TOKENIZER_FILE}; put the one of this run back")
    if hub.is_name(config.text.tokenizer):
        return _beside(config.text.tokenizer, field="text.tokenizer")
    if config.text.tokenizer:
        return config.text.tokenizer
    if config.init_from.checkpoint:
        origin = hub.local_path(config.init_from.checkpoint)
        if not (origin / TOKENIZER_FILE).is_file():
            raise UserError(
                f"config.init_from.checkpoint={config.init_from.checkpoint} is neither the workdir of a run nor a "
                f"folder that mvlm weights export wrote: there is no {TOKENIZER_FILE} in it"
            )
        return origin / TOKENIZER_FILE
    return None


def _of_weights(source: str, *, family: TextFamily) -> Tokenizer:
    try:
        return Tokenizer.load(_beside(source, field="init_from.text"), kind=family.tokenizer)
    except UserError:
        # Where the weights themselves are absent or of another kind, that is the cause.
        open_encoder(source, family=family)
        raise


def _beside(source: str, *, field: str) -> Path:
    file = tokenizer_file(source)
    if file is None:
        raise UserError(
            f"config.{field}={source} has no {' or '.join(TOKENIZER_FILES)}; "
            "name the tokenizer of these weights in config.text.tokenizer"
        )
    return file
