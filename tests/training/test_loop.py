import dataclasses
import json
import logging
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from toy import ToyTask, metrics_lines, toy_config

from mvlm_jax.errors import UserError
from mvlm_jax.training.checkpoints import Checkpoints
from mvlm_jax.training.loop import train
from mvlm_jax.training.mesh import make_mesh
from mvlm_jax.training.program import make_program

ROOT = Path(__file__).parents[2]


def toy_process(workdir, *arguments, **fields):
    return subprocess.run(
        [sys.executable, Path(__file__).with_name("toy.py"), workdir, json.dumps(fields), *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("uninterrupted")
    train(ToyTask(), config=toy_config(**{"eval.every": 3}), workdir=workdir)
    return workdir


def test_a_run_learns(tmp_path):
    rates = {f"optimizer.{group}peak": 0.1 for group in ("", "image_encoder_", "text_encoder_")}
    config = toy_config(steps=100, batch_size=64, **rates, **{"checkpoint.every": 100})
    train(ToyTask(batch_size=64), config=config, workdir=tmp_path)
    losses = [line["loss"] for line in metrics_lines(tmp_path) if "loss" in line]
    assert np.mean(losses[-10:]) < 0.6 * np.mean(losses[:5])


def test_a_run_logs_every_step(uninterrupted):
    lines = [line for line in metrics_lines(uninterrupted) if "loss" in line]
    assert [line["step"] for line in lines] == list(range(1, 10))
    assert all(line["loss"] == pytest.approx(line["squared_error"], rel=1e-6) for line in lines)


def test_a_run_leaves_config_assets_events_checkpoints_and_evaluations(uninterrupted):
    assert {path.name for path in uninterrupted.iterdir() if "tfevents" not in path.name} == {
        ".lock",
        "asset.txt",
        "checkpoints",
        "config.json",
        "environment.json",
        "eval",
        "metrics.jsonl",
    }
    assert len(list(uninterrupted.glob("*tfevents*"))) == 1
    evaluation = json.loads((uninterrupted / "eval" / "toy-shapes-val.json").read_text())
    assert evaluation["step"] == 9
    logged = [line for line in metrics_lines(uninterrupted) if "eval/toy-val/norm" in line]
    assert [line["step"] for line in logged] == [3, 6, 9]
    assert logged[-1] == {"step": 9, "eval/toy-val/norm": evaluation["norm"]}


def test_a_killed_run_resumes_bit_for_bit(uninterrupted, tmp_path):
    killed = toy_process(tmp_path, "--kill-before-step", "8", **{"eval.every": 3})
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    logged = [line["step"] for line in metrics_lines(tmp_path)]
    assert 6 < logged[-1] < 9  # some of it after the last checkpoint
    train(ToyTask(), config=toy_config(**{"eval.every": 3}), workdir=tmp_path)
    assert metrics_lines(tmp_path) == metrics_lines(uninterrupted)


def test_a_run_killed_while_saving_resumes_from_the_checkpoint_before(uninterrupted, tmp_path):
    killed = toy_process(tmp_path, "--kill-while-saving", "6", **{"eval.every": 3})
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    half_written = [path.name for path in (tmp_path / "checkpoints").iterdir() if path.name.startswith("6.")]
    assert half_written
    with Checkpoints.for_reading(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.steps() == [3]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir() if path.name.startswith("6.")] == half_written
    train(ToyTask(), config=toy_config(**{"eval.every": 3}), workdir=tmp_path)
    assert metrics_lines(tmp_path) == metrics_lines(uninterrupted)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["6", "9"]


def test_an_evaluation_that_was_lost_is_made_up_for(uninterrupted, tmp_path):
    config = toy_config(**{"eval.every": 3})

    class Preempted(ToyTask):
        def evaluate(self, params):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(Preempted(), config=config, workdir=tmp_path)
    train(ToyTask(), config=config, workdir=tmp_path)
    assert metrics_lines(tmp_path) == metrics_lines(uninterrupted)


def test_a_finished_run_started_again_changes_nothing(tmp_path):
    outcome = train(ToyTask(), config=toy_config(), workdir=tmp_path)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    task = ToyTask()
    assert train(task, config=toy_config(), workdir=tmp_path) == outcome
    assert task.evaluations == 0
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_a_finished_run_evaluates_the_average_when_asked_and_logs_it_apart(tmp_path):
    plain = toy_config(**{"optimizer.ema": 0.9})
    raw = train(ToyTask(), config=plain, workdir=tmp_path).results["toy-val"]["norm"]
    average = toy_config(**{"optimizer.ema": 0.9, "eval.ema": True})
    task = ToyTask()
    outcome = train(task, config=average, workdir=tmp_path)
    averaged = outcome.results["toy-val"]["norm"]
    assert task.evaluations == 1 and averaged != raw
    evaluations = [line for line in metrics_lines(tmp_path) if "loss" not in line]
    assert evaluations == [{"step": 9, "eval/toy-val/norm": raw}, {"step": 9, "eval/toy-val-ema/norm": averaged}]
    before = (tmp_path / "metrics.jsonl").read_bytes()
    # Both are there now, whichever is asked for.
    assert train(task, config=average, workdir=tmp_path) == outcome
    assert train(task, config=plain, workdir=tmp_path).results["toy-val"]["norm"] == raw
    assert task.evaluations == 1
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_a_run_says_what_it_waits_for(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    train(ToyTask(), config=toy_config(steps=3), workdir=tmp_path)
    lines = [record.message for record in caplog.records if "compil" in record.message or "cache" in record.message]
    assert lines[0] == "compiling the initialization of the parameters ..."
    assert lines[2] == "compiling the training step ..."
    assert re.fullmatch(r"(compiled the training step|read the training step from the cache) in \d+\.\d s", lines[3])
    evaluation = [record.message for record in caplog.records if "evaluating" in record.message]
    assert evaluation[0] == "evaluating step 3 ..." and evaluation[1].startswith("evaluating step 3 took ")


@pytest.mark.skipif(jax.device_count() != 8, reason="needs 8 devices")
@pytest.mark.parametrize(("group", "warned"), [(1, False), (2, True)])
def test_devices_that_do_not_hold_whole_groups_are_warned_of(tmp_path, caplog, group, warned):
    class Grouped(ToyTask):
        @property
        def objective(self):
            return dataclasses.replace(super().objective, group=group)

    # Two examples a device are two microbatches of groups of one.
    train(Grouped(), config=toy_config(steps=3, accumulate=2), workdir=tmp_path)
    message = "config.batch_size=16 is not a multiple of 32 (2 microbatches, groups of 2 examples, 8 devices)"
    assert (message in caplog.text) is warned


def test_a_config_that_does_not_fit_leaves_no_workdir(tmp_path):
    with pytest.raises(UserError, match="config.mesh.data=3"):
        train(ToyTask(), config=toy_config(**{"mesh.data": 3}), workdir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_holds_the_state_of_its_step_though_training_goes_on(uninterrupted, tmp_path):
    config = toy_config(**{"checkpoint.every": 1, "checkpoint.keep_last": 9})
    train(ToyTask(), config=config, workdir=tmp_path)
    program = make_program(task=ToyTask(), config=config, mesh=make_mesh(data=-1, fsdp=1, tensor=1))
    state = program.init()
    batches = ToyTask().train_batches(0)
    with Checkpoints.for_reading(tmp_path / "checkpoints") as checkpoints:
        for step in range(1, 10):
            state, _ = program.step(state, next(batches))
            saved = checkpoints.restore(step, program.state)
            jax.tree.map(np.testing.assert_array_equal, saved, state)
            jax.tree.map(
                np.testing.assert_array_equal,
                checkpoints.restore_params(step, program.state.params)[1],
                state.params,
            )


def test_a_missing_step_is_refused_with_the_steps_there_are(uninterrupted):
    with Checkpoints.for_reading(uninterrupted / "checkpoints") as checkpoints:
        with pytest.raises(UserError, match=r"no checkpoint of step 7 in .*; there are 6, 9$"):
            checkpoints.restore_params(7, {})


def test_a_directory_without_checkpoints_has_no_step_and_is_not_made(tmp_path):
    with Checkpoints.for_reading(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.latest_step() is None
        with pytest.raises(UserError, match="there is none yet"):
            checkpoints.restore_params(3, {})
    assert list(tmp_path.iterdir()) == []


def test_the_last_checkpoints_and_the_multiples_are_kept(tmp_path):
    config = toy_config(**{"checkpoint.every": 1, "checkpoint.keep_last": 2, "checkpoint.keep_every": 4})
    train(ToyTask(), config=config, workdir=tmp_path)
    with Checkpoints.for_reading(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.steps() == [4, 8, 9]
