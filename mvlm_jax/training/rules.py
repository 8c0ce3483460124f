"""Ordered (regular expression, value) rules over parameter paths."""

import re
from collections.abc import Sequence
from typing import Any

import jax
from jaxtyping import PyTree

_NAMED_AT_MOST = 10


def path_of(key_path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(key_path, simple=True, separator="/")


def match_rules(rules: Sequence[tuple[str, Any]], tree: PyTree) -> PyTree:
    """For each leaf the value of the first rule whose expression matches its whole path.

    Raises:
      ValueError: parameters that no rule covers, by name.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
    paths = [path_of(key_path) for key_path, _ in leaves]
    matches = {path: [value for pattern, value in rules if re.fullmatch(pattern, path)][:1] for path in paths}
    uncovered = [path for path in paths if not matches[path]]
    if uncovered:
        more = len(uncovered) - _NAMED_AT_MOST
        names = ", ".join(uncovered[:_NAMED_AT_MOST]) + (f" and {more} more" if more > 0 else "")
        raise ValueError(f"no rule covers {len(uncovered)} of {len(paths)} parameters: {names}")
    return jax.tree.unflatten(structure, [matches[path][0] for path in paths])
