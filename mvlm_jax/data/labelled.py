"""Examples of the downstream tasks: one or two images, a text about them, and the annotators' answers."""

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypedDict, cast, runtime_checkable

from mvlm_jax.data.examples import Source
from mvlm_jax.data.formats.listed import read_image
from mvlm_jax.data.formats.records import RecordSource, as_text
from mvlm_jax.data.skipped import Skipped


class LabelledExample(TypedDict):
    """A question, a statement or a hypothesis.

    Answers are as the annotators gave them: ten for a question of VQA v2, one label elsewhere, none where the answer is
    held back.
    """

    images: list[bytes]  # encoded; two for NLVR2
    text: str
    answers: list[str]
    answer_type: str  # of VQA, such as yes/no; metrics are also given for each
    group: str  # of examples whose answers must be consistent; empty: none
    example_id: str


@runtime_checkable
class LabelledSource(Source[LabelledExample], Protocol):
    """A source that can read examples without their images."""

    def row(self, index: int) -> "LabelledRow":
        """Everything but the images, which are not read.

        Raises:
          UnusableImage: the record is damaged.
        """


class LabelledRow(NamedTuple):
    """An example without the bytes of its images."""

    images: tuple[str, ...]  # paths below the source's root; empty where images are not files
    text: str
    answers: tuple[str, ...]
    answer_type: str
    group: str
    example_id: str


# The feature of a prepared dataset that each field is stored as, of the fields that are one text. The id is the last.
STORED = {"text": "text", "answer_type": "kind", "group": "group", "example_id": "example_id"}


def row_of(example: LabelledExample) -> LabelledRow:
    """An example that was read already, without its images."""
    fields: dict[str, Any] = {**example, "images": (), "answers": tuple(example["answers"])}
    return LabelledRow(**fields)


def example_of(row: LabelledRow, *, images: list[bytes]) -> LabelledExample:
    """A row with its images, encoded."""
    return cast(LabelledExample, row._asdict() | {"images": images, "answers": list(row.answers)})


@dataclasses.dataclass(frozen=True, eq=False)
class ListedExamples:
    """Rows in memory, images read from their files on demand."""

    rows: Sequence[LabelledRow]
    _: dataclasses.KW_ONLY
    root: Path
    left_out: Skipped = dataclasses.field(default_factory=Skipped)  # by the reader of the rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> LabelledExample:
        row = self.rows[index]
        return example_of(row, images=[read_image(self.root / path) for path in row.images])

    def row(self, index: int) -> LabelledRow:
        return self.rows[index]

    def example_id(self, index: int) -> str:
        return self.rows[index].example_id


class LabelledRecords(RecordSource):
    """Labelled examples in ArrayRecord files, images left encoded."""

    features = ("images", "answers", *STORED.values())
    holds = "a dataset of questions, statements or hypotheses"
    otherwise = ""

    def example(self, values: Mapping[str, Sequence[bytes]]) -> LabelledExample:
        return example_of(self._row(values), images=list(values["images"]))

    def row(self, index: int) -> LabelledRow:
        with self.damage_reported(index):
            return self._row(self.values(index))

    def _row(self, values: Mapping[str, Sequence[bytes]]) -> LabelledRow:
        texts = {name: as_text(values[feature][0]) for name, feature in STORED.items()}
        return LabelledRow(images=(), answers=tuple(map(as_text, values["answers"])), **texts)


def answer_list(rows: Iterable[LabelledRow], *, size: int) -> list[str]:
    """The `size` answers that annotators gave most often, each question counted once; ties in alphabetical order."""
    given: defaultdict[str, float] = defaultdict(float)
    for row in rows:
        for answer in row.answers:
            given[answer] += 1 / len(row.answers)
    # Rounded: sums of tenths in another order may differ in the last bit.
    ordered = sorted(given, key=lambda answer: (-round(given[answer], 6), answer))
    return ordered[:size]
