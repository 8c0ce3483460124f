"""Checks of the texts that a caller gives."""

from collections.abc import Sequence
from typing import Any

from mvlm_jax.errors import UserError
from mvlm_jax.inference.images import described


def checked_texts(texts: Any, *, name: str = "texts") -> Sequence[str]:
    """
    Raises:
      UserError: it is no list of strings, or an empty one.
    """
    if isinstance(texts, str):
        raise UserError(f"{name} must be a list of strings; put a single one in brackets: [{texts!r:.60}]")
    if not isinstance(texts, list | tuple):
        raise UserError(f"{name} is {described(texts)}; give a list of strings")
    for place, text in enumerate(texts):
        if not isinstance(text, str):
            raise UserError(f"{name}[{place}] is {described(text)}; give a list of strings")
    if not texts:
        raise UserError(f"{name} is empty; give at least one")
    return texts


def checked_text(text: Any, *, name: str = "text") -> str:
    """
    Raises:
      UserError: it is not one string.
    """
    if not isinstance(text, str):
        what = "a list of strings" if isinstance(text, list | tuple) else described(text)
        raise UserError(f"{name} is {what}; give one string")
    return text


def checked_templates(templates: Any) -> Sequence[str]:
    """
    Raises:
      UserError: no list of strings with one {} each.
    """
    for template in checked_texts(templates, name="templates"):
        if template.count("{}") != 1:
            raise UserError(f"the template {template!r:.60} must hold {{}} once, in the place of the label")
    return templates


def checked_labels(labels: Any) -> Sequence[str]:
    """
    Raises:
      UserError: no list of at least two strings that differ.
    """
    checked_texts(labels, name="labels")
    for label in labels:
        if not label.strip():
            raise UserError("labels holds an empty string; give each a name")
    if len(set(labels)) < len(labels):
        twice = next(label for place, label in enumerate(labels) if label in labels[:place])
        raise UserError(f"labels holds {twice!r:.60} more than once")
    if len(labels) < 2:
        raise UserError(f"labels holds {labels[0]!r:.60} alone; give at least two to choose from")
    return labels


def checked_number(value: Any, *, name: str, least: int) -> int:
    """
    Raises:
      UserError: no whole number of at least `least`.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"{name}={described(value)} must be a whole number of at least {least}")
    return value
