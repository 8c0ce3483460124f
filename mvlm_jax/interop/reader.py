"""Reads the tensors of a published encoder as parameters of ours, every tensor accounted for."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Num
from ml_collections import ConfigDict

from mvlm_jax.errors import UserError
from mvlm_jax.interop.family import ACTIVATION_NAMES, STACK, Family, Resizable, Shapes
from mvlm_jax.interop.matching import Match, check_names
from mvlm_jax.interop.parameters import Flat
from mvlm_jax.interop.report import Report
from mvlm_jax.interop.tensors import Tensors

_FLOATS = ("float32", "float64", "float16", "bfloat16")


class Reader:
    """A source whose naming is recognised, beside the config of the part that it becomes."""

    def __init__(self, source: Tensors, match: Match, *, family: Family, encoder: ConfigDict):
        self.encoder, self.path, self.config = encoder, source.path, source.config
        self._source, self._match, self._family = source, match, family
        self._places = match.naming.places(layers=max(match.layers, 1))
        self._entries = {entry.path: entry for entry in match.naming.entries}

    def name(self, path: str) -> str:
        """What the source calls a parameter, in its first layer where that is part of a stack."""
        return self._name(self._entries[path].name.format(n=0))

    def shape(self, path: str, *, dimensions: int) -> tuple[int, ...] | None:
        """In the source; None where it is missing or has other dimensions, which `load` reports with all others."""
        tensor = self._source.tensors.get(self.name(path))
        return tensor.shape if tensor is not None and len(tensor.shape) == dimensions else None

    def shape_here(self, path: str, *, like: tuple[int, ...]) -> tuple[int, ...] | None:
        """As `shape`, with the axes of the parameter.

        Args:
          like: a shape of the parameter here.
        """
        layout, heads = self._entries[path].layout, self.encoder.heads
        shape = self.shape(path, dimensions=layout.to_torch(np.empty(like, np.float32), heads).ndim)
        return None if shape is None else layout.to_ours(np.empty(shape, np.float32), heads).shape

    def check_size(self, shape: tuple[int, ...] | None) -> None:
        """
        Args:
          shape: of a tensor whose last dimension is the width.

        Raises:
          UserError: the source has another width, depth, number of heads or activation.
        """
        path, part, encoder, names = self.path, self._family.part, self.encoder, self._family.config_names
        for field, said, theirs in (
            ("width", "is {} wide", encoder.width if shape is None else shape[-1]),
            ("layers", "has {} layers", self._match.layers),
            ("heads", "has {} heads", self.config.get(names.heads, encoder.heads)),
        ):
            if theirs != encoder[field]:
                flag = f"config.{part}.{field}"
                raise UserError(f"{path} {said.format(theirs)}; {flag}={encoder[field]}, give --{flag}={theirs}")
        ours, theirs = self._family.activation_of(encoder), self.config.get(names.activation)
        if theirs is not None and theirs not in ACTIVATION_NAMES[ours]:
            message = f"{path} computes with {names.activation}={theirs!r}"
            known = next((name for name, spellings in ACTIVATION_NAMES.items() if theirs in spellings), None)
            if known and self._family.activation_is_free:
                flag = f"config.{part}.activation"
                raise UserError(f"{message}; {flag}={ours!r}, give --{flag}={known}")
            exact = "the exact gelu" if ours == "gelu" else ours
            raise UserError(f"{message}; the layers here compute {exact}")

    def load(self, shapes: Shapes, *, resizable: Mapping[str, Resizable]) -> tuple[Flat, Report]:
        """All of `shapes` but the optional ones."""
        source, part, encoder = str(self.path), self._family.part, self.encoder
        entries = {path: entry for path, entry in self._entries.items() if path in shapes or not entry.optional}
        if set(entries) != set(shapes):
            raise ValueError(f"the entries do not cover {sorted(set(entries) ^ set(shapes))} of {part}")
        not_used = check_names(self._match, self._places, source=source)
        report = Report(
            encoder=part,
            source=source,
            files=list(self._source.files),
            naming=self._match.naming.title,
            prefix=self._match.prefix,
            tensors=len(self._source.tensors) - sum(map(len, not_used.values())),
            not_used=not_used,
        )
        if self._family.config_names.heads not in self.config:
            report.notes.append(
                f"the number of heads is not in the weights; config.{part}.heads={encoder.heads} is used"
            )
        if self._family.activation_is_free and self._family.config_names.activation not in self.config:
            report.notes.append(
                f"the activation is not in the weights; config.{part}.activation={encoder.activation!r} is used"
            )
        converted: dict[str, set[str]] = {}
        loaded: Flat = {}
        for path, entry in entries.items():
            stacked = path.startswith(STACK)
            names = [entry.name.format(n=n) for n in range(encoder.layers if stacked else 1)]
            if entry.optional and not all(
                name in self._places and self._name(name) in self._source.tensors for name in names
            ):
                report.initial.append(f"{part}/{path}")
                continue
            change = resizable.get(path)
            shape = shapes[path] if change is None else change.shape
            wanted = entry.layout.to_torch(np.empty(shape[1:] if stacked else shape, np.float32), encoder.heads).shape
            parts = [self._read(name, wanted=wanted, converted=converted) for name in names]
            value = np.stack([entry.layout.to_ours(part, encoder.heads) for part in parts])
            value = value if stacked else value[0]
            loaded[path] = np.ascontiguousarray(value if change is None else change.resize(value))
            assert loaded[path].shape == tuple(shapes[path]), path
            report.parameters += loaded[path].size
        report.converted = {dtype: len(names) for dtype, names in sorted(converted.items())}
        return loaded, report

    def _name(self, canonical: str) -> str:
        name = self._places[canonical].name
        return self._match.originals.get(name, name)

    def _read(
        self, canonical: str, *, wanted: tuple[int, ...], converted: dict[str, set[str]]
    ) -> Num[np.ndarray, "..."]:
        name, part = self._name(canonical), self._places[canonical].part
        tensor = self._source.tensors[name]
        whole = wanted if part is None else (3 * wanted[0], *wanted[1:])
        if tensor.shape != whole:
            raise UserError(f"{self.path}: {name} has the shape {tensor.shape}; the config needs {whole}")
        if tensor.dtype not in _FLOATS:
            raise UserError(f"{self.path}: {name} is {tensor.dtype}; weights of {', '.join(_FLOATS)} can be read")
        value = tensor.read().astype(np.float32)
        if not np.isfinite(value).all():
            raise UserError(f"{self.path}: {name} holds values that are not finite; fetch the weights again")
        if tensor.dtype != "float32":
            converted.setdefault(tensor.dtype, set()).add(name)
        return value if part is None else value[part * wanted[0] : (part + 1) * wanted[0]]
