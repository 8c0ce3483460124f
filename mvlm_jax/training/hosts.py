"""The processes of a run: how they find each other, and how an error in one of them ends them all."""

import contextlib
import hashlib
import itertools
import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from mvlm_jax.errors import RunError, UserError
from mvlm_jax.training import inventory
from mvlm_jax.training.heartbeat import HEARTBEAT_TIMEOUT_SECONDS

T = TypeVar("T")
MESSAGE_BYTES = 4096  # of an error message to the other processes; longer ones are cut

_SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")


def connect(
    *, coordinator_address: str | None = None, num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Joins the other processes of the run. Must be called before anything uses a device; a second call does nothing.

    Without arguments the processes are those of the cluster that the environment describes. Where it describes none,
    this process is the whole run, and no network is searched. `num_processes=1` alone asks for that too.

    Args:
      coordinator_address: HOST:PORT of process 0, as the others reach it.

    Raises:
      UserError: arguments that are incomplete or contradict each other, no connection, or processes that run other
        code.
    """
    if jax.distributed.is_initialized():
        return
    given = {
        "--coordinator_address": coordinator_address,
        "--num_processes": num_processes,
        "--process_id": process_id,
    }
    missing = [flag for flag, value in given.items() if value is None]
    if missing == ["--coordinator_address", "--process_id"] and num_processes == 1:
        return
    if len(missing) == len(given):
        cluster = cluster_of(os.environ)
        if cluster:
            _initialize(described=f"the {cluster} that the environment describes")
        return
    if coordinator_address is None or num_processes is None or process_id is None:
        raise UserError(f"{' and '.join(missing)} missing: {', '.join(given)} go together")
    if num_processes < 1:
        raise UserError(f"--num_processes={num_processes} must be at least 1")
    if not re.fullmatch(r".+:\d+", coordinator_address):
        raise UserError(f"--coordinator_address={coordinator_address} must be HOST:PORT of process 0")
    if not 0 <= process_id < num_processes:
        raise UserError(
            f"--process_id={process_id} must lie between 0 and {num_processes - 1}, one less than --num_processes"
        )
    _initialize(
        described=f"--coordinator_address={coordinator_address}",
        coordinator_address=coordinator_address,
        num_processes=num_processes,
        process_id=process_id,
        cluster_detection_method="deactivate",
    )


def cluster_of(environment: Mapping[str, str]) -> str | None:
    """The type of cluster in which this is one of several processes, from environment variables alone.

    These are the cases in which `jax.distributed.initialize` finds its arguments by itself. It cannot simply be tried:
    on a single machine it raises, or waits for a network.
    """
    if _number(environment, "SLURM_NTASKS") > 1 and all(name in environment for name in _SLURM):
        return "SLURM job"
    if _number(environment, "OMPI_COMM_WORLD_SIZE") > 1 and "OMPI_MCA_orte_hnp_uri" in environment:
        return "Open MPI job"
    if environment.get("TPU_ML_PLATFORM") == "JAX":  # set by `import jax` where it finds the chips of a Cloud TPU
        workers = environment.get("TPU_PROCESS_ADDRESSES", environment.get("TPU_WORKER_HOSTNAMES"))
        if workers is None:
            # The metadata server of a TPU VM names its workers; a notebook with a TPU forbids the query.
            return None if "TPU_SKIP_MDS_QUERY" in environment else "TPU VM"
        return "TPU pod" if "," in workers or _number(environment, "MEGASCALE_NUM_SLICES") > 1 else None
    if "KUBERNETES_SERVICE_HOST" in environment and "JOB_COMPLETION_INDEX" in environment:
        return "Kubernetes job"
    return None


@contextlib.contextmanager
def together() -> Iterator[None]:
    """A block that all processes enter, and leave only once all have finished it; an error in one is raised in each.

    Without it the others would wait for the one that failed. Nothing in the block may itself wait for other processes.

    Raises:
      UserError: that of another process.
      RunError: another error of another process.
    """
    failed = None
    try:
        yield
    except Exception as error:
        failed = error
    if jax.distributed.is_initialized():
        kind = UserError if isinstance(failed, UserError) else RunError
        own = "" if failed is None else f"{kind.status} {failed or type(failed).__name__}"
        for process, row in enumerate(_gathered(own.encode())):
            status, _, message = bytes(row).rstrip(b"\0").decode("utf-8", "replace").partition(" ")
            if message and failed is None:
                kind = UserError if status == str(UserError.status) else RunError
                failed = kind(f"{inventory.name_of(process)}: {message}")
    if failed is not None:
        raise failed


def share(directory: Path | None) -> bool:
    """Whether all processes see the same directory; all must call it. None stands for a process that has none.

    One process that reads compiled programs while the others compile them leaves them waiting for its part of it: on
    GPUs they share the tuning of kernels.
    """
    if not jax.distributed.is_initialized():
        return directory is not None
    token = bytes(_gathered(secrets.token_bytes(16))[0])[:16].hex()
    mark = None if directory is None else directory / f".shared-{token}"
    if mark is not None and jax.process_index() == 0:
        with contextlib.suppress(OSError):
            mark.touch()
    _gathered(b"")  # it is there now
    sees = mark is not None and mark.exists()
    shared = all(row[0] for row in _gathered(bytes([sees])))
    if mark is not None and jax.process_index() == 0:
        mark.unlink(missing_ok=True)
    return shared


def check_same(**values: str) -> None:
    """Refuses processes that were started with different `values`.

    Raises:
      UserError: the first name whose value differs, and where; in every process.
    """
    if not jax.distributed.is_initialized():
        return
    for name, value in values.items():
        digests = [bytes(row) for row in _gathered(hashlib.sha256(value.encode()).digest())]
        others = [process for process, digest in enumerate(digests) if digest != digests[0]]
        if others:
            raise UserError(
                f"{inventory.name_of(others[0])} has another {name} than {inventory.name_of(0)}; start every process "
                "with the same command on the same version, and with the same files"
            )


def in_step(values: Iterable[T], *, name: str, identity: Callable[[T], str]) -> Iterator[T]:
    """`values` one by one. Every process iterates over them; the `identity` of each value must be the same in all.

    Raises:
      UserError: the error of another process, or a value that differs or is missing in one; `name` says what it is.
    """
    values = iter(values)
    while True:
        with together():
            following = list(itertools.islice(values, 1))
        check_same(**{name: repr([identity(value) for value in following])})
        if not following:
            return
        yield following[0]


def _gathered(content: bytes) -> np.ndarray:
    """The content of each process in a row of its own, padded with zeros."""
    row = np.zeros(MESSAGE_BYTES, np.uint8)
    sent = content[:MESSAGE_BYTES]
    row[: len(sent)] = np.frombuffer(sent, np.uint8)
    return multihost_utils.process_allgather(row)


def _initialize(*, described: str, **arguments) -> None:
    try:
        jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT_SECONDS, **arguments)
        inventory.check_installations()
    except UserError:  # of the check: it says what is wrong
        raise
    except (RuntimeError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"cannot join the other processes through {described}: {reason}; give --coordinator_address, "
            "--num_processes and --process_id, or --num_processes=1 for a run of this process alone"
        ) from error


def _number(environment: Mapping[str, str], name: str) -> int:
    """0 where the variable is absent or not a number."""
    value = environment.get(name, "")
    return int(value) if value.isdecimal() else 0
