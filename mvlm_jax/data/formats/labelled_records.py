"""Prepared datasets of questions, statements and hypotheses."""

from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from array_record.python.array_record_data_source import ArrayRecordDataSource
from tensorflow_datasets.proto import tf_example_pb2

from mvlm_jax.data.labelled import LabelledExample, LabelledRow
from mvlm_jax.errors import UserError

FEATURES = ("images", "text", "answers", "kind", "group", "example_id")


class LabelledRecords:
    """A split, or a slice of one such as `train[:10%]`, of a prepared dataset, with its images left encoded.

    Raises:
      UserError: other features, other files, or no such split.
    """

    def __init__(self, directory: Path, split: str) -> None:
        self._directory, self._split = directory, split
        self._open()

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> LabelledExample:
        # TFDS' own reader cannot leave the images of a list encoded.
        features = tf_example_pb2.Example.FromString(self._records[index]).features.feature

        def texts(name: str) -> list[str]:
            return [value.decode("utf-8", "replace") for value in features[name].bytes_list.value]

        return {
            "images": list(features["images"].bytes_list.value),
            "text": texts("text")[0],
            "answers": texts("answers"),
            "kind": texts("kind")[0],
            "group": texts("group")[0],
            "example_id": texts("example_id")[0],
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
        if builder.info.file_format.value != "array_record":
            raise UserError(f"dataset {self._directory} is not in ArrayRecord files; prepare it anew")
        try:
            files = builder.info.splits[self._split].file_instructions
        except (ValueError, KeyError) as error:
            raise UserError(
                f"dataset {builder.name!r} has no split {self._split!r}; its splits are "
                f"{', '.join(sorted(builder.info.splits))}"
            ) from error
        self._records = ArrayRecordDataSource(files)

    def __getstate__(self) -> dict[str, Any]:
        # Open files do not survive pickling.
        return {"_directory": self._directory, "_split": self._split}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()
