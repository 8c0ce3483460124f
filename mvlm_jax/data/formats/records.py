"""ArrayRecord files of serialized `tf.train.Example`, as TFDS and `mvlm prepare` write them."""

import dataclasses
import glob
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import tensorflow_datasets as tfds
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordReader
from google.protobuf import json_format
from google.protobuf.message import DecodeError
from tensorflow_datasets.proto import tf_example_pb2

from mvlm_jax.data.examples import Example
from mvlm_jax.errors import UserError

FEATURES = ("image", "captions", "image_id")


@dataclasses.dataclass(frozen=True)
class Records:
    """Consecutive records of one file; the fields are the ones that array_record asks for."""

    filename: str
    skip: int
    take: int
    examples_in_shard: int
    ids: str = ""  # Arrow file with the ids of the whole split; empty: there is none
    ids_start: int = 0  # where the ids of these records begin in it


class RecordSource:
    """Pairs in ArrayRecord files; a file is opened when the first of its records is asked for."""

    features = FEATURES  # the last one is the id
    holds = "a pair dataset"

    def __init__(self, parts: Sequence[Records]) -> None:
        self._parts = [part for part in parts if part.take]
        self._records = ArrayRecordDataSource(self._parts) if self._parts else []
        self._starts = np.cumsum([0, *(part.take for part in self._parts)])
        self._ids: dict[str, pa.Array] = {}

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Example:
        values = self.values(index)
        return {
            "image": values["image"][0],
            "captions": list(map(as_text, values["captions"])),
            "image_id": as_text(values["image_id"][0]),
        }

    def values(self, index: int) -> dict[str, Sequence[bytes]]:
        """Of each feature of a record."""
        found = parse(self._records[index], features=self.features)
        return {name: found[name].bytes_list.value for name in self.features}

    def example_id(self, index: int) -> str:
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        part = self._parts[number]
        if not part.ids:
            return as_text(self.values(index)[self.features[-1]][0])
        if part.ids not in self._ids:
            self._ids[part.ids] = read_ids(part.ids)
        return self._ids[part.ids][part.ids_start + index - int(self._starts[number])].as_py()

    def __getstate__(self) -> dict[str, Any]:
        # A mapped file would be copied into the pickle.
        return {"parts": self._parts}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)


def open_dataset(directory: Path, split: str, *, reader: type[RecordSource] = RecordSource) -> RecordSource:
    """A split, or a slice of one such as `train[:10%]`, of a prepared dataset.

    Raises:
      UserError: other features, another kind of file, one that is not there or is damaged, or no such split.
    """
    try:
        builder = tfds.builder_from_directory(directory)
    except (json_format.Error, OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"the description of dataset {directory} cannot be read: {reason}; prepare it anew") from error
    _check_features(builder.info.features, directory=directory, reader=reader)
    if builder.info.file_format.value != "array_record":
        raise UserError(f"dataset {directory} is not in ArrayRecord files; prepare it anew")
    try:
        instructions = builder.info.splits[split].file_instructions
    except (ValueError, KeyError) as error:
        raise UserError(
            f"dataset {builder.name!r} has no split {split!r}; its splits are {', '.join(sorted(builder.info.splits))}"
        ) from error
    absent = [part.filename for part in instructions if not Path(part.filename).is_file()]
    if absent:
        raise UserError(f"dataset {directory} lacks {len(absent)} files of split {split}, the first {absent[0]!r}")
    where = {}
    for name, info in builder.info.splits.items():
        ids = ids_file(directory, name)
        starts = itertools.accumulate(info.shard_lengths, initial=0)
        where |= {str(path): (str(ids) if ids.is_file() else "", start) for path, start in zip(info.filepaths, starts)}
    parts = []
    for part in instructions:
        ids, start = where[part.filename]
        parts.append(Records(part.filename, part.skip, part.take, part.examples_in_shard, ids, start + part.skip))
    return reader(parts)


def open_files(pattern: str) -> RecordSource:
    """All records of the files that a pattern matches, in the order of their names.

    Raises:
      UserError: no such file, or one that holds something else.
    """
    files = sorted(glob.glob(pattern, recursive=True))
    if not files:
        raise UserError(f"no file matches {pattern!r}; give ArrayRecord files, or a prepared directory and a split")
    try:
        counts = [_record_count(file) for file in files]
        source = RecordSource([Records(file, 0, count, count) for file, count in zip(files, counts)])
        if len(source):
            source[0]
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{pattern!r} is not of readable ArrayRecord files: {error}") from error
    except (DecodeError, KeyError, IndexError) as error:
        raise UserError(f"records of {pattern!r} are not examples of {', '.join(FEATURES)}") from error
    return source


def parse(record: bytes, *, features: Sequence[str]) -> Mapping[str, Any]:
    """The features of a serialized example.

    Raises:
      DecodeError, KeyError: it is not one, or lacks one of `features`.
    """
    found = tf_example_pb2.Example.FromString(record).features.feature
    for name in features:
        # Asking for a feature that is not there would make one up.
        if name not in found:
            raise KeyError(name)
    return found


def ids_file(directory: Path, split: str) -> Path:
    """Where the ids of a prepared split are, in the order of its records."""
    return directory / f"ids-{split}.arrow"


def read_ids(path: str | Path) -> pa.Array:
    """The ids of a whole split, mapped rather than read."""
    with pa.memory_map(str(path)) as file:
        return pa.ipc.open_file(file).get_batch(0).column(0)


def _check_features(features: Any, *, directory: Path, reader: type[RecordSource]) -> None:
    missing = [name for name in reader.features if name not in features]
    if missing:
        raise UserError(
            f"dataset {directory} has no {', '.join(missing)} but {', '.join(features)}; "
            f"{reader.holds} has {', '.join(reader.features)}"
        )


def _record_count(file: str) -> int:
    reader = ArrayRecordReader(file)
    try:
        return reader.num_records()
    finally:
        reader.close()


def as_text(value: bytes) -> str:
    return value.decode("utf-8", "replace")
