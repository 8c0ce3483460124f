"""A disk that fails while a run writes to it."""

import errno
import os
import shutil
import time
from pathlib import Path

import jax
import pytest
from toy import ToyTask, metrics_lines, toy_config

from mvlm_jax.cli import commands
from mvlm_jax.errors import RunError, UserError
from mvlm_jax.training.checkpoints import Checkpoints
from mvlm_jax.training.loop import train

FIELDS = {"steps": 12, "log_every": 12}
RESOURCE = pytest.importorskip("resource")


class HeavyTask(ToyTask):
    """With a parameter of 16 MB: even in parts, its checkpoint has files far larger than all others of a run."""

    def init(self, key):
        return super().init(key) | {"ballast": jax.random.normal(key, (2**22,))}


def train_as_a_command(workdir, **options):
    def main(_):
        train(HeavyTask(**options), config=toy_config(**FIELDS), workdir=workdir)

    return commands.run(name="train", doc="", define_flags=lambda values, argv: None, main=main, argv=[])


def last_step(workdir):
    with Checkpoints.for_reading(workdir / "checkpoints") as checkpoints:
        return checkpoints.latest_step()


@pytest.fixture
def small_files():
    """A call after which no file can grow beyond some bytes, as where the disk is full."""
    before = RESOURCE.getrlimit(RESOURCE.RLIMIT_FSIZE)
    yield lambda size: RESOURCE.setrlimit(RESOURCE.RLIMIT_FSIZE, (size, before[1]))
    RESOURCE.setrlimit(RESOURCE.RLIMIT_FSIZE, before)


@pytest.mark.slow
def test_a_checkpoint_that_cannot_be_written_ends_the_run_in_one_line_and_the_one_before_is_intact(
    tmp_path, small_files, capfd
):
    whole = tmp_path / "whole"
    train(HeavyTask(), config=toy_config(**FIELDS), workdir=whole)

    # Logs, also that of the test itself, are smaller than the limit; files of a checkpoint are larger.
    def fill(step):
        if step == 4:
            while not (tmp_path / "run" / "checkpoints" / "3").exists():
                time.sleep(0.01)
            small_files(2**20)

    status = train_as_a_command(tmp_path / "run", before_batch=fill)
    small_files(RESOURCE.RLIM_INFINITY)
    assert status == 1
    *_, line = capfd.readouterr().err.strip().splitlines()
    assert line.startswith(
        f"mvlm train: a checkpoint cannot be written to {tmp_path / 'run' / 'checkpoints'}: File too"
    )
    assert line.endswith("the last whole one is of step 3")
    assert last_step(tmp_path / "run") == 3
    assert train_as_a_command(tmp_path / "run") == 0
    assert metrics_lines(tmp_path / "run") == metrics_lines(whole)


def test_a_log_that_cannot_be_written_ends_the_run_in_one_line(tmp_path, monkeypatch):
    def full(path, text):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("mvlm_jax.training.metrics_log.write_text", full)
    with pytest.raises(RunError, match=r"cannot be written to any more: No space left on device; once that is mended"):
        train(ToyTask(), config=toy_config(), workdir=tmp_path)


@pytest.mark.parametrize("lost", ["checkpoints", "."])
def test_a_directory_that_is_removed_ends_the_run_in_one_line(tmp_path, lost, capfd):
    workdir = tmp_path / "run"

    def remove(step):
        if step == 5:
            while (workdir / lost).exists():  # a checkpoint may be on its way into it
                shutil.rmtree(workdir / lost, ignore_errors=True)

    assert train_as_a_command(workdir, before_batch=remove) == 1
    *_, line = capfd.readouterr().err.strip().splitlines()
    assert line.startswith("mvlm train: a checkpoint cannot be written to")
    assert line.endswith("there is no whole one")


def test_a_passing_fault_of_the_file_system_is_no_removal(tmp_path, monkeypatch):
    def faulty(path, *arguments, **options):
        if path == tmp_path / "checkpoints":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return stat(path, *arguments, **options)

    stat = os.stat
    with Checkpoints(tmp_path / "checkpoints", keep_last=1, keep_every=0) as checkpoints:
        with monkeypatch.context() as patched:
            patched.setattr(os, "stat", faulty)
            checkpoints.check_written()


def test_a_file_system_that_counts_no_links_keeps_its_directories(tmp_path, monkeypatch):
    def uncounted(descriptor):
        return os.stat_result([0 if index == 3 else value for index, value in enumerate(fstat(descriptor))])

    fstat = os.fstat
    monkeypatch.setattr(os, "fstat", uncounted)
    with Checkpoints(tmp_path / "checkpoints", keep_last=1, keep_every=0) as checkpoints:
        checkpoints.check_written()


def test_a_handle_that_has_gone_stale_is_a_removal(tmp_path, monkeypatch):
    def stale(descriptor):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    with Checkpoints(tmp_path / "checkpoints", keep_last=1, keep_every=0) as checkpoints:
        with monkeypatch.context() as patched:
            patched.setattr(os, "fstat", stale)
            with pytest.raises(RunError, match="the directory was removed; there is no whole one"):
                checkpoints.check_written()


def test_a_directory_of_checkpoints_that_cannot_be_made_ends_the_run_in_one_line(tmp_path, monkeypatch, capfd):
    def full(path, *arguments, **options):
        if Path(path).name == "checkpoints":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return mkdir(path, *arguments, **options)

    mkdir = os.mkdir
    monkeypatch.setattr(os, "mkdir", full)
    assert train_as_a_command(tmp_path / "run") == 1
    *_, line = capfd.readouterr().err.strip().splitlines()
    assert line.startswith(f"mvlm train: a checkpoint cannot be written to {tmp_path / 'run'}/checkpoints: No space")
    assert line.endswith("there is no whole one")


def test_a_file_in_the_place_of_the_checkpoints_ends_the_run_in_one_line(tmp_path, capfd):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").write_text("mine")
    assert train_as_a_command(tmp_path / "run") == 1
    *_, line = capfd.readouterr().err.strip().splitlines()
    assert line.startswith(f"mvlm train: a checkpoint cannot be written to {tmp_path / 'run'}/checkpoints: Not a dir")
    assert (tmp_path / "run" / "checkpoints").read_text() == "mine"


def test_checkpoints_that_cannot_be_listed_are_refused_in_one_line(tmp_path, monkeypatch):
    def forbidden(path="."):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    (tmp_path / "checkpoints").mkdir()
    monkeypatch.setattr(os, "listdir", forbidden)
    monkeypatch.setattr(os, "scandir", forbidden)
    with pytest.raises(UserError, match="the checkpoints in .* cannot be read: Permission denied"):
        Checkpoints.for_reading(tmp_path / "checkpoints")


def test_a_step_that_cannot_be_moved_aside_ends_the_run_in_one_line(tmp_path, monkeypatch):
    def read_only(path, target):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    train(ToyTask(), config=toy_config(), workdir=tmp_path)
    shutil.rmtree(tmp_path / "checkpoints" / "9" / "optimizer")
    monkeypatch.setattr(os, "rename", read_only)
    with pytest.raises(RunError, match="Read-only file system .*; the last whole one is of step 9"):
        train(ToyTask(), config=toy_config(), workdir=tmp_path)
    assert (tmp_path / "checkpoints" / "9").is_dir()
