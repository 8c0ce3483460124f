"""NLVR2: is a statement true of two images? (paper, section 4.2)"""

from collections.abc import Sequence
from typing import Any

from mvlm_jax.data.formats.nlvr2 import LABELS
from mvlm_jax.data.labelled import LabelledRow
from mvlm_jax.evaluation.consistency import consistency
from mvlm_jax.tasks.classification import ClassificationTask


class Nlvr2(ClassificationTask):
    """Each image goes through the model with the statement; a head judges both fused features together."""

    name = "nlvr2"
    labels = LABELS

    def metrics(self, judged: Sequence[tuple[LabelledRow, bool]]) -> dict[str, Any]:
        right, groups = [right for _, right in judged], [row.group for row, _ in judged]
        return super().metrics(judged) | consistency(right, groups)

    def submission(self, chosen: Sequence[tuple[LabelledRow, str]], left_out: Sequence[tuple[LabelledRow, str]]) -> str:
        """Lines of `identifier,prediction` as the official script reads them, which wants every statement judged."""
        every = [*chosen, *((row, self.labels[0]) for row, _ in left_out)]
        return "".join(f"{row.example_id},{label}\n" for row, label in every)
