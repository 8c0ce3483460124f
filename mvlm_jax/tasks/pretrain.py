"""Masked vision-language pre-training (paper, section 3)."""

import dataclasses
from collections.abc import Callable
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp

from mvlm_jax.data.pipeline import EvalSplit
from mvlm_jax.evaluation.left_out import left_out
from mvlm_jax.evaluation.reconstruction import evaluate_reconstruction
from mvlm_jax.evaluation.retrieval import evaluate_retrieval
from mvlm_jax.models.flops import pretraining_step_flops
from mvlm_jax.objectives import masking
from mvlm_jax.objectives.pretraining import Pairs, Pretraining, draw
from mvlm_jax.tasks.configured import ConfiguredTask
from mvlm_jax.training.streams import Streams
from mvlm_jax.training.task import Batch, Params


@dataclasses.dataclass(frozen=True)
class Pretrain(ConfiguredTask):
    """MIM, MLM, ITC and ITM over pairs; reports retrieval and the reconstruction gain."""

    eval_split: Callable[[], EvalSplit]  # opened when it is first needed
    eval_name: str  # names the files of the results

    @cached_property
    def split(self) -> EvalSplit:
        return self.eval_split()

    @property
    def flops_per_step(self) -> float:
        mask, length = self.config.mask, self.config.text.max_length
        grid = self.config.image.size // self.config.image_encoder.patch
        cells = (grid // mask.image_cell) ** 2
        return pretraining_step_flops(
            self.model,
            batch_size=self.config.batch_size,
            max_length=length,
            masked_patches=masking.masked_cells(cells=cells, ratio=mask.image_ratio) * mask.image_cell**2,
            text_slots=masking.text_slots(max_length=length, ratio=mask.text_ratio),
        )

    @property
    def batch_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        rows, size = self.config.batch_size, self.config.image.size
        return {
            "image": jax.ShapeDtypeStruct((rows, size, size, 3), jnp.uint8),
            "text": jax.ShapeDtypeStruct((rows, self.config.text.max_length), jnp.int32),
            "image_id": jax.ShapeDtypeStruct((rows,), jnp.int32),
            "skipped": jax.ShapeDtypeStruct((rows,), jnp.int32),
        }

    @cached_property
    def objective(self) -> Pretraining:
        config = self.config
        return Pretraining(
            self.model,
            condition_on=config.mask.condition_on,
            group=config.matching.group,
            weights=config.loss.to_dict(),
        )

    def prepare(self, batch: Batch, streams: Streams) -> Pairs:
        config, ids = self.config, self.tokenizer.ids
        return draw(
            streams.key("mask"),
            streams.key("negatives"),
            batch["image"],
            batch["text"],
            batch["image_id"],
            batch["skipped"],
            grid=config.image.size // config.image_encoder.patch,
            cell=config.mask.image_cell,
            image_ratio=config.mask.image_ratio,
            text_ratio=config.mask.text_ratio,
            special_ids=tuple(ids),
            mask_id=ids.mask,
            group=config.matching.group,
        )

    def recalls(self, params: Params) -> dict[str, dict[str, Any]]:
        """Retrieval over the whole split."""
        options = self.config.eval
        found = evaluate_retrieval(
            self.model,
            params,
            self.split,
            batch_size=options.batch_size,
            rerank=options.rerank,
            sweep=options.sweep,
            host_bytes=options.host_bytes,
        )
        return {f"retrieval-{self.eval_name}": found | left_out(self.split.left_out)}

    def evaluate(self, params: Params) -> dict[str, dict[str, Any]]:
        rebuilt = evaluate_reconstruction(
            self.model,
            params,
            self.split,
            batch_size=self.config.eval.batch_size,
            cell=self.config.mask.image_cell,
            image_ratio=self.config.mask.image_ratio,
            text_ratio=self.config.mask.text_ratio,
            special_ids=tuple(self.tokenizer.ids),
            mask_id=self.tokenizer.ids.mask,
            seed=self.config.seed,
            bootstrap=self.config.eval.bootstrap,
        )
        return self.recalls(params) | {f"reconstruction-{self.eval_name}": rebuilt | left_out(self.split.left_out)}
