"""A whole dataset: shards written in parallel, a manifest, and TFDS' own description of it."""

import contextlib
import dataclasses
import json
import multiprocessing
import os
import re
import shutil
import signal
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import tensorflow_datasets as tfds
from tqdm import tqdm

from mvlm_jax import signals
from mvlm_jax.data.collection import Codec, Collection
from mvlm_jax.data.examples import Source
from mvlm_jax.data.formats.records import ids_file
from mvlm_jax.data.processes import available_cpus, end_with_parent
from mvlm_jax.data.writing.shards import ImageChecks, finished_report, report_path, sha256, write_shard
from mvlm_jax.errors import UserError
from mvlm_jax.files import write_text
from mvlm_jax.lock import only_one

VERSION = "1.0.0"
MANIFEST = "manifest.json"
PLAN = "plan.json"
WORTH_WORKERS = 2000  # examples; with fewer, starting worker processes takes longer than writing
SMALLEST_SHARD, MOST_SHARDS = 512, 256  # examples in a shard; shards of a split
SHARD_FIELDS = ("file", "examples", "bytes", "sha256")
HOLDS_IMAGES = re.compile(r"\.(tar|array_record)\b")  # names of files that hold the images themselves
TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"


class Shard(NamedTuple):
    """Some consecutive examples of a split, and the file they go to."""

    split: str
    indices: range
    path: Path


def write_dataset(
    collection: Collection,
    *,
    name: str,
    data_dir: Path,
    workers: int = 0,
    checks: ImageChecks | None = None,
    licence: str = "",
) -> Path:
    """Writes `data_dir/name/1.0.0` and returns it; a finished one of the same source, lists and checks is left alone.

    The dataset appears by a single rename. What an interruption leaves is continued: finished shards are kept where
    their digest still fits, and everything starts over where the lists or the checks have changed.

    Args:
      workers: processes; 1: this one, 0: one a CPU where the collection is worth it. The files do not depend on it.
      licence: for the manifest, also that of a finished dataset; empty: as it is there.

    Raises:
      UserError: a split without a usable image, a list that cannot be read, another `write_dataset` at work, or another
        dataset of that name.
      OSError, RuntimeError: `data_dir` cannot be written.
    """
    checks = checks or ImageChecks()
    (data_dir / name).mkdir(parents=True, exist_ok=True)
    with only_one(data_dir / name, command="mvlm prepare"):
        final, partial = data_dir / name / VERSION, data_dir / name / f"incomplete.{VERSION}"
        origin = {
            "source": collection.source,
            "checks": dataclasses.asdict(checks),
            "files": {str(path.absolute()): _stamp(path) for path in collection.files},
        }
        if final.is_dir():
            manifest = _check_same_origin(final, origin)
            if licence not in ("", manifest["licence"]):
                _write_manifest(final, {**manifest, "licence": licence})
            return final
        sizes = {split: len(source) for split, source in collection.splits.items()}
        _continue_or_start_over(partial, {**origin, "splits": sizes})
        shards = _shards(collection, name=name, directory=partial)
        _write_missing(shards, collection=collection, workers=workers, checks=checks)
        try:
            _describe(partial, name=name, collection=collection, origin=origin, shards=shards, licence=licence)
        except UserError:
            shutil.rmtree(partial)
            raise
        os.rename(partial, final)
    return final


def read_manifest(directory: Path) -> dict[str, Any]:
    return json.loads((directory / MANIFEST).read_text())


def summary(manifest: Mapping[str, Any]) -> Iterator[str]:
    """Lines that say what was written and what was left out."""
    for split, counts in manifest["splits"].items():
        captioned = f"images, {counts['captions']} captions" if counts["captions"] else "examples"
        yield f"{split}: {counts['examples']} {captioned}"
        yield from _skips(counts["skipped"])
    yield from _skips(manifest["lines_left_out"])


def _skips(skipped: Mapping[str, Any]) -> Iterator[str]:
    for reason, left_out in skipped.items():
        more = ", …" if left_out["count"] > len(left_out["ids"]) else ""
        yield f"  left out, {reason}: {left_out['count']} ({', '.join(left_out['ids'])}{more})"


def _write_manifest(directory: Path, manifest: Mapping[str, Any]) -> None:
    write_text(directory / MANIFEST, json.dumps(manifest, indent=2) + "\n")


def _check_same_origin(directory: Path, origin: Mapping[str, Any]) -> dict[str, Any]:
    manifest = read_manifest(directory) if (directory / MANIFEST).is_file() else {}
    remedy = "remove it, or choose another --dataset or --data_dir"
    for field in ("source", "checks"):
        if manifest.get(field) != origin[field]:
            raise UserError(
                f"{directory} is already prepared with {field} {manifest.get(field)!r}, not {origin[field]!r}; {remedy}"
            )
    files = origin["files"]
    prepared = manifest.get("files", files)  # a manifest may be older than this field
    changed = [path for path in {**files, **prepared} if files.get(path) != prepared.get(path)]
    if changed:
        path = changed[0]
        how = "was not read then" if path not in prepared else "changed since" if path in files else "is read no more"
        more = f", and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise UserError(f"{directory} is already prepared, but {path} {how}{more}; {remedy}")
    return manifest


def _stamp(path: Path) -> list[int | str]:
    """Size and digest of a list; of a file with images, which takes long to read, size and time of modification."""
    try:
        status = path.stat()
        return [status.st_size, status.st_mtime_ns if HOLDS_IMAGES.search(path.name) else sha256(path)]
    except OSError as error:
        raise UserError(f"{str(path)!r} cannot be read: {error.strerror}") from error


def _continue_or_start_over(directory: Path, plan: Mapping[str, Any]) -> None:
    file = directory / PLAN
    try:
        if json.loads(file.read_text()) == plan:
            return
    except (FileNotFoundError, ValueError):
        pass
    if directory.exists():
        shutil.rmtree(directory)
    directory.mkdir()
    write_text(file, json.dumps(plan))


def _shards(collection: Collection, *, name: str, directory: Path) -> list[Shard]:
    shards = []
    for split, source in collection.splits.items():
        size = max(SMALLEST_SHARD, -(-len(source) // MOST_SHARDS))
        starts = range(0, max(1, len(source)), size)
        for number, start in enumerate(starts):
            path = directory / f"{name}-{split}.array_record-{number:05d}-of-{len(starts):05d}"
            shards.append(Shard(split, range(start, min(start + size, len(source))), path))
    return shards


def _write_missing(shards: list[Shard], *, collection: Collection, workers: int, checks: ImageChecks) -> None:
    total = sum(len(shard.indices) for shard in shards)
    workers = workers or (available_cpus() if total >= WORTH_WORKERS else 1)
    # disable=None: a bar on a terminal only.
    with tqdm(total=total, unit=" examples", disable=None, smoothing=0.05) as bar:
        missing = []
        for shard in shards:
            if finished_report(shard.path) is None:
                missing.append(shard)
            else:
                bar.update(len(shard.indices))
        if workers <= 1:
            for shard in missing:
                _write(shard, collection.splits, collection.codec, checks)
                bar.update(len(shard.indices))
        elif missing:
            _write_in_parallel(missing, collection=collection, workers=workers, checks=checks, bar=bar)


def _write_in_parallel(
    shards: list[Shard], *, collection: Collection, workers: int, checks: ImageChecks, bar: tqdm
) -> None:
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(
        min(workers, len(shards)),
        # A fork would inherit the lock file and the state of other threads.
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(dict(collection.splits), collection.codec, checks),
    )
    try:
        with _ctrl_c_kept_from_children():
            writing: dict[Future[None], Shard] = {pool.submit(_write_in_worker, shard): shard for shard in shards}
        while writing:
            done, _ = wait(writing, return_when=FIRST_COMPLETED)
            for future in done:
                future.result()
                bar.update(len(writing.pop(future).indices))
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process died, perhaps because memory ran out; finished shards are kept: start again with fewer "
            "--workers"
        ) from error
    except KeyboardInterrupt:
        # Do not wait for unfinished shards: they take minutes and cannot be continued.
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _ctrl_c_kept_from_children() -> Iterator[None]:
    """For processes that are started meanwhile: a terminal interrupts the whole group, and their parent ends them.

    Raises:
      KeyboardInterrupt: at the end, if it came meanwhile; a process half started could not be ended.
    """
    came = []
    in_main_thread = threading.current_thread() is threading.main_thread()
    # Blocking the signal is not enough: another thread may receive it, and the handler runs in this one.
    handler = signal.signal(signal.SIGINT, lambda *_: came.append(True)) if in_main_thread else None
    try:
        with signals.kept_from_children(signal.SIGINT):
            yield
    finally:
        if in_main_thread:
            signal.signal(signal.SIGINT, handler)
    if came:
        raise KeyboardInterrupt


_worker: dict[str, Any] = {}


def _start_worker(splits: Mapping[str, Source], codec: Codec, checks: ImageChecks) -> None:
    _worker.update(splits=splits, codec=codec, checks=checks)
    end_with_parent()  # it must not write without the lock that its parent holds


def _write_in_worker(shard: Shard) -> None:
    _write(shard, **_worker)


def _write(shard: Shard, splits: Mapping[str, Source], codec: Codec, checks: ImageChecks) -> None:
    write_shard(splits[shard.split], shard.indices, path=shard.path, codec=codec, checks=checks)


def _describe(
    directory: Path,
    *,
    name: str,
    collection: Collection,
    origin: Mapping[str, Any],
    shards: list[Shard],
    licence: str,
) -> None:
    splits, infos = {}, []
    for split, source in collection.splits.items():
        reports = [json.loads(report_path(shard.path).read_text()) for shard in shards if shard.split == split]
        skipped = collection.left_out_of_split(split)
        for report in reports:
            skipped.merge(report["skipped"])
        ids = [identity for report in reports for identity in report["ids"]]
        if not ids:
            reasons = str(skipped) or "it is empty"
            raise UserError(f"none of the {len(source)} images of split {split} can be used ({reasons})")
        captions = [count for report in reports for count in report["captions"]]
        _write_ids(ids_file(directory, split), ids, captions)
        splits[split] = {
            "examples": len(ids),
            "captions": sum(captions),
            "skipped": skipped.as_dict(),
            "shards": [{field: report[field] for field in SHARD_FIELDS} for report in reports],
        }
        template = tfds.core.ShardedFileTemplate(
            data_dir=directory, template=TEMPLATE, dataset_name=name, split=split, filetype_suffix="array_record"
        )
        infos.append(
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[report["examples"] for report in reports],
                num_bytes=sum(report["bytes"] for report in reports),
                filename_template=template,
            )
        )
    features = collection.codec.features
    manifest = {
        "dataset": name,
        "version": VERSION,
        **origin,
        "licence": licence,
        "features": {feature: type(connector).__name__ for feature, connector in features.items()},
        "splits": splits,
        "lines_left_out": collection.lines_left_out.as_dict(),
    }
    _write_manifest(directory, manifest)
    tfds.folder_dataset.write_metadata(
        data_dir=directory,
        features=features,
        split_infos=infos,
        version=VERSION,
        filename_template=TEMPLATE,
        check_data=False,
        # Records stay in the order of the source: evaluation reads them in order, training shuffles on its own.
        disable_shuffling=True,
    )
    reports_of_shards = (report_path(shard.path) for shard in shards)
    # A killed process leaves the temporary file that it was writing.
    for remains in (directory / PLAN, *directory.glob(".*.tmp"), *reports_of_shards):
        remains.unlink(missing_ok=True)


def _write_ids(path: Path, ids: list[str], captions: list[int]) -> None:
    columns = {"id": pa.array(ids, pa.large_string())}
    if any(captions):  # labelled examples have none
        columns["captions"] = pa.array(captions, pa.int32())
    batch = pa.record_batch(columns)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, batch.schema) as writer:
        writer.write_batch(batch)
