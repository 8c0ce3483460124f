"""What an import loaded, and what it did with every tensor."""

import dataclasses
from collections.abc import Iterable, Sequence

from mvlm_jax.interop.parameters import Flat, part_of
from mvlm_jax.training.task import StartWeights


@dataclasses.dataclass
class Report:
    """Of one encoder."""

    encoder: str
    source: str
    files: list[str]
    naming: str
    revision: str = ""  # the commit of a source on the Hub
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
            *([f"  revision: {self.revision}"] if self.revision else []),
            *(f"  {kind} made float32: {count} tensors" for kind, count in self.converted.items()),
            *(f"  resized: {change}" for change in self.resized),
            *(f"  not used: {_shortened(names)}: {reason}" for reason, names in self.not_used.items()),
            *(f"  at its initial value: {path}" for path in self.initial),
            *(f"  note: {note}" for note in self.notes),
        ]


def start_weights(params: Flat, reports: Sequence[Report], *, shapes: Iterable[str]) -> StartWeights:
    """What was loaded, with the parts of the model that nothing was loaded into.

    Args:
      shapes: every parameter of the model.
    """
    initial = sorted(set(map(part_of, shapes)) - set(map(part_of, params)))
    lines = [line for report in reports for line in report.lines()]
    return StartWeights(
        params,
        report={"loaded": list(map(dataclasses.asdict, reports)), "at_initial_values": initial},
        lines=[*lines, f"parts at their initial values: {', '.join(initial) or 'none'}"],
    )


def _shortened(names: list[str]) -> str:
    more = len(names) - 3
    return ", ".join(names[:3]) + (f" and {more} more" if more > 0 else "")
