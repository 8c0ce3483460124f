import jax
import pytest
from tiny import SMALLER, recipe

from mvlm_jax.aot.ahead import describe_step
from mvlm_jax.errors import UserError
from mvlm_jax.interop.parameters import flat
from mvlm_jax.tasks.registry import task_type


@pytest.fixture
def of_a_gpu():
    """The config of a run that asked for cuDNN's attention."""
    config = recipe("demo")
    config.update_from_flattened_dict(SMALLER | {"model.attention": "cudnn", "dtype": "bfloat16"})
    return config


def test_a_kernel_that_the_described_devices_lack_is_refused_before_it_is_compiled(of_a_gpu):
    with pytest.raises(UserError, match="config.model.attention=cudnn needs an NVIDIA GPU and bfloat16, not cpu"):
        describe_step(of_a_gpu, jax.devices())


def test_the_parameters_of_a_run_on_a_gpu_are_known_on_any_machine(of_a_gpu):
    shapes = flat(task_type(of_a_gpu).parameter_shapes(of_a_gpu))
    of_a_gpu.model.attention = "auto"
    assert shapes == flat(task_type(of_a_gpu).parameter_shapes(of_a_gpu))
