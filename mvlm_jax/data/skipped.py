"""Counts of what is left out."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

IDS_SHOWN = 20


def in_words(counts: Mapping[str, int]) -> str:
    """Each reason with its count; empty where there is none."""
    return ", ".join(f"{reason}: {count}" for reason, count in sorted(counts.items()))


def left_out(reasons: Mapping[str, int]) -> dict[str, Any]:
    """For results: `skipped_images`, how many examples were left out, and `left_out`, the same by reason."""
    return {"skipped_images": sum(reasons.values()), "left_out": dict(reasons)}


class Skipped:
    """Counts per reason, with the first ids of each."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = defaultdict(int)
        self.ids: dict[str, list[str]] = defaultdict(list)

    def add(self, reason: str, identity: str) -> None:
        self.counts[reason] += 1
        if len(self.ids[reason]) < IDS_SHOWN:
            self.ids[reason].append(identity)

    def merge(self, other: Mapping[str, Mapping[str, Any]]) -> None:
        """Adds the counts and ids that `as_dict` of another one gave."""
        for reason, left_out in other.items():
            self.counts[reason] += left_out["count"]
            self.ids[reason] += left_out["ids"][: IDS_SHOWN - len(self.ids[reason])]

    def as_dict(self) -> dict[str, dict[str, Any]]:
        return {reason: {"count": self.counts[reason], "ids": self.ids[reason]} for reason in sorted(self.counts)}

    def __str__(self) -> str:
        return in_words(self.counts)


def left_out_of(source: object) -> Skipped:
    """The counts of what a source left out before any image was read; empty where it has none."""
    return getattr(source, "left_out", Skipped())
