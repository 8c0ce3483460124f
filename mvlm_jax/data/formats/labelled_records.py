"""Prepared datasets of questions, statements and hypotheses."""

from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from mvlm_jax.data.labelled import LabelledExample, LabelledRow
from mvlm_jax.errors import UserError

FEATURES = ("images", "text", "answers", "kind", "group", "example_id")


class LabelledRecords:
    """A split of a prepared dataset, with its images left encoded."""

    def __init__(self, directory: Path, split: str) -> None:
        self._directory, self._split = directory, split
        self._open()

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> LabelledExample:
        record = self._records[index]
        return {
            "images": list(record["images"]),
            "text": _text(record["text"]),
            "answers": [_text(answer) for answer in record["answers"]],
            "kind": _text(record["kind"]),
            "group": _text(record["group"]),
            "example_id": _text(record["example_id"]),
        }

    def row(self, index: int) -> LabelledRow:
        example = self[index]
        # Its images have no files of their own.
        return LabelledRow(**{**example, "images": (), "answers": tuple(example["answers"])})

    def _open(self) -> None:
        builder = tfds.builder_from_directory(self._directory)
        missing = [name for name in FEATURES if name not in builder.info.features]
        if missing:
            raise UserError(
                f"dataset {self._directory} has no {', '.join(missing)} but {', '.join(builder.info.features)}; "
                f"a dataset of questions, statements or hypotheses has {', '.join(FEATURES)}"
            )
        try:
            self._records: Any = builder.as_data_source(self._split, decoders={"images": tfds.decode.SkipDecoding()})
        except (ValueError, KeyError) as error:
            raise UserError(
                f"dataset {builder.name!r} has no split {self._split!r}; its splits are "
                f"{', '.join(sorted(builder.info.splits))}"
            ) from error

    def __getstate__(self) -> dict[str, Any]:
        # Open files do not survive pickling.
        return {"_directory": self._directory, "_split": self._split}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()


def _text(value: bytes | str) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
