"""The real task on every kind of mesh: the same run, and no device holds more than its part."""

import jax
import numpy as np
import optax
import pytest
from twenty import config_of, trajectory

from mvlm_jax.interop.parameters import flat
from mvlm_jax.tasks.from_config import make_task
from mvlm_jax.training.mesh import make_mesh
from mvlm_jax.training.program import make_program

pytestmark = pytest.mark.skipif(jax.device_count() != 8, reason="needs 8 devices")

MESHES = [(8, 1, 1), (2, 4, 1), (2, 2, 2)]


def mesh_of(sizes):
    data, fsdp, tensor = sizes
    return make_mesh(data=data, fsdp=fsdp, tensor=tensor)


@pytest.mark.parametrize("sizes", MESHES)
def test_every_mesh_trains_the_run_of_one_device(sizes, shapes_dir, on_one_device):
    losses, ids = trajectory(shapes_dir, mesh_of(sizes))
    expected, order = on_one_device
    assert ids == order
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert len(np.unique(expected[:, 0])) == len(expected)


@pytest.mark.parametrize("sizes", [*MESHES, (1, 8, 1), (4, 1, 2)])
def test_every_big_matrix_and_its_moments_are_cut_along_fsdp_and_tensor(sizes, shapes_dir):
    config = config_of(shapes_dir, **{"model.width": 64, "model.layers": 4})
    mesh = mesh_of(sizes)
    _, fsdp, tensor = sizes
    state = make_program(task=make_task(config, workdir=shapes_dir), config=config, mesh=mesh).state
    params = flat(state.params)
    total = sum(leaf.size for leaf in params.values())
    moments = [flat(optax.tree.get(state.opt_state, name)) for name in ("mu", "nu")]
    whole = []
    for path, leaf in params.items():
        blocks = "/attention/" in path or "_attention/" in path or "/mlp/" in path
        parts = fsdp * (tensor if blocks else 1)
        if leaf.ndim < 2 or path.endswith("bias"):
            continue
        held = {np.prod(tree[path].sharding.shard_shape(leaf.shape)) for tree in (params, *moments)}
        assert held <= {leaf.size // parts, leaf.size}, path
        whole += [path] if held == {leaf.size} and parts > 1 else []
    # What stays whole on every device: both projections, the embedding of patches, small heads, single tokens.
    assert sum(params[path].size for path in whole) < 0.1 * total
    assert not any("layers/block" in path or "token_embedding" in path for path in whole if fsdp > 1)


def test_no_device_ever_holds_more_than_its_part(shapes_dir):
    config = config_of(shapes_dir)
    program = make_program(task=make_task(config, workdir=shapes_dir), config=config, mesh=mesh_of((2, 2, 2)))
    state = program.init()
    for tree in (state.params, *(optax.tree.get(state.opt_state, name) for name in ("mu", "nu"))):
        kernel = flat(tree)["image_encoder/layers/block/mlp/up/kernel"]
        assert kernel.shape == (1, 16, 64)
        assert {shard.data.shape for shard in kernel.addressable_shards} == {(1, 8, 32)}
        embedding = flat(tree)["text_encoder/token_embedding/embedding"]
        assert {shard.data.shape for shard in embedding.addressable_shards} == {(400, 8)}
