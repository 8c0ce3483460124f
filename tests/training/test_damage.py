"""Checkpoints whose files were cut, changed or lost after they were written."""

import errno
import os
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from toy import ToyTask, metrics_lines, toy_config

from mvlm_jax.errors import UserError
from mvlm_jax.training import checkpoints as checkpoints_lib
from mvlm_jax.training.checkpoints import Checkpoints, Damaged
from mvlm_jax.training.loop import train
from mvlm_jax.training.mesh import make_mesh
from mvlm_jax.training.program import make_program


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished")
    train(ToyTask(), config=toy_config(), workdir=workdir)
    return workdir


@pytest.fixture
def workdir(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def program():
    return make_program(task=ToyTask(), config=toy_config(), mesh=make_mesh(data=-1, fsdp=1, tensor=1))


def files_of(step_directory):
    return sorted(path for path in step_directory.rglob("*") if path.is_file())


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(flip, id="flipped"),
        pytest.param(cut, id="cut", marks=pytest.mark.slow),
        pytest.param(lambda path: path.unlink(), id="lost", marks=pytest.mark.slow),
    ],
)
def test_whatever_file_is_damaged_the_state_read_is_one_that_was_written(finished, tmp_path, damage):
    program_ = program()
    with Checkpoints.for_reading(finished / "checkpoints") as checkpoints:
        written = {step: checkpoints.restore(step, program_.state) for step in (6, 9)}
    skipped = 0
    for file in [path.relative_to(finished) for path in files_of(finished / "checkpoints" / "9")]:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        shutil.copytree(finished, tmp_path / "run")
        damage(tmp_path / "run" / file)
        with Checkpoints.for_reading(tmp_path / "run" / "checkpoints") as checkpoints:
            step, state = checkpoints.restore_latest(program_.state)
        assert same(state, written[step]), file
        skipped += step == 6
    assert skipped >= 3


def test_a_lost_item_is_skipped_with_a_warning_and_its_step_is_saved_again(finished, workdir, caplog):
    shutil.rmtree(workdir / "checkpoints" / "9" / "optimizer")
    left = {path.name: path.read_bytes() for path in files_of(workdir / "checkpoints" / "9" / "params")}
    train(ToyTask(), config=toy_config(), workdir=workdir)
    assert "the checkpoint of step 9" in caplog.text and "is skipped" in caplog.text
    assert metrics_lines(workdir) == metrics_lines(finished)
    with Checkpoints.for_reading(workdir / "checkpoints") as checkpoints:
        assert checkpoints.steps() == [6, 9]
        checkpoints.restore(9, program().state)
    aside = workdir / "checkpoints" / "damaged.9.1"
    assert str(aside) in caplog.text
    assert {path.name: path.read_bytes() for path in files_of(aside / "params")} == left


def test_a_step_that_could_not_be_read_for_a_moment_loses_no_byte(finished, workdir, monkeypatch):
    def unreadable(self, directory, **options):
        if directory.name == "9":
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(directory))
        return restore(self, directory, **options)

    restore = ocp.Checkpointer.restore
    written = {path.name: path.read_bytes() for path in files_of(workdir / "checkpoints" / "9")}
    (workdir / "checkpoints" / "damaged.9.1").mkdir()  # of an earlier fault
    with monkeypatch.context() as patched, Checkpoints(workdir / "checkpoints", keep_last=2, keep_every=0) as opened:
        patched.setattr(ocp.Checkpointer, "restore", unreadable)
        step, _ = opened.restore_latest(program().state)
        assert (step, opened.steps()) == (6, [6])
    aside = workdir / "checkpoints" / "damaged.9.2"
    assert {path.name: path.read_bytes() for path in files_of(aside)} == written
    aside.rename(workdir / "checkpoints" / "9")
    with Checkpoints.for_reading(workdir / "checkpoints") as checkpoints:
        assert checkpoints.steps() == [6, 9]
        checkpoints.restore(9, program().state)


def test_bytes_that_decode_to_other_values_are_seen(workdir):
    """A whole array file of another step: every checksum inside the files agrees."""
    checkpoints_ = workdir / "checkpoints"
    shutil.rmtree(checkpoints_ / "9" / "params")
    shutil.copytree(checkpoints_ / "6" / "params", checkpoints_ / "9" / "params")
    with Checkpoints.for_reading(checkpoints_) as checkpoints:
        step, _ = checkpoints.restore_latest(program().state)
        assert step == 6
        with pytest.raises(UserError, match="step 9 in .* is damaged: its params are not what was written"):
            checkpoints.restore_params(9, program().state.params)


def test_an_evaluation_takes_the_step_before_and_deletes_nothing(workdir):
    for path in files_of(workdir / "checkpoints" / "9" / "params"):
        cut(path)
    before = files_of(workdir)
    with Checkpoints.for_reading(workdir / "checkpoints") as checkpoints:
        step, _ = checkpoints.restore_params(None, program().state.params)
    assert step == 6
    assert files_of(workdir) == before


def test_where_every_step_is_damaged_the_run_does_not_start_over(workdir):
    for step in (6, 9):
        shutil.rmtree(workdir / "checkpoints" / str(step) / "params")
    before = files_of(workdir / "checkpoints")
    with pytest.raises(UserError, match=r"none of the checkpoints in .* can be read \(steps 6, 9\); move"):
        train(ToyTask(), config=toy_config(), workdir=workdir)
    assert files_of(workdir / "checkpoints") == before


@pytest.fixture(scope="module")
def averaged(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("averaged")
    train(ToyTask(), config=toy_config(**{"optimizer.ema": 0.9}), workdir=workdir)
    return workdir / "checkpoints"


def unreadable_average(checkpoints, monkeypatch):
    stored = checkpoints._stored

    def fails(step, item):
        if step == 9:
            raise Damaged("Input/output error")
        return stored(step, item)

    monkeypatch.setattr(checkpoints, "_stored", fails)


def several_processes(monkeypatch, *, others):
    """What this process tells the others, each time; they answer with `others` in turn."""
    told, answers = [], iter(others)

    def exchanged(found):
        told.append(found)
        return found or next(answers)

    monkeypatch.setattr(checkpoints_lib, "_is_shared", lambda abstract: True)
    monkeypatch.setattr(checkpoints_lib, "_across_processes", exchanged)
    return told


def test_an_average_that_one_process_cannot_read_is_read_by_none(averaged, monkeypatch):
    params = program().state.params
    with Checkpoints.for_reading(averaged) as checkpoints:
        expected = checkpoints.restore_params(6, params, averaged=True)
        with monkeypatch.context() as patch:  # the other one cannot
            told = several_processes(patch, others=[True, False, False])
            received = checkpoints.restore_params(None, params, averaged=True)
            assert received[0] == 6 and same(received[1], expected[1])
            assert told == [False, False, False]
        with monkeypatch.context() as patch:  # this one cannot
            unreadable_average(checkpoints, patch)
            told = several_processes(patch, others=[False, False])
            received = checkpoints.restore_params(None, params, averaged=True)
            assert received[0] == 6 and same(received[1], expected[1])
            assert told == [True, False, False]  # step 9: its shapes; step 6: its shapes, its values


def test_a_given_step_whose_average_cannot_be_read_ends_every_process(averaged, monkeypatch):
    params = program().state.params
    with Checkpoints.for_reading(averaged) as checkpoints:
        with monkeypatch.context() as patch:
            told = several_processes(patch, others=[True])
            with pytest.raises(UserError, match="step 9 in .* is damaged: another process cannot read it"):
                checkpoints.restore_params(9, params, averaged=True)
        unreadable_average(checkpoints, monkeypatch)
        told_of_its_own = several_processes(monkeypatch, others=[])
        with pytest.raises(UserError, match="step 9 in .* is damaged: Input/output error"):
            checkpoints.restore_params(9, params, averaged=True)
        assert (told, told_of_its_own) == ([False], [True])


def test_processes_read_an_older_optimizer_state_together(finished, monkeypatch):
    """Where this one could not tell that it is an older one: all read the same structure, and all fail."""
    told = several_processes(monkeypatch, others=[True, False])
    with Checkpoints.for_reading(finished / "checkpoints") as checkpoints:
        with pytest.raises(UserError, match="step 9 in .* is damaged"):  # it is no older one
            checkpoints.restore(9, program().state)
    assert told == [False, True]


def test_an_average_of_other_parameters_is_damage(averaged):
    params = program().state.params
    with Checkpoints.for_reading(averaged) as checkpoints:
        with pytest.raises(UserError, match="its average has head/bias, which the parameters have not"):
            checkpoints.restore_params(9, {"encoder": params["encoder"]}, averaged=True)
