"""The real task on every kind of mesh: the same run, and no device holds more than its part."""

import math
import re

import jax
import numpy as np
import optax
import pytest
from tiny import sizes
from twenty import config_of, first_gradients, trajectory

from mvlm_jax.interop.parameters import flat
from mvlm_jax.tasks.registry import open_task
from mvlm_jax.training.mesh import make_mesh
from mvlm_jax.training.program import make_program

pytestmark = pytest.mark.skipif(jax.device_count() != 8, reason="needs 8 devices")

ALL_AXES = (2, 2, 2)
OTHER = pytest.param((2, 4, 1), marks=pytest.mark.slow)
ONE = (1, 1, 1)
BIG = r".*(attention|mlp)/.*kernel|text_encoder/(token|position)_embedding/.*|token_classifier/kernel"


def mesh_of(sizes):
    data, fsdp, tensor = sizes
    return make_mesh(data=data, fsdp=fsdp, tensor=tensor)


@pytest.mark.parametrize("sizes", [ALL_AXES, OTHER])
def test_every_mesh_trains_the_run_of_one_device(sizes, shapes_dir, on_one_device):
    losses, ids = trajectory(shapes_dir, mesh_of(sizes))
    expected, order = on_one_device
    assert ids == order
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert len(np.unique(expected[:, 0])) == len(expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [{"accumulate": 4}, {"model.remat": "full"}],
    ids=lambda fields: "-".join(map(str, *fields.items())),
)
def test_saving_memory_trains_the_same_run(fields, shapes_dir, on_one_device):
    one_device = make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1])
    losses, ids = trajectory(shapes_dir, one_device, **fields)
    expected, order = on_one_device
    assert ids == order
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


# Each setting on one device and on a mesh; a mesh that trains with several of them trains with each.
VARIANTS = [
    ({"model.attention": "pallas"}, ONE),
    ({"model.layer_loop": "unroll"}, ONE),
    ({"model.remat": "inputs"}, ONE),
    ({"model.attention": "pallas", "model.layer_loop": "unroll", "model.remat": "inputs"}, ALL_AXES),
    ({"model.attention": "pallas", "model.remat": "dots"}, ALL_AXES),
]


@pytest.fixture(scope="module")
def plain_gradients(shapes_dir):
    return first_gradients(shapes_dir, make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fields", "axes"), VARIANTS, ids=lambda it: "-".join(it.values()) if isinstance(it, dict) else str(it)
)
def test_every_way_to_compute_the_model_trains_the_same_run(fields, axes, shapes_dir, on_one_device, plain_gradients):
    data, fsdp, tensor = axes
    mesh = make_mesh(data=data, fsdp=fsdp, tensor=tensor, devices=jax.devices()[: math.prod(axes)])
    losses, ids = trajectory(shapes_dir, mesh, **fields)
    expected, order = on_one_device
    assert ids == order
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    difference = optax.tree.sub(first_gradients(shapes_dir, mesh, **fields), plain_gradients)
    assert optax.tree.norm(difference) <= 1e-4 * optax.tree.norm(plain_gradients)


@pytest.mark.parametrize("axes", [(8, 1, 1), (2, 4, 1), (2, 2, 2), (1, 8, 1), (4, 1, 2)])
def test_every_big_matrix_and_its_moments_are_cut_along_fsdp_and_tensor(axes, shapes_dir):
    config = config_of(shapes_dir, **sizes(width=64, layers=4))
    state = make_program(task=open_task(config, workdir=shapes_dir), config=config, mesh=mesh_of(axes)).state
    _, fsdp, tensor = axes
    trees = [flat(tree) for tree in (state.params, *(optax.tree.get(state.opt_state, name) for name in ("mu", "nu")))]
    cut = {path: leaf for path, leaf in trees[0].items() if re.fullmatch(BIG, path)}
    for path, leaf in cut.items():
        in_block = "attention/" in path or "mlp/" in path  # an odd vocabulary cannot be cut along `tensor`
        parts = fsdp * (tensor if in_block else 1)
        assert {math.prod(tree[path].sharding.shard_shape(leaf.shape)) for tree in trees} == {leaf.size // parts}, path
    assert sum(leaf.size for leaf in cut.values()) > 0.9 * sum(leaf.size for leaf in trees[0].values())


def test_no_device_ever_holds_more_than_its_part(shapes_dir):
    config = config_of(shapes_dir)
    program = make_program(task=open_task(config, workdir=shapes_dir), config=config, mesh=mesh_of(ALL_AXES))
    state = program.init()
    for tree in (state.params, *(optax.tree.get(state.opt_state, name) for name in ("mu", "nu"))):
        kernel = flat(tree)["image_encoder/layers/block/mlp/up/kernel"]
        assert kernel.shape == (1, 16, 64)
        assert {shard.data.shape for shard in kernel.addressable_shards} == {(1, 8, 32)}
        embedding = flat(tree)["text_encoder/token_embedding/embedding"]
        assert {shard.data.shape for shard in embedding.addressable_shards} == {(400, 8)}
