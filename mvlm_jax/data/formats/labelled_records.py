"""Prepared datasets of questions, statements and hypotheses."""

from collections.abc import Mapping, Sequence

from mvlm_jax.data.formats.records import RecordSource, as_text
from mvlm_jax.data.labelled import LabelledExample, LabelledRow


class LabelledRecords(RecordSource):
    """Labelled examples in ArrayRecord files, with their images left encoded."""

    features = ("images", "text", "answers", "kind", "group", "example_id")
    holds = "a dataset of questions, statements or hypotheses"
    otherwise = ""

    def example(self, values: Mapping[str, Sequence[bytes]]) -> LabelledExample:
        return {"images": list(values["images"]), "answers": list(map(as_text, values["answers"])), **_texts(values)}

    def row(self, index: int) -> LabelledRow:
        with self.damage_told(index):
            values = self.values(index)
            # Its images have no files of their own.
            return LabelledRow(images=(), answers=tuple(map(as_text, values["answers"])), **_texts(values))


def _texts(values: Mapping[str, Sequence[bytes]]) -> dict[str, str]:
    return {name: as_text(values[name][0]) for name in ("text", "kind", "group", "example_id")}
