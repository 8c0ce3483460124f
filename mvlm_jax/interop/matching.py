"""Strict matching of a source's names with those that a naming allows."""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from mvlm_jax.errors import UserError
from mvlm_jax.interop.family import Family, Naming, Place

_NAMED_AT_MOST = 10
# In front of every name of a file that was saved from a wrapper, beside the prefixes of the families.
_WRAPPERS = ("module", "model", "_orig_mod", "backbone")


class Match(NamedTuple):
    naming: Naming
    prefix: str
    layers: int
    originals: Mapping[str, str]  # the source's names by the naming's


def recognise(names: Iterable[str], *, wanted: Sequence[Family], known: Sequence[Family], source: str) -> Match:
    """The naming that the names follow, and the names without prefixes and in today's spelling.

    Args:
      known: every family, of which `wanted` are those that the source may be of.

    Raises:
      UserError: they follow none of the namings, or carry a prefix that is not known.
    """
    prefixes = tuple(dict.fromkeys((*_WRAPPERS, *(prefix for family in known for prefix in family.prefixes))))
    namings = tuple(dict.fromkeys(naming for family in wanted for naming in family.namings))
    originals: dict[str, str] = {}
    for original in names:
        plain = re.sub(rf"^(?:(?:{'|'.join(prefixes)})\.)+", "", original)
        for old, new in (alias for naming in namings for alias in naming.aliases):
            plain = re.sub(old, new, plain)
        if plain in originals:
            raise UserError(
                f"{source} holds both {originals[plain]} and {original}, which both mean {plain}; "
                "save one encoder by itself"
            )
        originals[plain] = original
    plain_names = set(originals)
    naming = max(namings, key=lambda candidate: candidate.likeness(plain_names))
    others = [family for family in known if not set(family.namings) & set(namings)]
    other = _most_alike(plain_names, others, least=naming.likeness(plain_names))
    if other is not None or naming.coverage(plain_names) < 0.5:
        titles = ", ".join(naming.title for naming in namings)
        if other is None:
            raise UserError(f"{source} {_is_unknown(plain_names, titles=titles, known=known, prefixes=prefixes)}")
        _check_refused(plain_names, other[1], source=source)
        raise UserError(f"{source} {_is_other(*other, wanted=wanted, titles=titles)}")
    _check_refused(plain_names, naming, source=source)
    removed = {
        originals[place.name].removesuffix(place.name)
        for place in naming.places(layers=1).values()
        if place.name in originals and originals[place.name].endswith(place.name)
    }
    prefix = " ".join(sorted(removed))
    return Match(naming, prefix=prefix, layers=naming.depth(plain_names), originals=originals)


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


def _check_refused(names: set[str], naming: Naming, *, source: str) -> None:
    for name, reason in naming.refused:
        if name in names:
            raise UserError(f"{source} {reason.format(name=name)}")


def _most_alike(names: set[str], families: Sequence[Family], *, least: float) -> tuple[Family, Naming] | None:
    """The family and naming that the names follow more closely than a likeness of `least`; None: none of them."""
    candidates = [
        (naming.likeness(names), family, naming)
        for family in families
        for naming in family.namings
        if naming.coverage(names) >= 0.5
    ]
    likeness, family, naming = max(candidates, key=lambda candidate: candidate[0], default=(0.0, None, None))
    return (family, naming) if family and naming and likeness > least else None


def _is_other(family: Family, naming: Naming, *, wanted: Sequence[Family], titles: str) -> str:
    return f"is {_named(family)} ({naming.title}); {titles} is wanted here{instead(family, of=wanted[0].part)}"


def instead(family: Family, *, of: str) -> str:
    """What to change where a source is of this family and was given as a part `of` the model; the end of an error."""
    if family.part == of:
        return f"; give --config.{of}.kind={family.kind}"
    return f"; {_named(family)} is given as --config.init_from.{family.part.removesuffix('_encoder')}"


def _named(family: Family) -> str:
    article = "an" if family.part[0] in "aeiou" else "a"
    return f"{article} {family.part.replace('_', ' ')}"


def _is_unknown(names: set[str], *, titles: str, known: Sequence[Family], prefixes: Sequence[str]) -> str:
    """What a source is that follows no naming."""
    for rule, what in dict.fromkeys(each for family in known for each in family.not_read):
        if any(re.fullmatch(rule, name) for name in names):
            return f"is {what}; {titles} is wanted here"
    anchors = tuple(dict.fromkeys(family.anchor for family in known))
    for name in sorted(names):
        for anchor in anchors:
            if name.endswith(f".{anchor}"):
                legal = ", ".join(f"{prefix}." for prefix in prefixes)
                prefix = name.removesuffix(anchor)
                return f"has names behind the prefix {prefix!r}; without it, or behind {legal} they are read"
    first = ", ".join(sorted(names)[:3])
    return f"is none of these: {titles}; its {len(names)} tensors begin with {first}"
