"""What a model says of labelled examples: questions, statements and hypotheses."""

import dataclasses
from collections.abc import Sequence
from typing import Any, cast

from PIL import Image

from mvlm_jax.data.labelled import LabelledExample
from mvlm_jax.inference import Inference
from mvlm_jax.report.page import Picture, thumbnail
from mvlm_jax.tasks.labelled import LabelledTask


@dataclasses.dataclass(frozen=True)
class Answered:
    """A question, statement or hypothesis with what the model says of it."""

    pictures: list[Picture]
    text: str
    predicted: str
    truth: str
    is_right: bool
    detail: str = ""


def answered(
    model: Inference, read: Sequence[tuple[LabelledExample, list[Image.Image]]], *, count: int
) -> tuple[list[Answered], list[Answered]]:
    """The first `count` examples that it answers right, and the first that it answers wrong.

    Args:
      read: examples with their images, of which those without an annotated answer are left out.
    """
    images = cast(LabelledTask, model.task).images
    predicted = model.predict([pictures for _, pictures in read], [example["text"] for example, _ in read])
    right: list[Answered] = []
    wrong: list[Answered] = []
    for (example, pictures), answer in zip(read, predicted, strict=True):
        said, detail = _said(answer)
        if not example["answers"]:
            continue
        cards = right if said in example["answers"] else wrong
        if len(cards) < count:
            shown = [thumbnail(image, f"image of: {example['text']}") for image in pictures[:images]]
            truth = ", ".join(dict.fromkeys(example["answers"]))
            cards.append(Answered(shown, example["text"], said, truth, cards is right, detail))
    return right, wrong


def _said(answer: Any) -> tuple[str, str]:
    """What a model says, and how sure it is."""
    if isinstance(answer, dict):
        ordered = sorted(answer.items(), key=lambda one: -one[1])
        return ordered[0][0], ", ".join(f"{label} {probability:.0%}" for label, probability in ordered)
    return getattr(answer, "ranked", str(answer)), ""
