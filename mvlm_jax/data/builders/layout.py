"""What the builders of published collections share."""

from collections.abc import Sequence
from pathlib import Path

from mvlm_jax.errors import UserError


def check_layout(directory: Path, *, dataset: str, parts: Sequence[str]) -> None:
    """
    Raises:
      UserError: says which part of the published layout is not there.
    """
    if not directory.is_dir():
        raise UserError(f"--source={str(directory)!r} is not a directory; give the one that holds {', '.join(parts)}")
    missing = [name for name in parts if not (directory / name).exists()]
    if missing:
        raise UserError(f"--source={str(directory)!r} has no {' and no '.join(missing)}, which {dataset} is read from")
