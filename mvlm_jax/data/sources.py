"""Where examples come from."""

import os
from pathlib import Path
from typing import Any, Protocol, TypedDict, runtime_checkable

import tensorflow_datasets as tfds

from mvlm_jax.errors import UserError

SCHEMES = ("tfds:<name>:<split>",)
FEATURES = ("image", "captions", "image_id")


class Example(TypedDict):
    """One image, encoded, with everything that is said of it."""

    image: bytes
    captions: list[str]
    image_id: str


@runtime_checkable
class Source(Protocol):
    """Random access to examples; pickled into worker processes."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


def open_source(uri: str, *, data_dir: str) -> Source:
    """Opens `tfds:<name>:<split>`; the split may be a slice such as `train[:10%]`.

    An empty `data_dir` means $TFDS_DATA_DIR or ~/tensorflow_datasets.

    Raises:
      UserError: another scheme, a dataset that is not prepared or has other features, or no such split.
    """
    scheme, _, rest = uri.partition(":")
    name, _, split = rest.partition(":")
    if scheme != "tfds" or not name or not split:
        raise UserError(f"source {uri!r} is not of the form {' or '.join(SCHEMES)}")
    return TfdsSource(prepared_dir(name, data_dir=data_dir), split)


def resolved_data_dir(data_dir: str) -> Path:
    """The directory of prepared datasets that an empty `data_dir` stands for."""
    return Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def prepared_dir(name: str, *, data_dir: str) -> Path:
    """Directory of the newest prepared version of a dataset.

    Raises:
      UserError: there is none; names the command that makes it.
    """
    root = resolved_data_dir(data_dir)
    versions = [path.parent for path in (root / name).glob("[0-9]*.[0-9]*.[0-9]*/dataset_info.json")]
    if not versions:
        source = "" if name.startswith("shapes") else " --source=DIR"
        raise UserError(
            f"dataset {name!r} is not prepared in {root}; make it with: "
            f"mvlm prepare --dataset={name}{source} --data_dir={root}"
        )
    return max(versions, key=lambda path: tfds.core.Version(path.name))


class TfdsSource:
    """A split of a prepared dataset, with its images left encoded."""

    def __init__(self, directory: Path, split: str) -> None:
        self._directory, self._split = directory, split
        self._open()

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Example:
        record = self._records[index]
        return {
            "image": record["image"],
            "captions": [_text(caption) for caption in record["captions"]],
            "image_id": _text(record["image_id"]),
        }

    def _open(self) -> None:
        builder = tfds.builder_from_directory(self._directory)
        missing = [name for name in FEATURES if name not in builder.info.features]
        if missing:
            raise UserError(
                f"dataset {self._directory} has no {', '.join(missing)} but {', '.join(builder.info.features)}; "
                f"a pair dataset has {', '.join(FEATURES)}"
            )
        try:
            self._records: Any = builder.as_data_source(self._split, decoders={"image": tfds.decode.SkipDecoding()})
        except NotImplementedError as error:
            raise UserError(f"dataset {self._directory} is not in ArrayRecord files; prepare it anew") from error
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
