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
FIELDS |= sizes(layers=2)  # stochastic depth never skips the first layer
FIELDS |= {"seed": 1}  # at seed 0 the choice of one hard negative hangs on rounding


@pytest.fixture(scope="module")
def expected(shapes_dir):
    one_device = make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1])
    return trajectory(shapes_dir, one_device, **FIELDS)[0]


# All three axes, with microbatches: see tests/tasks/test_accumulation.py.
@pytest.mark.parametrize(("devices", "accumulate"), [(8, 1), (1, 4)])
def test_devices_and_microbatches_train_the_run_of_one_device(devices, accumulate, shapes_dir, expected):
    mesh = make_mesh(data=devices, fsdp=1, tensor=1, devices=jax.devices()[:devices])
    losses, _ = trajectory(shapes_dir, mesh, accumulate=accumulate, **FIELDS)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
