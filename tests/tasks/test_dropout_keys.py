"""The keys that a task's examples drop features with."""

import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import SMALLER, recipe, sizes

from mvlm_jax.tasks.registry import describe_task
from mvlm_jax.training.streams import Streams

RECIPES = {"pretrain": "demo", "vqa": "finetune_vqa", "nlvr2": "finetune_nlvr2"}
RATES = {"cross.dropout": 0.2, "image_encoder.stochastic_depth": 0.2}


def task_of(name, **fields):
    config = recipe(RECIPES[name], *([] if name == "pretrain" else ["shapes"]))
    smaller = SMALLER | {"dtype": "float32", "vqa.decoder_layers": 1, "vqa.answers_per_question": 2}
    config.update_from_flattened_dict(smaller | sizes(layers=2) | fields)
    return describe_task(config)


def rows(task, *, step=3, seed=0):
    rng = np.random.default_rng(0)
    batch = {
        name: jnp.asarray(rng.integers(0, 2 if name == "label" else 9, shape.shape), shape.dtype)
        for name, shape in task.batch_shapes.items()
    }
    return task.prepare(batch, Streams(seed=seed, step=jnp.int32(step)))


def keys(task, **of):
    prepared = rows(task, **of)
    return prepared["dropout_keys"] if isinstance(prepared, dict) else prepared.dropout_keys


@pytest.mark.parametrize("name", RECIPES)
def test_each_example_has_a_key_of_its_own_at_each_step(name):
    task = task_of(name, **RATES)
    drawn = [np.asarray(jax.random.key_data(keys(task, **of))) for of in ({}, {"step": 4}, {"seed": 1})]
    assert len(np.unique(np.concatenate(drawn), axis=0)) == 3 * 8
    # A run that was interrupted draws the same again.
    np.testing.assert_array_equal(jax.random.key_data(keys(task)), drawn[0])
    stream = Streams(seed=0, step=jnp.int32(3)).key("dropout")
    np.testing.assert_array_equal(jax.random.key_data(jax.random.fold_in(stream, 5)), drawn[0][5])


@pytest.mark.parametrize("name", RECIPES)
def test_without_dropout_there_are_no_keys(name):
    assert keys(task_of(name)) is None


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vqa", "nlvr2"])
def test_the_loss_of_a_batch_is_that_of_its_parts(name):
    """Also with two images an example, and with several answers to a question."""
    task = task_of(name, **RATES)
    params = jax.jit(task.init)(jax.random.key(0))
    total = jax.jit(lambda params, rows: task.losses(params, rows)[task.loss][0])
    whole = rows(task)
    halves = [jax.tree.map(operator.itemgetter(part), whole) for part in (slice(0, 4), slice(4, 8))]
    expected = float(total(params, whole))
    assert sum(float(total(params, half)) for half in halves) == pytest.approx(expected, rel=1e-5)
    assert float(total(params, rows(task_of(name)))) != pytest.approx(expected, rel=1e-4)
