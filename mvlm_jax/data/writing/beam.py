"""The shards of a dataset written by an Apache Beam pipeline, on this machine or on a cluster."""

import contextlib
import dataclasses
import functools
import io
import logging as standard_logging
import re
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

from absl import logging

from mvlm_jax.data.collection import Collection
from mvlm_jax.data.writing.place import Place
from mvlm_jax.data.writing.plan import Job, Shard, difference, origin_of, plan_of
from mvlm_jax.data.writing.shards import ImageChecks, is_of_writing
from mvlm_jax.errors import UserError

RUNNERS = {
    "direct": "FnApiRunner",
    "dataflow": "DataflowRunner",
    "spark": "SparkRunner",
}
EXTRA = "pip install 'mvlm-jax[beam]', or 'mvlm-jax[dataflow]' for Google's runner"
REFUSED, NOT_WRITTEN = "mvlm prepare refused:", "mvlm prepare could not write:"  # before the line of a failure
FAILURE = re.compile(rf"({REFUSED}|{NOT_WRITTEN}) (.*?)(?= \[while running|\\n|$)", re.MULTILINE)


class ShardFailure(Exception):
    """A shard that a worker cannot write; the runner passes its message on, within a text of its own."""


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """An engine: one element a shard, which a worker writes whole.

    Beam pickles what it sends to its workers, and they unpickle only that. The collection is not sent: each worker
    process opens it, since with millions of captions it is larger than the job descriptions that runners take.
    """

    runner: str  # one of RUNNERS
    options: Sequence[str]  # of Beam, as --name=value
    open_collection: Callable[[], Collection]

    def __call__(self, shards: Sequence[Shard], job: Job) -> Generator[Shard, None, None]:
        """
        Raises:
          UserError: Beam is not installed, an option that it does not have, or what a worker met.
          OSError: a worker cannot write.
        """
        options = parse_options(self.options, runner=self.runner)
        if shards:
            self._run(shards, job, options=options)
        yield from shards

    def _run(self, shards: Sequence[Shard], job: Job, *, options: Any) -> None:
        import apache_beam

        write = functools.partial(
            write_in_worker, open_collection=self.open_collection, plan=job.plan, checks=job.checks, place=job.place
        )
        result = None
        try:
            pipeline = apache_beam.Pipeline(
                runner=_on_this_machine(options) if self.runner == "direct" else None, options=options
            )
            # Without the shuffle a runner would write all shards in the process that makes the list of them.
            elements = pipeline | "Shards" >> apache_beam.Create(list(shards)) | "Spread" >> apache_beam.Reshuffle()
            elements | "Write" >> apache_beam.Map(write)
            result = pipeline.run()
            if hasattr(result, "job_id"):
                logging.info("job %s writes %d shards to %s", result.job_id(), len(shards), job.place.name)
            state = result.wait_until_finish()
        except KeyboardInterrupt:
            if result is not None:
                with contextlib.suppress(Exception):
                    result.cancel()  # a service would go on
            raise
        except Exception as error:
            raise _failure(error) from error
        if str(state) not in ("DONE", "PipelineState.DONE"):
            raise UserError(f"the pipeline ended as {state}; finished shards are kept for the same command")


def write_in_worker(
    shard: Shard,
    *,
    open_collection: Callable[[], Collection],
    plan: Mapping[str, Any],
    checks: ImageChecks,
    place: Place,
) -> None:
    """
    Raises:
      ShardFailure: what the command says in one line.
    """
    try:
        collection = _opened(open_collection, plan=plan, checks=checks)
        Job(collection.splits, collection.codec, checks, place, plan).write(shard)
    except UserError as error:
        raise ShardFailure(f"{REFUSED} {error}") from error
    except (OSError, RuntimeError) as error:
        if not is_of_writing(error):
            raise
        raise ShardFailure(f"{NOT_WRITTEN} {error}") from error


def parse_options(options: Sequence[str], *, runner: str) -> Any:
    """Beam's options for a runner.

    Raises:
      UserError: Beam is not installed, or has no such option or value.
    """
    # What it warns of on import concerns libraries that nothing here uses. On this machine it also logs what it raises.
    quiet = standard_logging.CRITICAL if runner == "direct" else standard_logging.ERROR
    standard_logging.getLogger("apache_beam").setLevel(quiet)
    try:
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise UserError(f"--runner={runner} needs Apache Beam ({error}): {EXTRA}") from error
    refused = io.StringIO()
    try:
        with contextlib.redirect_stderr(refused):  # argparse prints its usage there, and exits
            parsed = PipelineOptions([*options, f"--runner={RUNNERS[runner]}"])
            known = parsed.get_all_options()
            unknown = sorted(parsed.get_all_options(retain_unknown_options=True).keys() - known.keys())
    except SystemExit as error:
        reason = refused.getvalue().strip().rpartition("\n")[2].partition("error: ")[2]
        raise UserError(f"--beam: {reason}") from error
    if unknown:
        raise UserError(f"--beam.{unknown[0]} is no option of Apache Beam; see its pipeline options")
    return parsed


def _on_this_machine(options: Any) -> Any:
    """What Beam's DirectRunner comes to, which first fetches the binary of another runner from the network."""
    from apache_beam.portability.api import beam_provision_api_pb2
    from apache_beam.runners.portability.fn_api_runner import fn_runner
    from apache_beam.runners.portability.portable_runner import JobServiceHandle

    given = options.get_all_options() | {"default_sdk_harness_log_level": "CRITICAL"}
    encoded = JobServiceHandle.encode_pipeline_options(given)
    provided = beam_provision_api_pb2.ProvisionInfo(pipeline_options=encoded)
    return fn_runner.FnApiRunner(provision_info=fn_runner.ExtendedProvisionInfo(provided))


_collections: dict[str, Collection] = {}  # of this process, by plan
_lock = threading.Lock()


def _opened(open_collection: Callable[[], Collection], *, plan: Mapping[str, Any], checks: ImageChecks) -> Collection:
    """The collection as this worker sees it, opened once for all threads of the process.

    Raises:
      UserError: it is not the one that the job was planned for.
    """
    key = repr(plan)
    with _lock:
        if key not in _collections:
            collection = open_collection()
            seen = plan_of(collection, origin=origin_of(collection, checks=checks))
            if differs := difference(plan, seen):
                raise UserError(
                    f"a worker reads another collection than the machine that started it: {differs}; give files that "
                    "all machines share"
                )
            _collections[key] = collection
        return _collections[key]


def _failure(error: Exception) -> Exception:
    """What a runner raised, as the local command would have raised it."""
    texts: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        texts.append(str(cause))
        cause = cause.__cause__
    found = next(filter(None, map(FAILURE.search, texts)), None)
    if found is None:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[-1] if lines else type(error).__name__
        return UserError(f"the pipeline failed: {reason}; finished shards are kept for the same command")
    return UserError(found[2]) if found[1] == REFUSED else OSError(found[2])
