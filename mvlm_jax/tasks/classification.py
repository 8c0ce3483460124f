"""Tasks that choose one of a few labels."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from ml_collections import ConfigDict

from mvlm_jax.data.labelled import LabelledRow
from mvlm_jax.data.labelled_pipeline import Classes
from mvlm_jax.evaluation.batching import compute, fetch
from mvlm_jax.models.downstream import ClassifyingModel
from mvlm_jax.models.flops import fused_step_flops
from mvlm_jax.objectives.losses import classification_losses
from mvlm_jax.tasks.labelled import LabelledTask, LeftOut, reasons
from mvlm_jax.tasks.model import maskvlm_fields
from mvlm_jax.training.task import Params, Rows, Sums


class ClassificationTask(LabelledTask):
    """Cross-entropy over `labels`; reports accuracy."""

    loss = "classification"
    verbs = ("classify_pair", "predict")

    @classmethod
    def build_model(cls, config: ConfigDict, *, pad_id: int) -> ClassifyingModel:
        return ClassifyingModel(**maskvlm_fields(config, pad_id=pad_id), classes=len(cls.labels))

    @property
    def flops_per_step(self) -> float:
        return fused_step_flops(
            self.model,
            batch_size=self.config.batch_size,
            max_length=self.config.text.max_length,
            images=self.images,
            every_token=False,
            patches_trained=self.patches_trained,
        )

    @property
    def targets(self) -> Classes:
        return Classes(self.labels)

    def target_shapes(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
        return {"label": jax.ShapeDtypeStruct((batch_size,), jnp.int32)}

    def losses(self, params: Params, rows: Rows) -> Sums:
        logits: Any = self.model.apply({"params": params}, rows["image"], rows["text"], rows["dropout_keys"])
        return classification_losses(logits, rows["label"])

    def predict(self, params: Params, image: Array, text: Array) -> list[dict[str, float]]:
        """The probability of each label."""
        probabilities = fetch(jax.nn.softmax(compute(self.model, params, image, text)))
        return [dict(zip(self.labels, map(float, row))) for row in probabilities]

    def results(
        self, predicted: Sequence[tuple[LabelledRow, dict[str, float]]], left_out: LeftOut
    ) -> dict[str, dict[str, Any]]:
        judged = [(row, row.answers[0] == likeliest(probabilities)) for row, probabilities in predicted if row.answers]
        judged += [(row, False) for row, _ in left_out if row.answers]
        metrics = self.metrics(judged) | self.confusion(predicted) | reasons(left_out)
        return {f"{self.name}-{self.eval_name}": metrics}

    def confusion(self, predicted: Sequence[tuple[LabelledRow, dict[str, float]]]) -> dict[str, Any]:
        """`confusion`: by true label, how many examples were taken for each label; none where no label is known.

        What was left out was taken for nothing.
        """
        counts = {true: dict.fromkeys(self.labels, 0) for true in self.labels}
        known = [(row.answers[0], likeliest(probabilities)) for row, probabilities in predicted if row.answers]
        for true, taken in known:
            if true in counts:
                counts[true][taken] += 1
        return {"confusion": counts} if known else {}

    def metrics(self, judged: Sequence[tuple[LabelledRow, bool]]) -> dict[str, Any]:
        """Over the examples whose label is known, from whether each was predicted right."""
        if not judged:
            return {"examples": 0}
        return {"accuracy": 100 * float(np.mean([right for _, right in judged])), "examples": len(judged)}


def likeliest(probabilities: dict[str, float]) -> str:
    return max(probabilities, key=probabilities.__getitem__)
