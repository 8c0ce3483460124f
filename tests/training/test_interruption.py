"""Signals, and what is left of a run that they stop."""

import signal

import numpy as np
import pytest
from toy import ToyTask, metrics_lines, toy_config

from mvlm_jax.training.checkpoints import Checkpoints
from mvlm_jax.training.loop import train

FIELDS = {"eval.every": 3}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("uninterrupted")
    train(ToyTask(), config=toy_config(**FIELDS), workdir=workdir)
    return workdir


def signalled(number, *, while_reading):
    """A task that is sent a signal while it reads the batch of that step."""
    return ToyTask(before_batch=lambda step: signal.raise_signal(number) if step == while_reading else None)


def saved_steps(workdir):
    with Checkpoints.for_reading(workdir / "checkpoints") as checkpoints:
        return checkpoints.steps()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("while_reading", [1, 3, 5])
def test_a_stopped_run_has_a_checkpoint_of_its_last_step_and_resumes_bit_for_bit(
    uninterrupted, tmp_path, number, while_reading
):
    before = signal.getsignal(number)
    train(signalled(number, while_reading=while_reading), config=toy_config(**FIELDS), workdir=tmp_path)
    assert signal.getsignal(number) == before
    # The batch is read while the device makes the step before it.
    assert saved_steps(tmp_path)[-1] == while_reading == metrics_lines(tmp_path)[-1]["step"]
    train(ToyTask(), config=toy_config(**FIELDS), workdir=tmp_path)
    assert metrics_lines(tmp_path) == metrics_lines(uninterrupted)


def test_an_evaluation_due_at_the_stop_is_left_to_the_resumed_run(tmp_path, uninterrupted):
    stopped = signalled(signal.SIGTERM, while_reading=3)
    train(stopped, config=toy_config(**FIELDS), workdir=tmp_path)
    assert stopped.evaluations == 0
    resumed = ToyTask()
    train(resumed, config=toy_config(**FIELDS), workdir=tmp_path)
    assert resumed.evaluations == 3
    assert metrics_lines(tmp_path) == metrics_lines(uninterrupted)


def test_a_second_ctrl_c_stops_at_once(tmp_path):
    def twice(step):
        if step == 4:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(ToyTask(before_batch=twice), config=toy_config(), workdir=tmp_path)
    assert saved_steps(tmp_path) == [3]


def test_the_batches_are_closed_however_a_run_ends(tmp_path):
    class Closing(ToyTask):
        closed = 0

        def train_batches(self, start_step):
            try:
                yield from super().train_batches(start_step)
            finally:
                self.closed += 1

    def fail(step):
        if step == 5:
            raise ZeroDivisionError

    whole, failing = Closing(), Closing(before_batch=fail)
    train(whole, config=toy_config(), workdir=tmp_path / "whole")
    with pytest.raises(ZeroDivisionError):
        train(failing, config=toy_config(), workdir=tmp_path / "failing")
    assert (whole.closed, failing.closed) == (1, 1)
    assert np.isfinite([line["loss"] for line in metrics_lines(tmp_path / "failing")]).all()
