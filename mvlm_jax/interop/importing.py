"""Published encoders as parameters of ours, every tensor accounted for."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Num

from mvlm_jax.errors import UserError
from mvlm_jax.interop.entries import (
    CLASS_TOKEN,
    IMAGE_POSITIONS,
    PATCH_KERNEL,
    STACK,
    TEXT_POSITIONS,
    TOKEN_TYPES,
    TOKENS,
    Entry,
)
from mvlm_jax.interop.matching import Match, check_names, recognise
from mvlm_jax.interop.namings import IMAGE_NAMINGS, TEXT_NAMINGS
from mvlm_jax.interop.positions import grid_side, resize_positions
from mvlm_jax.interop.report import Report
from mvlm_jax.interop.tensors import Tensor, Tensors, open_tensors
from mvlm_jax.models.text_encoder import EPSILON, FIRST_POSITION
from mvlm_jax.models.text_encoder import TOKEN_TYPES as TYPES_OF

Shapes = Mapping[str, tuple[int, ...]]  # by parameter path within the encoder
Loaded = dict[str, Float[np.ndarray, "..."]]
Resize = Callable[[np.ndarray, tuple[int, ...]], np.ndarray]

_FLOATS = ("float32", "float64", "float16", "bfloat16")
_IMAGE_MODELS = ("vit", "vit_mae", "deit")
# Other families that are built, and named, exactly as the one asked for.
_TEXT_MODELS = {"roberta": ("roberta", "xlm-roberta", "camembert"), "bert": ("bert",)}


def import_image_encoder(
    path: str | Path,
    *,
    shapes: Shapes,
    heads: int,
    patch: int,
    epsilon: float,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> tuple[Loaded, Report]:
    """Parameters by path, positions resized to the grid of `shapes`; `epsilon`, `mean` and `std` are only compared.

    Raises:
      UserError: the source cannot be read or does not fit, in one line.
    """
    source = open_tensors(path)
    _check_model_type(source, known=_IMAGE_MODELS, wanted="a ViT")
    match = recognise(source.tensors, namings=IMAGE_NAMINGS, source=str(path))
    reader = _Reader(source, match, encoder="image_encoder", heads=heads)
    layers = shapes[f"{STACK}mlp/up/bias"][0]
    width = shapes["cls_token"][-1]
    reader.check_size(layers=layers, width=width, found=reader.shape(CLASS_TOKEN, dimensions=3))
    kernel = reader.shape(PATCH_KERNEL, dimensions=4)
    if kernel is not None and kernel[1:] != (3, patch, patch):
        raise UserError(
            f"{path} sees patches of {kernel[2]}x{kernel[3]} pixels of {kernel[1]} channels; "
            f"config.image_encoder.patch={patch}, of 3 channels"
        )
    side = grid_side(shapes["position_embedding"][1])
    table = reader.shape(IMAGE_POSITIONS, dimensions=3) or shapes["position_embedding"]
    old_side = grid_side(table[1])
    if old_side is None:
        raise UserError(
            f"{path} has {table[1]} positions in {reader.name(IMAGE_POSITIONS)}; "
            "one for the class token and a square of patches are needed"
        )

    def resize(table: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        return resize_positions(table, rows=shape[1])

    loaded, report = reader.load(
        shapes, layers=layers, resizable={"position_embedding": ((1, table[1], width), resize)}
    )
    if old_side != side:
        report.resized.append(
            f"position_embedding: bicubic from {old_side}x{old_side} to {side}x{side} patches; "
            "the class token's position as it was"
        )
    report.notes += [
        f"{note}; with --config.image_encoder.epsilon={source.config['layer_norm_eps']:g} they are the same"
        for note in _epsilon_note(source.config, ours=epsilon)
    ]
    report.notes += _normalisation_notes(source, mean=mean, std=std)
    return loaded, report


def import_text_encoder(path: str | Path, *, shapes: Shapes, heads: int, kind: str) -> tuple[Loaded, Report]:
    """Parameters by path; a longer position table is cut to the rows of `shapes`.

    Raises:
      UserError: the source cannot be read or does not fit, in one line.
    """
    source = open_tensors(path)
    _check_model_type(source, known=_TEXT_MODELS[kind], wanted=f"text_encoder.kind={kind!r}")
    match = recognise(source.tensors, namings=TEXT_NAMINGS, source=str(path))
    reader = _Reader(source, match, encoder="text_encoder", heads=heads)
    layers = shapes[f"{STACK}mlp/up/bias"][0]
    vocab_size, width = shapes["token_embedding/embedding"]
    types = reader.shape(TOKEN_TYPES, dimensions=2)
    if types is not None and types[0] != TYPES_OF[kind]:
        other = next((name for name, rows in TYPES_OF.items() if rows == types[0]), "neither")
        raise UserError(f"{path} has {types[0]} token types, as {other} has; config.text_encoder.kind={kind!r}")
    if kind == "roberta" and source.config.get("pad_token_id", 1) != FIRST_POSITION[kind] - 1:
        raise UserError(
            f"{path} has pad_token_id={source.config['pad_token_id']}; positions are counted from "
            f"pad_token_id + 1, which must be {FIRST_POSITION[kind]}"
        )
    if source.config.get("position_embedding_type", "absolute") != "absolute":
        raise UserError(f"{path} has {source.config['position_embedding_type']} positions; absolute ones are needed")
    if source.config.get("is_decoder"):
        raise UserError(f"{path} is a decoder, whose tokens see only those before them; give an encoder")
    tokens = reader.shape(TOKENS, dimensions=2)
    reader.check_size(layers=layers, width=width, found=tokens)
    if tokens is not None and tokens[0] != vocab_size:
        raise UserError(
            f"{path} has a vocabulary of {tokens[0]} tokens; config.text_encoder.vocab_size={vocab_size}, "
            f"give --config.text_encoder.vocab_size={tokens[0]} and its tokenizer"
        )
    rows = shapes["position_embedding/embedding"][0]
    table = reader.shape(TEXT_POSITIONS, dimensions=2) or shapes["position_embedding/embedding"]
    first = FIRST_POSITION[kind]
    if table[0] < rows:
        raise UserError(
            f"{path} has positions for {table[0] - first} tokens; config.text_encoder.positions={rows - first}, "
            f"give --config.text_encoder.positions={table[0] - first} or less"
        )
    loaded, report = reader.load(
        shapes,
        layers=layers,
        resizable={"position_embedding/embedding": ((table[0], width), lambda table, shape: table[: shape[0]])},
    )
    if table[0] > rows:
        report.resized.append(f"position_embedding: cut from {table[0] - first} to {rows - first} positions")
    report.notes += _epsilon_note(source.config, ours=EPSILON[kind])
    return loaded, report


class _Reader:
    """Reads the tensors of a source under the names of the table."""

    def __init__(self, source: Tensors, match: Match, *, encoder: str, heads: int):
        self._source = source
        self._match = match
        self._encoder, self._heads = encoder, heads
        self._places = match.naming.places(layers=max(match.layers, 1))

    def name(self, canonical: str) -> str:
        """What the source calls it."""
        name = self._places[canonical].name
        return self._match.originals.get(name, name)

    def shape(self, canonical: str, *, dimensions: int) -> tuple[int, ...] | None:
        """None where the tensor is missing or has other dimensions, which `load` reports with all others."""
        tensor = self._source.tensors.get(self.name(canonical))
        return tensor.shape if tensor is not None and len(tensor.shape) == dimensions else None

    def check_size(self, *, layers: int, width: int, found: tuple[int, ...] | None) -> None:
        """
        Args:
          found: the shape of a tensor whose last dimension is the width.

        Raises:
          UserError: the source has another width, depth, number of heads or activation.
        """
        path = self._source.path
        if found is not None and found[-1] != width:
            raise UserError(f"{path} is {found[-1]} wide; config.{self._encoder}.width={width}")
        if self._match.layers != layers:
            raise UserError(f"{path} has {self._match.layers} layers; config.{self._encoder}.layers={layers}")
        heads = self._source.config.get("num_attention_heads", self._heads)
        if heads != self._heads:
            raise UserError(f"{path} has {heads} heads; config.{self._encoder}.heads={self._heads}")
        activation = self._source.config.get("hidden_act", "gelu")
        if activation != "gelu":
            raise UserError(f"{path} computes with hidden_act={activation!r}; the layers here compute the exact gelu")

    def load(
        self,
        shapes: Shapes,
        *,
        layers: int,
        resizable: Mapping[str, tuple[tuple[int, ...], Resize]],
    ) -> tuple[Loaded, Report]:
        """All of `shapes` but the optional ones; `resizable` gives the shape that a parameter may have instead."""
        source = str(self._source.path)
        entries = {entry.path: entry for entry in self._match.naming.entries}
        if set(entries) != set(shapes):
            raise ValueError(
                f"the table of names does not cover {sorted(set(entries) ^ set(shapes))} of {self._encoder}"
            )
        not_used = check_names(self._match, self._places, source=source)
        report = Report(
            encoder=self._encoder,
            source=source,
            files=list(self._source.files),
            naming=self._match.naming.title,
            prefix=self._match.prefix,
            tensors=len(self._source.tensors) - sum(map(len, not_used.values())),
            parameters=0,
            not_used=not_used,
        )
        if "num_attention_heads" not in self._source.config:
            report.notes.append(
                f"the number of heads is not in the weights; config.{self._encoder}.heads={self._heads} is used"
            )
        converted: dict[str, set[str]] = {}
        loaded: Loaded = {}
        for path, entry in entries.items():
            names = self._names(entry, layers=layers)
            if entry.optional and not all(
                name in self._places and self.name(name) in self._source.tensors for name in names
            ):
                report.initial.append(f"{self._encoder}/{path}")
                continue
            shape, resize = resizable.get(path, (None, None))
            wanted = self._torch_shape(entry, shapes[path]) if shape is None else shape
            parts = [self._read(name, wanted=wanted, converted=converted) for name in names]
            value = np.stack([entry.layout.to_ours(part, self._heads) for part in parts])
            value = value if path.startswith(STACK) else value[0]
            loaded[path] = np.ascontiguousarray(value if resize is None else resize(value, shapes[path]))
            assert loaded[path].shape == tuple(shapes[path]), path
            report.parameters += loaded[path].size
        report.converted = {dtype: len(names) for dtype, names in sorted(converted.items())}
        return loaded, report

    def _names(self, entry: Entry, *, layers: int) -> list[str]:
        if "{n}" not in entry.name:
            return [entry.name]
        return [entry.name.format(n=n) for n in range(layers)]

    def _torch_shape(self, entry: Entry, shape: tuple[int, ...]) -> tuple[int, ...]:
        single = shape[1:] if entry.path.startswith(STACK) else shape
        return entry.layout.to_torch(np.empty(single, np.float32), self._heads).shape

    def _read(
        self, canonical: str, *, wanted: tuple[int, ...], converted: dict[str, set[str]]
    ) -> Num[np.ndarray, "..."]:
        name, part = self.name(canonical), self._places[canonical].part
        tensor: Tensor = self._source.tensors[name]
        whole = wanted if part is None else (3 * wanted[0], *wanted[1:])
        if tensor.shape != whole:
            raise UserError(f"{self._source.path}: {name} has the shape {tensor.shape}; the config needs {whole}")
        if tensor.dtype not in _FLOATS:
            raise UserError(
                f"{self._source.path}: {name} is {tensor.dtype}; weights of {', '.join(_FLOATS)} can be read"
            )
        value = tensor.read().astype(np.float32)
        if not np.isfinite(value).all():
            raise UserError(f"{self._source.path}: {name} holds values that are not finite; fetch the weights again")
        if tensor.dtype != "float32":
            converted.setdefault(tensor.dtype, set()).add(name)
        return value if part is None else value[part * wanted[0] : (part + 1) * wanted[0]]


def _check_model_type(source: Tensors, *, known: tuple[str, ...], wanted: str) -> None:
    model_type = source.config.get("model_type")
    if model_type is not None and model_type not in known:
        raise UserError(
            f"{source.path} is a {model_type!r} by its config.json; {wanted} needs one of {', '.join(known)}"
        )


def _epsilon_note(config: Mapping[str, Any], *, ours: float) -> list[str]:
    theirs = config.get("layer_norm_eps", ours)
    return [] if theirs == ours else [f"the source's norms add {theirs:g} to the variance, the ones here {ours:g}"]


def _normalisation_notes(source: Tensors, *, mean: tuple[float, ...], std: tuple[float, ...]) -> list[str]:
    theirs = source.preprocessing()
    if theirs is None or np.allclose(theirs, (mean, std), atol=1e-4):
        return []
    return [
        f"the source was trained on pixels of mean {tuple(theirs[0])} and std {tuple(theirs[1])}; "
        f"config.image.mean={tuple(mean)}, config.image.std={tuple(std)}"
    ]
