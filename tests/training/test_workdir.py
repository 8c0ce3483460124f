import json
import os

import numpy as np
import pytest
from toy import toy_config

from mvlm_jax import config as config_lib
from mvlm_jax.errors import UserError
from mvlm_jax.training.workdir import open_workdir, read_config, read_evaluations, write_evaluations, write_json


def contents(directory):
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in directory.rglob("*") if path.is_file()}


def test_a_new_workdir_holds_the_config(tmp_path):
    config = toy_config()
    directory = open_workdir(tmp_path / "runs" / "first", config=config)
    assert [path.name for path in directory.iterdir()] == ["config.json"]
    assert config_lib.differences(read_config(directory), config, changeable=()) == ""


def test_the_same_run_is_let_in_and_so_is_one_that_is_only_carried_out_in_another_way(tmp_path):
    open_workdir(tmp_path, config=toy_config())
    before = contents(tmp_path)
    open_workdir(tmp_path, config=toy_config(**{"log_every": 7, "checkpoint.every": 2}))
    assert contents(tmp_path) == before


def test_the_workdir_of_another_config_is_refused_and_untouched(tmp_path):
    open_workdir(tmp_path, config=toy_config())
    before = contents(tmp_path)
    other = toy_config(**{"seed": 1, "optimizer.peak": 0.5, "batch_size": 32, "steps": 10})
    expected = (
        r"another config: config.batch_size is 16 there and 32 here; config.optimizer.peak is 0.01 there and 0.5 here; "
        r"config.seed is 0 there and 1 here \(and 1 more\)"
    )
    with pytest.raises(UserError, match=expected):
        open_workdir(tmp_path, config=other)
    assert contents(tmp_path) == before


def test_a_file_in_the_place_of_the_workdir_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UserError, match=r"file is a file; give the path of a directory"):
            open_workdir(path, config=toy_config())
    assert (tmp_path / "file").read_text() == "mine"


def test_a_workdir_that_cannot_be_written_to_is_refused(tmp_path, monkeypatch):
    # Simulated: to root, as which containers run tests, every directory is writable.
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
    with pytest.raises(UserError, match=r"is not writable; give a writable directory"):
        open_workdir(tmp_path / "run", config=toy_config())
    assert list(tmp_path.iterdir()) == []


def test_a_failing_disk_is_the_users_to_mend(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        open_workdir(tmp_path, config=toy_config())
    assert list(tmp_path.iterdir()) == []


def test_a_bucket_is_refused_before_it_becomes_a_local_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="gs://bucket/run is not a local path"):
        open_workdir("gs://bucket/run", config=toy_config())
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_does_not_write_makes_nothing(tmp_path):
    open_workdir(tmp_path / "run", config=toy_config(), write=False)
    assert not (tmp_path / "run").exists()


def test_a_directory_without_a_run_is_refused_to_readers(tmp_path):
    with pytest.raises(UserError, match="is not the workdir of a run"):
        read_config(tmp_path)


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "metrics.json"
    write_json(path, {"recall": 1.0})
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_json(path, {"recall": 2.0})
    assert json.loads(path.read_text()) == {"recall": 1.0}
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.json"]


def test_what_json_cannot_hold_becomes_plain(tmp_path):
    values = {
        "a": np.float32(0.5),
        "b": np.arange(2),
        "c": [float("nan"), float("inf")],
        "d": np.float64("nan"),
        3: "x",
    }
    write_json(tmp_path / "values.json", values)
    text = (tmp_path / "values.json").read_text()
    assert json.loads(text) == {"a": 0.5, "b": [0, 1], "c": [None, None], "d": None, "3": "x"}


def test_evaluations_are_read_back_for_their_own_step_only(tmp_path):
    results = {"retrieval-val": {"recall": 0.5}}
    write_evaluations(tmp_path, results, step=4)
    assert read_evaluations(tmp_path, step=4) == results
    assert read_evaluations(tmp_path, step=5) == {}


def test_a_file_of_another_kind_beside_the_evaluations_is_left_alone(tmp_path):
    write_evaluations(tmp_path, {"vqa-val": {"accuracy": 0.5}}, step=4)
    write_json(tmp_path / "eval" / "evalai.json", [{"question_id": 1, "answer": "red"}])
    write_json(tmp_path / "eval" / "notes.json", {"accuracy": 0.1})
    assert read_evaluations(tmp_path, step=4) == {"vqa-val": {"accuracy": 0.5}}
