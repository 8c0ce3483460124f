"""A family of published encoders: the module it builds, what its tensors are called, what a folder of it says."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
from flax import linen as nn
from jaxtyping import Float
from ml_collections import ConfigDict

from mvlm_jax.models.compute import Compute
from mvlm_jax.models.dropout import Rates
from mvlm_jax.models.image_encoder import ImageFormat

if TYPE_CHECKING:
    from mvlm_jax.interop.reader import Reader
    from mvlm_jax.interop.tensors import Tensors

STACK = "layers/block/"  # parameters of all layers in one array, the layer first
Shapes = Mapping[str, tuple[int, ...]]  # by parameter path within the encoder
Params = Mapping[str, Float[np.ndarray, "..."]]  # likewise


class Layout(NamedTuple):
    """How a parameter lies in torch and here: two functions of (array, heads), each the inverse of the other."""

    to_ours: Callable[[np.ndarray, int], np.ndarray]
    to_torch: Callable[[np.ndarray, int], np.ndarray]


def _patches_to_ours(x: Float[np.ndarray, "D C P P"], heads: int) -> Float[np.ndarray, "P*P*C D"]:
    return x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0])


def _patches_to_torch(x: Float[np.ndarray, "pixels D"], heads: int) -> Float[np.ndarray, "D 3 P P"]:
    side = round((x.shape[0] // 3) ** 0.5)
    return x.reshape(side, side, 3, x.shape[1]).transpose(3, 2, 0, 1)


SAME = Layout(lambda x, heads: x, lambda x, heads: x)
DENSE = Layout(lambda x, heads: x.T, lambda x, heads: x.T)
# Queries, keys and values: [D, H, D/H] and [H, D/H] here, [D, D] with the output first and [D] there.
HEADS_KERNEL = Layout(
    lambda x, heads: x.T.reshape(x.shape[1], heads, -1),
    lambda x, heads: x.reshape(x.shape[0], -1).T,
)
HEADS_BIAS = Layout(lambda x, heads: x.reshape(heads, -1), lambda x, heads: x.reshape(-1))
# The layer that merges the heads: [H, D/H, D] here.
MERGE_KERNEL = Layout(
    lambda x, heads: x.T.reshape(heads, -1, x.shape[0]),
    lambda x, heads: x.reshape(-1, x.shape[-1]).T,
)
# A convolution whose stride is its size, and the dense layer over (row, column, channel) that it is.
PATCHES = Layout(_patches_to_ours, _patches_to_torch)


class Entry(NamedTuple):
    """A parameter beside its tensor."""

    path: str  # within the encoder, as "layers/block/attention/query/kernel"
    name: str  # "{n}" stands for the layer
    layout: Layout
    optional: bool = False


def dense(path: str, name: str) -> tuple[Entry, ...]:
    return Entry(f"{path}/kernel", f"{name}.weight", DENSE), Entry(f"{path}/bias", f"{name}.bias", SAME)


def norm(path: str, name: str) -> tuple[Entry, ...]:
    return Entry(f"{path}/scale", f"{name}.weight", SAME), Entry(f"{path}/bias", f"{name}.bias", SAME)


def layer(*, attention: str, norms: tuple[str, str]) -> tuple[Entry, ...]:
    """A layer as BERT and ViT of transformers name it."""
    start = "encoder.layer.{n}."
    projections = [
        entry
        for part in ("query", "key", "value")
        for entry in (
            Entry(f"{STACK}attention/{part}/kernel", f"{start}{attention}.{part}.weight", HEADS_KERNEL),
            Entry(f"{STACK}attention/{part}/bias", f"{start}{attention}.{part}.bias", HEADS_BIAS),
        )
    ]
    return (
        *projections,
        Entry(f"{STACK}attention/out/kernel", f"{start}attention.output.dense.weight", MERGE_KERNEL),
        Entry(f"{STACK}attention/out/bias", f"{start}attention.output.dense.bias", SAME),
        *norm(f"{STACK}attention_norm", start + norms[0]),
        *norm(f"{STACK}mlp_norm", start + norms[1]),
        *dense(f"{STACK}mlp/up", f"{start}intermediate.dense"),
        *dense(f"{STACK}mlp/down", f"{start}output.dense"),
    )


HEADS = (r"(classifier|qa_outputs)\..*", "a classifier of another task")
POOLER = (r"pooler\..*", "the pooler, which only a classifier reads")


class Place(NamedTuple):
    """Where a tensor of the entries is found in a source."""

    name: str
    part: int | None = None  # of three stacked on the first axis


class Naming(NamedTuple):
    """What the tensors of a family are called in one library."""

    title: str
    entries: tuple[Entry, ...]
    replacements: tuple[tuple[str, str], ...]  # in the entries' names, in order
    ignored: tuple[tuple[str, str], ...]  # (regex over whole names, why the tensor is not used)
    refused: tuple[tuple[str, str], ...] = ()  # (name, why a source that has it cannot be imported)
    fused: tuple[str, ...] = ()  # what follows "attn." in three names that are one tensor, "attn.qkv"
    optional: bool = True  # whether the optional entries can be there
    aliases: tuple[tuple[str, str], ...] = ()  # (regex, replacement) for old spellings

    def places(self, *, layers: int) -> dict[str, Place]:
        """Where each tensor is, by the entries' name with "{n}" filled in."""
        names = [entry.name for entry in self.entries if self.optional or not entry.optional]
        filled = [name.format(n=n) for name in names for n in (range(layers) if "{n}" in name else (0,))]
        return {name: self._place(name) for name in filled}

    def depth(self, names: Iterable[str]) -> int:
        """The number of layers that the names belong to."""
        stacked = {self._place(entry.name).name.partition("{n}")[0] for entry in self.entries if "{n}" in entry.name}
        layer = re.compile(rf"(?:{'|'.join(map(re.escape, stacked))})(\d+)\.")
        return 1 + max((int(match[1]) for name in names if (match := layer.match(name))), default=-1)

    def likeness(self, names: set[str]) -> float:
        """The part of the legal names that are there, 0 to 1."""
        legal = {place.name for place in self.places(layers=min(max(self.depth(names), 1), 1000)).values()}
        return len(legal & names) / len(legal)

    def _place(self, name: str) -> Place:
        for old, new in self.replacements:
            name = name.replace(old, new)
        for part, fragment in enumerate(self.fused):
            if f"attn.{fragment}." in name:
                return Place(name.replace(f"attn.{fragment}.", "attn.qkv."), part)
        return Place(name)


class ConfigNames(NamedTuple):
    """What a folder's config.json calls the sizes of an encoder."""

    width: str = "hidden_size"
    layers: str = "num_hidden_layers"
    heads: str = "num_attention_heads"
    hidden: str = "intermediate_size"
    activation: str = "hidden_act"
    epsilon: str = "layer_norm_eps"


class Resizable(NamedTuple):
    """A parameter that a source may have in another shape."""

    path: str
    shape: tuple[int, ...]  # in the source, axes as here
    resize: Callable[[np.ndarray], np.ndarray]
    change: str  # for the report; empty: the shape is the same


@dataclasses.dataclass(frozen=True)
class Family:
    """What is common to image and text encoders; `build` makes `module` from the part's config."""

    kind: str  # in the config
    namings: tuple[Naming, ...]  # of published weights; an export follows the first
    model_types: tuple[str, ...]  # that a folder's config.json may have; an export has the first
    architecture: str  # the class of transformers that loads an export
    prefixes: tuple[str, ...]  # in front of the names of a file that was saved from a larger model
    anchor: str  # a tensor in front of whose name an unknown prefix is recognised
    module: Callable[..., nn.Module]
    wanted: str = ""  # what a source must be, in an error; empty: of this kind
    activation: str = "gelu"
    config_names: ConfigNames = ConfigNames()
    not_exported: tuple[str, ...] = ()  # parameters that `architecture` has no place for

    part: ClassVar[str]  # of the model and of its config

    def sized(self, encoder: ConfigDict, *, compute: Compute, **fields: Any) -> nn.Module:
        """The module with the sizes of the part's config, and with fields of its own."""
        sizes = {name: encoder[name] for name in ("width", "heads", "layers", "mlp_ratio")}
        trained = encoder.trained_layers
        frozen = 0 if trained < 0 else max(encoder.layers - trained, 0)
        rates = Rates(encoder.dropout, encoder.stochastic_depth)
        return self.module(**sizes, compute=compute, frozen_layers=frozen, rates=rates, **fields)

    def fit(self, reader: "Reader", *, shapes: Shapes) -> list[Resizable]:
        """What may have another shape in the source.

        Raises:
          UserError: the source cannot become parameters of these shapes.
        """
        raise NotImplementedError

    def notes(self, source: "Tensors", *, encoder: ConfigDict, image: ImageFormat) -> list[str]:
        """Differences that the import does not refuse."""
        raise NotImplementedError

    def epsilon_note(self, source: "Tensors", *, ours: float) -> list[str]:
        theirs = source.config.get(self.config_names.epsilon, ours)
        return [] if theirs == ours else [f"the source's norms add {theirs:g} to the variance, the ones here {ours:g}"]
