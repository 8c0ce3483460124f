"""What the tasks share: everything that a config says and that is no matter of the objective."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
from jaxtyping import Array, Key, PyTree
from ml_collections import ConfigDict

from mvlm_jax.data.text import Tokenizer
from mvlm_jax.errors import UserError
from mvlm_jax.files import user_path
from mvlm_jax.interop.checkpoint import import_checkpoint
from mvlm_jax.interop.start import import_encoders
from mvlm_jax.models.maskvlm import MaskVLM
from mvlm_jax.models.parameter_rules import DECAY_RULES, OPTIMIZER_RULES, SHARDING_RULES
from mvlm_jax.tasks.model import image_format, model_inputs, task_model
from mvlm_jax.training.task import Batch, Params, StartWeights

TOKENIZER_FILE = "tokenizer.json"


@dataclasses.dataclass(frozen=True)
class ConfiguredTask:
    """The part of a `Task` that is the same in all of them."""

    config: ConfigDict
    tokenizer: Tokenizer
    batches: Callable[[int], Iterator[Batch]]  # from a step on
    batch_ids: Callable[[int], list[str]]  # of what the batch of a step is made of

    sharding_rules = SHARDING_RULES
    optimizer_rules = OPTIMIZER_RULES
    decay_rules = DECAY_RULES

    @cached_property
    def model(self) -> MaskVLM:
        return task_model(self.config, pad_id=self.tokenizer.ids.pad)

    def init(self, key: Key[Array, ""]) -> Params:
        return self.model.init(key, *model_inputs(self.config))["params"]

    def start_weights(self, shapes: PyTree[jax.ShapeDtypeStruct]) -> StartWeights | None:
        config = self.config
        if not any(config.init_from.values()):
            return None
        if config.init_from.checkpoint:
            self._check_tokenizer(config.init_from.checkpoint)
            imported = import_checkpoint(config.init_from.checkpoint, shapes=shapes, config=config)
        else:
            imported = import_encoders(
                shapes,
                init_from=config.init_from.to_dict(),
                image=image_format(config),
                image_encoder=config.image_encoder,
                text_encoder=config.text_encoder,
                tokenizer=self.tokenizer,
            )
        return StartWeights(imported.params, report=imported.to_dict(), lines=imported.lines())

    def _check_tokenizer(self, checkpoint: str) -> None:
        theirs = Tokenizer.load(user_path(checkpoint) / TOKENIZER_FILE, kind=self.tokenizer.kind)
        if theirs.to_json() != self.tokenizer.to_json():
            raise UserError(
                f"config.text.tokenizer={self.config.text.tokenizer!r} is another tokenizer than that of "
                f"config.init_from.checkpoint={checkpoint}; leave it empty"
            )

    def train_batches(self, start_step: int) -> Iterator[Mapping[str, Any]]:
        return self.batches(start_step)

    def example_ids(self, step: int) -> list[str]:
        return self.batch_ids(step)

    def save_assets(self, workdir: Path) -> None:
        self.tokenizer.save(workdir / TOKENIZER_FILE)
