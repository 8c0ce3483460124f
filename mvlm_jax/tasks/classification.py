"""Tasks that choose one of a few labels."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mvlm_jax.data.labelled import LabelledRow
from mvlm_jax.evaluation.batching import compute, fetch
from mvlm_jax.models.flops import fused_step_flops
from mvlm_jax.objectives.downstream import classification_losses
from mvlm_jax.objectives.losses import example_counts
from mvlm_jax.tasks.labelled import LabelledTask, reasons
from mvlm_jax.training.accumulation import Independent
from mvlm_jax.training.task import Params, Rows, Sums


class ClassificationTask(LabelledTask):
    """Cross-entropy over `labels`; reports accuracy."""

    name: str  # of the files of the results
    labels: tuple[str, ...]

    @property
    def flops_per_step(self) -> float:
        return fused_step_flops(
            self.model,
            batch_size=self.config.batch_size,
            max_length=self.config.text.max_length,
            images=self.images,
            every_token=False,
        )

    def target_shapes(self, rows: int) -> dict[str, jax.ShapeDtypeStruct]:
        return {"label": jax.ShapeDtypeStruct((rows,), jnp.int32)}

    @cached_property
    def objective(self) -> Independent:
        return Independent(
            self._losses,
            weights={"classification": 1.0},
            dtype=self.model.dtype,
            counts=lambda rows: example_counts(rows["skipped"]),
        )

    def _losses(self, params: Params, rows: Rows) -> Sums:
        logits: Any = self.model.apply({"params": params}, rows["image"], rows["text"])
        return classification_losses(logits, rows["label"])

    def predictions(self, params: Params) -> tuple[list[tuple[LabelledRow, str]], list[tuple[LabelledRow, str]]]:
        """The label chosen for each example of the split; and what was left out, with the reason."""
        left_out: list[tuple[LabelledRow, str]] = []
        chosen = []
        for batch, rows in self.evaluation_batches(params, left_out):
            logits = fetch(compute(self.model, params, batch["image"], batch["text"]))
            chosen += [(row, self.labels[label]) for row, label in zip(rows, logits.argmax(axis=-1))]
        return chosen, left_out

    def results(
        self, chosen: Sequence[tuple[LabelledRow, str]], left_out: Sequence[tuple[LabelledRow, str]]
    ) -> dict[str, dict[str, Any]]:
        judged = [(row, row.answers[0] == label) for row, label in chosen if row.answers]
        judged += [(row, False) for row, _ in left_out if row.answers]
        return {f"{self.name}-{self.eval_name}": self.metrics(judged) | reasons(left_out)}

    def metrics(self, judged: Sequence[tuple[LabelledRow, bool]]) -> dict[str, Any]:
        """Over the examples whose label is known, from whether each was told right."""
        if not judged:
            return {"examples": 0}
        return {"accuracy": 100 * float(np.mean([right for _, right in judged])), "examples": len(judged)}
