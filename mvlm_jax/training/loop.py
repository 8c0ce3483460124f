"""Training, from the first step or from the last checkpoint."""

import dataclasses
import socket
from collections.abc import Callable
from contextlib import ExitStack, closing, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import jax
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mvlm_jax import config as config_lib
from mvlm_jax.compile_time import compiling, timed
from mvlm_jax.console import Progress
from mvlm_jax.stores import mirror
from mvlm_jax.training import environment, hosts, inventory
from mvlm_jax.training import workdir as workdir_lib
from mvlm_jax.training.activity import CHECKPOINT, COMPILE, DISPATCH, EVALUATION, INPUT, STEP, Activity
from mvlm_jax.training.banner import banner
from mvlm_jax.training.checkpoints import Checkpoints
from mvlm_jax.training.heartbeat import Heartbeat
from mvlm_jax.training.interruption import Interruption
from mvlm_jax.training.mesh import alone, batch_parts, make_mesh, own_copy, process_rows, shard_batch
from mvlm_jax.training.metrics_log import MetricsLog
from mvlm_jax.training.nonfinite import IN_A_ROW, NonFiniteWatch
from mvlm_jax.training.per_device import has_own_rows
from mvlm_jax.training.program import Program, make_program
from mvlm_jax.training.skew import SkewMeter
from mvlm_jax.training.state import TrainState, with_weights
from mvlm_jax.training.task import Params, StartWeights, Task
from mvlm_jax.training.tensorboard import TensorBoard
from mvlm_jax.training.throughput import Throughput, progress_words
from mvlm_jax.training.tracker import Examples, Opener, TrackedRun, Trackers, openers_of

# What a model makes of some examples of the evaluation split, from parameters that this process alone can compute with.
Illustrate = Callable[[Params], Examples]


class Outcome(NamedTuple):
    stopped: bool  # by a signal, with something left to do
    results: dict[str, dict[str, Any]]  # the metrics of the last evaluation, by `<task>-<split>`


def train(
    task: Task,
    *,
    config: ConfigDict,
    workdir: str | Path,
    program: Program | None = None,
    illustrate: Illustrate | None = None,
) -> Outcome:
    """Makes `config.steps` steps in all.

    SIGTERM, or Ctrl-C once, stops it after the step in progress, with a checkpoint.

    Args:
      program: of this task and config, where an earlier run has compiled it; None: it is made.
      illustrate: what is shown by trackers after each evaluation.

    Raises:
      UserError: the config does not fit the devices, the workdir does not fit the config, or another run uses it.
      RunError: the run cannot go on: nothing can be written, or no update is finite any more.
    """
    with mirror.opened(workdir) as directory, ExitStack() as held:
        return _train(task, config=config, workdir=directory, held=held, program=program, illustrate=illustrate)


def _train(
    task: Task,
    *,
    config: ConfigDict,
    workdir: Path,
    held: ExitStack,
    program: Program | None,
    illustrate: Illustrate | None,
) -> Outcome:
    """`held` gets the lock of the workdir, and the trackers, which may take their time to close."""
    steps = config.steps
    mesh = make_mesh(**config.mesh)
    program = program or make_program(task=task, config=config, mesh=mesh)
    _check_own_rows(task, config=config, mesh=mesh)
    writes = jax.process_index() == 0
    with hosts.together():
        # What is asked for and is not there leaves no workdir behind.
        openers = [TensorBoard, *openers_of(config)] if writes else []
        data = task.data_sizes()
        member = _member(task, config=config, program=program)
        # Weights are read before anything is written: those that do not fit leave no workdir behind.
        start = None if workdir_lib.has_checkpoint(workdir) else task.start_weights(program.state.params)
    hosts.check_same(**{"set of start weights": "\n".join(start.lines) if start else ""})
    with hosts.together():
        directory = workdir_lib.open_workdir(workdir, config=config, held=held if writes else None)
        if writes:
            with workdir_lib.writing(directory):
                task.save_assets(directory)
                workdir_lib.publish(directory)
    with hosts.together():
        workdir_lib.check_shared(directory, writes=writes)
    members = inventory.gather(member)
    for line in banner(
        task, config=config, mesh=mesh, program=program, members=members, data=data, directory=directory
    ):
        logging.info("%s", line)
    throughput = Throughput(
        steps=steps,
        batch_size=config.batch_size,
        flops_per_step=task.flops_per_step,
        device_kind=mesh.devices.flat[0].device_kind,
        device_count=mesh.size,
    )
    evaluator = Evaluator(task, config=config, directory=directory, illustrate=illustrate, writes=writes)
    watch = NonFiniteWatch(limit=config.max_skipped_updates, example_ids=task.example_ids)
    names = [member.host for member in members]
    activity = Activity()
    with (
        Heartbeat(activity, names=names),
        Interruption() as interruption,
        jax.set_mesh(mesh),
        Checkpoints(
            directory / workdir_lib.CHECKPOINTS,
            keep_last=config.checkpoint.keep_last,
            keep_every=config.checkpoint.keep_every,
        ) as checkpoints,
    ):
        restored = checkpoints.restore_latest(program.state)
        first, state = restored or (0, _init(program))
        # Another run, ended since the check above, may have left a checkpoint.
        if start is not None and restored is None:
            state = _started_from(start, state, directory=directory, writes=writes)
        if first:
            logging.info("continuing after step %d of %d", first, steps)
        with (
            MetricsLog(directory, resumed_step=first, writes=writes) as log,
            Progress(first=first, steps=steps, shown=writes) as progress,
        ):
            reporter = Reporter(activity, names=names, throughput=throughput, log=log, progress=progress)
            results = _evaluated(directory, step=first, config=config)
            evaluated = log.has_evaluation(first, ema=config.eval.ema)
            due = _is_due(first, every=config.eval.every, steps=steps) and not evaluated
            if writes and (due or first < steps):
                trackers = _trackers(openers, directory=directory, first=first, config=config, mesh=mesh, names=names)
                log.track(held.enter_context(trackers), losses=tuple(task.objective.weights))
            if due:
                with activity.phase(EVALUATION, first):
                    results = evaluator.make(state, step=first, log=log)

            if first == steps:
                return Outcome(False, results)
            iterator: Any = task.train_batches(first)  # it ends its threads or processes in `close`
            with closing(iterator) as batches:

                def read(step: int) -> dict[str, Any]:
                    with activity.phase(INPUT, step):
                        rows = next(batches)
                    return shard_batch(rows, program.batch_sharding)

                def wait(step: int, metrics: dict[str, jax.Array]) -> None:
                    with activity.phase(STEP, step):
                        watch.check(step, metrics, checkpoints=checkpoints.steps())

                batch: dict[str, Any] | None = read(first + 1)
                before = None
                for step in range(first + 1, steps + 1):
                    new = step == first + 1
                    with activity.phase(COMPILE if new else DISPATCH, step):
                        with compiling("the training step") if new else nullcontext():
                            state, metrics = program.step(state, batch)
                    interruption.step_begun()
                    # The device works on this step while the host makes the next batch.
                    batch = read(step + 1) if step < steps else None
                    # Waiting for the step before keeps the host from piling up batches on the device.
                    if before is not None:
                        wait(step - 1, before)
                    before = metrics

                    if new:
                        with activity.phase(STEP, step):
                            jax.block_until_ready(metrics)
                        reporter.restart(step)
                    if _is_due(step, every=config.log_every, steps=steps):
                        reporter.report(step, metrics)
                    progress.step_done()
                    checkpoints.check_written()
                    stop = interruption.requested(step)
                    if stop or _is_due(step, every=config.checkpoint.every, steps=steps):
                        wait(step, metrics)
                        before = None
                        with activity.phase(CHECKPOINT, step):
                            checkpoints.save(step, state)
                    if stop:
                        logging.info("stopped after step %d of %d; the same command continues the run", step, steps)
                        break
                    if _is_due(step, every=config.eval.every, steps=steps):
                        with activity.phase(EVALUATION, step):
                            results = evaluator.make(state, step=step, log=log)
                        reporter.restart(step)
    return Outcome(stop, results)


def _member(task: Task, *, config: ConfigDict, program: Program) -> inventory.Member:
    devices = jax.local_devices()
    return inventory.Member(
        host=socket.gethostname(),
        devices=len(devices),
        kind=devices[0].device_kind,
        examples=len(process_rows(config.batch_size, program.batch_sharding)),
        workers=task.input_workers(),
    )


def _trackers(
    openers: list[Opener], *, directory: Path, first: int, config: ConfigDict, mesh: Mesh, names: list[str]
) -> Trackers:
    with workdir_lib.writing(directory):
        record = environment.record_start(directory, step=first, mesh=mesh, hosts=names)
    run = TrackedRun(
        directory=directory,
        identity=record["run"],
        resumed_step=first,
        config=dict(config_lib.flatten(config)),
        environment=record["starts"][-1],
    )
    return Trackers(openers, run=run)


def _init(program: Program) -> TrainState:
    with compiling("the initialization of the parameters"):
        return program.init()


def _check_own_rows(task: Task, *, config: ConfigDict, mesh: Mesh) -> None:
    multiple = config.accumulate * task.objective.group
    if not has_own_rows(config.batch_size, mesh=mesh, multiple=multiple):
        logging.warning(
            "config.batch_size=%d is not a multiple of %d (%d microbatches, groups of %d examples, %d devices): "
            "features are sent between devices, and a parameter's gradient once for each use, which is slower",
            config.batch_size, batch_parts(mesh) * multiple, config.accumulate, task.objective.group, batch_parts(mesh),
        )  # fmt: skip


def _started_from(start: StartWeights, state: TrainState, *, directory: Path, writes: bool) -> TrainState:
    for line in start.lines:
        logging.info("%s", line)
    if writes:
        with workdir_lib.writing(directory):
            workdir_lib.write_json(directory / workdir_lib.WEIGHTS, dict(start.report))
    return with_weights(state, start.params)


def _is_due(step: int, *, every: int, steps: int) -> bool:
    return step == steps or (step > 0 and every > 0 and step % every == 0)


class Reporter:
    """Where the metrics of a step go, with how fast the run goes and which host is slow."""

    def __init__(
        self, activity: Activity, *, names: list[str], throughput: Throughput, log: MetricsLog, progress: Progress
    ):
        self._activity = activity
        self._names = names
        self._throughput = throughput
        self._skew = SkewMeter(activity)
        self._log = log
        self._progress = progress

    def restart(self, step: int) -> None:
        """Leaves what came before out of the times."""
        self._throughput.restart(step)
        self._skew.restart(step)

    def report(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Waits for the step."""
        with self._activity.phase(STEP, step):
            values = jax.device_get(metrics)
        numbers = {name: float(value) for name, value in values.items() if name != IN_A_ROW}
        timing = self._throughput.report(step)
        skew = self._skew.report(step)
        self._log.write(step, numbers, timing=timing | (skew.timing() if skew else {}))
        words = progress_words(metrics=numbers, timing=timing)
        slow = skew.words(self._names) if skew else ""
        self._progress.report(step, f"{words}  {slow}" if slow else words)


def _evaluated(directory: Path, *, step: int, config: ConfigDict) -> dict[str, dict[str, Any]]:
    """The results of an evaluation of this step by an earlier start of the run."""
    evaluations = workdir_lib.read_evaluations(directory, step=step).values()
    return {
        evaluation.name: evaluation.metrics
        for evaluation in evaluations
        if evaluation.source in (config.data.eval, "") and evaluation.ema == config.eval.ema
    }


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """How a run is evaluated, and where the results go."""

    task: Task
    _: dataclasses.KW_ONLY
    config: ConfigDict
    directory: Path
    illustrate: Illustrate | None
    writes: bool

    def make(self, state: TrainState, *, step: int, log: MetricsLog) -> dict[str, dict[str, Any]]:
        average = self.config.eval.ema
        params = state.averaged if average else state.params
        with timed(f"evaluating step {step}"):
            results = self.task.evaluate(params)
        if self.writes:
            source = self.config.data.eval
            workdir_lib.write_evaluations(self.directory, results, step=step, source=source, ema=average)
        log.write_evaluation(step, results, ema=average)
        if self.illustrate is not None:
            self._show(self.illustrate, params, step=step, log=log)
        return results

    def _show(self, illustrate: Illustrate, params: Params, *, step: int, log: MetricsLog) -> None:
        """In every process, though one shows it: on GPUs, processes may wait for each other to compile a program."""
        own = own_copy(params)
        if own is None:
            logging.info("no examples are shown: no process has all parameters")
            return
        try:
            with timed(f"rebuilding examples at step {step}"), alone(own):
                examples = illustrate(own)
        except Exception as error:  # the pictures are not worth a run
            logging.warning("examples cannot be shown (%s: %s)", type(error).__name__, " ".join(str(error).split()))
            return
        log.show(step, examples)
