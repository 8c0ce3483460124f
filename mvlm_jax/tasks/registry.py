"""Every task by its name: the one place where a task is listed."""

from pathlib import Path

from ml_collections import ConfigDict

from mvlm_jax import config as config_lib
from mvlm_jax.errors import UserError
from mvlm_jax.interop import hub
from mvlm_jax.interop.families import image_family, text_family
from mvlm_jax.tasks.base import BaseTask
from mvlm_jax.tasks.entailment import Entailment
from mvlm_jax.tasks.nlvr2 import Nlvr2
from mvlm_jax.tasks.pretrain import Pretrain
from mvlm_jax.tasks.retrieval import Retrieval
from mvlm_jax.tasks.vqa import Vqa

TASKS: dict[str, type[BaseTask]] = {task.name: task for task in (Pretrain, Retrieval, Vqa, Nlvr2, Entailment)}


def task_type(config: ConfigDict) -> type[BaseTask]:
    """
    Raises:
      UserError: there is no such task.
    """
    if config.task not in TASKS:
        raise UserError(f"config.task={config.task!r} is not one of {', '.join(TASKS)}")
    return TASKS[config.task]


def validate(config: ConfigDict) -> None:
    """Checks a whole config, with the kinds of its encoders, its names on the Hub, and what its task asks of it.

    Raises:
      UserError: the field, the value received and what would be right.
    """
    config_lib.validate(config)
    image_family(config.image_encoder.kind).check(config.image_encoder)
    text_family(config.text_encoder.kind)
    sources = {f"init_from.{field}": source for field, source in config.init_from.items()}
    for field, source in (sources | {"text.tokenizer": config.text.tokenizer}).items():
        if hub.is_name(source):
            hub.parse(source, name=f"config.{field}")
    task_type(config).check(config)


def open_task(config: ConfigDict, *, workdir: str | Path | None) -> BaseTask:
    """See `BaseTask.open`."""
    return task_type(config).open(config, workdir=workdir)


def describe_task(config: ConfigDict) -> BaseTask:
    """See `BaseTask.describe`."""
    return task_type(config).describe(config)
