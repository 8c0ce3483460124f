"""The task as the trainer sees it, on pairs held in memory."""

import jax
import numpy as np
import pytest
from tiny import SMALLER, recipe, sizes

from mvlm_jax.data.text import train_tokenizer
from mvlm_jax.tasks import pretrain
from mvlm_jax.tasks.pretrain import Pretrain
from mvlm_jax.tasks.registry import open_task
from mvlm_jax.training.mesh import make_mesh, shard_batch
from mvlm_jax.training.program import make_program
from mvlm_jax.training.task import Task

COLOURS = ["red", "green", "blue", "white", "black", "yellow", "grey", "brown"]


@pytest.fixture(scope="module")
def config():
    config = recipe("demo")
    config.update_from_flattened_dict(SMALLER | {"steps": 200, "optimizer.warmup_steps": 10, "optimizer.peak": 3e-3})
    config.optimizer.image_encoder_peak = config.optimizer.text_encoder_peak = 3e-3
    config.update_from_flattened_dict(sizes(width=32))
    return config


@pytest.fixture(scope="module")
def batch(config):
    captions = [f"a {one} shape beside a {other} one" for one, other in zip(COLOURS, COLOURS[3:] + COLOURS[:3])]
    tokenizer = train_tokenizer(captions, kind="roberta", vocab_size=400)
    rng = np.random.default_rng(0)
    image = np.repeat(np.repeat(rng.integers(0, 256, (8, 4, 4, 3)), 8, axis=1), 8, axis=2).astype(np.uint8)
    return tokenizer, {
        "image": image,
        "text": tokenizer.encode(captions, max_length=config.text.max_length),
        "image_id": np.arange(8, dtype=np.int32),
        "skipped": np.zeros(8, np.int32),
    }


@pytest.fixture(scope="module")
def history(config, batch):
    tokenizer, rows = batch
    task = Pretrain(config=config, tokenizer=tokenizer)
    assert isinstance(task, Task)
    mesh = make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1])
    program = make_program(task=task, config=config, mesh=mesh)
    state, lines = program.init(), []
    for _ in range(config.steps):
        state, metrics = program.step(state, shard_batch(rows, program.batch_sharding))
        lines.append({name: float(value) for name, value in jax.device_get(metrics).items()})
    return lines


def test_a_tiny_model_overfits_one_batch(history):
    last = history[-10:]
    assert np.mean([line["mlm_accuracy"] for line in last]) > 90
    assert np.mean([line["itc"] for line in last]) < 0.1
    assert np.mean([line["itm_accuracy"] for line in last]) > 95
    assert np.mean([line["mim"] for line in last]) < 0.75 * history[0]["mim"]


def test_masks_differ_between_steps(history):
    """One batch at almost one set of weights: only other masks can make the reconstruction losses jump."""
    early = [line["mim"] for line in history[:3]]
    assert len(set(early)) == 3


def test_each_line_says_how_many_examples_it_is_of_and_how_many_were_skipped(history):
    assert {(line["examples"], line["skipped_images"]) for line in history} == {(8, 0)}


def test_the_config_names_the_loss_of_pixels(config, batch):
    tokenizer, _ = batch
    for loss in ("l1", "l2"):
        config = config.copy_and_resolve_references()
        config.loss.pixels = loss
        assert Pretrain(config=config, tokenizer=tokenizer).objective.pixel_loss == loss


def test_nothing_is_ever_not_a_number(history):
    assert all(np.isfinite(value) for line in history for value in line.values())


def test_a_head_that_no_loss_trains_is_not_evaluated(demo_dir, monkeypatch):
    monkeypatch.setattr(pretrain, "evaluate_retrieval", lambda *arguments, **options: options)
    config = recipe("demo")
    untrained = {"loss.mim": 0.0, "loss.mlm": 0.0, "loss.itm": 0.0}
    config.update_from_flattened_dict(SMALLER | untrained | {"data.data_dir": str(demo_dir), "eval.sweep": (2,)})
    (name, options), *others = open_task(config, workdir=demo_dir).evaluate({}).items()
    assert (name, others) == ("retrieval-val", [])
    assert (options["rerank"], options["sweep"]) == (0, ())
