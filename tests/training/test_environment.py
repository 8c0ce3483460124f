"""The record of what a run was computed with."""

import json
import os
import re

import jax
import pytest

import mvlm_jax
from mvlm_jax.training.environment import command_line, commit_of, record_start
from mvlm_jax.training.mesh import make_mesh

COMMIT, OTHER = "0123456789abcdef" * 2 + "01234567", "f" * 40


def test_each_start_of_a_run_has_an_entry(tmp_path):
    mesh = make_mesh(data=-1, fsdp=1, tensor=1)
    first = record_start(tmp_path, step=0, mesh=mesh)
    record = record_start(tmp_path, step=3, mesh=mesh, hosts=["a", "b"])
    assert json.loads((tmp_path / "environment.json").read_text()) == record
    assert re.fullmatch("[0-9a-f]{16}", first["run"]) and record["run"] == first["run"]
    assert record["starts"][0] == first["starts"][0]
    assert [start["step"] for start in record["starts"]] == [0, 3]
    start = record["starts"][0]
    assert start["version"] == mvlm_jax.__version__ and start["packages"]["jax"] == jax.__version__
    assert set(start["packages"]) == {"jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy"}
    assert (start["devices"], start["device_kind"]) == (jax.device_count(), jax.devices()[0].device_kind)
    assert (start["processes"], start["host_cpus"]) == (1, os.cpu_count())
    assert [start.get("hosts") for start in record["starts"]] == [None, ["a", "b"]]


def test_a_record_that_is_damaged_is_begun_anew(tmp_path):
    (tmp_path / "environment.json").write_text('{"run": "0123", "star')
    assert len(record_start(tmp_path, step=0, mesh=make_mesh(data=-1, fsdp=1, tensor=1))["starts"]) == 1


def test_the_commit_is_that_of_the_branch_that_is_checked_out(tmp_path):
    assert commit_of(tmp_path) is None
    git = tmp_path / ".git"
    (git / "refs" / "heads").mkdir(parents=True)
    (git / "HEAD").write_text("ref: refs/heads/main\n")
    assert commit_of(tmp_path) is None  # no commit yet
    (git / "packed-refs").write_text(f"# pack-refs with: peeled\n{OTHER} refs/heads/xmain\n{COMMIT} refs/heads/main\n")
    assert commit_of(tmp_path) == COMMIT
    (git / "refs" / "heads" / "main").write_text(f"{OTHER}\n")
    assert commit_of(tmp_path) == OTHER
    (git / "HEAD").write_text(f"{COMMIT}\n")  # of no branch
    assert commit_of(tmp_path) == COMMIT


def test_a_worktree_finds_its_branch_in_the_repository_that_it_belongs_to(tmp_path):
    own = tmp_path / "repository" / ".git" / "worktrees" / "one"
    own.mkdir(parents=True)
    (own / "HEAD").write_text("ref: refs/heads/one\n")
    (own / "commondir").write_text("../..\n")
    (tmp_path / "repository" / ".git" / "packed-refs").write_text(f"{COMMIT} refs/heads/one\n")
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / ".git").write_text(f"gitdir: {own}\n")
    assert commit_of(tmp_path / "one") == COMMIT


@pytest.mark.parametrize(
    "argv, line",
    [
        (["/venv/bin/mvlm", "train", "--workdir=my runs/a"], "mvlm train '--workdir=my runs/a'"),
        (["/src/mvlm_jax/__main__.py", "train"], "python -m mvlm_jax train"),
    ],
)
def test_the_command_can_be_copied(argv, line):
    assert command_line(argv) == line
