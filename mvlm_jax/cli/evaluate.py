"""Evaluates a checkpoint of a run on the whole of `config.data.eval` and writes
DIR/eval/<task>-<dataset>-<split>.json.

Example:
  mvlm evaluate --workdir=runs/demo --config.data.eval=tfds:shapes:test

The config is that of the run; fields that say what is evaluated may be changed.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import jax
from absl import flags
from ml_collections import ConfigDict

from mvlm_jax import config as config_lib
from mvlm_jax.cli import commands
from mvlm_jax.compile_time import timed
from mvlm_jax.errors import UserError
from mvlm_jax.files import write_text
from mvlm_jax.tasks.registry import open_task, task_type
from mvlm_jax.training import hosts
from mvlm_jax.training import workdir as workdir_lib
from mvlm_jax.training.checkpoints import Checkpoints
from mvlm_jax.training.heartbeat import Heartbeat
from mvlm_jax.training.mesh import make_mesh
from mvlm_jax.training.program import make_program


def define_flags(values: flags.FlagValues, argv: Sequence[str]) -> None:
    commands.define_run_config(values, argv)
    commands.define_workdir(values)
    commands.define_hosts(values)
    flags.DEFINE_list(
        "k",
        [],
        "Numbers of candidates to re-rank, separated by commas; recalls are given for each.",
        flag_values=values,
    )
    commands.define_path(
        values,
        "classify",
        "Folder with a folder of images for each class: zero-shot classification instead of the config's evaluation.",
    )
    commands.define_path(values, "templates", "Prompts for --classify, one a line, with {} in the place of the class.")
    commands.define_path(
        values,
        "class_names",
        "Names of the classes of --classify, each a line of a folder, a tab and a name; the folders' own by default.",
    )
    commands.define_path(values, "submission", "File to write for the task's evaluation server.", takes=[commands.FILE])
    flags.DEFINE_integer("step", None, "Checkpoint to evaluate; the latest by default.", flag_values=values)


def main(values: flags.FlagValues) -> None:
    _check_flags(values)
    commands.connect(values)
    if values.k:
        _sweep(values.config, values.k)
    config = commands.checked_config(values)
    directory = values.workdir
    if values.submission:
        with hosts.together():
            if jax.process_index() == 0:
                commands.check_writable(values.submission, flag="submission")
    with hosts.together():
        trained = workdir_lib.read_config(directory)
        changed = config_lib.differences(trained, config, changeable=config_lib.CHANGEABLE_IN_EVALUATION)
        if changed:
            raise UserError(f"{directory} is the workdir of another config: {changed}; give the values of its training")
        if config.eval.ema and not trained.optimizer.ema:
            raise UserError(
                f"config.eval.ema=True: the run in {directory} kept no average of its parameters; "
                "it was trained with config.optimizer.ema=0.0"
            )
        # Before a tokenizer is trained for a run that has none.
        with Checkpoints.for_reading(directory / workdir_lib.CHECKPOINTS) as checkpoints:
            if not checkpoints.steps():
                raise UserError(f"{directory} has no finished checkpoint; train it first")
    commands.use_compilation_cache(config)
    average = config.eval.ema
    task = open_task(config, workdir=directory)
    mesh = make_mesh(**config.mesh)
    program = make_program(task=task, config=config, mesh=mesh)
    with Heartbeat(), jax.set_mesh(mesh), Checkpoints.for_reading(directory / workdir_lib.CHECKPOINTS) as checkpoints:
        step, params = checkpoints.restore_params(values.step, program.state.params, averaged=average)
        submission = None
        with timed(f"evaluating step {step}"):
            if values.classify:
                results = task.classify(
                    params, values.classify, class_names=values.class_names, templates=values.templates
                )
            elif values.submission:
                results, submission = task.submission(params)
            else:
                results = task.evaluate(params)
    source = _classified(values) if values.classify else config.data.eval
    writes = jax.process_index() == 0
    with hosts.together():
        if writes:
            workdir_lib.write_evaluations(directory, results, step=step, source=source, ema=average)
            if submission is not None:
                _write(values.submission, submission)
    if writes:
        short = {
            stem: {name: value for name, value in metrics.items() if name not in workdir_lib.DETAILS}
            for stem, metrics in results.items()
        }
        print(json.dumps(workdir_lib.with_origin(short, step=step, source=source, ema=average)))


def _classified(values: flags.FlagValues) -> str:
    """The folder, and what else decides what is measured on it."""
    files = {"templates": values.templates, "class_names": values.class_names}
    options = "&".join(f"{name}={file.resolve()}" for name, file in files.items() if file)
    return f"{values.classify.resolve()}{'?' if options else ''}{options}"


def _check_flags(values: flags.FlagValues) -> None:
    """Refuses, before an evaluation that may take hours, what the task or the other flags leave no use for."""
    task = task_type(values.config)
    if values.k and not task.embeds:
        raise UserError(f"--k={','.join(values.k)} re-ranks in retrieval; config.task={task.name} has none")
    for name in ("templates", "class_names"):
        if values[name].value and not values.classify:
            raise UserError(f"--{name}={values[name].value} needs --classify=DIR, a folder of images for each class")
    if values.classify:
        if values.k or values.submission:
            other = f"--k={','.join(values.k)}" if values.k else f"--submission={values.submission}"
            raise UserError(f"--classify={values.classify} evaluates nothing else; give {other} to a call of its own")
        if not task.embeds:
            raise UserError(
                f"--classify needs a model that embeds images and texts; that of config.task={task.name} does not"
            )
        if not values.classify.is_dir():
            raise UserError(
                f"--classify={values.classify} is not a folder; give one that holds a folder for each class"
            )
    if values.submission and not task.submits:
        raise UserError(f"--submission={values.submission}: config.task={task.name} has no evaluation server")


def _sweep(config: ConfigDict, numbers: Sequence[str]) -> None:
    if not all(number.strip().isdecimal() and int(number) for number in numbers):
        raise UserError(f"--k={','.join(numbers)} must be numbers above 0, separated by commas, as in --k=16,64,256")
    *smaller, largest = sorted({int(number) for number in numbers})
    config.eval.rerank, config.eval.sweep = largest, tuple(smaller)


def _write(path: Path, text: str) -> None:
    try:
        write_text(path, text)
    except OSError as error:
        raise UserError(f"--submission={str(path)!r} cannot be written: {error.strerror}") from error


def run(argv: Sequence[str]) -> int:
    return commands.run(name="evaluate", doc=__doc__, define_flags=define_flags, main=main, argv=argv)
