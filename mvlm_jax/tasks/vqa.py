"""VQA v2: an answer is written, or the likeliest one of a list is chosen (paper, section 4.2)."""

import dataclasses
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array
from ml_collections import ConfigDict

from mvlm_jax.data.formats.vqa import submission
from mvlm_jax.data.labelled import LabelledRow, answer_list
from mvlm_jax.data.labelled_pipeline import WeightedAnswers
from mvlm_jax.errors import UserError
from mvlm_jax.evaluation.answering import rank_answers, write_answers
from mvlm_jax.evaluation.batching import batch_parts, fetch
from mvlm_jax.evaluation.vqa_accuracy import Judged, mean_accuracy
from mvlm_jax.files import write_json
from mvlm_jax.interop.model_card import About
from mvlm_jax.models.downstream import AnsweringModel
from mvlm_jax.models.flops import fused_step_flops
from mvlm_jax.objectives.losses import answer_losses
from mvlm_jax.tasks.labelled import LabelledTask, LeftOut, reasons
from mvlm_jax.tasks.model import maskvlm_fields
from mvlm_jax.training import hosts
from mvlm_jax.training.task import Params, Rows, Sums

ANSWERS_FILE = "answers.json"


class Answer(NamedTuple):
    """What the model answers to a question."""

    ranked: str  # the likeliest of the list
    written: str  # token by token


@dataclasses.dataclass(frozen=True)
class Vqa(LabelledTask):
    """Likelihood of every answer that was given, weighted by how many gave it; reports the official accuracy."""

    answers: tuple[str, ...] = ("yes",)  # the list that is ranked

    name = "vqa"
    about = About("that answers questions about images", 'model.answer([image], ["what color is the car?"])')
    asset_files = (*LabelledTask.asset_files, ANSWERS_FILE)
    loss = "answer"
    verbs = ("answer", "predict")
    submits = True

    @classmethod
    def check(cls, config: ConfigDict) -> None:
        super().check(config)
        if config.vqa.answer_length < 3:
            raise UserError(
                f"config.vqa.answer_length={config.vqa.answer_length} must be at least 3: start, one token, end"
            )

    @classmethod
    def open_assets(cls, config: ConfigDict, *, workdir: str | Path | None) -> dict[str, Any]:
        """The run's own list of answers where it has one, else that of the training questions."""
        with hosts.together():
            if workdir and (Path(workdir) / ANSWERS_FILE).is_file():
                assets = cls.read_assets(Path(workdir))
            else:
                assets = {"answers": tuple(answer_list(cls.training_rows(config), size=config.vqa.answer_list))}
            if not assets["answers"]:
                raise UserError(
                    f"config.data.train={config.data.train} holds no answers; train on a split that has some"
                )
        hosts.check_same(answers=json.dumps(assets["answers"]))
        return assets

    @classmethod
    def read_assets(cls, directory: Path) -> dict[str, Any]:
        file = directory / ANSWERS_FILE
        try:
            answers = json.loads(file.read_bytes())
        except FileNotFoundError as error:
            raise UserError(f"{directory} has no {ANSWERS_FILE}, the list of answers; export its run again") from error
        except (OSError, ValueError) as error:
            raise UserError(f"{file} cannot be read: {' '.join(str(error).split())}") from error
        if not (isinstance(answers, list) and answers and all(isinstance(answer, str) for answer in answers)):
            raise UserError(f"{file} must be a list of at least one answer, as JSON; export the run again")
        return {"answers": tuple(answers)}

    @classmethod
    def build_model(cls, config: ConfigDict, *, pad_id: int) -> AnsweringModel:
        options = config.vqa
        return AnsweringModel(
            **maskvlm_fields(config, pad_id=pad_id),
            answer_layers=options.decoder_layers,
            answer_length=options.answer_length,
        )

    @classmethod
    def model_inputs(cls, config: ConfigDict) -> tuple[Array, ...]:
        return *super().model_inputs(config), jnp.zeros((1, 1, config.vqa.answer_length - 1), jnp.int32)

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
            patches_trained=self.patches_trained,
        )

    @property
    def targets(self) -> WeightedAnswers:
        options = self.config.vqa
        return WeightedAnswers(self.tokenizer, slots=options.answers_per_question, length=options.answer_length)

    def target_shapes(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        slots, length = self.config.vqa.answers_per_question, self.config.vqa.answer_length
        return {
            "answers": jax.ShapeDtypeStruct((batch_size, slots, length), jnp.int32),
            "answer_weights": jax.ShapeDtypeStruct((batch_size, slots), jnp.float32),
        }

    def losses(self, params: Params, rows: Rows) -> Sums:
        answers = rows["answers"]
        inputs = rows["image"], rows["text"], answers[:, :, :-1], rows["dropout_keys"]
        logits: Any = self.model.apply({"params": params}, *inputs)
        return answer_losses(logits, answers[:, :, 1:], rows["answer_weights"], pad_id=self.model.pad_id)

    def predict(self, params: Params, image: Array, text: Array) -> list[Answer]:
        ids, options = self.tokenizer.ids, self.config.vqa
        inputs = (self.model, params, image, text)
        ranked = rank_answers(*inputs, self._listed, candidates=options.candidates, parts=batch_parts(params))
        forbidden = (ids.pad, ids.start, ids.mask)
        written = write_answers(*inputs, start_id=ids.start, end_id=ids.end, forbidden=forbidden)
        return [
            Answer(self.answers[index], self.tokenizer.decode(tokens))
            for index, tokens in zip(fetch(ranked), fetch(written))
        ]

    @cached_property
    def _listed(self) -> Array:
        """The list of answers as tokens."""
        length = self.config.vqa.answer_length
        return jnp.asarray(self.tokenizer.encode(self.answers, max_length=length, continuing=True))

    def results(self, predicted: Sequence[tuple[LabelledRow, Answer]], left_out: LeftOut) -> dict[str, dict[str, Any]]:
        known = [(row, answer) for row, answer in predicted if row.answers]
        unanswered = [Judged(None, row.answers, row.answer_type) for row, _ in left_out if row.answers]
        metrics: dict[str, Any] = {"questions": 0}
        if known or unanswered:
            ranked = [Judged(answer.ranked, row.answers, row.answer_type) for row, answer in known]
            written = [Judged(answer.written, row.answers, row.answer_type) for row, answer in known]
            metrics = mean_accuracy(ranked + unanswered)
            metrics["accuracy_written"] = mean_accuracy(written + unanswered)["accuracy"]
        return {f"vqa-{self.eval_name}": metrics | reasons(left_out)}

    def submission_file(self, predicted: Sequence[tuple[LabelledRow, Answer]], left_out: LeftOut) -> str:
        """The file for EvalAI, which wants every question answered: without its image, with the commonest answer."""
        answers = {row.example_id: answer.ranked for row, answer in predicted}
        answers |= {row.example_id: self.answers[0] for row, _ in left_out}
        return json.dumps(submission(answers)) + "\n"

    def save_assets(self, workdir: Path) -> None:
        super().save_assets(workdir)
        write_json(workdir / ANSWERS_FILE, list(self.answers))
