"""What an evaluation could not use."""

from collections.abc import Mapping
from typing import Any


def left_out(reasons: Mapping[str, int]) -> dict[str, Any]:
    """For the results: `skipped_images`, how many examples are left out, and `left_out`, the same by reason."""
    return {"skipped_images": sum(reasons.values()), "left_out": dict(reasons)}
