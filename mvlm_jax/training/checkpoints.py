"""The checkpoints of a run."""

import dataclasses
import errno
import itertools
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.experimental import multihost_utils
from jaxtyping import Array, PyTree, UInt32
from orbax.checkpoint import checkpoint_managers as policies
from orbax.checkpoint._src.metadata import array_metadata_store  # has no public name

from mvlm_jax.errors import RunError, UserError
from mvlm_jax.stores.mirror import mirror_of
from mvlm_jax.training import hosts
from mvlm_jax.training.optimizer import a_group_for_each_encoder, one_group_of_encoders
from mvlm_jax.training.partition import with_trained
from mvlm_jax.training.rules import path_of
from mvlm_jax.training.state import TrainState
from mvlm_jax.training.stored_steps import StoredSteps

STATE = ("params", "optimizer", "ema")
FINGERPRINTS = "fingerprints"
# Replicas divide an array among them where each then writes this much. Cutting a smaller one takes longer than writing
# it: every shape is a program to compile, and every piece a copy from a device.
MIN_BYTES_OF_A_REPLICA = 2**20


def check_path(directory: Path, *, write: bool = True) -> None:
    """
    Raises:
      UserError: the libraries below could not find or read a checkpoint at this path.
    """
    path = str(directory.absolute())
    # TensorStore takes a backslash for a slash. Orbax makes the path part of a glob pattern, with which it looks for
    # what it has just written.
    unusable = next((character for character in ("\\*?[" if write else "\\") if character in path), None)
    if unusable is not None:
        raise UserError(
            f"checkpoints in {path} could not be read back, because of the {unusable} in the path; "
            "give a directory whose path has none of \\ * ? [, or a symbolic link to this one"
        )
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"the directory {path!r} is not named in UTF-8; checkpoints need a path that is") from error


class Damaged(Exception):
    """A step that cannot be read, or differs from what was written."""


class Checkpoints:
    """A directory of steps, each there whole or not at all.

    Parameters are stored apart from the optimizer's state, so that an evaluation reads a third of the bytes, and so is
    their moving average, where there is one. The fingerprints of all show whether what is read is what was written.

    Where the directory is the copy of a folder in a store, the steps are those of the store: each is written here, and
    is then copied there in the background; what is read is copied here first. Each process of a run has such a copy;
    process 0 writes, and the others send it what they hold.
    """

    _manager: ocp.CheckpointManager | None = None  # None: in a process that sends what it holds to another one
    _stored_steps: StoredSteps | None = None
    _opened: int | None = None  # the directory's descriptor, where it is open for writing
    _of_run = False  # whether it is that of a run that goes on, which all processes of the run have open

    def __init__(self, directory: Path, *, keep_last: int, keep_every: int):
        """Opens for writing; `keep_every` also keeps each step that is a multiple, 0 none.

        Raises:
          UserError: as `check_path`.
          RunError: the directory cannot be made or read.
        """
        self._of_run = True
        self._keep = {"keep_last": keep_last, "keep_every": keep_every}
        self._directory = Path(directory).absolute()
        check_path(self._directory)
        stored = mirror_of(self._directory) is not None
        if stored and jax.process_index():
            with self._writing():
                self._open_store(writes=False)
            return
        if stored:
            keep_last, keep_every = 1, 0  # of the copies
        keep = [policies.LatestN(keep_last)] + ([policies.EveryNSteps(keep_every)] if keep_every else [])
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(keep),
            cleanup_tmp_directories=True,  # half-written steps of a killed run
            create=not stored,
            multiprocessing_options=_alone("writer") if stored else ocp.options.MultiprocessingOptions(),
        )
        with self._writing():
            if stored:
                self._directory.mkdir(parents=True, exist_ok=True)
            self._open(options)
            self._open_store(writes=True)
            # Shows that the directory was removed even after a background write has made a new one.
            self._opened = os.open(self._directory, os.O_RDONLY)
            self._links = os.fstat(self._opened).st_nlink

    @classmethod
    def for_reading(cls, directory: Path) -> "Checkpoints":
        """Opens without touching anything, also while another process writes, and without waiting for other processes.

        Raises:
          UserError: something else than a readable directory is there.
        """
        self = cls.__new__(cls)
        self._directory = Path(directory).absolute()
        check_path(self._directory, write=False)
        options = ocp.CheckpointManagerOptions(
            read_only=True,
            save_interval_steps=0,
            create=False,
            save_root_metadata=False,  # saving it would wait for other processes
        )
        try:
            self._open(options)
            self._open_store(writes=False)
        except OSError as error:
            raise UserError(f"the checkpoints in {self._directory} cannot be read: {_in_one_line(error)}") from error
        return self

    def _open(self, options: ocp.CheckpointManagerOptions) -> None:
        self._manager = ocp.CheckpointManager(
            self._directory, options=options, item_handlers=_handlers(options.multiprocessing_options)
        )

    def _open_store(self, *, writes: bool) -> None:
        mirror = mirror_of(self._directory)
        if mirror is not None:
            self._stored_steps = StoredSteps(mirror, self._directory, writes=writes)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind, *_) -> None:
        try:
            # A process that ended before the last step is in the store would be missed as one that died.
            waits = kind is None and self._of_run and self._stored_steps is not None
            with hosts.together() if waits else nullcontext():
                self._close(failed=kind is not None)
        finally:
            if self._opened is not None:
                os.close(self._opened)

    def _close(self, *, failed: bool) -> None:
        first: Exception | None = None
        try:
            with self._writing():
                if self._manager is not None:
                    self._manager.close()
        except Exception as error:
            first = error
        try:
            if self._stored_steps is not None:  # also then: its thread waits for a step that does not come
                self._stored_steps.close()
        except Exception as error:
            first = first or error
        if first is None:
            return
        if not failed:
            raise first
        # The error that is being raised already came first.
        logging.debug("closing %s: %s", self._directory, _in_one_line(first))

    def steps(self) -> list[int]:
        if self._stored_steps is not None:
            return self._stored_steps.steps()
        assert self._manager  # where there is no store
        return sorted(self._manager.all_steps())

    def latest_step(self) -> int | None:
        return max(self.steps(), default=None)

    def save(self, step: int, state: TrainState) -> None:
        """Returns once the arrays are copied, and the step before is in the store; they are written in the background.

        All processes of the run must call it.

        Raises:
          RunError: this step, or the one before it, cannot be written.
        """
        items = _items(state)
        if self._stored_steps is not None:
            with self._writing():
                if self._manager is not None:
                    self._manager.wait_until_finished()
            self._stored_steps.wait()
        written = {name: fingerprints(item) for name, item in items.items()}
        if self._stored_steps is not None and jax.process_count() > 1:
            items = on_process_0(items)
        if self._manager is not None:
            args = {name: ocp.args.PyTreeSave(item) for name, item in items.items()}
            args |= {FINGERPRINTS: ocp.args.JsonSave(written)}
            with self._writing():
                self._manager.save(step, args=ocp.args.Composite(**args))
        if self._stored_steps is not None:
            self._stored_steps.publish(step, **self._keep)

    def check_written(self) -> None:
        """
        Raises:
          RunError: a step could not be written in the background.
        """
        with self._writing():
            if self._manager is not None:
                self._manager.check_for_errors()
        if self._stored_steps is not None:
            self._stored_steps.check()

    def restore(self, step: int, abstract: TrainState) -> TrainState:
        """The state of a step, on the shardings of `abstract`.

        Raises:
          UserError: there is no checkpoint of that step, or it is damaged.
        """
        return self._given(step, lambda: self._read(step, abstract))

    def restore_params(
        self, step: int | None, abstract: PyTree | None = None, *, averaged: bool = False
    ) -> tuple[int, PyTree]:
        """The step, or the last one that can be read where it is None, and its parameters alone; moves nothing.

        Args:
          abstract: shapes and shardings; None: as they were stored, of any model, in the memory of this host.
          averaged: whether the moving average of what was trained is read in its place; the run has kept one.

        Raises:
          UserError: there is no such checkpoint, or it is damaged.
        """

        def read(step: int) -> PyTree:
            shapes = {"params": self._stored(step, "params") if abstract is None else abstract}
            if averaged:
                shapes["ema"] = self._average_of(step, shapes["params"])
            items = self._read_items(step, shapes)
            return with_trained(items["params"], items["ema"]) if averaged else items["params"]

        if step is not None:
            return step, self._given(step, lambda: read(step))
        latest = self._latest(read)
        if latest is None:
            raise UserError(f"{self._directory} has no finished checkpoint; train first")
        return latest

    def restore_latest(self, abstract: TrainState) -> tuple[int, TrainState] | None:
        """The last step whose state can be read, and that state; None where there is no step.

        Later steps, which could not be read, are moved aside where the directory is open for writing, so that the run
        can store them again. They are not deleted: the failure may have been of the file system alone.

        Raises:
          UserError: there are steps, and none of them can be read.
          RunError: a step cannot be moved.
        """
        restored = self._latest(lambda step: self._read(step, abstract))
        if restored is not None and self._stored_steps is not None:
            self._stored_steps.forget(restored[0])
        if restored is not None and self._of_run:
            for step in [step for step in self.steps() if step > restored[0]]:
                with self._writing():
                    self._move_aside(step)
        return restored

    def _move_aside(self, step: int) -> None:
        if self._stored_steps is not None:
            self._stored_steps.move_aside(step)
            return
        assert self._manager  # where there is no store
        if jax.process_index() == 0:
            names = (self._directory / f"damaged.{step}.{count}" for count in itertools.count(1))
            aside = next(path for path in names if not path.exists())
            (self._directory / str(step)).rename(aside)
            logging.warning("it is now %s; the run stores step %d again when it gets there", aside, step)
        # Nothing is left to delete. This makes every process forget the step, even where a network file system still
        # shows its old name.
        self._manager.delete(step)

    def _latest(self, read: Callable[[int], Any]) -> tuple[int, Any] | None:
        steps = self.steps()
        for step in reversed(steps):
            try:
                return step, read(step)
            except Damaged as error:
                logging.warning("the checkpoint of step %d in %s is skipped: %s", step, self._directory, error)
        if steps:
            raise UserError(
                f"none of the checkpoints in {self._directory} can be read (steps {', '.join(map(str, steps))}); "
                "move the directory away to start over"
            )
        return None

    def _read(self, step: int, abstract: TrainState) -> TrainState:
        items = _items(abstract)
        # A process that cannot tell must read what the others read.
        older = _anywhere(self._has_one_group_of_encoders(step), items)
        if older:
            items["optimizer"] |= {"opt_state": one_group_of_encoders(abstract.opt_state)}
        restored = self._read_items(step, items)
        state = TrainState(params=restored["params"], ema=restored.get("ema"), **restored["optimizer"])
        return dataclasses.replace(state, opt_state=a_group_for_each_encoder(state.opt_state)) if older else state

    def _has_one_group_of_encoders(self, step: int) -> bool:
        """Whether a program wrote the step in which both encoders had one learning rate."""
        try:
            self._fetch(step, "optimizer")
            stored = ocp.StandardCheckpointHandler().metadata(self._directory / str(step) / "optimizer").tree
        except RunError:
            raise
        except Exception:  # broken bytes, which are reported when they are read
            return False
        paths = (path_of(key_path) for key_path, _ in jax.tree_util.tree_leaves_with_path(stored))
        return any("/inner_states/encoder/" in path for path in paths)

    def _average_of(self, step: int, params: PyTree) -> PyTree:
        """Shapes of the average of a step, with the shardings of `params`."""
        average, failure = None, ""
        try:
            average = _sharded_as(params, self._stored(step, "ema"))
        except Damaged as error:
            failure = str(error) or "its average cannot be read"
        if _anywhere(bool(failure), params):
            raise Damaged(failure or "another process cannot read it")
        return average

    def _stored(self, step: int, item: str) -> PyTree:
        """Shapes of the parameters of a step, or of their average, for the memory of this host."""
        host = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
        try:
            self._fetch(step, item)
            stored = ocp.StandardCheckpointHandler().metadata(self._directory / str(step) / item).tree
            return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=host), stored)
        except RunError:
            raise
        except Exception as error:  # Orbax raises whatever the broken bytes lead it to
            raise Damaged(_in_one_line(error)) from error

    def _read_items(self, step: int, abstract: Mapping[str, PyTree]) -> dict[str, PyTree]:
        args = {name: ocp.args.StandardRestore(item) for name, item in abstract.items()}
        args |= {FINGERPRINTS: ocp.args.JsonRestore()}
        restored, failure = {}, ""
        try:
            self._fetch(step, *abstract, FINGERPRINTS)
            with _reader() as reader:
                read = reader.restore(self._directory / str(step), args=ocp.args.Composite(**args))
            restored = {name: read[name] for name in abstract}
            written = {name: read[FINGERPRINTS][name] for name in abstract}
        except (jax.errors.JaxRuntimeError, MemoryError, RunError, UserError):
            raise  # no memory for it here, or no way to the store, which says nothing about the checkpoint
        except Exception as error:  # broken bytes make Orbax and TensorStore raise anything
            failure = _in_one_line(error)
        if _anywhere(bool(failure), abstract):
            raise Damaged(failure or "another process cannot read it")
        changed = [name for name, item in restored.items() if fingerprints(item) != written[name]]
        if changed:
            raise Damaged(f"its {' and '.join(changed)} are not what was written")
        return restored

    def _fetch(self, step: int, *items: str) -> None:
        if self._stored_steps is not None:
            self._stored_steps.fetch(step, items)

    def _given(self, step: int, read: Callable[[], Any]) -> Any:
        steps = self.steps()
        if step not in steps:
            there_are = f"there are {', '.join(map(str, steps))}" if steps else "there is none yet"
            raise UserError(f"no checkpoint of step {step} in {self._directory}; {there_are}")
        try:
            return read()
        except Damaged as error:
            raise UserError(f"the checkpoint of step {step} in {self._directory} is damaged: {error}") from error

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
            if self._removed():
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self._directory))
        except (jax.errors.JaxRuntimeError, MemoryError, UserError):
            raise
        except (OSError, ValueError, RuntimeError) as error:  # ValueError: from TensorStore, for any error of the disk
            if self._stored_steps is not None:
                whole = self._stored_steps.steps()
            else:
                whole = sorted(int(path.name) for path in self._directory.glob("*") if path.name.isdigit())
            left = f"the last whole one is of step {whole[-1]}" if whole else "there is no whole one"
            reason = "the directory was removed" if self._removed() else _in_one_line(error)
            raise RunError(f"a checkpoint cannot be written to {self._directory}: {reason}; {left}") from error

    def _removed(self) -> bool:
        """Whether the directory that was opened for writing is no longer there."""
        if self._opened is None:
            return False
        try:
            os.stat(self._directory)
            return os.fstat(self._opened).st_nlink == 0 < self._links  # some file systems count no links at all
        except OSError as error:  # any other may pass; if not, the next write fails
            return error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)


def fingerprints(tree: PyTree) -> list[int]:
    """A 32-bit sum of the bits of each leaf, computed on the devices; the same on every mesh."""
    return [int(value) for value in jax.device_get(_fingerprints(jax.tree.leaves(tree)))]


@jax.jit
def _fingerprints(leaves: list[Array]) -> list[UInt32[Array, ""]]:
    return [_fingerprint(leaf) for leaf in leaves]


def _fingerprint(leaf: Array) -> UInt32[Array, ""]:
    words = jax.lax.bitcast_convert_type(leaf, _unsigned(leaf.dtype)).astype(jnp.uint32)
    # Odd factors that differ along every axis: a changed bit always changes the sum, swapped values do almost always.
    for axis in range(leaf.ndim):
        place = jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
        words = words * (place * jnp.uint32(2654435760) + jnp.uint32(1))
    return words.sum(dtype=jnp.uint32)


def _unsigned(dtype: np.dtype) -> np.dtype:
    return np.dtype(f"uint{8 * dtype.itemsize}")


def _items(state: TrainState) -> dict[str, PyTree]:
    optimizer = {"opt_state": state.opt_state, "step": state.step, "skipped": state.skipped}
    average = {} if state.ema is None else {"ema": state.ema}
    return {"params": state.params, "optimizer": optimizer} | average


def _sharded_as(params: PyTree, shapes: PyTree) -> PyTree:
    """The shapes of some parameters, or of their last rows, with the shardings that `params` have.

    Raises:
      Damaged: there is no such parameter.
    """
    shardings = {path: leaf.sharding for path, leaf in flatten_dict(params).items()}
    leaves = flatten_dict(shapes)
    other = ["/".join(path) for path in leaves if path not in shardings]
    if other:
        raise Damaged(f"its average has {other[0]}, which the parameters have not")
    return unflatten_dict(
        {path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=shardings[path]) for path, leaf in leaves.items()}
    )


def _handlers(processes: ocp.options.MultiprocessingOptions) -> dict[str, ocp.CheckpointHandler]:
    """Of a manager's items."""
    arrays = ocp.type_handlers.ArrayHandler(
        array_metadata_store=array_metadata_store.Store(),
        min_slice_bytes_for_replica_parallel=MIN_BYTES_OF_A_REPLICA,
    )
    types = ocp.type_handlers.create_type_handler_registry(
        (jax.Array, arrays), (np.ndarray, ocp.type_handlers.NumpyHandler())
    )
    states: dict[str, ocp.CheckpointHandler] = {
        name: ocp.PyTreeCheckpointHandler(type_handler_registry=types, multiprocessing_options=processes)
        for name in STATE
    }
    return states | {FINGERPRINTS: ocp.JsonCheckpointHandler(multiprocessing_options=processes)}


def _reader() -> ocp.Checkpointer:
    """Reads this process's part without waiting for the others, which may fail to read theirs."""
    alone = _alone("reader")
    handler = ocp.CompositeCheckpointHandler(
        composite_options=ocp.CompositeOptions(multiprocessing_options=alone),
    )
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def _alone(name: str) -> ocp.options.MultiprocessingOptions:
    """For what this process does without the others."""
    me = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"{name}_{me}"
    )


def on_process_0(tree: PyTree[Array]) -> PyTree[np.ndarray | None]:
    """The whole arrays, in the memory of process 0; None for each elsewhere. All processes must call it."""

    def sent(leaf: Array) -> np.ndarray | None:
        if leaf.is_fully_replicated:
            whole = leaf.addressable_data(0)
        else:
            whole = multihost_utils.process_allgather(leaf, tiled=True)
        return None if jax.process_index() else np.asarray(whole)

    return jax.tree.map(sent, tree)


def _anywhere(found: bool, abstract: PyTree) -> bool:
    """Whether any process of those that share these arrays found it: all of them must read the same step."""
    return _across_processes(found) if _is_shared(abstract) else found


def _is_shared(abstract: PyTree) -> bool:
    return any(not leaf.sharding.is_fully_addressable for leaf in jax.tree.leaves(abstract))


def _across_processes(found: bool) -> bool:
    return bool(multihost_utils.process_allgather(np.array(found)).any())


def _in_one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror} ({error.filename})" if error.filename else error.strerror
    code = re.search(r"os_error_code='(\d+)'", str(error))
    if code:  # TensorStore's, deep in a paragraph
        return os.strerror(int(code[1]))
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= 300 else f"{words[:300]} …"
