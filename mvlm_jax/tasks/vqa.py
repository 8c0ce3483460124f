"""VQA v2: an answer is written, or the likeliest one of a list is chosen (paper, section 4.2)."""

import dataclasses
import functools
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from mvlm_jax.data.formats.vqa import submission
from mvlm_jax.data.labelled import LabelledRow
from mvlm_jax.evaluation.answering import rank_answers, token_log_likelihoods, write_answers
from mvlm_jax.evaluation.batching import batch_parts, fetch
from mvlm_jax.evaluation.vqa_accuracy import Judged, mean_accuracy
from mvlm_jax.models.flops import fused_step_flops
from mvlm_jax.objectives.counts import example_counts
from mvlm_jax.tasks.labelled import LabelledTask, reasons
from mvlm_jax.training.accumulation import Independent
from mvlm_jax.training.task import Params, Rows, Sums
from mvlm_jax.training.workdir import write_json

ANSWERS_FILE = "answers.json"


@dataclasses.dataclass(frozen=True)
class Vqa(LabelledTask):
    """Likelihood of every answer that was given, weighted by how many gave it; reports the official accuracy."""

    answers: tuple[str, ...]  # the list that is ranked

    @property
    def flops_per_step(self) -> float:
        options = self.config.vqa
        return fused_step_flops(
            self.model,
            batch_size=self.config.batch_size,
            max_length=self.config.text.max_length,
            images=self.images,
            every_token=True,
            decoded=options.answers_per_question * (options.answer_length - 1),
            decoder_layers=options.decoder_layers,
        )

    def target_shapes(self, rows: int) -> dict[str, jax.ShapeDtypeStruct]:
        options = self.config.vqa
        return {
            "answers": jax.ShapeDtypeStruct((rows, options.answers_per_question, options.answer_length), jnp.int32),
            "answer_weights": jax.ShapeDtypeStruct((rows, options.answers_per_question), jnp.float32),
        }

    @cached_property
    def objective(self) -> Independent:
        return Independent(
            self._losses,
            weights={"answer": 1.0},
            dtype=self.model.dtype,
            counts=lambda rows: example_counts(rows["skipped"]),
        )

    def _losses(self, params: Params, rows: Rows) -> Sums:
        answers, weights = rows["answers"], rows["answer_weights"]
        logits: Any = self.model.apply(FrozenDict(params=params), rows["image"], rows["text"], answers[:, :, :-1])
        targets = answers[:, :, 1:]
        likelihood = token_log_likelihoods(logits, targets, pad_id=self.model.pad_id)
        told = (logits.argmax(axis=-1) == targets) & (targets != self.model.pad_id)
        tokens = (targets != self.model.pad_id) * weights[:, :, None]
        count = jnp.float32(answers.shape[0])
        return {
            "answer": (-(likelihood.sum(axis=-1) * weights).sum(), count),
            "token_accuracy": (100 * (told * weights[:, :, None]).sum(), tokens.sum()),
        }

    def predictions(self, params: Params) -> tuple[list[tuple[LabelledRow, str, str]], list[tuple[LabelledRow, str]]]:
        """Each question with the answer that ranks first and the one that is written; what was left out, and why."""
        ids, options = self.tokenizer.ids, self.config.vqa
        listed = jnp.asarray(self.tokenizer.encode(self.answers, max_length=options.answer_length, continuing=True))
        forbidden = (ids.pad, ids.start, ids.mask)
        rank = functools.partial(rank_answers, candidates=options.candidates, parts=batch_parts(params))
        left_out: list[tuple[LabelledRow, str]] = []
        found = []
        for batch, rows in self.evaluation_batches(params, left_out):
            seen = (batch["image"], batch["text"])
            ranked = fetch(rank(self.model, params, *seen, listed))
            written = fetch(
                write_answers(self.model, params, *seen, start_id=ids.start, end_id=ids.end, forbidden=forbidden)
            )
            found += [
                (row, self.answers[index], self.tokenizer.decode(tokens))
                for row, index, tokens in zip(rows, ranked, written)
            ]
        return found, left_out

    def results(
        self, found: Sequence[tuple[LabelledRow, str, str]], left_out: Sequence[tuple[LabelledRow, str]]
    ) -> dict[str, dict[str, Any]]:
        every = [*found, *((row, None, None) for row, _ in left_out)]
        known = [(row, ranked, written) for row, ranked, written in every if row.answers]
        metrics: dict[str, Any] = {"questions": 0}
        if known:
            metrics = mean_accuracy([Judged(ranked, row.answers, row.answer_type) for row, ranked, _ in known])
            written = mean_accuracy([Judged(written, row.answers, row.answer_type) for row, _, written in known])
            metrics["accuracy_written"] = written["accuracy"]
        return {f"vqa-{self.eval_name}": metrics | reasons(left_out)}

    def submission(
        self, found: Sequence[tuple[LabelledRow, str, str]], left_out: Sequence[tuple[LabelledRow, str]]
    ) -> str:
        """The file for EvalAI, which wants every question answered: without its image, with the commonest answer."""
        answers = {row.example_id: ranked for row, ranked, _ in found}
        answers |= {row.example_id: self.answers[0] for row, _ in left_out}
        return json.dumps(submission(answers)) + "\n"

    def save_assets(self, workdir: Path) -> None:
        super().save_assets(workdir)
        write_json(workdir / ANSWERS_FILE, list(self.answers))
