"""How the arrays of a step are divided among the devices that write them."""

import json

import jax
import jax.numpy as jnp
import numpy as np

from mvlm_jax.training.checkpoints import MIN_BYTES_OF_A_REPLICA, Checkpoints
from mvlm_jax.training.mesh import make_mesh, replicated
from mvlm_jax.training.nonfinite import Skipped
from mvlm_jax.training.state import TrainState

COUNT = 4


def test_replicas_divide_only_an_array_of_which_each_writes_enough(tmp_path):
    mesh = make_mesh(data=COUNT, fsdp=1, tensor=1, devices=jax.devices()[:COUNT])
    enough = COUNT * MIN_BYTES_OF_A_REPLICA // np.dtype("float32").itemsize
    params = {"large": jnp.arange(enough, dtype=jnp.float32), "small": jnp.ones(enough // 2), "bias": jnp.zeros(8)}
    state = TrainState(step=jnp.int32(0), params=params, opt_state=(), skipped=Skipped.none())
    state = jax.device_put(state, replicated(mesh))
    with Checkpoints(tmp_path / "checkpoints", keep_last=1, keep_every=0) as checkpoints:
        checkpoints.save(1, state)
    (listed,) = (tmp_path / "checkpoints" / "1" / "params" / "array_metadatas").iterdir()
    arrays = [entry["array_metadata"] for entry in json.loads(listed.read_text())["array_metadatas"]]
    written = {array["param_name"]: array["write_shape"] for array in arrays}
    assert written == {"large": [enough // COUNT], "small": [enough // 2], "bias": [8]}
    with Checkpoints.for_reading(tmp_path / "checkpoints") as checkpoints:
        restored = checkpoints.restore(1, state)
    jax.tree.map(np.testing.assert_array_equal, restored, state)
