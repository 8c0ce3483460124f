"""Masked vision-language pre-training (paper, section 3)."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, PyTree
from ml_collections import ConfigDict

from mvlm_jax.data.pipeline import EvalSplit
from mvlm_jax.data.text import Tokenizer
from mvlm_jax.evaluation.reconstruction import evaluate_reconstruction
from mvlm_jax.evaluation.retrieval import evaluate_retrieval
from mvlm_jax.interop.start import import_encoders
from mvlm_jax.models.flops import pretraining_step_flops
from mvlm_jax.models.from_config import maskvlm
from mvlm_jax.models.parameter_rules import DECAY_RULES, OPTIMIZER_RULES, SHARDING_RULES
from mvlm_jax.objectives import masking
from mvlm_jax.objectives.pretraining import Pairs, Pretraining, draw
from mvlm_jax.training.streams import Streams
from mvlm_jax.training.task import Batch, Params, StartWeights


@dataclasses.dataclass(frozen=True)
class Pretrain:
    """MIM, MLM, ITC and ITM over pairs; reports retrieval and the reconstruction gain."""

    config: ConfigDict
    tokenizer: Tokenizer
    batches: Callable[[int], Iterator[Batch]]  # from a step on
    image_ids: Callable[[int], list[str]]  # of the batch of a step
    eval_split: Callable[[], EvalSplit]  # opened when it is first needed
    eval_name: str  # names the files of the results

    sharding_rules = SHARDING_RULES
    optimizer_rules = OPTIMIZER_RULES
    decay_rules = DECAY_RULES

    @cached_property
    def model(self):
        return maskvlm(self.config, pad_id=self.tokenizer.ids.pad)

    @cached_property
    def split(self) -> EvalSplit:
        return self.eval_split()

    @property
    def flops_per_step(self) -> float:
        mask, length = self.config.mask, self.config.text.max_length
        grid = self.config.image.size // self.config.image.patch
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

    def init(self, key: Key[Array, ""]) -> Params:
        size = self.config.image.size
        image = jnp.zeros((1, size, size, 3), jnp.uint8)
        return self.model.init(key, image, jnp.zeros((1, self.config.text.max_length), jnp.int32))["params"]

    def start_weights(self, shapes: PyTree[jax.ShapeDtypeStruct]) -> StartWeights | None:
        config = self.config
        if not any(config.init_from.values()):
            return None
        imported = import_encoders(
            shapes,
            init_from=config.init_from.to_dict(),
            image=config.image,
            text_kind=config.text.kind,
            heads=config.model.heads,
            tokenizer=self.tokenizer,
        )
        return StartWeights(imported.params, report=imported.to_dict(), lines=imported.lines())

    @cached_property
    def objective(self) -> Pretraining:
        config = self.config
        return Pretraining(
            self.model,
            condition_on=config.mask.condition_on,
            group=config.matching.group,
            weights=config.loss.to_dict(),
        )

    def rows(self, batch: Batch, streams: Streams) -> Pairs:
        config, ids = self.config, self.tokenizer.ids
        return draw(
            streams.key("mask"),
            streams.key("negatives"),
            batch["image"],
            batch["text"],
            batch["image_id"],
            batch["skipped"],
            grid=config.image.size // config.image.patch,
            cell=config.mask.image_cell,
            image_ratio=config.mask.image_ratio,
            text_ratio=config.mask.text_ratio,
            special_ids=tuple(ids),
            mask_id=ids.mask,
            group=config.matching.group,
        )

    def train_batches(self, start_step: int) -> Iterator[Mapping[str, Any]]:
        return self.batches(start_step)

    def example_ids(self, step: int) -> list[str]:
        return self.image_ids(step)

    def evaluate(self, params: Params) -> dict[str, dict[str, Any]]:
        options = self.config.eval
        retrieval = evaluate_retrieval(
            self.model, params, self.split, batch_size=options.batch_size, rerank=options.rerank
        )
        rebuilt = evaluate_reconstruction(
            self.model,
            params,
            self.split,
            batch_size=options.batch_size,
            cell=self.config.mask.image_cell,
            image_ratio=self.config.mask.image_ratio,
            text_ratio=self.config.mask.text_ratio,
            special_ids=tuple(self.tokenizer.ids),
            mask_id=self.tokenizer.ids.mask,
            seed=self.config.seed,
            bootstrap=options.bootstrap,
        )

        left_out = {"left_out": self.split.left_out}
        return {
            f"retrieval-{self.eval_name}": retrieval | left_out,
            f"reconstruction-{self.eval_name}": rebuilt | left_out,
        }

    def save_assets(self, workdir: Path) -> None:
        self.tokenizer.save(workdir / TOKENIZER_FILE)


TOKENIZER_FILE = "tokenizer.json"
