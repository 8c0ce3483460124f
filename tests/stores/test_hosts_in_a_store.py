"""Two processes of four devices over loopback, whose run is in a store."""

import jax
import numpy as np
import pytest
from tiny import prepare_shapes
from twenty import DEVICES, STEPS, flags_of, logged_losses, run_processes

from mvlm_jax.cli import train
from mvlm_jax.stores.mirror import CHECKPOINTS, close_all, fetched
from mvlm_jax.stores.objects import Store, parse
from mvlm_jax.training.checkpoints import Checkpoints
from mvlm_jax.training.stored_steps import MARKER

RUN = "gs://bucket/two"
FSDP = (1, DEVICES, 1)  # so that no process holds whole arrays


@pytest.mark.slow
@pytest.mark.skipif(jax.device_count() != DEVICES, reason=f"needs {DEVICES} devices")
def test_two_processes_train_in_a_store_as_one_does_on_a_disk(emulators, tmp_path):
    prepare_shapes(tmp_path / "data")
    disk = tmp_path / "disk"
    assert train.run(flags_of(data_dir=tmp_path / "data", workdir=disk, mesh=FSDP)) == 0

    job = {"command": "train", "flags": flags_of(data_dir=tmp_path / "data", workdir=RUN, mesh=FSDP)}
    run_processes(tmp_path, [job | {"stop_after": 15}])
    store = Store(parse(RUN))
    assert {name.split("/")[1] for name in store.names(CHECKPOINTS) if name.endswith(MARKER)} == {"7", "14"}
    assert store.read("lock.json") is None
    # Each of them finds the damage, and one of them moves the step aside.
    store.write(f"{CHECKPOINTS}/14/params/manifest.ocdbt", b"short")
    records, errors = run_processes(tmp_path, [job, job | {"command": "evaluate"}])
    assert [[each["status"] for each in record] for record in records] == [[0, 0], [0, 0]]
    assert [min(map(int, record[0]["ids"])) for record in records] == [7, 7]
    assert "it is now gs://bucket/two/checkpoints/damaged.14.1" in errors[0] and "it is now" not in errors[1]

    np.testing.assert_allclose(logged_losses(fetched(RUN)), logged_losses(disk), rtol=1e-5)
    evaluations = [sorted(path.name for path in (run / "eval").iterdir()) for run in (fetched(RUN), disk)]
    assert evaluations[0] == evaluations[1]
    with Checkpoints.for_reading(fetched(RUN) / CHECKPOINTS) as checkpoints:
        assert checkpoints.steps() == [7, 14, STEPS]
        checkpoints.restore_params(STEPS)  # which compares it with what the run had
    close_all(failed=False)
