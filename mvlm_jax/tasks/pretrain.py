"""Masked vision-language pre-training (paper, section 3)."""

import dataclasses
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mvlm_jax.data.formats.image_folder import read_class_names, read_templates
from mvlm_jax.data.mixtures import Mixture
from mvlm_jax.data.pipeline import EvalSplit, PairBatches, PairExamples, eval_split
from mvlm_jax.data.single_captions import by_caption
from mvlm_jax.data.skipped import left_out
from mvlm_jax.errors import UserError
from mvlm_jax.evaluation.classification import TEMPLATES, Prompts, classify_folder
from mvlm_jax.evaluation.reconstruction import evaluate_reconstruction
from mvlm_jax.evaluation.retrieval import evaluate_retrieval
from mvlm_jax.interop.model_card import About
from mvlm_jax.models.flops import pretraining_step_flops
from mvlm_jax.objectives.masking import Masking
from mvlm_jax.objectives.pretraining import Pairs, Pretraining, draw
from mvlm_jax.tasks.base import BaseTask
from mvlm_jax.training import hosts
from mvlm_jax.training.streams import Streams
from mvlm_jax.training.task import Batch, Params


@dataclasses.dataclass(frozen=True)
class Pretrain(BaseTask):
    """MIM, MLM, ITC and ITM over pairs; reports retrieval and the reconstruction gain.

    A head that no loss trains is not evaluated.
    """

    name = "pretrain"
    about = About(
        "of image-text pairs, trained by rebuilding the masked part of one modality from the rest of it and the other\n"
        "one, beside contrast and matching",
        'model.similarity([image], ["a dog on the grass", "a red car"])',
    )
    verbs = (
        *("encode_image", "encode_text", "similarity", "match", "rank", "classify"),
        *("fill_mask", "reconstruct", "attention"),
    )
    embeds = True
    headline = ("tr_r1_rerank", "ir_r1_rerank", "tr_r1", "ir_r1", "mlm_gain", "mim_gain", "mim_gain_informative")
    batch_type = PairBatches

    @classmethod
    def group(cls, config: ConfigDict) -> int:
        return config.matching.group if config.loss.itm else 1

    @classmethod
    def check(cls, config: ConfigDict) -> None:
        super().check(config)
        if config.hide_modality != "none":
            raise UserError(
                f"config.hide_modality={config.hide_modality!r} is for tasks over labelled examples, "
                f"not config.task={cls.name}"
            )

    @classmethod
    def training_texts(cls, config: ConfigDict) -> Iterable[str]:
        # Every caption, of images that are read once each, whatever an epoch is of.
        return super().mixture(config).captions()

    @classmethod
    def mixture(cls, config: ConfigDict) -> Mixture:
        mixture = super().mixture(config)
        return by_caption(mixture) if config.data.epoch_of == "caption" else mixture

    @property
    def training_examples(self) -> PairExamples:
        return PairExamples(**self.example_fields)

    @cached_property
    def split(self) -> EvalSplit:
        config = self.config
        with hosts.together():
            split = eval_split(
                self.eval_source,
                self.tokenizer,
                max_length=config.text.max_length,
                spec=self.image_spec,
                host_bytes=config.eval.host_bytes,
            )
        # Where a host lacks an image, its devices would work on rows of other images than those of the others.
        hosts.check_same(**{"evaluation split": repr([split.image_ids, split.caption_image.tolist()])})
        return split

    @property
    def masking(self) -> Masking:
        config, ids = self.config, self.tokenizer.ids
        return Masking(
            grid=config.image.size // config.image_encoder.patch,
            cell=config.mask.image_cell,
            image_ratio=config.mask.image_ratio,
            text_ratio=config.mask.text_ratio,
            special_ids=tuple(ids),
            mask_id=ids.mask,
        )

    @property
    def _weights(self) -> dict[str, float]:
        return {name: self.config.loss[name] for name in ("mim", "mlm", "itc", "itm")}

    @property
    def flops_per_step(self) -> float:
        length = self.config.text.max_length
        return pretraining_step_flops(
            self.model,
            losses=[name for name, weight in self._weights.items() if weight],
            batch_size=self.config.batch_size,
            max_length=length,
            masked_patches=self.masking.masked_patches,
            text_slots=self.masking.text_slots(length),
            patches_trained=self.patches_trained,
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
            group=self.group(config),
            weights=self._weights,
            pixel_loss=config.loss.pixels,
        )

    def prepare(self, batch: Batch, streams: Streams) -> Pairs:
        mask, negatives = streams.key("mask"), streams.key("negatives")
        return draw(
            mask,
            negatives,
            batch,
            masking=self.masking,
            group=self.group(self.config),
            dropout_keys=self.dropout_keys(streams, examples=len(batch["text"])),
        )

    @property
    def retrieval_options(self) -> dict[str, Any]:
        """Of `evaluate_retrieval`. A matching head that was not trained re-ranks nothing."""
        options = self.config.eval
        return {
            "batch_size": options.batch_size,
            "rerank": options.rerank if self._weights["itm"] else 0,
            "rerank_by": options.rerank_by,
            "sweep": options.sweep if self._weights["itm"] else (),
            "host_bytes": options.host_bytes,
        }

    def recalls(self, params: Params) -> dict[str, dict[str, Any]]:
        """Retrieval over the whole split."""
        metrics = evaluate_retrieval(self.model, params, self.split, **self.retrieval_options)
        return {f"retrieval-{self.eval_name}": metrics | left_out(self.split.left_out)}

    def evaluate(self, params: Params) -> dict[str, dict[str, Any]]:
        results = self.recalls(params)
        if self._weights["mim"] or self._weights["mlm"]:
            rebuilt = evaluate_reconstruction(
                self.model,
                params,
                self.split,
                masking=self.masking,
                batch_size=self.config.eval.batch_size,
                seed=self.config.seed,
                bootstrap=self.config.eval.bootstrap,
            )
            results[f"reconstruction-{self.eval_name}"] = rebuilt | left_out(self.split.left_out)
        return results

    def classify(
        self, params: Params, directory: Path, *, class_names: Path | None, templates: Path | None
    ) -> dict[str, dict[str, Any]]:
        config = self.config
        result = classify_folder(
            self.model,
            params,
            directory,
            Prompts(
                self.tokenizer,
                max_length=config.text.max_length,
                templates=read_templates(templates) if templates else TEMPLATES,
            ),
            names=read_class_names(class_names) if class_names else None,
            spec=self.image_spec,
            batch_size=config.eval.batch_size,
        )
        return {f"classification-{directory.resolve().name}": result}
