"""A family of published encoders: the module it builds, what its tensors are called, what a folder of it says."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
from flax import linen as nn
from jaxtyping import Float
from ml_collections import ConfigDict

from mvlm_jax.errors import UserError
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
# Tokens and tables that have leading axes of one here, and fewer of them or none there.
TOKEN = Layout(lambda x, heads: x.reshape(1, 1, -1), lambda x, heads: x.reshape(-1))
TOKEN_ROW = Layout(lambda x, heads: x.reshape(1, 1, -1), lambda x, heads: x.reshape(1, -1))
TABLE = Layout(lambda x, heads: x[None], lambda x, heads: x[0])
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


def named_layer(
    *,
    projections: tuple[str, str, str, str],
    norms: tuple[str, str],
    mlp: tuple[str, str] = ("intermediate.dense", "output.dense"),
    start: str = "encoder.layer.{n}.",
) -> tuple[Entry, ...]:
    """The parameters of a layer.

    Args:
      projections: names of query, key, value and the layer that merges the heads.
      norms: of the attention's and the MLP's norm.
      mlp: of its two layers.
      start: what all the names begin with.
    """
    into_heads = [
        entry
        for part, name in zip(("query", "key", "value"), projections)
        for entry in (
            Entry(f"{STACK}attention/{part}/kernel", f"{start}{name}.weight", HEADS_KERNEL),
            Entry(f"{STACK}attention/{part}/bias", f"{start}{name}.bias", HEADS_BIAS),
        )
    ]
    return (
        *into_heads,
        Entry(f"{STACK}attention/out/kernel", f"{start}{projections[3]}.weight", MERGE_KERNEL),
        Entry(f"{STACK}attention/out/bias", f"{start}{projections[3]}.bias", SAME),
        *norm(f"{STACK}attention_norm", start + norms[0]),
        *norm(f"{STACK}mlp_norm", start + norms[1]),
        *dense(f"{STACK}mlp/up", start + mlp[0]),
        *dense(f"{STACK}mlp/down", start + mlp[1]),
    )


def layer(*, attention: str, norms: tuple[str, str]) -> tuple[Entry, ...]:
    """A layer as BERT and ViT of transformers name it."""
    projections = f"{attention}.query", f"{attention}.key", f"{attention}.value", "attention.output.dense"
    return named_layer(projections=projections, norms=norms)


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
    fused: tuple[str, ...] = ()  # what follows "attn." in three names that are one tensor
    fused_as: str = "attn.qkv."  # what stands for "attn.", one of `fused` and "." in the name of that tensor
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
        """Part of the names shared, of all names that are required here or present there, 0 to 1.

        Names that `ignored` explains do not count.
        """
        legal = self._legal(names)
        explained = {name for name in names - legal if any(re.fullmatch(rule, name) for rule, _ in self.ignored)}
        return len(legal & names) / len(self._required(names) | (names - explained))

    def coverage(self, names: set[str]) -> float:
        """Part of the required names that is present, 0 to 1."""
        required = self._required(names)
        return len(required & names) / len(required)

    def _legal(self, names: set[str]) -> set[str]:
        """Every name that an encoder as deep as these names may have."""
        # A damaged source may name any layer.
        layers = min(max(self.depth(names), 1), 1000)
        return {place.name for place in self.places(layers=layers).values()}

    def _required(self, names: set[str]) -> set[str]:
        """Those of the legal names without which it is incomplete."""
        return self._replace(optional=False)._legal(names)

    def _place(self, name: str) -> Place:
        for old, new in self.replacements:
            name = name.replace(old, new)
        for part, fragment in enumerate(self.fused):
            if f"attn.{fragment}." in name:
                return Place(name.replace(f"attn.{fragment}.", self.fused_as), part)
        return Place(name)


# As a config.json says it.
ACTIVATION_NAMES = {
    "gelu": ("gelu", "gelu_python"),
    "quick_gelu": ("quick_gelu",),
    "gelu_tanh": ("gelu_pytorch_tanh", "gelu_new", "gelu_python_tanh", "gelu_fast"),
}


class ConfigNames(NamedTuple):
    """What a folder's config.json calls the sizes of an encoder."""

    width: str = "hidden_size"
    layers: str = "num_hidden_layers"
    heads: str = "num_attention_heads"
    hidden: str = "intermediate_size"  # empty: it is not said
    activation: str = "hidden_act"
    epsilon: str = "layer_norm_eps"  # empty: it is not said


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
    model_types: tuple[
        str, ...
    ]  # that a folder's config.json may have; an export has the first unless `model_type_of` says so
    architecture: str  # the class of transformers that loads an export
    prefixes: tuple[str, ...]  # in front of the names of a file that was saved from a larger model
    anchor: str  # a tensor in front of whose name an unknown prefix is recognised
    module: Callable[..., nn.Module]
    wanted: str = ""  # what a source must be, in an error; empty: of this kind
    activation: str = "gelu"  # of the MLPs, a key of `ACTIVATION_NAMES`
    activation_is_free: bool = False  # whether the config says which
    config_names: ConfigNames = ConfigNames()
    config_part: str = ""  # of a larger model's config.json, which describes the encoder
    config_defaults: tuple[tuple[str, Any], ...] = ()  # what a config.json means by a field that it leaves out
    not_exported: tuple[str, ...] = ()  # parameters that `architecture` has no place for
    export_prefix: str = ""  # in front of the names in an export
    pooling_layer: bool = True  # whether `architecture` has one unless it is told otherwise
    not_read: tuple[tuple[str, str], ...] = ()  # (regex over a name, what a source is that has it), of no family

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

    def config_of(self, source: "Tensors") -> Mapping[str, Any]:
        """What a folder's config.json says of the encoder.

        Raises:
          UserError: what it says of the part that is the encoder is no object.
        """
        said = source.config
        if said.get("model_type") not in self.model_types:
            return said  # of no folder of transformers
        own = said.get(self.config_part, said)
        if not isinstance(own, Mapping):
            raise UserError(
                f"{source.path} has {self.config_part}={own!r} in its config.json; an object with the sizes of the "
                "encoder is needed"
            )
        return dict(self.config_defaults) | dict(own)

    def activation_of(self, encoder: ConfigDict) -> str:
        return encoder.activation if self.activation_is_free else self.activation

    def architecture_of(self, encoder: ConfigDict) -> str:
        """The class of transformers that loads an export."""
        return self.architecture

    def model_type_of(self, encoder: ConfigDict) -> str:
        """What the config.json of an export says that it is."""
        return self.model_types[0]

    def notes(self, source: "Tensors", *, encoder: ConfigDict, image: ImageFormat) -> list[str]:
        """Differences that the import does not refuse."""
        raise NotImplementedError

    def epsilon_note(self, source: "Tensors", *, ours: float) -> list[str]:
        theirs = source.number(self.config_names.epsilon)
        return (
            []
            if theirs in (None, ours)
            else [f"the source's norms add {theirs:g} to the variance, the ones here {ours:g}"]
        )
