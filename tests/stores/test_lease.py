"""One writer to a folder in a store."""

import json
import subprocess
import time

import pytest

from mvlm_jax.errors import RunError, UserError
from mvlm_jax.stores import lease
from mvlm_jax.stores.lease import only_one
from mvlm_jax.stores.mirror import Mirror


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(lease, "LEASE_SECONDS", 0.6)
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.1)


@pytest.fixture
def folder(bucket, tmp_path):
    """The same folder as two processes see it."""
    return [Mirror("gs://bucket/run", tmp_path / name) for name in ("mine", "theirs")]


def holder(bucket):
    return json.loads((bucket / "run" / "lock.json").read_text())


def test_a_second_writer_is_refused_with_the_name_of_the_first(bucket, folder):
    with only_one(folder[0], command="mvlm train"):
        with pytest.raises(UserError, match=r"gs://bucket/run is in use by another .* \(process \d+ on .*\); end that"):
            with only_one(folder[1], command="mvlm train"):
                pass
        assert holder(bucket)["renewals"] > 1
    with only_one(folder[1], command="mvlm train"):
        pass
    assert not (bucket / "run" / "lock.json").exists()


def test_a_process_of_this_machine_that_was_killed_holds_nothing(bucket, folder, monkeypatch):
    process = subprocess.Popen(["sleep", "60"])
    ours = lease._here() | {"process": process.pid, "started": lease._started(process.pid)}
    assert not lease._is_over(ours)
    process.kill()
    process.wait()
    assert lease._is_over(ours)
    assert not lease._is_over(ours | {"host": "another"})
    (bucket / "run").mkdir()
    (bucket / "run" / "lock.json").write_text(json.dumps(ours))
    monkeypatch.setattr(lease, "LEASE_SECONDS", 1e9)  # which is not waited for
    with only_one(folder[0], command="mvlm train"):
        assert holder(bucket)["process"] != process.pid


def test_a_lease_of_another_machine_that_is_not_renewed_runs_out(bucket, folder):
    (bucket / "run").mkdir()
    (bucket / "run" / "lock.json").write_text(json.dumps({"host": "gone", "process": 1}))
    start = time.monotonic()
    with only_one(folder[0], command="mvlm train"):
        assert time.monotonic() - start >= lease.LEASE_SECONDS
        assert holder(bucket)["host"] != "gone"


def test_who_has_lost_the_lock_writes_nothing_more(bucket, folder):
    with only_one(folder[0], command="mvlm train"):
        folder[0].fetch()
        (bucket / "run" / "lock.json").write_text(json.dumps({"host": "other", "process": 2, "id": "x"}))
        while folder[0].failure is None:
            time.sleep(0.01)
        (folder[0].directory / "a.json").touch()
        with pytest.raises(OSError, match="process 2 on other has taken the lock from this one"):
            folder[0].push()
        with pytest.raises(RunError, match="cannot be written to any more: process 2 on other has taken the lock"):
            folder[0].check()
    assert holder(bucket)["id"] == "x"  # it is not ours to give back
