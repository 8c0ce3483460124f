"""Prepared datasets of questions, statements and hypotheses."""

from collections.abc import Mapping, Sequence

from mvlm_jax.data.formats.records import RecordSource, as_text, damage_told
from mvlm_jax.data.labelled import LabelledExample, LabelledRow, row_of


class LabelledRecords(RecordSource):
    """Labelled examples in ArrayRecord files, with their images left encoded."""

    features = ("images", "text", "answers", "kind", "group", "example_id")
    holds = "a dataset of questions, statements or hypotheses"
    otherwise = ""

    def example(self, values: Mapping[str, Sequence[bytes]]) -> LabelledExample:
        return {
            "images": list(values["images"]),
            "text": as_text(values["text"][0]),
            "answers": list(map(as_text, values["answers"])),
            "kind": as_text(values["kind"][0]),
            "group": as_text(values["group"][0]),
            "example_id": as_text(values["example_id"][0]),
        }

    def row(self, index: int) -> LabelledRow:
        with damage_told(index):
            # Its images have no files of their own.
            return row_of(self.example(self.values(index)))
