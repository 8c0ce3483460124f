"""Two processes that share one state read the same average, also where one of them cannot read the last.

As a script it is one of them: python test_hosts_average.py PORT INDEX CHECKPOINTS
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny import ROOT
from toy import ToyTask, toy_config

from mvlm_jax.training.checkpoints import Checkpoints, Damaged
from mvlm_jax.training.loop import train
from mvlm_jax.training.mesh import make_mesh
from mvlm_jax.training.program import make_program

CONFIG = toy_config(**{"optimizer.ema": 0.9})


@pytest.mark.slow
def test_processes_go_back_to_the_step_before_together(tmp_path):
    train(ToyTask(), config=CONFIG, workdir=tmp_path)
    program = make_program(task=ToyTask(), config=CONFIG, mesh=make_mesh(data=-1, fsdp=1, tensor=1))
    with Checkpoints.for_reading(tmp_path / "checkpoints") as checkpoints:
        _, expected = checkpoints.restore_params(6, program.state.params, averaged=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "JAX_PLATFORMS": "cpu",
        "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests"))),
    }
    started = [
        subprocess.Popen(
            [sys.executable, __file__, port, str(index), tmp_path / "checkpoints"],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for index in range(2)
    ]  # fmt: skip
    try:
        outputs = [process.communicate(timeout=120) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], "\n\n".join(errors for _, errors in outputs)
    for output, _ in outputs:
        step, norm = json.loads(output.splitlines()[-1])
        assert step == 6
        assert norm == pytest.approx(np.linalg.norm(expected["encoder"]["kernel"]), rel=1e-6)


def _main(port: str, index: str, checkpoints_directory: str) -> None:
    jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=int(index))
    mesh = make_mesh(data=1, fsdp=4, tensor=1)
    program = make_program(task=ToyTask(), config=CONFIG, mesh=mesh)
    with jax.set_mesh(mesh), Checkpoints.for_reading(Path(checkpoints_directory)) as checkpoints:
        stored = checkpoints._stored

        def fails(step, item):
            if step == 9 and index == "1":
                raise Damaged("Input/output error")
            return stored(step, item)

        checkpoints._stored = fails
        step, params = checkpoints.restore_params(None, program.state.params, averaged=True)
        kernel = params["encoder"]["kernel"]
        assert not kernel.is_fully_addressable
        norm = jax.jit(lambda kernel: (kernel**2).sum() ** 0.5)(kernel)
    print(json.dumps([step, float(norm)]), flush=True)
    jax.distributed.shutdown()


if __name__ == "__main__":
    _main(*sys.argv[1:])
