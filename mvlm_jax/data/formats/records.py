"""ArrayRecord files of serialized `tf.train.Example`, as TFDS and `mvlm prepare` write them."""

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import tensorflow_datasets as tfds
from absl import logging
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordReader
from google.protobuf import json_format
from google.protobuf.message import DecodeError
from jaxtyping import Int32
from tensorflow_datasets.proto import tf_example_pb2, tf_feature_pb2

from mvlm_jax.data.examples import Example
from mvlm_jax.data.formats.ids import id_text
from mvlm_jax.data.images import UndecodableImage
from mvlm_jax.data.paths import hint, matching, warn_of_missing_parts
from mvlm_jax.errors import UserError

FEATURES = ("image", "captions", "image_id")
OPTIONS = ("image", "captions", "id")  # each names another feature to read in its place


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

    features: Sequence[str] = FEATURES  # the last one is the id
    holds = "a pair dataset"
    otherwise = f"; the options {', '.join(OPTIONS)} name others"

    def __init__(self, parts: Sequence[Records], features: Sequence[str] | None = None) -> None:
        """`features`: as the records name them, in the order of the class's own."""
        self.features = self.features if features is None else features
        self._parts = [part for part in parts if part.take]
        self._records = ArrayRecordDataSource(self._parts) if self._parts else []
        self._starts = np.cumsum([0, *(part.take for part in self._parts)])
        self._ids: dict[str, pa.Array] = {}

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Any:
        """
        Raises:
          UndecodableImage: the record is damaged, or is no such example.
          UserError: its file cannot be read, or is cut off.
        """
        with self.damage_reported(index):
            return self.example(self.values(index))

    def example(self, values: Mapping[str, Sequence[bytes]]) -> Any:
        """An `Example`; readers of other features override this."""
        image, captions, identity = (values[name] for name in self.features)
        return Example(image=image[0], captions=list(map(as_text, captions)), image_id=as_text(identity[0]))

    def values(self, index: int) -> dict[str, Sequence[bytes]]:
        """The values of each feature of a record: integers as digits, and a generated id where it has none.

        Raises:
          whatever ArrayRecord and protobuf raise of a damaged record; see `damage_reported`.
        """
        stored = parse(self._records[index], features=self.features)
        values = {name: _values(stored[name]) for name in self.features}
        if not any(map(id_text, values[self.features[-1]][:1])):
            values[self.features[-1]] = [self._place(index).encode()]
        return values

    def example_id(self, index: int) -> str:
        """The id; `record <number>` where the record is damaged and its id is stored nowhere else."""
        part, within = self._part(index)
        if not part.ids:
            try:
                with self.damage_reported(index):
                    return as_text(self.values(index)[self.features[-1]][0])
            except UndecodableImage:
                return f"record {index}"
        if part.ids not in self._ids:
            self._ids[part.ids] = read_ids(part.ids)
        ids = self._ids[part.ids]
        if part.ids_start + part.take > len(ids):
            raise UserError(f"{part.ids!r} holds {len(ids)} ids, fewer than the records; copy or prepare it again")
        return id_text(ids[part.ids_start + within].as_py()) or self._place(index)

    def caption_counts(self) -> Int32[np.ndarray, " M"] | None:
        """As `mvlm prepare` counted them; None of files that it did not write, or that it wrote before it did."""
        counts = []
        for part in self._parts:
            whole = read_caption_counts(part.ids) if part.ids and "captions" in self.features else None
            if whole is None:
                return None
            counts.append(whole[part.ids_start : part.ids_start + part.take].to_numpy())
            if len(counts[-1]) < part.take:
                raise UserError(f"{part.ids!r} counts captions of fewer than the records; copy or prepare it again")
        return np.concatenate([np.zeros(0, np.int32), *counts])

    @contextlib.contextmanager
    def damage_reported(self, index: int) -> Iterator[None]:
        """Turns the errors of ArrayRecord and protobuf into those that `__getitem__` documents."""
        try:
            yield
        except UserError:
            raise
        except (RuntimeError, ValueError, DecodeError, LookupError) as error:
            # ArrayRecord names the call where the system failed and not the record: "open() failed: …".
            if "() failed" in str(error):
                raise UserError(f"record {index} cannot be read: {error}") from error
            self._check_whole(index)
            raise UndecodableImage("corrupt", f"record {index}: {type(error).__name__} {error}") from error

    def _part(self, index: int) -> tuple[Records, int]:
        """The `Records` that contain an index, and the place in them."""
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._parts[number], index - int(self._starts[number])

    def _place(self, index: int) -> str:
        """A name for a record without an id: the same in whatever slice of the file it is read."""
        part, within = self._part(index)
        return f"{Path(part.filename).name}#{part.skip + within}"

    def _check_whole(self, index: int) -> None:
        """
        Raises:
          UserError: the file of a record does not have all records that it should: it was cut off or replaced.
        """
        part, _ = self._part(index)
        try:
            count = _record_count(part.filename)
        except (RuntimeError, ValueError) as error:
            raise UserError(f"{_damaged(part.filename)} ({error}); copy or prepare it again") from error
        if count < part.examples_in_shard:
            raise UserError(
                f"{part.filename!r} holds {count} records where {part.examples_in_shard} were written; copy or prepare "
                "it again"
            )

    def __getstate__(self) -> dict[str, Any]:
        # A mapped file would be copied into the pickle.
        return {"parts": self._parts, "features": self.features}

    def __setstate__(self, state: dict[str, Any]) -> None:
        RecordSource.__init__(self, **state)


def open_dataset(
    directory: Path,
    split: str,
    *,
    reader: type[RecordSource] = RecordSource,
    features: Sequence[str] | None = None,
) -> RecordSource:
    """A split, or a slice of one such as `train[:10%]`, of a prepared dataset.

    Args:
      features: as the records name those of the reader; None: by its own names.

    Raises:
      UserError: other features, another file format, one that is not there or is damaged, or no such split.
    """
    try:
        builder = tfds.builder_from_directory(directory)
    except (json_format.Error, OSError, ValueError, ImportError) as error:  # TFDS looks for unknown types in TensorFlow
        reason = str(error).partition("\n")[0]
        raise UserError(f"the description of dataset {directory} cannot be read: {reason}; prepare it again") from error
    features = reader.features if features is None else features
    _check_features(builder.info.features, features=features, directory=directory, reader=reader)
    if builder.info.file_format.value != "array_record":
        raise UserError(f"dataset {directory} is not in ArrayRecord files; prepare it again")
    try:
        instructions = builder.info.splits[split].file_instructions
    except (ValueError, KeyError) as error:
        raise UserError(
            f"dataset {builder.name!r} has no split {split!r}; its splits are {', '.join(sorted(builder.info.splits))}"
        ) from error
    absent = [part.filename for part in instructions if not Path(part.filename).is_file()]
    if absent:
        raise UserError(f"dataset {directory} lacks {len(absent)} files of split {split}, the first {absent[0]!r}")
    where: dict[str, tuple[str, int]] = {}  # by shard, the file of ids and the first row of the shard in it
    for name, info in builder.info.splits.items():
        ids = ids_file(directory, name)
        known = ids.is_file() and features[-1] == reader.features[-1]
        starts = itertools.accumulate(info.shard_lengths, initial=0)
        where |= {str(path): (str(ids) if known else "", start) for path, start in zip(info.filepaths, starts)}
    parts = []
    for part in instructions:
        held, start = where[part.filename]
        parts.append(Records(part.filename, part.skip, part.take, part.examples_in_shard, held, start + part.skip))
    return reader(parts, features)


def open_files(pattern: str, *, features: Sequence[str] = FEATURES) -> RecordSource:
    """All records of the files that a pattern matches, in the order of their names.

    Raises:
      UserError: no such file, or one that holds something else.
    """
    files = matching(pattern)
    absent = [file for file in files if not Path(file).is_file()]
    if absent:
        raise UserError(
            f"no file matches {absent[0]!r}{hint(pattern)}; give ArrayRecord files, or a prepared directory and a split"
        )
    warn_of_missing_parts(files)
    parts = []
    for file in files:
        try:
            count = _record_count(file)
        except (RuntimeError, ValueError) as error:
            raise UserError(f"{pattern!r} is not of readable ArrayRecord files: {_damaged(file)} ({error})") from error
        parts.append(Records(file, 0, count, count))
    source = RecordSource(parts, features)
    try:
        if len(source):
            source.example(source.values(0))
    except (DecodeError, LookupError) as error:
        raise UserError(f"records of {pattern!r} are not examples of {', '.join(features)}") from error
    except RuntimeError as error:
        # A damaged first record is left out as any other is.
        logging.warning("record 0 of %r cannot be read: %s", pattern, error)
    return source


def parse(record: bytes, *, features: Sequence[str]) -> Mapping[str, Any]:
    """The features of a serialized example.

    Raises:
      DecodeError, KeyError: it is not one, or lacks one of `features`.
    """
    stored = tf_example_pb2.Example.FromString(record).features.feature
    for name in features:
        # Reading a missing key of this map would add it.
        if name not in stored:
            raise KeyError(name)
    return stored


def ids_file(directory: Path, split: str) -> Path:
    """Where the ids of a prepared split are, in the order of its records."""
    return directory / f"ids-{split}.arrow"


def read_ids(path: str | Path) -> pa.Array:
    """The ids of a whole split, memory-mapped.

    Raises:
      UserError: the file is cut off or damaged.
    """
    return _read_columns(path)[0]


def read_caption_counts(path: str | Path) -> pa.Array | None:
    """How many captions each example of a whole split has; None where that is not kept.

    Raises:
      UserError: as `read_ids`.
    """
    columns = _read_columns(path)
    return columns[1] if len(columns) > 1 else None


def _read_columns(path: str | Path) -> list[pa.Array]:
    try:
        with pa.memory_map(str(path)) as file:
            columns = pa.ipc.open_file(file).get_batch(0).columns
            for column in columns:
                column.validate(full=True)  # a damaged offset would be read as an address
            return columns
    except (pa.ArrowInvalid, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{str(path)!r} is cut off or damaged: {reason}; copy or prepare it again") from error


def _check_features(
    info: tfds.features.FeaturesDict, *, features: Sequence[str], directory: Path, reader: type[RecordSource]
) -> None:
    # A nested feature such as TFDS's captions/text is a feature of its own in a record.
    there = tfds.core.utils.flatten_nest_dict(info.get_serialized_info())
    missing = [name for name in features if name not in there]
    if missing:
        raise UserError(
            f"dataset {directory} has no {', '.join(missing)} but {', '.join(there)}; "
            f"{reader.holds} has {', '.join(reader.features)}{reader.otherwise}"
        )


def _values(feature: tf_feature_pb2.Feature) -> Sequence[bytes]:
    return feature.bytes_list.value or [str(number).encode() for number in feature.int64_list.value]


def _damaged(file: str) -> str:
    return f"{file!r} is cut off at byte {Path(file).stat().st_size}, or is no ArrayRecord file"


def _record_count(file: str) -> int:
    reader = ArrayRecordReader(file)
    try:
        return reader.num_records()
    finally:
        reader.close()


def as_text(value: bytes) -> str:
    return value.decode("utf-8", "replace")
