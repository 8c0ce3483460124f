"""Turns a collection of captioned images into the ArrayRecord files that runs read, with a report.

    mvlm prepare --dataset=shapes --data_dir=data
    mvlm prepare --dataset=flickr8k --source=downloads/flickr8k --data_dir=data

Images that cannot be used are left out and counted by reason in the report. What is interrupted leaves nothing
that looks finished, and may simply be started again.
"""

import contextlib
import fcntl
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from absl import flags

from mvlm_jax import doors
from mvlm_jax.data.builders.flickr8k import Flickr8k
from mvlm_jax.data.builders.reporting import REPORT, ReportingBuilder
from mvlm_jax.data.builders.shapes import Shapes
from mvlm_jax.data.builders.shapes_tasks import ShapesNlvr2, ShapesVe, ShapesVqa
from mvlm_jax.data.sources import resolved_data_dir
from mvlm_jax.errors import UserError

DRAWN = ("shapes", "shapes_vqa", "shapes_nlvr2", "shapes_ve")
DATASETS = (*DRAWN, "flickr8k")


def prepare(*, dataset: str, source: str, data_dir: Path) -> Path:
    """Writes a dataset and returns its directory; does nothing where it is already there.

    Raises:
      UserError: an unknown dataset, a wrong `source`, another `prepare` at work, or a `data_dir` that cannot be
        written.
    """
    make = _builder(dataset, source=source)
    try:
        (data_dir / dataset).mkdir(parents=True, exist_ok=True)
        with _only_one(data_dir / dataset):
            return _write(make(data_dir=data_dir))
    except (OSError, RuntimeError) as error:
        # The ArrayRecord writer raises RuntimeError where a file of Python's own would raise OSError.
        if isinstance(error, RuntimeError) and "write() failed" not in str(error):
            raise
        raise UserError(f"--data_dir={str(data_dir)!r} cannot be written: {error}") from error


def _builder(dataset: str, *, source: str) -> Callable[..., ReportingBuilder]:
    if dataset not in DATASETS:
        raise UserError(f"--dataset={dataset!r} is not one of {', '.join(DATASETS)}")
    if dataset in DRAWN:
        if source:
            raise UserError(f"--source={source!r} has no use with --dataset={dataset}, which is drawn; leave it out")
        # Looked up when it is needed, so that a test can put a smaller one in its place.
        return dict(zip(DRAWN, (Shapes, ShapesVqa, ShapesNlvr2, ShapesVe)))[dataset]
    if not source:
        raise UserError(f"--dataset={dataset} needs --source, the directory that holds the published files")
    return lambda **kwargs: Flickr8k(source=source, **kwargs)


def _write(builder: ReportingBuilder) -> Path:
    directory = Path(builder.data_dir)
    if builder.is_prepared():
        print(f"{builder.name} is already prepared in {directory}")
    else:
        # Left by a process that was killed; nobody else writes here while the lock is held.
        for remains in directory.parent.glob(f"*incomplete*{directory.name}"):
            shutil.rmtree(remains)
        tfds.disable_progress_bar()
        # TFDS makes a directory for downloads even where nothing is downloaded.
        with tempfile.TemporaryDirectory() as downloads, contextlib.redirect_stdout(sys.stderr):
            builder.download_and_prepare(download_dir=downloads)
    return directory


@contextlib.contextmanager
def _only_one(directory: Path) -> Iterator[None]:
    with (directory / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another prepare is writing to {directory}; wait for it to end") from error
        yield


def _summary(report: dict[str, Any]) -> Iterator[str]:
    for split, counts in report["splits"].items():
        captioned = f"images, {counts['captions']} captions" if counts["captions"] else "examples"
        yield f"{split}: {counts['examples']} {captioned}"
        yield from _skips(counts["skipped"])
    yield from _skips(report.get("caption_lines_skipped", {}))


def _skips(skipped: dict[str, Any]) -> Iterator[str]:
    for reason, left_out in skipped.items():
        more = ", …" if left_out["count"] > len(left_out["ids"]) else ""
        yield f"  left out, {reason}: {left_out['count']} ({', '.join(left_out['ids'])}{more})"


def _main(values: flags.FlagValues) -> None:
    directory = prepare(
        dataset=values.dataset, source=values.source, data_dir=resolved_data_dir(values.data_dir).absolute()
    )
    for line in _summary(json.loads((directory / REPORT).read_text())):
        print(line)
    print(f"report: {directory / REPORT}")


def _define_flags(values: flags.FlagValues, argv: Sequence[str]) -> None:
    flags.DEFINE_string("dataset", None, f"What to prepare: {', '.join(DATASETS)}.", flag_values=values)
    flags.DEFINE_string("source", "", "Directory of the published files (flickr8k).", flag_values=values)
    flags.DEFINE_string(
        "data_dir", "", "Where to write; empty: $TFDS_DATA_DIR or ~/tensorflow_datasets.", flag_values=values
    )
    flags.mark_flag_as_required("dataset", flag_values=values)


def door(argv: Sequence[str]) -> int:
    return doors.run(name="prepare", doc=__doc__, define_flags=_define_flags, main=_main, argv=argv)


if __name__ == "__main__":
    sys.exit(door(sys.argv[1:]))
