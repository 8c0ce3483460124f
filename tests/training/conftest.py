import jax
import pytest
from tiny import prepare_shapes
from twenty import trajectory

from mvlm_jax.training.mesh import make_mesh


@pytest.fixture(scope="session")
def shapes_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("shapes")
    prepare_shapes(directory)
    return directory


@pytest.fixture(scope="session")
def on_one_device(shapes_dir):
    """(losses, image ids) of each step."""
    return trajectory(shapes_dir, make_mesh(data=1, fsdp=1, tensor=1, devices=jax.devices()[:1]))
