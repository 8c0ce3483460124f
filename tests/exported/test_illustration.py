"""What trackers show of a model in training."""

import numpy as np
import pytest
from PIL import Image

from mvlm_jax.report.illustration import examples_of, illustration, usable
from mvlm_jax.report.reconstruction import Filled, Rebuilt
from mvlm_jax.tasks.registry import open_task
from mvlm_jax.training.workdir import read_config


@pytest.fixture(scope="module")
def task(demo_run):
    config = read_config(demo_run)
    config.log.examples = 3
    return open_task(config, workdir=demo_run)


def test_examples_are_the_first_images_with_a_caption_that_is_not_cut(task):
    shown = usable(task)
    assert len(shown) == 3
    ids = task.tokenizer.encode([caption for _, caption in shown], max_length=task.config.text.max_length)
    assert (ids[:, -1] == task.tokenizer.ids.pad).all()
    for image, row in zip(shown, ids):
        [place] = np.flatnonzero((task.split.captions == row).all(axis=1))[:1]
        pixels = task.split.images(task.split.caption_image[[place]])[0]
        np.testing.assert_array_equal(np.asarray(image[0]), pixels)


def test_captions_are_a_table_with_what_was_filled_in_in_bold():
    images = [Image.new("RGB", (8, 8))] * 5
    own = [Filled("a"), Filled("red|blue,", "red|blue"), Filled("star")]
    row = Rebuilt(images, "a red|blue, star", "a dot", own, [Filled("a"), Filled("red|blue,", "dot"), Filled("star")])
    examples = examples_of([row], pictures=True, texts=True)
    assert examples.texts["examples/captions"].splitlines() == [
        "| caption | filled beside its image | beside a wrong image |",
        "|---|---|---|",
        r"| a red\|blue, star | a **[red\|blue]** star | a **[dot]** star |",
    ]
    picture = examples.images["examples/reconstruction"]
    assert picture.dtype == np.uint8 and picture.shape[2] == 3
    assert examples_of([row], pictures=False, texts=False) == ({}, {})


def test_only_what_is_trained_to_rebuild_and_asked_for_is_shown(task):
    config = task.config.copy_and_resolve_references()
    config.log.examples = 0
    assert illustration(task) is not None
    assert illustration(type(task)(config=config, tokenizer=task.tokenizer)) is None
    config.log.examples, config.loss.mim, config.loss.mlm = 3, 0.0, 0.0
    assert illustration(type(task)(config=config, tokenizer=task.tokenizer)) is None
