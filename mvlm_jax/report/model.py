"""The model of a run, ready for images and strings."""

import jax

from mvlm_jax.inference import Inference
from mvlm_jax.interop.parameters import nested, restore_parameters
from mvlm_jax.report.run import Run
from mvlm_jax.tasks.registry import open_task
from mvlm_jax.training.workdir import CHECKPOINTS

BATCH = 32  # images or texts that are computed at once


def open_model(run: Run, *, step: int | None = None) -> tuple[Inference, int]:
    """The model of a checkpoint, the last one where `step` is None, and its step.

    With `config.eval.ema` it is that of the moving average of the parameters.

    Raises:
      UserError: no such checkpoint, or one that is damaged.
    """
    config = run.config
    params, step = restore_parameters(run.directory / CHECKPOINTS, step=step, averaged=config.eval.ema)
    task = open_task(config, workdir=run.directory)
    return Inference(task=task, params=jax.device_put(nested(params)), batch_size=BATCH), step
