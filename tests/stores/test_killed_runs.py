"""SIGKILL at random moments of a run in a store: it always resumes, along the trajectory of a run on a disk.

Three moments in gs:// in `make slow`; MVLM_KILLS=20 for more, and in s3:// too. Both are emulated on this machine.
"""

import functools
import os

import pytest
from kills import finished, killed_again_and_again, started
from stored import whole_steps
from toy import metrics_lines

from mvlm_jax.stores.mirror import CHECKPOINTS, close_all, fetched
from mvlm_jax.stores.objects import Store, parse

KILLS = int(os.environ.get("MVLM_KILLS", 3))
SCHEMES = ("gs", "s3") if "MVLM_KILLS" in os.environ else ("gs",)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_run_in_a_store_that_is_killed_again_and_again_is_the_run_on_a_disk(scheme, emulators, tmp_path):
    workdir, disk = f"{scheme}://bucket/killed", tmp_path / "disk"
    store = Store(parse(workdir))
    start = functools.partial(started, kills=KILLS, compiled=tmp_path / "compiled", environment=emulators)
    killed_again_and_again(
        functools.partial(start, workdir),
        kills=KILLS, written=lambda: whole_steps(store), whole_step=lambda: max(whole_steps(store), default=0),
        latest_seconds=2.0, look_seconds=0.05,
    )  # fmt: skip
    finished(start(disk))
    assert metrics_lines(fetched(workdir)) == metrics_lines(disk)
    on_disk = sorted(int(path.name) for path in (disk / CHECKPOINTS).iterdir() if path.name.isdecimal())
    assert whole_steps(store) == on_disk
    assert {name.split("/")[1] for name in store.names(CHECKPOINTS)} == set(map(str, on_disk))
    assert "lock.json" not in store.names()
    close_all(failed=False)
