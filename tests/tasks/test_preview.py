"""A page that shows what a step of the shipped demo, made smaller, sees."""

import html
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from html_page import problems
from tiny import ROOT, SMALLER, recipe

from mvlm_jax.cli import prepare as prepare_command
from mvlm_jax.report.batch import MASKED, masked_image, preview_page, step_pairs
from mvlm_jax.tasks.registry import open_task
from mvlm_jax.training.streams import Streams

STEP = 3


@pytest.fixture(scope="module")
def task(demo_dir):
    config = recipe("demo")
    config.update_from_flattened_dict(SMALLER | {"data.data_dir": str(demo_dir)})
    return open_task(config, workdir="")


def test_pairs_are_those_of_a_run_that_came_to_the_step(task):
    batches = iter(task.train_batches(0))
    for step in range(STEP + 1):
        batch = {name: jnp.asarray(rows) for name, rows in next(batches).items()}
        reached = task.prepare(batch, Streams(seed=task.config.seed, step=jnp.int32(step)))
    jax.tree.map(np.testing.assert_array_equal, step_pairs(task, step=STEP), reached)
    assert not np.array_equal(step_pairs(task, step=0).image_mask.patch_mask, reached.image_mask.patch_mask)


def test_masked_image_hides_the_masked_patches_and_no_pixel_else():
    image = np.random.default_rng(0).integers(0, 200, (12, 12, 3)).astype(np.uint8)
    patch_mask = np.zeros(9, bool)
    patch_mask[[1, 5]] = True  # the upper row's middle, the middle row's end
    hidden = masked_image(image, patch_mask)
    assert (hidden[:4, 4:8] == MASKED).all() and (hidden[4:8, 8:] == MASKED).all()
    kept = np.ones((12, 12), bool)
    kept[:4, 4:8] = kept[4:8, 8:] = False
    np.testing.assert_array_equal(hidden[kept], image[kept])


def test_page_marks_the_hidden_words_of_the_first_pairs(task):
    page = preview_page(task, step=STEP, examples=5)
    pairs = step_pairs(task, step=STEP)
    text, masked_text = np.asarray(pairs.text), np.asarray(pairs.text_mask.text)
    captions = re.findall(r"<figcaption>(.*?)<br>", page)
    names = re.findall(r'<span class="id">(.*?)</span>', page)
    assert len(captions) == 5 and names == list(task.example_ids(STEP)[:5])
    mask = task.tokenizer.ids.mask
    for row, caption in enumerate(captions):
        hidden = np.flatnonzero(masked_text[row] == mask)
        words = [task.tokenizer.decode([int(number)]) for number in text[row][hidden]]
        assert [html.unescape(word) for word in re.findall(r'"hidden">(.*?)</span>', caption)] == words
        whole = html.unescape(re.sub("<[^>]*>", "", caption)).replace(" ", "")
        assert whole == task.tokenizer.decode(text[row]).replace(" ", "")
    assert page.count("data:image/png;base64,") == 10 and problems(page) == []
    # What the page's own batch was made with is no part of the next command.
    assert "mvlm train --config=demo" in page and "--config.data.workers" not in page


def test_preview_writes_the_batch_of_a_run_whatever_its_mesh_and_workers(task, demo_dir, tmp_path, capsys):
    fields = SMALLER | {"data.data_dir": demo_dir, "mesh.data": 1024, "data.workers": 7}
    flags = [f"--config.{name}={value}" for name, value in fields.items()]
    arguments = ["--preview", f"--config={ROOT / 'configs' / 'demo.py'}", f"--step={STEP}", "--examples=3", *flags]
    assert prepare_command.run([*arguments, f"--report_dir={tmp_path}"]) == 0
    cards = re.findall(r"<figure.*?</figure>", (tmp_path / "preview.html").read_text(), re.DOTALL)
    assert cards == re.findall(r"<figure.*?</figure>", preview_page(task, step=STEP, examples=3), re.DOTALL)
    assert "preview.html" in capsys.readouterr().out


def test_preview_without_a_recipe_is_refused(capsys):
    assert prepare_command.run(["--preview"]) == 2
    assert "--preview needs --config" in capsys.readouterr().err
    assert prepare_command.run([]) == 2
    assert "--dataset is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "instead"),
    [
        ("--data_dir=runs/data", "set --config.data.data_dir=…"),
        ("--dataset=shapes", "set --config.data.train=…"),
        ("--source=json:a.json", "set --config.data.train=…"),
        ("--workers=2", "--workers is not used with --preview"),
    ],
)
def test_preview_refuses_flags_that_it_does_not_read(flag, instead, capsys):
    assert prepare_command.run(["--preview", f"--config={ROOT / 'configs' / 'demo.py'}", flag]) == 2
    assert instead in capsys.readouterr().err
