"""Ids of examples."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc


def id_text(value: Any) -> str:
    """An id as text; empty for null, NaN and blanks, which many examples would share."""
    if value is None or value != value:
        return ""
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    return text if text.strip() else ""


def distinct(keys: pa.Array, *, files: Sequence[int], names: Sequence[str]) -> pa.Array:
    """Makes keys unique: a repeated one gets the name of its file as a prefix, and a number where that is not enough.
    The ids of a file do not depend on later files.

    Args:
      files: number of the file that each key is from.
      names: of the files.
    """
    if len(pc.unique(keys)) == len(keys):
        return keys
    taken: set[str] = set()
    times: Counter[str] = Counter()
    ids = []
    for key, file in zip(keys.to_pylist(), files):
        text = key
        while text in taken:
            base = f"{names[file]}/{key}"
            times[base] += 1
            text = base if times[base] == 1 else f"{base}#{times[base]}"
        taken.add(text)
        ids.append(text)
    return pa.array(ids, pa.large_string())
