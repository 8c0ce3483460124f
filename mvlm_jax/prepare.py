"""Turns a collection of captioned images into the ArrayRecord files that runs read, with a manifest.

    mvlm prepare --dataset=shapes --data_dir=data
    mvlm prepare --dataset=flickr8k --source=downloads/flickr8k --data_dir=data
    mvlm prepare --dataset=mine --source=json:pairs.json --data_dir=data
    mvlm prepare --dataset=mine --source=train=table:train.csv --source=val=table:val.csv --data_dir=data

Images that cannot be used are left out and counted by reason in the manifest. What is interrupted leaves nothing that
looks finished; the same command continues it.
"""

import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from mvlm_jax import doors
from mvlm_jax.data.builders import fetched, flickr8k, karpathy, pairs4m, shapes, visual_genome
from mvlm_jax.data.collection import Collection
from mvlm_jax.data.sources import OPENERS, open_source, resolved_data_dir, source_files
from mvlm_jax.data.writing.dataset import MANIFEST, read_manifest, write_dataset
from mvlm_jax.data.writing.shards import ImageChecks
from mvlm_jax.errors import UserError

# Collections read from the files that they are published as.
BUILDERS: dict[str, Callable[[Path], Collection]] = {
    "flickr8k": flickr8k.collection,
    "flickr30k": karpathy.flickr30k,
    "coco": karpathy.coco,
    "cc3m": fetched.cc3m,
    "sbu": fetched.sbu,
    "visual_genome": visual_genome.collection,
    "pairs4m": pairs4m.collection,
}
WORTH_WORKERS = 2000  # examples; fewer are written before worker processes have started


def prepare(
    *,
    dataset: str,
    sources: Sequence[str],
    data_dir: Path,
    workers: int = 0,
    checks: ImageChecks | None = None,
    licence: str = "",
) -> Path:
    """Writes a dataset and returns its directory; does nothing where it is already there.

    Args:
      sources: a directory of published files, or URIs, each with `split=` before it (`train` where it has none).
      workers: processes; 0: one a core where the collection is worth it.

    Raises:
      UserError: an unknown dataset, a wrong source, another `prepare` at work, or a `data_dir` that cannot be
        written.
    """
    collection = collect(dataset, sources=sources, data_dir=data_dir)
    if not workers:
        examples = sum(map(len, collection.splits.values()))
        workers = (os.cpu_count() or 1) if examples >= WORTH_WORKERS else 1
    try:
        return write_dataset(
            collection, name=dataset, data_dir=data_dir, workers=workers, checks=checks, licence=licence
        )
    except (OSError, RuntimeError) as error:
        # The ArrayRecord writer raises RuntimeError where a file of Python's own would raise OSError.
        if isinstance(error, RuntimeError) and "write() failed" not in str(error):
            raise
        raise UserError(f"--data_dir={str(data_dir)!r} cannot be written: {error}") from error


def collect(dataset: str, *, sources: Sequence[str], data_dir: Path) -> Collection:
    """The collection that `--dataset` and `--source` describe.

    Raises:
      UserError: they describe none.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", dataset):
        raise UserError(f"--dataset={dataset!r} must be lower-case letters, digits and _, for example my_pairs")
    uris = dict(map(_split_and_uri, sources))
    if sources and all(uris.values()):
        if len(uris) < len(sources):
            raise UserError(f"--source names a split twice; splits are {', '.join(uris)}: write --source=SPLIT=URI")
        return Collection(
            splits={split: open_source(uri, data_dir=str(data_dir)) for split, uri in uris.items()},
            source=", ".join(f"{split}={uri}" for split, uri in uris.items()),
            files=tuple(file for uri in uris.values() for file in source_files(uri)),
        )
    if dataset == "shapes":
        if sources:
            raise UserError(f"--source={sources[0]!r} has no use with --dataset=shapes, which is drawn; leave it out")
        return shapes.collection()
    forms = ", ".join(f"{scheme}:" for scheme in OPENERS)
    if dataset not in BUILDERS:
        raise UserError(
            f"--dataset={dataset!r} is not one of shapes, {', '.join(BUILDERS)}; any other needs --source=URI with one "
            f"of {forms}"
        )
    if len(sources) != 1:
        raise UserError(f"--dataset={dataset} needs one --source, the directory that holds the published files")
    return BUILDERS[dataset](Path(sources[0]).absolute())


def _split_and_uri(source: str) -> tuple[str, str]:
    found = re.fullmatch(rf"(?:(\w+)=)?((?:{'|'.join(OPENERS)}):.*)", source)
    return (found[1] or "train", found[2]) if found else (source, "")


def summary(manifest: Mapping[str, Any]) -> Iterator[str]:
    """Lines that say what was written and what was left out."""
    for split, counts in manifest["splits"].items():
        yield f"{split}: {counts['examples']} images, {counts['captions']} captions"
        yield from _skips(counts["skipped"])
    yield from _skips(manifest["lines_left_out"])


def _skips(skipped: Mapping[str, Any]) -> Iterator[str]:
    for reason, left_out in skipped.items():
        more = ", …" if left_out["count"] > len(left_out["ids"]) else ""
        yield f"  left out, {reason}: {left_out['count']} ({', '.join(left_out['ids'])}{more})"


def _main(values: flags.FlagValues) -> None:
    data_dir = resolved_data_dir(values.data_dir).absolute()
    directory = prepare(
        dataset=values.dataset,
        sources=values.source,
        data_dir=data_dir,
        workers=values.workers,
        checks=ImageChecks(max_side=values.max_side, quality=values.quality),
        licence=_licence(values.licence),
    )
    for line in summary(read_manifest(directory)):
        print(line)
    print(f"manifest: {directory / MANIFEST}")


def _licence(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8") if path else ""
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--licence={path!r} cannot be read as text: {error}") from error


def _define_flags(values: flags.FlagValues, argv: Sequence[str]) -> None:
    flags.DEFINE_string(
        "dataset", None, f"What to prepare: shapes, {', '.join(BUILDERS)}, or a new name.", flag_values=values
    )
    flags.DEFINE_multi_string(
        "source", [], "Directory of the published files, or [split=]URI; may be repeated.", flag_values=values
    )
    flags.DEFINE_string(
        "data_dir", "", "Where to write; empty: $TFDS_DATA_DIR or ~/tensorflow_datasets.", flag_values=values
    )
    flags.DEFINE_integer(
        "workers", 0, "Processes; 0: one a core, none for a small collection.", lower_bound=0, flag_values=values
    )
    flags.DEFINE_integer(
        "max_side", 0, "Larger images are scaled down to so many pixels; 0: none is.", lower_bound=0, flag_values=values
    )
    flags.DEFINE_integer(
        "quality", 90, "Of the JPEG that --max_side makes.", lower_bound=1, upper_bound=95, flag_values=values
    )
    flags.DEFINE_string("licence", "", "Text file that goes into the manifest.", flag_values=values)
    flags.mark_flag_as_required("dataset", flag_values=values)


def door(argv: Sequence[str]) -> int:
    return doors.run(name="prepare", doc=__doc__, define_flags=_define_flags, main=_main, argv=argv)


if __name__ == "__main__":
    sys.exit(door(sys.argv[1:]))
