"""Strict matching of a source's names with those that a naming allows."""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from mvlm_jax.errors import UserError
from mvlm_jax.interop.entries import IMAGE
from mvlm_jax.interop.namings import (
    IMAGE_NAMINGS,
    PREFIXES,
    TEXT_NAMINGS,
    Naming,
    Place,
    depth,
    likeness,
    stripped,
)

_NAMED_AT_MOST = 10
_ANCHORS = ("cls_token", "embeddings.word_embeddings.weight")


class Match(NamedTuple):
    naming: Naming
    prefix: str
    layers: int
    originals: Mapping[str, str]  # the source's names by the naming's


def recognise(names: Iterable[str], *, namings: Sequence[Naming], source: str) -> Match:
    """The naming that the names follow, and the names without prefixes and in today's spelling.

    Raises:
      UserError: they follow none of `namings`, or carry a prefix that is not known.
    """
    originals: dict[str, str] = {}
    for original in names:
        plain = stripped(original)
        for old, new in (alias for naming in namings for alias in naming.aliases):
            plain = re.sub(old, new, plain)
        if plain in originals:
            raise UserError(
                f"{source} holds both {originals[plain]} and {original}, which both mean {plain}; "
                "save one encoder by itself"
            )
        originals[plain] = original
    plain_names = set(originals)
    naming = max(namings, key=lambda candidate: likeness(candidate, plain_names))
    if likeness(naming, plain_names) < 0.5:
        raise UserError(_not_recognised(plain_names, namings=namings, source=source))
    _refuse_distilled(plain_names, source=source)
    prefixes = {
        originals[place.name].removesuffix(place.name)
        for place in naming.places(layers=1).values()
        if place.name in originals and originals[place.name].endswith(place.name)
    }
    return Match(naming, prefix=" ".join(sorted(prefixes)), layers=depth(plain_names), originals=originals)


def check_names(match: Match, places: Mapping[str, Place], *, source: str) -> dict[str, list[str]]:
    """The source's names that are not used, for each reason.

    Raises:
      UserError: a tensor that no rule explains, or a missing one; up to ten by name, each with the nearest legal one.
    """
    optional = {entry.name for entry in match.naming.entries if entry.optional}
    legal = {place.name: name for name, place in places.items()}
    not_used: dict[str, list[str]] = {}
    unexpected = []
    for name in match.originals:
        if name in legal:
            continue
        reason = next((why for rule, why in match.naming.ignored if re.fullmatch(rule, name)), None)
        if reason is None:
            unexpected.append(name)
        else:
            not_used.setdefault(reason, []).append(match.originals[name])
    missing = [name for name, canonical in legal.items() if name not in match.originals and canonical not in optional]
    if unexpected or missing:
        offenders = [_offender(name, "unexpected", nearest=[*missing, *legal]) for name in unexpected]
        offenders += [_offender(name, "missing", nearest=unexpected) for name in missing]
        more = len(offenders) - _NAMED_AT_MOST
        raise UserError(
            f"{source} does not fit ({match.naming.title}; {len(unexpected)} tensors unexpected, {len(missing)} "
            f"missing): {'; '.join(offenders[:_NAMED_AT_MOST])}{f'; and {more} more' if more > 0 else ''}"
        )
    return not_used


def _offender(name: str, fault: str, *, nearest: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, dict.fromkeys(nearest), n=1, cutoff=0.8)
    return f"{fault} {name}" + (f" (nearest: {close[0]})" if close else "")


def _not_recognised(names: set[str], *, namings: Sequence[Naming], source: str) -> str:
    wanted = ", ".join(naming.title for naming in namings)
    others = [naming for naming in (*IMAGE_NAMINGS, *TEXT_NAMINGS) if naming not in namings]
    for naming in others:
        if likeness(naming, names) >= 0.5:
            kind = "an image encoder" if naming.entries is IMAGE else "a text encoder"
            return f"{source} is {kind} ({naming.title}); {wanted} is wanted here"
    for name in sorted(names):
        for anchor in _ANCHORS:
            if name.endswith(f".{anchor}"):
                prefix = name.removesuffix(anchor)
                known = ", ".join(f"{known}." for known in PREFIXES)
                return f"{source} has names behind the prefix {prefix!r}; without it, or behind {known} they are read"
    first = ", ".join(sorted(names)[:3])
    return f"{source} is none of these: {wanted}; its {len(names)} tensors begin with {first}"


def _refuse_distilled(names: set[str], *, source: str) -> None:
    for name in ("dist_token", "embeddings.distillation_token"):
        if name in names:
            raise UserError(
                f"{source} is a distilled DeiT: its layers expect {name} beside the class token; "
                "give a plain ViT, DeiT or MAE encoder"
            )
