"""What a model in training rebuilds of the first examples of its evaluation split, for trackers to show."""

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from mvlm_jax.data.examples import without_blanks
from mvlm_jax.inference import Inference
from mvlm_jax.report.reconstruction import Filled, Rebuilt, draw, rebuild
from mvlm_jax.tasks.base import BaseTask
from mvlm_jax.tasks.pretrain import Pretrain
from mvlm_jax.training.task import Params
from mvlm_jax.training.tracker import Examples


def illustration(task: BaseTask) -> Callable[[Params], Examples] | None:
    """The function that rebuilds `config.log.examples` examples; None for a task that trains no reconstruction."""
    if not isinstance(task, Pretrain) or not task.config.log.examples:
        return None
    images, words = (task.config.loss[name] > 0 for name in ("mim", "mlm"))
    if not images and not words:
        return None

    def illustrate(params: Params) -> Examples:
        shown = usable(task)
        if len(shown) < 2:  # there is no wrong partner
            return Examples({}, {})
        pictures, captions = zip(*shown)
        rebuilt = rebuild(Inference(task=task, params=params, batch_size=1), pictures, captions)
        # A picture holds both.
        return examples_of(rebuilt, pictures=images and words, texts=words)

    return illustrate


def usable(task: Pretrain) -> list[tuple[Image.Image, str]]:
    """The first images of the split with a caption each that is not cut, so that each of its words can be hidden."""
    split, wanted = task.split, task.config.log.examples
    firsts = np.unique(split.caption_image, return_index=True)[1]  # the first caption of each image
    whole = [index for index, row in enumerate(split.captions[firsts]) if row[-1] == task.tokenizer.ids.pad][:wanted]
    if not whole:
        return []
    pixels = split.images(np.array(whole, np.int32))
    captions = [without_blanks(split.source[split.records[index]]["captions"])[0] for index in whole]
    return [(Image.fromarray(image), caption) for image, caption in zip(pixels, captions)]


def examples_of(rebuilt: Sequence[Rebuilt], *, pictures: bool, texts: bool) -> Examples:
    picture = {"examples/reconstruction": np.asarray(draw(rebuilt))} if pictures else {}
    filled = {"examples/captions": "\n".join(_table(rebuilt))} if texts else {}
    return Examples(picture, filled)


def _table(rebuilt: Sequence[Rebuilt]) -> list[str]:
    """Markdown, with what was filled in in bold."""
    rows = [f"| {_cell(row.caption)} | {_words(row.beside_own)} | {_words(row.beside_wrong)} |" for row in rebuilt]
    return ["| caption | filled beside its image | beside a wrong image |", "|---|---|---|", *rows]


def _words(filled: Sequence[Filled]) -> str:
    return " ".join(_cell(word) if guess is None else f"**[{_cell(guess)}]**" for word, guess in filled)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
