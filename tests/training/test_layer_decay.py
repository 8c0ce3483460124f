import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toy import ToyTask, metrics_lines, toy_config

from mvlm_jax.models.parameter_rules import LAYER_RULES
from mvlm_jax.training.checkpoints import Checkpoints
from mvlm_jax.training.layer_decay import layer_scales
from mvlm_jax.training.loop import train
from mvlm_jax.training.mesh import make_mesh, shard_batch
from mvlm_jax.training.program import make_program

PARAMS = {
    "image_encoder": {
        "mask_token": jnp.ones((1, 1, 2)),
        "position_embedding": jnp.ones((1, 5, 2)),
        "layers": {"block": {"mlp": {"kernel": jnp.ones((3, 2, 4)), "bias": jnp.ones((3, 4))}}},
        "final_norm": {"scale": jnp.ones(2)},
    },
    "text_encoder": {"token_embedding": jnp.ones((9, 2)), "layers": {"block": {"bias": jnp.ones((2, 2))}}},
    "pixel_head": {"kernel": jnp.ones((2, 2))},
}


def test_a_layer_learns_at_a_part_of_the_rate_of_the_one_above_it():
    scales = layer_scales(PARAMS, rules=LAYER_RULES, decay=0.5)
    image, text = scales["image_encoder"], scales["text_encoder"]
    np.testing.assert_array_equal(image["layers"]["block"]["mlp"]["kernel"], np.float32([[[0.25]], [[0.5]], [[1.0]]]))
    np.testing.assert_array_equal(image["layers"]["block"]["mlp"]["bias"], np.float32([[0.25], [0.5], [1.0]]))
    assert image["position_embedding"] == 0.125
    assert image["final_norm"]["scale"] == image["mask_token"] == scales["pixel_head"]["kernel"] == 1.0
    np.testing.assert_array_equal(text["layers"]["block"]["bias"], np.float32([[0.5], [1.0]]))
    assert text["token_embedding"] == 0.25


class Stacked(ToyTask):
    """Three layers, each a number that the loss pulls at with the same force; an embedding before them."""

    decay_rules = ((r".*/bias", False), (r".*", True))
    sharding_rules = ((r".*", jax.sharding.PartitionSpec()),)
    optimizer_rules = ((r"encoder/.*", "image_encoder"), (r".*", "rest"))
    layer_rules = ((r"encoder/layers/.*", "layers"), (r"encoder/.*", "before"), (r".*", "behind"))
    first = 0

    @property
    def frozen_rules(self):
        return ((r"encoder/layers/.*", self.first),) if self.first else ()

    def init(self, key):
        layers = {"kernel": jnp.full((3, 1), 4.0), "bias": jnp.zeros((3, 1))}
        return {"encoder": {"layers": layers, "embedding": jnp.ones(1)}, "head": jnp.ones(1)}

    def losses(self, params, rows):
        pulled = sum(leaf.sum() for leaf in jax.tree.leaves(params))
        return {"squared_error": (pulled * rows["y"].size, jnp.float32(rows["y"].size))}


def moved(*, first=0, **fields):
    """How far the first step, of rate 0.01 for the last layer, moves each parameter."""
    task = Stacked()
    task.first = first
    mesh = make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1])
    config = toy_config(**{"optimizer.image_encoder_peak": 2e-2, "optimizer.weight_decay": 0.5, **fields})
    program = make_program(task=task, config=config, mesh=mesh)
    old, state = program.init(), program.init()
    state, _ = program.step(state, shard_batch(next(task.train_batches(0)), program.batch_sharding))
    return jax.tree.map(lambda new, old: np.asarray(new - old), state.params, old.params)


@pytest.mark.parametrize("first", [0, 1])
def test_steps_and_weight_decay_shrink_together(first):
    """Adam's first step is 1, and a half of a kernel of 4 is 2: a step of 3, times the rate of its layer."""
    change = moved(first=first, **{"optimizer.layer_decay": 0.5})
    rates = np.array([[0.0025], [0.005], [0.01]]) * (np.arange(3) >= first)[:, None]
    np.testing.assert_allclose(change["encoder"]["layers"]["kernel"], -3 * rates, rtol=1e-4)
    np.testing.assert_allclose(change["encoder"]["layers"]["bias"], -rates, rtol=1e-4)
    np.testing.assert_allclose(change["encoder"]["embedding"], [-1.5 * 0.00125], rtol=1e-3)
    np.testing.assert_allclose(change["head"], [-1.5 * 0.005], rtol=1e-3)


def test_without_decay_the_optimizer_keeps_its_state_as_it_was():
    mesh = make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1])
    program = make_program(task=Stacked(), config=toy_config(**{"optimizer.layer_decay": 1.0}), mesh=mesh)
    assert len(program.state.opt_state) == 4  # clipping, Adam, weight decay, rates


class Varying(Stacked):
    """The forces differ from step to step, and so do moments."""

    def losses(self, params, rows):
        pulled = sum(jnp.square(leaf - rows["y"].mean()).sum() for leaf in jax.tree.leaves(params))
        return {"squared_error": (pulled * rows["y"].size, jnp.float32(rows["y"].size))}

    def evaluate(self, params):
        return {"toy-val": {"head": float(params["head"][0])}}


def test_a_run_with_a_rate_for_each_layer_above_a_frozen_one_resumes_bit_for_bit(tmp_path):
    config = toy_config(**{"optimizer.layer_decay": 0.5})
    task = Varying()
    task.first = 1
    train(task, config=config, workdir=tmp_path / "through")
    shutil.copytree(tmp_path / "through", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed/checkpoints/9")
    train(task, config=config, workdir=tmp_path / "resumed")
    assert metrics_lines(tmp_path / "resumed") == metrics_lines(tmp_path / "through")
    program = make_program(task=task, config=config, mesh=make_mesh(**config.mesh))
    through, resumed = (state_of(tmp_path / name, program) for name in ("through", "resumed"))
    jax.tree.map(np.testing.assert_array_equal, through, resumed)
    moments = optax.tree.get(resumed.opt_state, "nu")["encoder"]["layers"]["kernel"]
    assert moments.shape == (2, 1) and (np.asarray(moments) > 0).all()
    # The frozen layer is as it was; the others are not.
    assert (np.asarray(resumed.params["encoder"]["layers"]["kernel"] != 4.0)).ravel().tolist() == [False, True, True]


def state_of(workdir, program):
    with Checkpoints.for_reading(workdir / "checkpoints") as checkpoints:
        return checkpoints.restore(9, program.state)
