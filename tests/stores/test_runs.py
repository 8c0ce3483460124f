"""A run in a store is the run that it is on a disk."""

import json
import shutil
import threading
import time

import orbax.checkpoint as ocp
import pytest
from toy import ToyTask, metrics_lines, toy_config

from mvlm_jax.errors import RunError, UserError
from mvlm_jax.stores.mirror import CHECKPOINTS, Mirror, close_all, fetched, opened
from mvlm_jax.stores.objects import Store, StoreError
from mvlm_jax.training.checkpoints import Checkpoints
from mvlm_jax.training.loop import train
from mvlm_jax.training.stored_steps import MARKER, StoredSteps

RUN = "gs://bucket/run"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run on a disk."""
    directory = tmp_path_factory.mktemp("whole")
    train(ToyTask(), config=toy_config(), workdir=directory)
    return directory


def steps(bucket):
    """The folders of checkpoints that hold objects; the stand-in for a store leaves empty ones behind."""
    files = (path for path in (bucket / "run" / CHECKPOINTS).rglob("*") if path.is_file())
    return sorted({file.relative_to(bucket / "run" / CHECKPOINTS).parts[0] for file in files})


def log():
    with opened(RUN):
        return metrics_lines(fetched(RUN))


def test_a_run_in_a_store_leaves_what_one_on_a_disk_leaves(bucket, whole):
    train(ToyTask(), config=toy_config(), workdir=RUN)
    assert log() == metrics_lines(whole)
    assert steps(bucket) == ["6", "9"]  # keep_last=2
    there = {path.relative_to(bucket / "run").parts[0] for path in (bucket / "run").rglob("*") if path.is_file()}
    events = {name for name in there if "tfevents" in name}
    assert len(events) == 1
    assert there - events == {"asset.txt", "checkpoints", "config.json", "environment.json", "eval", "metrics"}
    with Checkpoints.for_reading(fetched(RUN) / CHECKPOINTS) as checkpoints:
        assert checkpoints.steps() == [6, 9]
        step, params = checkpoints.restore_params(None)
    with Checkpoints.for_reading(whole / CHECKPOINTS) as checkpoints:
        assert json.dumps(jax_lists(params)) == json.dumps(jax_lists(checkpoints.restore_params(step)[1]))
    close_all(failed=False)


def jax_lists(params):
    return {name: {each: value.tolist() for each, value in part.items()} for name, part in params.items()}


@pytest.mark.slow
@pytest.mark.parametrize("files", [{"../../../escaped": 1}, {"/etc/escaped": 1}])
def test_a_checkpoint_that_names_files_outside_of_it_is_moved_aside(bucket, whole, files, caplog):
    train(ToyTask(), config=toy_config(), workdir=RUN)
    close_all(failed=False)
    marker = bucket / "run" / CHECKPOINTS / "9" / MARKER
    marker.write_text(json.dumps({"files": files}))
    train(ToyTask(), config=toy_config(), workdir=RUN)
    assert "names what is no file of the step" in caplog.text
    assert log() == metrics_lines(whole)


@pytest.mark.slow
def test_a_last_checkpoint_that_cannot_be_written_here_ends_the_run(bucket, monkeypatch):
    monkeypatch.setattr(ocp.CheckpointManager, "close", lambda self: (_ for _ in ()).throw(OSError(28, "no room")))
    with pytest.raises(RunError, match="no room"):
        train(ToyTask(), config=toy_config(), workdir=RUN)
    # The thread that copies checkpoints waits for no step that does not come.
    assert not [each for each in threading.enumerate() if each.name.startswith("store")]


@pytest.mark.slow
def test_an_interrupted_run_goes_on_from_its_last_whole_checkpoint(bucket, whole):
    def fail(step):
        if step == 7:
            raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        train(ToyTask(before_batch=fail), config=toy_config(), workdir=RUN)
    assert not (bucket / "run" / "lock.json").exists()
    # As a kill would have left it: a step without its marker, and lines behind it in the log.
    (bucket / "run" / CHECKPOINTS / "6" / MARKER).unlink()
    assert [each["step"] for each in log()][-1] > 3
    starts = []
    train(ToyTask(before_batch=starts.append), config=toy_config(), workdir=RUN)
    assert starts[0] == 3
    assert log() == metrics_lines(whole)


@pytest.mark.slow
def test_a_damaged_checkpoint_is_moved_aside(bucket, whole, caplog):
    train(ToyTask(), config=toy_config(), workdir=RUN)
    (bucket / "run" / CHECKPOINTS / "9" / "params" / "manifest.ocdbt").write_bytes(b"short")
    starts = []
    train(ToyTask(before_batch=starts.append), config=toy_config(), workdir=RUN)
    assert starts[0] == 6 and "manifest.ocdbt has 5 bytes" in caplog.text
    assert steps(bucket) == ["6", "9", "damaged.9.1"]
    assert log() == metrics_lines(whole)


@pytest.mark.slow
def test_a_run_that_was_copied_from_a_disk_goes_on_in_the_store(bucket, whole, tmp_path):
    train(ToyTask(), config=toy_config(), workdir=tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / CHECKPOINTS / "9")
    shutil.copytree(tmp_path / "run", bucket / "run")
    starts = []
    train(ToyTask(before_batch=starts.append), config=toy_config(), workdir=RUN)
    assert starts[0] == 6
    assert log() == metrics_lines(whole)
    assert steps(bucket) == ["6", "9"]


@pytest.mark.slow
def test_a_store_that_fails_ends_the_run_in_one_line_and_the_checkpoint_before_is_whole(bucket, monkeypatch):
    write_all = Store.write_all

    def refuse(self, contents, **options):
        if any("/6/" in name for name in contents):
            raise StoreError("it cannot be reached (ABORTED: All 9 retry attempts failed)", str(self.address))
        write_all(self, contents, **options)

    monkeypatch.setattr(Store, "write_all", refuse)
    message = "a checkpoint cannot be written to gs://bucket/run/checkpoints: it cannot be reached .*; the last whole"
    with pytest.raises(RunError, match=f"{message} one is of step 3"):
        train(ToyTask(), config=toy_config(), workdir=RUN)
    assert (bucket / "run" / CHECKPOINTS / "3" / MARKER).exists()
    assert not (bucket / "run" / "lock.json").exists()


@pytest.mark.parametrize("whole", [True, False])
def test_when_a_run_ends_the_step_on_its_way_is_copied_where_it_is_whole(bucket, tmp_path, whole):
    stored = StoredSteps(Mirror(RUN, tmp_path / "copy"), tmp_path / "copy" / CHECKPOINTS, writes=True)
    stored.publish(3, keep_last=1, keep_every=0)
    time.sleep(0.1)  # its thread waits for the folder
    if whole:
        (tmp_path / "written").mkdir()
        (tmp_path / "written" / "params").write_bytes(b"data")
        (tmp_path / "copy" / CHECKPOINTS).mkdir(parents=True)
        (tmp_path / "written").rename(tmp_path / "copy" / CHECKPOINTS / "3")
    stored.close()
    assert stored.steps() == ([3] if whole else [])
    assert (bucket / "run" / CHECKPOINTS / "3" / MARKER).exists() == whole


def test_a_store_that_cannot_be_read_is_refused_before_anything_is_written(bucket, monkeypatch):
    def refused(self, *_):
        raise StoreError("no permission (PERMISSION_DENIED: Forbidden)", str(self.address))

    monkeypatch.setattr(Store, "names", refused)
    with pytest.raises(UserError, match="cannot be (read|used): no permission"):
        train(ToyTask(), config=toy_config(), workdir=RUN)
    assert not any(bucket.iterdir())


@pytest.mark.slow
def test_the_log_reaches_the_store_before_the_checkpoint_of_its_last_line(bucket, monkeypatch):
    write = Store.write
    seen = []

    def noted(self, name, value, **options):
        if name.endswith(MARKER):
            seen.append([json.loads(each)["step"] for each in (bucket / "run" / "metrics" / "000000.jsonl").open()])
        return write(self, name, value, **options)

    monkeypatch.setattr(Store, "write", noted)
    train(ToyTask(), config=toy_config(), workdir=RUN)
    assert [max(steps) >= step for steps, step in zip(seen, (3, 6, 9), strict=True)] == [True] * 3
