"""The key-value store that the processes of a run share. It holds short texts, and needs no device."""

import itertools
from typing import Any

import jax
from jax._src import distributed  # the store has no public API

PREFIX = "mvlm_jax"
PATIENCE_SECONDS = 600  # for another process to come to the same place; JAX ends all of them where one has died

_exchanges = itertools.count()  # the same in every process


def store() -> Any:
    """None where `jax.distributed` is not initialized. It ends with process 0."""
    return distributed.global_state.client


def own_process() -> int:
    """As `jax.process_index`, which needs the devices."""
    return distributed.global_state.process_id


def put_own(folder: str, text: str) -> None:
    """Sets the text of this process in a folder, where each process has one."""
    store().key_value_set(f"{PREFIX}/{folder}/{own_process()}", text, True)


def read(folder: str, process: int) -> str | None:
    """None where nothing is there, or no store."""
    try:
        return store().key_value_try_get(f"{PREFIX}/{folder}/{process}") if store() is not None else None
    except jax.errors.JaxRuntimeError:
        return None


def read_all(folder: str) -> dict[int, str]:
    """The texts in a folder, by process; those that have set none yet are left out.

    Raises:
      JaxRuntimeError: process 0, which holds the store, is gone.
    """
    entries = store().key_value_dir_get(f"{PREFIX}/{folder}")
    return {int(key.rpartition("/")[2]): text for key, text in entries}


def exchange(text: str) -> list[str]:
    """The text of each process; all must call it, and wait for each other.

    Raises:
      JaxRuntimeError: another process did not come.
    """
    folder = f"exchange/{next(_exchanges)}"
    put_own(folder, text)
    store().wait_at_barrier(f"{PREFIX}/{folder}", timeout_in_ms=PATIENCE_SECONDS * 1000)
    texts = read_all(folder)
    return [texts[process] for process in sorted(texts)]
