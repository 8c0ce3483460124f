"""A whole dataset: shards written by one of several engines, a manifest, and TFDS' own description of it."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import tensorflow_datasets as tfds
from tqdm import tqdm

from mvlm_jax.data.collection import Collection
from mvlm_jax.data.formats.records import ids_file
from mvlm_jax.data.writing.place import MANIFEST, VERSION, Directory, Place, in_json
from mvlm_jax.data.writing.plan import Engine, Job, Shard, origin_of, plan_of, shards_of
from mvlm_jax.data.writing.processes import Processes
from mvlm_jax.data.writing.shards import ImageChecks
from mvlm_jax.errors import UserError
from mvlm_jax.files import write_text

SHARD_FIELDS = ("file", "examples", "bytes", "sha256")
TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"


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

    Args:
      workers: processes; 1: this one, 0: one a CPU where the collection is worth it. The files do not depend on it.

    Raises:
      as `write_to`.
    """
    place = Directory(data_dir / name)
    write_to(place, collection, name=name, engine=Processes(workers), checks=checks, licence=licence)
    return place.final


def write_to(
    place: Place,
    collection: Collection,
    *,
    name: str,
    engine: Engine,
    checks: ImageChecks | None = None,
    licence: str = "",
) -> None:
    """Writes a dataset; a finished one of the same source, lists and checks is left alone.

    The dataset appears at once. What an interruption leaves is continued: finished shards are kept where what is known
    of them still fits. On a disk everything starts over where the lists or the checks have changed.

    Args:
      engine: what writes the shards. The files do not depend on it.
      licence: for the manifest, also that of a finished dataset; empty: as it is there.

    Raises:
      UserError: a split without a usable image, a list that cannot be read, another `mvlm prepare` at work, or another
        dataset of that name.
      OSError, RuntimeError: the place cannot be written.
    """
    checks = checks or ImageChecks()
    with place.reserved():
        origin = origin_of(collection, checks=checks)
        manifest = place.manifest()
        if manifest is not None:
            _check_same_origin(place.name, manifest=manifest, origin=origin)
            if licence not in ("", manifest["licence"]):
                place.write_manifest({**manifest, "licence": licence})
            return
        plan = plan_of(collection, origin=origin)
        place.begin(plan)
        shards = shards_of(collection, name=name)
        job = Job(collection.splits, collection.codec, checks, place, plan)
        reports = _write_missing(shards, job=job, engine=engine)
        files = [shard.file for shard in shards]
        with place.description(files) as directory:
            try:
                _describe(directory, name=name, collection=collection, origin=origin, reports=reports, licence=licence)
            except UserError:
                place.discard(files)
                raise
            place.publish(directory, files)


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


def _check_same_origin(name: str, *, manifest: Mapping[str, Any], origin: Mapping[str, Any]) -> None:
    remedy = "remove it, or choose another --dataset or --data_dir"
    for field in ("source", "checks"):
        if manifest.get(field) != origin[field]:
            raise UserError(
                f"{name} is already prepared with {field} {manifest.get(field)!r}, not {origin[field]!r}; {remedy}"
            )
    files = origin["files"]
    prepared = manifest.get("files", files)  # a manifest may be older than this field
    changed = [path for path in {**files, **prepared} if files.get(path) != prepared.get(path)]
    if changed:
        path = changed[0]
        how = "was not read then" if path not in prepared else "changed since" if path in files else "is read no more"
        more = f", and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise UserError(f"{name} is already prepared, but {path} {how}{more}; {remedy}")


def _write_missing(shards: list[Shard], *, job: Job, engine: Engine) -> list[tuple[Shard, dict[str, Any]]]:
    """Writes the shards that are not finished; the reports of all of them."""
    done = job.place.reports([shard.file for shard in shards])
    missing = [shard for shard in shards if shard.file not in done]
    total = sum(len(shard.indices) for shard in shards)
    # disable=None: a bar on a terminal only.
    with tqdm(total=total, unit=" examples", disable=None, smoothing=0.05) as bar:
        bar.update(total - sum(len(shard.indices) for shard in missing))
        with contextlib.closing(engine(missing, job)) as finished:
            for shard in finished:
                bar.update(len(shard.indices))
    done |= job.place.reports([shard.file for shard in missing], verify=False)
    lost = [shard for shard in missing if shard.file not in done]
    if lost:
        raise UserError(
            f"{len(lost)} shards, the first {lost[0].file}, are not in {job.place.name} though they were written: "
            "either another job writes there too, or its disk is not the one that the workers see; give a --data_dir "
            "that all of them share"
        )
    return [(shard, done[shard.file]) for shard in shards]


def _describe(
    directory: Path,
    *,
    name: str,
    collection: Collection,
    origin: Mapping[str, Any],
    reports: list[tuple[Shard, dict[str, Any]]],
    licence: str,
) -> None:
    """Writes the files beside the shards into a local directory."""
    splits, infos = {}, []
    for split, source in collection.splits.items():
        own = [report for shard, report in reports if shard.split == split]
        skipped = collection.left_out_of_split(split)
        for report in own:
            skipped.merge(report["skipped"])
        ids = [identity for report in own for identity in report["ids"]]
        if not ids:
            reasons = str(skipped) or "it is empty"
            raise UserError(f"none of the {len(source)} images of split {split} can be used ({reasons})")
        captions = [count for report in own for count in report["captions"]]
        _write_ids(ids_file(directory, split), ids, captions)
        splits[split] = {
            "examples": len(ids),
            "captions": sum(captions),
            "skipped": skipped.as_dict(),
            "shards": [{field: report[field] for field in SHARD_FIELDS} for report in own],
        }
        template = tfds.core.ShardedFileTemplate(
            data_dir=directory, template=TEMPLATE, dataset_name=name, split=split, filetype_suffix="array_record"
        )
        infos.append(
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[report["examples"] for report in own],
                num_bytes=sum(report["bytes"] for report in own),
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
    write_text(directory / MANIFEST, in_json(manifest))
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


def _write_ids(path: Path, ids: list[str], captions: list[int]) -> None:
    columns = {"id": pa.array(ids, pa.large_string())}
    if any(captions):  # labelled examples have none
        columns["captions"] = pa.array(captions, pa.int32())
    batch = pa.record_batch(columns)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, batch.schema) as writer:
        writer.write_batch(batch)
