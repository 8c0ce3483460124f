"""A run with dropout is the same run on every mesh and in microbatches: what an example drops is its own."""

import jax
import numpy as np
import pytest
from tiny import sizes
from twenty import trajectory

from mvlm_jax.training.mesh import make_mesh

pytestmark = [pytest.mark.skipif(jax.device_count() != 8, reason="needs 8 devices"), pytest.mark.slow]

PARTS = ("image_encoder", "text_encoder", "cross")
FIELDS = {f"{part}.{name}": 0.1 for part in PARTS for name in ("dropout", "stochastic_depth")}
# Stochastic depth never skips the first layer.
FIELDS |= sizes(layers=2) | {"cross.layers": 2}


@pytest.fixture(scope="module")
def expected(shapes_dir):
    one_device = make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1])
    return trajectory(shapes_dir, one_device, **FIELDS)[0]


@pytest.mark.parametrize(
    ("axes", "accumulate"), [((8, 1, 1), 1), ((2, 2, 2), 1), ((1, 1, 1), 4)], ids=["data", "all_axes", "microbatches"]
)
def test_every_mesh_and_microbatches_train_the_run_of_one_device(axes, accumulate, shapes_dir, expected):
    data, fsdp, tensor = axes
    mesh = make_mesh(data=data, fsdp=fsdp, tensor=tensor, devices=jax.devices()[: data * fsdp * tensor])
    losses, _ = trajectory(shapes_dir, mesh, accumulate=accumulate, **FIELDS)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_the_losses_are_not_those_of_a_run_without_dropout(shapes_dir, expected):
    one_device = make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1])
    plain, _ = trajectory(shapes_dir, one_device, **sizes(layers=2), **{"cross.layers": 2})
    assert np.abs(plain / expected - 1)[:, 0].min() > 1e-4
