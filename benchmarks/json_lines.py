"""What was measured, in a file, a line of JSON for each row."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class JsonLines:
    """Adds rows to a file as soon as they are there; without a file they are dropped."""

    def __init__(self, file: Path | None, *, setup: Mapping[str, Any]):
        """
        Args:
          setup: what every row repeats.
        """
        self._file, self._setup = file.open("a") if file else None, setup

    def keep(self, **values: Any) -> None:
        if self._file:
            self._file.write(json.dumps({**self._setup, **values}) + "\n")
            self._file.flush()
