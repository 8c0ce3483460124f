"""Published encoders as parameters of ours."""

import math
from pathlib import Path

import jax
from jaxtyping import PyTree
from ml_collections import ConfigDict

from mvlm_jax.data.text import Tokenizer
from mvlm_jax.errors import UserError
from mvlm_jax.interop import hub
from mvlm_jax.interop.families import TEXT_FAMILIES, every_family, image_family, text_family
from mvlm_jax.interop.family import Family, Shapes
from mvlm_jax.interop.image_family import image_format
from mvlm_jax.interop.matching import Match, instead, recognise
from mvlm_jax.interop.parameters import Flat, flat, within
from mvlm_jax.interop.reader import Reader
from mvlm_jax.interop.report import Report, start_weights
from mvlm_jax.interop.tensors import Tensors, open_tensors
from mvlm_jax.interop.unreadable import check_text_encoder
from mvlm_jax.interop.vocabulary import check_tokenizer, tokenizer_file
from mvlm_jax.models.image_encoder import ImageFormat
from mvlm_jax.training.task import StartWeights


def import_encoders(
    shapes: PyTree[jax.ShapeDtypeStruct], *, config: ConfigDict, tokenizer: Tokenizer | None
) -> StartWeights:
    """The encoders that `config.init_from` names, fit for parameters of these `shapes`.

    Args:
      tokenizer: that of the run; None where no text weights are named.

    Raises:
      UserError: a source cannot be read or does not fit, or the tokenizer is not that of the text weights.
    """
    flat_shapes = {path: tuple(leaf.shape) for path, leaf in flat(shapes).items()}
    params, reports, text = {}, [], config.init_from.text
    parts: tuple[tuple[str, Family], ...] = (
        (config.init_from.image, image_family(config.image_encoder.kind)),
        (text, text_family(config.text_encoder.kind)),
    )
    for source, family in parts:
        if source:
            encoder, own = config[family.part], within(family.part, flat_shapes)
            loaded, report = import_encoder(
                source, family=family, encoder=encoder, image=image_format(config), shapes=own
            )
            params.update({f"{family.part}/{path}": value for path, value in loaded.items()})
            reports.append(report)
    if text:
        assert tokenizer is not None
        check_tokenizer(tokenizer, weights=text, vocab_size=config.text_encoder.vocab_size)
    return start_weights(params, reports, shapes=flat_shapes)


def import_encoder(
    path: str | Path, *, family: Family, encoder: ConfigDict, image: ImageFormat, shapes: Shapes
) -> tuple[Flat, Report]:
    """Parameters by path, the table of positions fit for `shapes`.

    Args:
      encoder: the part's config.
      image: what the run normalises pixels with, which is only compared.

    Raises:
      UserError: the source cannot be read or does not fit, in one line.
    """
    source, match = open_encoder(path, family=family)
    reader = Reader(source, match, family=family, encoder=encoder)
    resizable = family.fit(reader, shapes=shapes)
    loaded, report = reader.load(shapes, resizable={each.path: each for each in resizable})
    report.resized += [each.change for each in resizable if each.change]
    report.revision = hub.commit_of(path)
    report.notes += family.notes(source, encoder=encoder, image=image)
    return loaded, report


def open_encoder(path: str | Path, *, family: Family) -> tuple[Tensors, Match]:
    """A source of this family, with the config.json of the encoder alone.

    Raises:
      UserError: the source cannot be read, or is of another family.
    """
    source = open_tensors(path)
    if family.part == "text_encoder":
        check_text_encoder(source, kinds=TEXT_FAMILIES)
    model_type = source.config.get("model_type")
    if model_type is not None and model_type not in family.model_types:
        wanted = family.wanted or f"{family.part}.kind={family.kind!r}"
        legal = ", ".join(family.model_types)
        message = f"{source.path} is a {model_type!r} by its config.json; {wanted} needs one of {legal}"
        other = next((each for each in every_family() if model_type in each.model_types), None)
        raise UserError(message + (instead(other, of=family.part) if other else ""))
    source = source._replace(config=family.config_of(source))
    return source, recognise(source.tensors, wanted=(family,), known=every_family(), source=str(path))


def inspect(path: str | Path) -> list[str]:
    """What a file or folder of weights, or a name on the Hub, holds: a line for each tensor, then what the whole is.

    Raises:
      UserError: the source cannot be read.
    """
    source = open_tensors(path)
    lines = [f"revision: {commit}"] if (commit := hub.commit_of(path)) else []
    lines += [f"{name}  {list(tensor.shape)}  {tensor.dtype}" for name, tensor in sorted(source.tensors.items())]
    total = sum(math.prod(tensor.shape) for tensor in source.tensors.values())
    lines.append(f"{len(source.tensors)} tensors, {total / 1e6:.1f}M numbers in {', '.join(source.files)}")
    try:
        try:
            match = recognise(source.tensors, wanted=every_family(), known=every_family(), source=str(path))
        except UserError:
            check_text_encoder(source, kinds=TEXT_FAMILIES)
            raise
        if any(match.naming in family.namings for family in TEXT_FAMILIES.values()):
            check_text_encoder(source, kinds=TEXT_FAMILIES)
        prefix = f", behind the prefix {match.prefix!r}" if match.prefix else ""
        lines.append(f"named as {match.naming.title}{prefix}; {match.layers} layers")
    except UserError as error:
        lines.append(f"cannot be imported: {error}")
    tokenizer = tokenizer_file(path)
    lines.append(f"tokenizer: {tokenizer.name}" if tokenizer else "no tokenizer beside it")
    return lines
