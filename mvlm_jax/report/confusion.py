"""Which labels were taken for which."""

import dataclasses
from collections.abc import Mapping
from typing import Any

CONFUSION = "confusion"  # the metric of an evaluation that holds it
MOST_LABELS = 40  # of a matrix that is drawn; of a larger one the most frequent mistakes are listed
MISTAKES = 12  # that are listed


@dataclasses.dataclass(frozen=True)
class Confusion:
    """Counts of examples by true label (a row) and predicted label (a column)."""

    labels: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]

    @property
    def is_small(self) -> bool:
        return len(self.labels) <= MOST_LABELS

    def part(self, row: int, column: int) -> int:
        """Percent of the examples of a true label."""
        return round(100 * self.counts[row][column] / (sum(self.counts[row]) or 1))

    @property
    def mistakes(self) -> list[tuple[int, str, str]]:
        """(count, true label, predicted label) of the most frequent ones."""
        found = [
            (count, self.labels[row], self.labels[column])
            for row, counts in enumerate(self.counts)
            for column, count in enumerate(counts)
            if row != column and count
        ]
        return sorted(found, key=lambda one: -one[0])[:MISTAKES]


def confusion(content: Mapping[str, Any]) -> Confusion | None:
    """That of an evaluation; None where it has none.

    It is a mapping of true labels to mappings of predicted ones to counts, or a square of counts beside its labels.
    """
    found = content.get(CONFUSION)
    if isinstance(found, Mapping) and isinstance(found.get("counts"), list):
        return _square(found.get("labels", found.get("classes")), found["counts"])
    if isinstance(found, list):
        return _square(content.get("labels", content.get("class_names")), found)
    if not isinstance(found, Mapping) or not all(isinstance(row, Mapping) for row in found.values()):
        return None
    labels = tuple(dict.fromkeys([*found, *(label for row in found.values() for label in row)]))
    counts = tuple(tuple(int(found.get(true, {}).get(predicted, 0)) for predicted in labels) for true in labels)
    return Confusion(labels, counts) if labels else None


def _square(labels: Any, counts: list[Any]) -> Confusion | None:
    size = len(counts)
    if not size or not all(isinstance(row, list) and len(row) == size for row in counts):
        return None
    names = (
        tuple(map(str, labels)) if isinstance(labels, list) and len(labels) == size else tuple(map(str, range(size)))
    )
    return Confusion(names, tuple(tuple(map(int, row)) for row in counts))
