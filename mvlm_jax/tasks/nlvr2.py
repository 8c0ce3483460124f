"""NLVR2: is a statement true of two images? (paper, section 4.2)"""

from collections.abc import Sequence
from typing import Any

from mvlm_jax.data.labelled import LabelledRow
from mvlm_jax.evaluation.consistency import consistency
from mvlm_jax.tasks.classification import ClassificationTask
from mvlm_jax.training.task import Params


class Nlvr2(ClassificationTask):
    """Each image goes through the model with the statement; a head judges both fused features together."""

    name = "nlvr2"
    labels = ("False", "True")

    def metrics(self, chosen: Sequence[tuple[LabelledRow, str]]) -> dict[str, Any]:
        known = [(row, label) for row, label in chosen if row.answers]
        right = [row.answers[0] == label for row, label in known]
        return super().metrics(chosen) | consistency(right, [row.group for row, _ in known])

    def submission(self, params: Params) -> str:
        """Lines of `identifier,prediction`, as the official script reads them."""
        chosen, _ = self.predictions(params)
        return "".join(f"{row.example_id},{label}\n" for row, label in chosen)
