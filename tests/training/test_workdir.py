import errno
import fcntl
import json
import os
import re
from contextlib import ExitStack

import pytest
from toy import toy_config

from mvlm_jax import config as config_lib
from mvlm_jax.errors import UserError
from mvlm_jax.files import write_json
from mvlm_jax.training.workdir import (
    Evaluation,
    evaluation_stem,
    open_workdir,
    read_config,
    read_evaluations,
    write_evaluations,
)


def contents(directory):
    files = (path for path in directory.rglob("*") if path.is_file() and path.name != ".lock")
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def opened(path, *, config):
    """Opens it for a run that is over at once."""
    with ExitStack() as held:
        return open_workdir(path, config=config, held=held)


def test_a_new_workdir_holds_the_config(tmp_path):
    config = toy_config()
    directory = opened(tmp_path / "runs" / "first", config=config)
    assert {path.name for path in directory.iterdir()} == {".lock", "config.json"}
    assert config_lib.differences(read_config(directory), config, changeable=()) == ""


def test_the_same_run_is_let_in_and_so_is_one_that_is_only_carried_out_in_another_way(tmp_path):
    opened(tmp_path, config=toy_config())
    before = contents(tmp_path)
    opened(tmp_path, config=toy_config(**{"log_every": 7, "checkpoint.every": 2}))
    assert contents(tmp_path) == before


def test_the_workdir_of_another_config_is_refused_and_untouched(tmp_path):
    opened(tmp_path, config=toy_config())
    before = contents(tmp_path)
    other = toy_config(**{"seed": 1, "optimizer.peak": 0.5, "batch_size": 32, "steps": 10})
    expected = (
        r"another config: config.batch_size is 16 there and 32 here; config.optimizer.peak is 0.01 there and 0.5 here; "
        r"config.seed is 0 there and 1 here \(and 1 more\)"
    )
    with pytest.raises(UserError, match=expected):
        opened(tmp_path, config=other)
    assert contents(tmp_path) == before


def test_a_run_does_not_begin_in_an_export(tmp_path):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(UserError, match="holds an export; give a directory of its own to the run"):
        opened(tmp_path, config=toy_config())
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_file_in_the_place_of_the_workdir_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UserError, match=r"file is a file; give the path of a directory"):
            opened(path, config=toy_config())
    assert (tmp_path / "file").read_text() == "mine"


def test_a_workdir_that_cannot_be_written_to_is_refused(tmp_path, monkeypatch):
    # Simulated: to root, as which containers run tests, every directory is writable.
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
    with pytest.raises(UserError, match=r"is not writable; give a writable directory"):
        opened(tmp_path / "run", config=toy_config())
    assert list(tmp_path.iterdir()) == []


def test_a_failing_disk_is_the_users_to_mend(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        opened(tmp_path, config=toy_config())
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_an_address_is_refused_before_it_becomes_a_local_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="hdfs://host/run is not a local path"):
        opened("hdfs://host/run", config=toy_config())
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_does_not_write_makes_nothing(tmp_path):
    open_workdir(tmp_path / "run", config=toy_config(), held=None)
    assert not (tmp_path / "run").exists()


def test_a_directory_without_a_run_is_refused_to_readers(tmp_path):
    with pytest.raises(UserError, match="is not the workdir of a run"):
        read_config(tmp_path)


def test_evaluations_are_read_back_for_their_own_step_only(tmp_path):
    write_evaluations(tmp_path, {"retrieval-val": {"recall": 0.5}}, step=4, source="tfds:coco:val")
    assert read_evaluations(tmp_path, step=4) == {
        "retrieval-coco-val": Evaluation("retrieval-val", source="tfds:coco:val", metrics={"recall": 0.5})
    }
    assert read_evaluations(tmp_path, step=5) == {}


def test_an_evaluation_of_an_earlier_version_is_read(tmp_path):
    write_json(tmp_path / "eval" / "vqa-val.json", {"step": 4, "accuracy": 0.5})
    assert read_evaluations(tmp_path, step=4) == {
        "vqa-val": Evaluation("vqa-val", source="", metrics={"accuracy": 0.5})
    }


def test_the_file_of_an_evaluation_says_what_it_was_taken_of(tmp_path):
    write_evaluations(tmp_path, {"retrieval-test": {"recall": 0.5}}, step=4, source="tfds:coco:test")
    assert json.loads((tmp_path / "eval" / "retrieval-coco-test.json").read_text()) == {
        "step": 4,
        "source": "tfds:coco:test",
        "dataset": "coco",
        "task": "retrieval",
        "split": "test",
        "recall": 0.5,
    }


@pytest.mark.parametrize(
    "name, source, stem",
    [
        ("retrieval-test", "tfds:coco:test", "retrieval-coco-test"),
        ("retrieval-test", "tfds:coco/2014:test", "retrieval-coco_2014-test-HASH"),
        ("retrieval-test", "tfds:coco_2014:test?image=picture", "retrieval-coco_2014-test-HASH"),
        ("retrieval-val_100", "tfds:coco:val[:100]", "retrieval-coco-val_100-HASH"),
        ("retrieval-test", "json:/data/karpathy.json?split=test", "retrieval-karpathy-test-HASH"),
        ("retrieval-pairs", "table:/data/pairs.csv", "retrieval-pairs-HASH"),
        ("vqa-val", "vqa:/data/vqa v2?split=val", "vqa-vqa_v2-val-HASH"),
        ("classification-val", "/data/imagenet/val", "classification-val-HASH"),
        ("retrieval-test", "json:/ümläut/" + "x" * 300 + ".json?split=test", f"retrieval-{'x' * 40}-test-HASH"),
        ("retrieval-..", "webdataset:/../..", "retrieval-HASH"),
    ],
)
def test_an_evaluation_is_filed_under_its_dataset_and_split(name, source, stem):
    assert re.fullmatch(re.escape(stem).replace("HASH", "[0-9a-f]{8}"), evaluation_stem(name, source))


def test_other_sources_never_share_a_file():
    sources = [
        "tfds:a:test", "tfds:b:test", "tfds:a/b:test", "tfds:a_b:test", "json:/x/a.json?split=test",
        "json:/y/a.json?split=test", "tfds:a:test[:1]", "/x/test", "/y/test", "test", "tfds:A:test",
        "/x/test?templates=/x/a.txt", "/x/test?templates=/x/b.txt",
    ]  # fmt: skip
    assert len({evaluation_stem("retrieval-test", source).lower() for source in sources}) == len(sources)


def test_a_relative_source_is_another_one_in_another_directory(tmp_path, monkeypatch):
    (tmp_path / "other").mkdir()
    stems = []
    for directory in (tmp_path, tmp_path / "other"):
        monkeypatch.chdir(directory)
        stems += [evaluation_stem("retrieval-test", f"json:{path}") for path in ("a.json", f"{tmp_path}/a.json")]
    assert stems[0] == stems[1] == stems[3] != stems[2]


def test_a_source_in_a_store_is_the_same_from_everywhere(tmp_path, monkeypatch):
    stems = set()
    for directory in (tmp_path, tmp_path.parent):
        monkeypatch.chdir(directory)
        stems.add(evaluation_stem("retrieval-test", "webdataset:gs://bucket/{000..003}.tar"))
    assert len(stems) == 1


def test_a_file_of_another_kind_beside_the_evaluations_is_left_alone(tmp_path):
    write_evaluations(tmp_path, {"vqa-val": {"accuracy": 0.5}}, step=4, source="tfds:v:val")
    write_json(tmp_path / "eval" / "evalai.json", [{"question_id": 1, "answer": "red"}])
    write_json(tmp_path / "eval" / "notes.json", {"accuracy": 0.1})
    assert list(read_evaluations(tmp_path, step=4)) == ["vqa-v-val"]


def test_a_second_run_is_refused_with_the_name_of_the_first_and_touches_nothing(tmp_path):
    with ExitStack() as held:
        open_workdir(tmp_path, config=toy_config(), held=held)
        before = contents(tmp_path)
        with pytest.raises(UserError, match=rf"in use by another mvlm train \(process {os.getpid()} on "):
            opened(tmp_path, config=toy_config())
        assert contents(tmp_path) == before
    opened(tmp_path, config=toy_config())


def test_where_no_lock_is_to_be_had_a_run_goes_on_with_a_warning(tmp_path, monkeypatch, caplog):
    def unsupported(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    opened(tmp_path, config=toy_config())
    assert "cannot be locked (No locks available)" in caplog.text


@pytest.mark.parametrize("name", ["lr=[1e-3,1e-4]", "a[b", "a*b", "a?b", "a\\b", "\udcff"])
def test_a_path_from_which_no_checkpoint_could_be_read_is_refused(tmp_path, name, monkeypatch):
    for path in (tmp_path / name, tmp_path / name / "run"):
        with pytest.raises(UserError, match="checkpoints"):
            opened(path, config=toy_config())
    assert list(tmp_path.iterdir()) == []
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / name)
    with pytest.raises(UserError, match="checkpoints"):
        opened("run", config=toy_config())
    (tmp_path / "link").symlink_to(tmp_path / name)
    assert opened(tmp_path / "link" / "run", config=toy_config()).is_dir()


def test_home_is_where_a_tilde_leads(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert opened("~/run", config=toy_config()) == tmp_path / "run"
    with pytest.raises(UserError, match=r"~nobody_here, which is no home directory; write ./~nobody_here/run if"):
        opened("~nobody_here/run", config=toy_config())


def test_a_name_that_is_too_long_is_refused(tmp_path):
    with pytest.raises(UserError, match="File name too long"):
        opened(tmp_path / ("x" * 300), config=toy_config())
