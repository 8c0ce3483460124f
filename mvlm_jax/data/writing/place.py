"""Where a dataset is written. In every place it appears at once, when all of it is there."""

import contextlib
import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from mvlm_jax.data import stores
from mvlm_jax.data.collection import Codec
from mvlm_jax.data.examples import Source
from mvlm_jax.data.writing.shards import ImageChecks, finished_report, report_path, write_shard
from mvlm_jax.errors import UserError
from mvlm_jax.files import write_text
from mvlm_jax.lock import only_one
from mvlm_jax.stores.datasets import INFO

VERSION = "1.0.0"
MANIFEST = "manifest.json"
PLAN = "plan.json"


@runtime_checkable
class Place(Protocol):
    """Where one dataset is written; pickled into workers."""

    @property
    def name(self) -> str:
        """Of the finished dataset, for messages."""

    def reserved(self) -> contextlib.AbstractContextManager[None]:
        """No other `mvlm prepare` writes there meanwhile.

        Raises:
          UserError: another one is at work.
        """

    def manifest(self) -> dict[str, Any] | None:
        """That of the finished dataset; empty where it has none; None where there is no finished dataset."""

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Replaces that of the finished dataset."""

    def plan(self) -> dict[str, Any] | None:
        """Of what is not finished there; None where there is nothing."""

    def begin(self, plan: Mapping[str, Any]) -> None:
        """Goes on with what an interruption left of the same plan, or starts.

        Raises:
          UserError: what is there is of another plan, and cannot be removed safely.
        """

    def write_shard(self, file: str, source: Source, indices: range, *, codec: Codec, checks: ImageChecks) -> None:
        """Writes a shard whole, then its report; called in any process."""

    def reports(self, files: Sequence[str], *, verify: bool = True) -> dict[str, dict[str, Any]]:
        """Of the shards that are finished, and with `verify` unchanged since."""

    def description(self, files: Sequence[str]) -> contextlib.AbstractContextManager[Path]:
        """A local directory for what stands beside the shards, in which TFDS finds files of their names."""

    def publish(self, description: Path, files: Sequence[str]) -> None:
        """Makes the finished dataset appear; `files` are its shards."""

    def discard(self, files: Sequence[str]) -> None:
        """Removes all that is not finished."""


@dataclasses.dataclass(frozen=True)
class Directory:
    """A directory on a disk: the dataset is written beside its final name, and renamed."""

    root: Path  # of the dataset, with all its versions

    @property
    def name(self) -> str:
        return str(self.final)

    @property
    def final(self) -> Path:
        return self.root / VERSION

    @property
    def partial(self) -> Path:
        return self.root / f"incomplete.{VERSION}"

    @contextlib.contextmanager
    def reserved(self) -> Iterator[None]:
        self.root.mkdir(parents=True, exist_ok=True)
        with only_one(self.root, command="mvlm prepare"):
            yield

    def manifest(self) -> dict[str, Any] | None:
        if not self.final.is_dir():
            return None
        file = self.final / MANIFEST
        return json.loads(file.read_text()) if file.is_file() else {}

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        write_text(self.final / MANIFEST, in_json(manifest))

    def plan(self) -> dict[str, Any] | None:
        try:
            return json.loads((self.partial / PLAN).read_text())
        except (FileNotFoundError, ValueError):
            return None

    def begin(self, plan: Mapping[str, Any]) -> None:
        """Starts over where what is there is of another plan."""
        if self.plan() == plan:
            return
        if self.partial.exists():
            shutil.rmtree(self.partial)
        self.partial.mkdir()
        write_text(self.partial / PLAN, json.dumps(plan))

    def write_shard(self, file: str, source: Source, indices: range, *, codec: Codec, checks: ImageChecks) -> None:
        write_shard(source, indices, path=self.partial / file, codec=codec, checks=checks)

    def reports(self, files: Sequence[str], *, verify: bool = True) -> dict[str, dict[str, Any]]:
        found = ((file, finished_report(self.partial / file, verify=verify)) for file in files)
        return {file: report for file, report in found if report is not None}

    @contextlib.contextmanager
    def description(self, files: Sequence[str]) -> Iterator[Path]:
        yield self.partial

    def publish(self, description: Path, files: Sequence[str]) -> None:
        reports = (report_path(self.partial / file) for file in files)
        # A killed process leaves the temporary file that it was writing.
        for remains in (self.partial / PLAN, *self.partial.glob(".*.tmp"), *reports):
            remains.unlink(missing_ok=True)
        os.rename(self.partial, self.final)

    def discard(self, files: Sequence[str]) -> None:
        shutil.rmtree(self.partial)


@dataclasses.dataclass(frozen=True)
class StorePrefix:
    """Objects in a store, which are whole or absent and cannot be renamed cheaply.

    Shards go under their final names. The dataset appears with the last object, TFDS' description. Nothing is
    locked: two that write the same plan write the same bytes, and another plan is refused.
    """

    root: str  # URL of the dataset, with all its versions

    @property
    def name(self) -> str:
        return self.final

    @property
    def final(self) -> str:
        return f"{self.root}/{VERSION}"

    @property
    def partial(self) -> str:
        return f"{self.root}/incomplete.{VERSION}"

    @contextlib.contextmanager
    def reserved(self) -> Iterator[None]:
        yield

    def manifest(self) -> dict[str, Any] | None:
        if not stores.exists(f"{self.final}/{INFO}"):
            return None
        file = f"{self.final}/{MANIFEST}"
        return json.loads(stores.read(file)) if stores.exists(file) else {}

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        stores.write(f"{self.final}/{MANIFEST}", in_json(manifest).encode())

    def plan(self) -> dict[str, Any] | None:
        file = f"{self.partial}/{PLAN}"
        return json.loads(stores.read(file)) if stores.exists(file) else None

    def begin(self, plan: Mapping[str, Any]) -> None:
        there = self.plan()
        if there == plan:
            return
        if there is not None:
            raise UserError(
                f"{self.root} holds an unfinished dataset of another source, other lists or other options; make sure "
                "that no job still writes it and remove it, or choose another --dataset"
            )
        stores.write(f"{self.partial}/{PLAN}", json.dumps(plan).encode())

    def write_shard(self, file: str, source: Source, indices: range, *, codec: Codec, checks: ImageChecks) -> None:
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / file
            write_shard(source, indices, path=path, codec=codec, checks=checks)
            stores.upload(path, f"{self.final}/{file}")
            stores.upload(report_path(path), f"{self.partial}/{file}.json")

    def reports(self, files: Sequence[str], *, verify: bool = True) -> dict[str, dict[str, Any]]:
        """The size alone shows that a shard is the reported one: to hash it means to fetch it."""
        reported = {file: f"{self.partial}/{file}.json" for file in files}
        there = stores.sizes(self.partial)
        written = stores.sizes(self.final)
        done = [file for file, url in reported.items() if url in there]
        contents = stores.read_all([reported[file] for file in done])
        reports = {file: json.loads(content) for file, content in zip(done, contents, strict=True)}
        return {
            file: report for file, report in reports.items() if written.get(f"{self.final}/{file}") == report["bytes"]
        }

    @contextlib.contextmanager
    def description(self, files: Sequence[str]) -> Iterator[Path]:
        with tempfile.TemporaryDirectory() as directory:
            for file in files:
                (Path(directory) / file).touch()
            yield Path(directory)

    def publish(self, description: Path, files: Sequence[str]) -> None:
        beside = [file for file in description.iterdir() if file.name not in files]
        for file in sorted(beside, key=lambda file: file.name == INFO):
            stores.upload(file, f"{self.final}/{file.name}")
        stores.remove(self.partial)

    def discard(self, files: Sequence[str]) -> None:
        for file in files:
            stores.remove(f"{self.final}/{file}")
        stores.remove(self.partial)


def in_json(manifest: Mapping[str, Any]) -> str:
    return json.dumps(manifest, indent=2) + "\n"
