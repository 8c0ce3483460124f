"""Parameters in two parts: the ones that are trained, and the frozen ones, which are not differentiated."""

import dataclasses
import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array

from mvlm_jax.errors import UserError
from mvlm_jax.training.rules import match_rules
from mvlm_jax.training.task import Objective, Params, Rows, Sums

WHOLE = -1  # in place of a number of layers: all of the parameter


class Parts(NamedTuple):
    """Nested dictionaries, each without the paths that it has nothing of.

    A stack of layers of which only the first ones are frozen is in both, cut along its leading axis.
    """

    trained: Params
    frozen: Params


@dataclasses.dataclass(frozen=True)
class Partition:
    """Which parameters are frozen."""

    frozen: Mapping[str, int] = dataclasses.field(default_factory=dict)  # path: the first rows, or WHOLE

    def split(self, params: Params, *, rows: Callable[[Any, slice], Any] = lambda leaf, part: leaf[part]) -> Parts:
        """
        Args:
          params: the whole tree, of arrays or of what stands for them.
          rows: takes rows of a leaf.
        """
        if not self.frozen:
            return Parts(params, {})
        trained, frozen = {}, {}
        for path, leaf in _flat(params).items():
            first = self.frozen.get(path, 0)
            if first != WHOLE:
                trained[path] = rows(leaf, slice(first, None)) if first else leaf
            if first:
                frozen[path] = leaf if first == WHOLE else rows(leaf, slice(first))
        return Parts(unflatten_dict(trained, sep="/"), unflatten_dict(frozen, sep="/"))

    def split_shardings(self, shardings: Params) -> Parts:
        """`split` of shardings, none of which cuts the axis of layers."""
        return self.split(shardings, rows=lambda sharding, part: sharding)


ALL_TRAINED = Partition()


def join(parts: Parts) -> Params:
    """Inverse of `Partition.split`."""
    if not parts.frozen:
        return parts.trained
    trained, frozen = _flat(parts.trained), _flat(parts.frozen)
    both = {path: jnp.concatenate([frozen[path], trained[path]]) for path in frozen.keys() & trained.keys()}
    return unflatten_dict(trained | frozen | both, sep="/")


def with_trained(params: Params, trained: Params) -> Params:
    """`params` with other values for what is trained of them, whole parameters or the last rows."""
    leaves, others = _flat(params), _flat(trained)
    parts = {path: (leaves[path], leaf) for path, leaf in others.items() if leaf.ndim and len(leaf) < len(leaves[path])}
    # One program, in which each process keeps its own part of what others share.
    shardings = {path: whole.sharding for path, (whole, _) in parts.items()}
    joined = jax.jit(_with_last_rows, out_shardings=shardings)(parts) if parts else {}
    return unflatten_dict(leaves | others | joined, sep="/")


def _with_last_rows(parts: dict[str, tuple[Array, Array]]) -> dict[str, Array]:
    return {path: jnp.concatenate([whole[: len(whole) - len(last)], last]) for path, (whole, last) in parts.items()}


@dataclasses.dataclass(frozen=True)
class OfParts:
    """An `Objective` whose parameters come in `Parts`."""

    whole: Objective

    @property
    def weights(self) -> Mapping[str, float]:
        return self.whole.weights

    @property
    def dtype(self) -> Any:
        return self.whole.dtype

    @property
    def group(self) -> int:
        return self.whole.group

    def row_losses(self, params: Parts, rows: Rows) -> tuple[Sums, Rows]:
        return self.whole.row_losses(join(params), rows)

    def embed(self, params: Parts, rows: Rows) -> Rows:
        return self.whole.embed(join(params), rows)

    def batch_losses(self, params: Parts, embeddings: Rows, rows: Rows) -> Sums:
        return self.whole.batch_losses(join(params), embeddings, rows)


def partition_of(params: Params, *, patterns: Sequence[str], rules: Sequence[tuple[str, int]]) -> Partition:
    """
    Args:
      params: parameters or their shapes.
      patterns: regular expressions over whole paths of parameters that are frozen, `config.optimizer.frozen`.
      rules: ordered (regular expression, how many of the first layers are frozen, or WHOLE) pairs.

    Raises:
      UserError: a pattern matches nothing, or nothing is left to train.
    """
    shapes = _flat(params)
    matching = [(pattern, WHOLE) for pattern in patterns if _check(pattern, list(shapes))]
    first = _flat(match_rules([*matching, *rules, (r".*", 0)], params))
    if all(count == WHOLE for count in first.values()):
        raise UserError(
            f"config.optimizer.frozen={tuple(patterns)} leaves none of {len(first)} parameters to train; "
            "freeze fewer of them"
        )
    return Partition({path: count for path, count in first.items() if count})


def _check(pattern: str, paths: Sequence[str]) -> bool:
    if not any(re.fullmatch(pattern, path) for path in paths):
        near = ", ".join(_near(pattern, paths))
        raise UserError(f"config.optimizer.frozen: {pattern!r} matches the whole path of no parameter; near it: {near}")
    return True


def _near(pattern: str, paths: Sequence[str]) -> list[str]:
    """A few expressions that do match: paths, and parts of the model with all that they have."""
    parts = {f"{path[:end]}/.*" for path in paths for end in range(len(path)) if path[end] == "/"}
    return difflib.get_close_matches(pattern, [*sorted(parts), *paths], n=3, cutoff=0.0)


def _flat(params: Params) -> dict[str, Any]:
    return flatten_dict(params, sep="/")
