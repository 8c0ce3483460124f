"""`mvlm prepare --runner=direct`: a Beam pipeline on this machine writes what the command writes without Beam.

Apache Beam asks for older versions of some libraries than the other tests run with: `make slow` has an environment for
it.
"""

import functools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from examples import encoded, picture
from tiny import ROOT

from mvlm_jax.cli import prepare as prepare_command
from mvlm_jax.data.builders.registry import collect
from mvlm_jax.data.writing import beam, shards
from mvlm_jax.data.writing.dataset import write_to
from mvlm_jax.data.writing.place import Directory
from mvlm_jax.errors import UserError

pytest.importorskip("apache_beam")
pytestmark = pytest.mark.slow

PROCESSES = ("--runner=direct", "--beam.direct_running_mode=multi_processing", "--beam.direct_num_workers=4")


@pytest.fixture(scope="module")
def listed(tmp_path_factory):
    """1300 rows, three shards of train, with every kind of row that is left out."""
    directory = tmp_path_factory.mktemp("listed")
    good, rows = encoded(picture()), []
    for i in range(1300):
        if i % 97:
            (directory / f"{i}.png").write_bytes(good if i % 50 else b"broken")
        rows.append({"image": f"{i}.png", "caption": [f"caption {i}", " "] if i % 3 else f"caption {i}"})
    (directory / "train.json").write_text(json.dumps(rows))
    (directory / "val.json").write_text(json.dumps(rows[1:9]))
    return directory


@pytest.fixture(scope="module")
def locally(listed, tmp_path_factory):
    """What the command writes without Beam."""
    data_dir = tmp_path_factory.mktemp("locally")
    assert prepare_command.run(arguments(listed, data_dir, "--workers=1")) == 0
    return written(data_dir)


def arguments(listed, data_dir, *more):
    uris = (f"--source={split}=json:{listed}/{split}.json" for split in ("train", "val"))
    return ["--dataset=mine", *uris, f"--data_dir={data_dir}", *more]


def written(data_dir: Path) -> dict[str, bytes]:
    assert sorted(path.name for path in (data_dir / "mine").iterdir()) == [".lock", "1.0.0"]
    return {path.name: path.read_bytes() for path in (data_dir / "mine" / "1.0.0").iterdir()}


@pytest.mark.parametrize("flags", [("--runner=direct",), PROCESSES], ids=["1 worker", "4 workers"])
def test_the_files_and_the_manifest_are_those_of_the_command_without_beam(listed, locally, tmp_path, flags):
    assert prepare_command.run(arguments(listed, tmp_path, *flags)) == 0
    assert written(tmp_path) == locally
    assert len([name for name in locally if "-train.array_record-" in name]) == 3


def test_a_killed_pipeline_is_continued_and_finished_shards_are_kept(listed, locally, tmp_path):
    command = [sys.executable, "-m", "mvlm_jax", "prepare", *arguments(listed, tmp_path, "--runner=direct")]
    running = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, start_new_session=True)
    partial = tmp_path / "mine" / "incomplete.1.0.0"
    try:
        while not list(partial.glob("*.json")) or list(partial.glob("*.json")) == [partial / "plan.json"]:
            assert running.poll() is None
            time.sleep(0.005)
    finally:
        os.killpg(running.pid, signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    finished = [path.with_suffix("") for path in partial.glob("*.array_record*.json")]
    before = {path.name: path.stat().st_mtime_ns for path in finished}
    assert 0 < len(before) < 4
    assert prepare_command.run(arguments(listed, tmp_path, "--runner=direct")) == 0
    assert written(tmp_path) == locally
    assert {name: (tmp_path / "mine" / "1.0.0" / name).stat().st_mtime_ns for name in before} == before


def test_what_a_worker_meets_is_one_line_as_without_beam(listed, tmp_path, capsys, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shards, "ArrayRecordWriter", full)
        assert prepare_command.run(arguments(listed, tmp_path / "a", "--runner=direct")) == 2
    errors = capsys.readouterr().err.splitlines()
    assert errors == [f"mvlm prepare: --data_dir='{tmp_path}/a' cannot be written: [Errno 28] No space left on device"]

    def unreadable(path):
        raise UserError(f"image {str(path)!r} cannot be read: Input/output error")

    monkeypatch.setattr("mvlm_jax.data.formats.listed.read_image", unreadable)
    assert prepare_command.run(arguments(listed, tmp_path / "b", "--runner=direct")) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("mvlm prepare: image '") and line.endswith(".png' cannot be read: Input/output error")


def test_workers_that_read_other_files_than_the_command_write_nothing(listed, tmp_path):
    opener = functools.partial(collect, "mine", data_dir=tmp_path)
    other = functools.partial(opener, sources=[f"json:{listed}/val.json"])
    pipeline = beam.Pipeline("direct", (), other)
    with pytest.raises(
        UserError, match="a worker reads another collection than the machine that started it: source is"
    ):
        write_to(
            Directory(tmp_path / "mine"), opener(sources=[f"json:{listed}/train.json"]), name="mine", engine=pipeline
        )
    assert not list(tmp_path.glob("mine/*/*.array_record*"))


def test_options_that_beam_does_not_have_are_refused_in_one_line(listed, tmp_path, capsys):
    for option, message in {
        "--beam.direct_workers=4": "--beam.direct_workers is no option of Apache Beam",
        "--beam.direct_num_workers=four": "--beam: argument --direct_num_workers: invalid int value: 'four'",
        "--beam.streaming=1": "--beam: argument --streaming: ignored explicit argument '1'",
    }.items():
        assert prepare_command.run(arguments(listed, tmp_path, "--runner=direct", option)) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert line.startswith(f"mvlm prepare: {message}")
    assert beam.parse_options(["--save_main_session"], runner="spark").get_all_options()["save_main_session"] is True
    assert not list(tmp_path.iterdir())
