"""Prepared datasets of questions, statements and hypotheses."""

from collections.abc import Mapping, Sequence

from mvlm_jax.data.formats.records import RecordSource, as_text
from mvlm_jax.data.labelled import LabelledExample, LabelledRow, example_of


class LabelledRecords(RecordSource):
    """Labelled examples in ArrayRecord files, with their images left encoded."""

    features = ("images", "text", "answers", "kind", "group", "example_id")
    holds = "a dataset of questions, statements or hypotheses"
    otherwise = ""

    def example(self, values: Mapping[str, Sequence[bytes]]) -> LabelledExample:
        return example_of(_row(values), images=list(values["images"]))

    def row(self, index: int) -> LabelledRow:
        with self.damage_told(index):
            return _row(self.values(index))


def _row(values: Mapping[str, Sequence[bytes]]) -> LabelledRow:
    return LabelledRow(
        images=(),  # they have no files of their own
        text=as_text(values["text"][0]),
        answers=tuple(map(as_text, values["answers"])),
        kind=as_text(values["kind"][0]),
        group=as_text(values["group"][0]),
        example_id=as_text(values["example_id"][0]),
    )
