"""What an import loaded, and what it did with every tensor."""

import dataclasses
from typing import Any, NamedTuple

from mvlm_jax.interop.parameters import Flat


@dataclasses.dataclass
class Report:
    """Of one encoder."""

    encoder: str
    source: str
    files: list[str]
    naming: str
    prefix: str = ""  # in front of the source's names; empty: none
    tensors: int = 0  # of the source that are used
    parameters: int = 0  # numbers loaded
    converted: dict[str, int] = dataclasses.field(default_factory=dict)  # tensors of each type made float32
    resized: list[str] = dataclasses.field(default_factory=list)
    not_used: dict[str, list[str]] = dataclasses.field(default_factory=dict)  # names for each reason
    initial: list[str] = dataclasses.field(default_factory=list)  # parameters the source does not have
    notes: list[str] = dataclasses.field(default_factory=list)

    def lines(self) -> list[str]:
        """For a reader, the most important first."""
        prefix = f", names without {self.prefix!r}" if self.prefix else ""
        loaded = f"{self.tensors} tensors, {self.parameters / 1e6:.1f}M parameters from {self.source}"
        return [
            f"{self.encoder}: {loaded} ({self.naming}{prefix})",
            *(f"  {kind} made float32: {count} tensors" for kind, count in self.converted.items()),
            *(f"  resized: {change}" for change in self.resized),
            *(f"  not used: {_shortened(names)}: {reason}" for reason, names in self.not_used.items()),
            *(f"  at its initial value: {path}" for path in self.initial),
            *(f"  note: {note}" for note in self.notes),
        ]


class Imported(NamedTuple):
    params: Flat  # by path within the whole model
    reports: list[Report]
    initial: list[str]  # the parts of the model that nothing was loaded into

    def to_dict(self) -> dict[str, Any]:
        return {"loaded": list(map(dataclasses.asdict, self.reports)), "at_initial_values": self.initial}

    def lines(self) -> list[str]:
        """For a reader."""
        return [line for report in self.reports for line in report.lines()] + [
            f"parts at their initial values: {', '.join(self.initial) or 'none'}"
        ]


def _shortened(names: list[str]) -> str:
    more = len(names) - 3
    return ", ".join(names[:3]) + (f" and {more} more" if more > 0 else "")
