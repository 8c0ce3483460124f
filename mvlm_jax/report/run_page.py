"""A run as one page: verdict, examples, curves, configuration, data, origin, cost, and what to do next."""

import shlex
from pathlib import Path

from mvlm_jax import config as config_lib
from mvlm_jax.report.curves import curves
from mvlm_jax.report.examples import Examples, examples_of
from mvlm_jax.report.origin import cost, origin
from mvlm_jax.report.page import render, short, write_page
from mvlm_jax.report.recipe import Recipe, recipe_of
from mvlm_jax.report.run import Run
from mvlm_jax.report.training_data import epochs, parts
from mvlm_jax.report.verdict import results
from mvlm_jax.tasks.registry import task_type

REPORT = "report.html"
EXAMPLES = 4  # of each kind


def write_report(run: Run, *, count: int = EXAMPLES, step: int | None = None, output: Path | None = None) -> Path:
    """Writes the page of a run and returns its path.

    Args:
      count: examples of each kind; 0: none, and no model is loaded.
      step: of the checkpoint that makes them; None: the last one.
      output: where the page goes; None: into the run's directory.

    Raises:
      UserError: no such checkpoint, or the page cannot be written.
    """
    html = run_page(run, examples=examples_of(run, count=count, step=step))
    return write_page(output or run.directory / REPORT, html, flag="--output")


def run_page(run: Run, *, examples: Examples) -> str:
    """The whole page."""
    recipe = recipe_of(run.config, commands=run.commands)
    data = parts(run.config)
    return render(
        "run.html",
        title=f"Run {run.name}",
        run=run,
        state=state(run),
        results=results(run.evaluations, config=run.config),
        examples=examples,
        curves=curves([run]),
        recipe=recipe,
        difference_rows=[(one.name, short(one.value), short(one.other)) for one in recipe.differences],
        fields=[(name, short(value)) for name, value in config_lib.flatten(run.config)],
        data=data,
        epochs=epochs(run.config, data),
        origin=origin(run),
        cost=cost(run),
        commands=next_commands(run, recipe=recipe),
    )


def state(run: Run) -> str:
    """How far the run is, in a sentence."""
    steps = f"{run.last_step:,} of {run.config.steps:,} steps"
    what = f"config.task={run.config.task}"
    if not run.checkpoints:
        return f"{what}: {steps}, and no checkpoint yet."
    if run.is_finished:
        return f"{what}: finished, {run.config.steps:,} steps."
    return f"{what}: {steps}; the last checkpoint is of step {run.checkpoints[-1]:,}."


def next_commands(run: Run, *, recipe: Recipe) -> list[tuple[str, str]]:
    """(what it does, a command to copy)"""
    task, directory = task_type(run.config), shlex.quote(str(run.directory))
    output = shlex.quote(f"{run.directory}-export")
    commands = []
    if not run.is_finished:
        commands.append(("Continue the run from its last checkpoint:", _resume(run, recipe=recipe)))
    if run.checkpoints:
        commands.append(("Evaluate the last checkpoint:", f"mvlm evaluate --workdir={directory}"))
        if run.config.data.eval.startswith("tfds:") and not run.config.data.eval.endswith(":test"):
            test = shlex.quote(run.config.data.eval.rpartition(":")[0] + ":test")
            commands.append(
                ("Evaluate it on a test split:", f"mvlm evaluate --workdir={directory} --config.data.eval={test}")
            )
        commands.append(
            (
                "Export the model, for Python and for others:",
                f"mvlm weights export --workdir={directory} --output={output}",
            )
        )
        if task.embeds:
            search = f'mvlm search --model={output} --images=FOLDER "a dog on the grass"'
            commands.append(("Find images of a folder with it:", search))
        python = f'import mvlm_jax\nfrom PIL import Image\n\nmodel = mvlm_jax.load("{run.directory}-export")\n'
        commands.append(("Use the exported model:", python + 'image = Image.open("photo.jpg")\n' + task.about.example))
    if run.is_finished:
        commands.append(("Make the run again, or continue it where it is interrupted:", _resume(run, recipe=recipe)))
    commands.append(("Write this page again:", f"mvlm report --workdir={directory}"))
    return commands


def _resume(run: Run, *, recipe: Recipe) -> str:
    """The command that started the run where it was `mvlm train`; else one with the same config."""
    recorded = [command for command in run.commands if " train " in command and "--workdir" in command]
    if recorded:
        return recorded[-1]
    directory = shlex.quote(str(run.directory))
    if not recipe.name:
        return f"mvlm train --config=RECIPE --workdir={directory}"
    return " \\\n  ".join([f"mvlm train --config={recipe.name} --workdir={directory}", *recipe.flags()])
