"""NLVR2: is a statement true of two images? (paper, section 4.2)"""

from collections.abc import Sequence
from typing import Any

from mvlm_jax.data.formats.nlvr2 import LABELS
from mvlm_jax.data.labelled import LabelledRow
from mvlm_jax.interop.model_card import About
from mvlm_jax.tasks.classification import ClassificationTask, likeliest
from mvlm_jax.tasks.labelled import LeftOut


class Nlvr2(ClassificationTask):
    """Each image goes through the model with the statement; a head judges both fused features together."""

    name = "nlvr2"
    about = About(
        "that says whether a statement is true of two images",
        'model.classify_pair([(left, right)], ["both images show a dog"])',
    )
    images = 2
    labels = LABELS
    submits = True

    def metrics(self, judged: Sequence[tuple[LabelledRow, bool]]) -> dict[str, Any]:
        right, groups = [right for _, right in judged], [row.group for row, _ in judged]
        return super().metrics(judged) | consistency(right, groups)

    def submission_file(self, predicted: Sequence[tuple[LabelledRow, dict[str, float]]], left_out: LeftOut) -> str:
        """Lines of `identifier,prediction` as the official script reads them, which wants every statement judged."""
        lines = [(row, likeliest(probabilities)) for row, probabilities in predicted]
        lines += [(row, self.labels[0]) for row, _ in left_out]
        return "".join(f"{row.example_id},{label}\n" for row, label in lines)


def consistency(right: Sequence[bool], groups: Sequence[str]) -> dict[str, float | int]:
    """`consistency`: percent of the groups all of whose examples are right, and how many groups there are.

    The examples of a group are the image pairs of one sentence. Those without a group are not counted.
    """
    of_group: dict[str, bool] = {}
    for correct, group in zip(right, groups, strict=True):
        if group:
            of_group[group] = of_group.get(group, True) and bool(correct)
    if not of_group:
        return {}
    return {"consistency": 100 * sum(of_group.values()) / len(of_group), "groups": len(of_group)}
