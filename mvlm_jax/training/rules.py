"""Ordered (regular expression, value) rules over parameter paths."""

import re
from collections.abc import Sequence
from typing import Any, TypeVar

import jax
from jaxtyping import PyTree

Value = TypeVar("Value")

_NAMED_AT_MOST = 10


def path_of(key_path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(key_path, simple=True, separator="/")


def first_match(rules: Sequence[tuple[str, Value]], path: str) -> Value:
    """The value of the first rule whose expression matches the whole path (`re.fullmatch`).

    Raises:
      ValueError: no rule matches.
    """
    for pattern, value in rules:
        if re.fullmatch(pattern, path):
            return value
    raise ValueError(f"no rule covers the parameter {path}")


def match_rules(rules: Sequence[tuple[str, Any]], tree: PyTree) -> PyTree:
    """The tree of the values that the rules give to its leaves.

    Raises:
      ValueError: parameters that no rule covers, by name.
    """
    paths = [path_of(key_path) for key_path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    uncovered = [path for path in paths if not any(re.fullmatch(pattern, path) for pattern, _ in rules)]
    if uncovered:
        more = len(uncovered) - _NAMED_AT_MOST
        names = ", ".join(uncovered[:_NAMED_AT_MOST]) + (f" and {more} more" if more > 0 else "")
        raise ValueError(f"no rule covers {len(uncovered)} of {len(paths)} parameters: {names}")
    return jax.tree_util.tree_map_with_path(lambda key_path, _: first_match(rules, path_of(key_path)), tree)
