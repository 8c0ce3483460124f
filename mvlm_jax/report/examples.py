"""What a model does with examples of its evaluation split, to be looked at."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from PIL import Image

from mvlm_jax.data.examples import without_blanks
from mvlm_jax.data.images import UnusableImage, decode_image
from mvlm_jax.data.labelled import LabelledExample
from mvlm_jax.data.sources import open_labelled, open_source
from mvlm_jax.errors import UserError
from mvlm_jax.inference import Inference
from mvlm_jax.report.answered import Answered, answered
from mvlm_jax.report.heat_maps import Attended, attended
from mvlm_jax.report.model import open_model
from mvlm_jax.report.page import Picture, picture
from mvlm_jax.report.reconstruction import COLUMNS, Filled, Rebuilt, rebuild
from mvlm_jax.report.retrieved import Retrievals, retrieved
from mvlm_jax.report.run import Run
from mvlm_jax.tasks.labelled import LabelledTask

AMONG = 256  # pairs among which the best and the worst retrievals are sought
ANSWERED_AMONG = 128  # questions, statements or hypotheses
ATTENDED = 3  # pairs whose words are sought in their image


class Word(NamedTuple):
    """A word of a caption; `guess` is None where it was not hidden."""

    word: str
    guess: str | None
    is_right: bool


@dataclasses.dataclass(frozen=True)
class RebuiltCard:
    """A pair with its hidden parts rebuilt."""

    pictures: list[Picture]
    caption: str
    wrong_caption: str
    filled: list[tuple[str, list[Word]]]  # beside which image


@dataclasses.dataclass(frozen=True)
class Examples:
    """What a page shows; empty lists: nothing that this model does."""

    source: str = ""
    among: int = 0
    columns: tuple[str, ...] = COLUMNS
    rebuilt: Sequence[RebuiltCard] = ()
    found: Retrievals = Retrievals()
    attended: Sequence[Attended] = ()
    right: Sequence[Answered] = ()
    wrong: Sequence[Answered] = ()
    step: int | None = None  # of the checkpoint that made them
    remark: str = ""  # why there is nothing


def examples_of(run: Run, *, count: int, step: int | None = None) -> Examples:
    """`count` of each kind from a checkpoint, the last one where `step` is None; or why there are none.

    Raises:
      UserError: no such checkpoint, or one that is damaged.
    """
    if not run.checkpoints:
        return Examples(remark="No examples: the run has no finished checkpoint yet.")
    if not count:
        return Examples(remark="No examples were asked for (--examples=0).")
    model, made_with = open_model(run, step=step)
    return dataclasses.replace(examples(model, count=count), step=made_with)


def examples(model: Inference, *, count: int) -> Examples:
    """`count` of each kind; a source that cannot be read gives none, with a remark."""
    source = model.config.data.eval
    try:
        if isinstance(model.task, LabelledTask):
            read = list(_labelled(model))
            if not read:
                return Examples(remark=f"No examples: none of the first ones of {source} can be used.")
            right, wrong = answered(model, read, count=count)
            return Examples(source=source, among=len(read), right=right, wrong=wrong)
        pairs = list(first_pairs(model, most=max(count, AMONG)))
    except UserError as error:
        return Examples(remark=f"No examples: {error}. Another place is given by --config.data.data_dir=DIR.")
    if len(pairs) < 2:
        return Examples(remark=f"No examples: {source} has fewer than two pairs that can be used.")
    images, captions = [list(column) for column in zip(*pairs, strict=True)]
    return Examples(
        source=source,
        among=min(AMONG, len(pairs)),
        rebuilt=_rebuilt(model, images, captions, count=count),
        attended=attended(model, images[: min(count, ATTENDED)], captions[: min(count, ATTENDED)]),
        found=_retrieved(model, images[:AMONG], captions[:AMONG], count=count),
    )


def first_pairs(model: Inference, *, most: int) -> Iterator[tuple[Image.Image, str]]:
    """The first images of the evaluation split that can be used, each with its first caption."""
    config = model.config
    source = open_source(config.data.eval, data_dir=config.data.data_dir)
    found = 0
    for index in range(len(source)):
        try:
            example = source[index]
            captions = without_blanks(example["captions"])
            if captions:
                yield _image(example["image"], model=model), captions[0]
                found += 1
        except UnusableImage:
            continue
        if found == most:
            return


def _labelled(model: Inference) -> Iterator[tuple[LabelledExample, list[Image.Image]]]:
    """The first examples of the evaluation split that can be used, with their images."""
    config = model.config
    source = open_labelled(config.data.eval, data_dir=config.data.data_dir)
    for index in range(min(len(source), ANSWERED_AMONG)):
        try:
            example = source[index]
            yield example, [_image(data, model=model) for data in example["images"]]
        except UnusableImage:
            continue


def _image(data: bytes, *, model: Inference) -> Image.Image:
    return Image.fromarray(decode_image(data, max_pixels=model.config.data.max_image_pixels))


def _rebuilt(model: Inference, images: list[Image.Image], captions: list[str], *, count: int) -> list[RebuiltCard]:
    """Empty for a model that no loss trained to rebuild."""
    losses = model.config.loss
    if "reconstruct" not in model.task.verbs or not (losses.mim or losses.mlm):
        return []
    pairs = max(2, count)  # of a single one there is no wrong partner
    return [rebuilt_card(one) for one in rebuild(model, images[:pairs], captions[:pairs])[:count]]


def _retrieved(model: Inference, images: list[Image.Image], captions: list[str], *, count: int) -> Retrievals:
    """Empty for a model that does not embed images and texts."""
    if not model.task.embeds:
        return Retrievals()
    return retrieved(model.similarity(images, captions), images, captions, count=count)


def rebuilt_card(one: Rebuilt) -> RebuiltCard:
    """A pair as a page shows it."""
    pictures = [
        picture(image, alt=f"{column}: {one.caption}" if column == COLUMNS[0] else column)
        for column, image in zip(COLUMNS, one.images, strict=True)
    ]
    partners = (
        ("beside its image", one.beside_own),
        ("beside a wrong image", one.beside_wrong),
        ("beside no image", one.alone),
    )
    return RebuiltCard(
        pictures, one.caption, one.wrong_caption, [(partner, list(map(_word, words))) for partner, words in partners]
    )


def _word(filled: Filled) -> Word:
    return Word(filled.word, filled.guess, filled.is_right)
