"""The command, with a compiler that answers at once."""

import json
import os
from types import SimpleNamespace

import pytest
from tiny import ROOT

from mvlm_jax.aot.ahead import CompiledStep
from mvlm_jax.aot.hlo import read
from mvlm_jax.aot.topology import CHIPS, Topology
from mvlm_jax.cli import compile

# One product of 2 x 1000 x 1000 x 1000 operations.
PROGRAM = """HloModule m

ENTRY %e (x: f32[1000,1000], y: f32[1000,1000]) -> f32[1000,1000] {
  %x = f32[1000,1000]{1,0} parameter(0)
  %y = f32[1000,1000]{1,0} parameter(1)
  ROOT %z = f32[1000,1000]{1,0} dot(%x, %y), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}
"""


@pytest.fixture
def described(monkeypatch):
    """What was described; nothing is, where a test finds it empty."""
    names = []

    def describe(name, *, slices):
        names.append(name)
        return Topology(name, CHIPS["v6e"], [SimpleNamespace(device_kind="TPU v6 lite", platform="tpu")] * 4, slices)

    monkeypatch.setattr(compile, "describe", describe)
    return names


def test_larger_batches_of_fit_are_fewer_steps_of_the_same_pairs(described, monkeypatch, tmp_path, capsys):
    step = CompiledStep(SimpleNamespace(flops_per_step=8e9), 7, 2**30, 2**30, own_rows=True, program=read(PROGRAM))

    def fit(config, devices, *, capacity, report):
        assert capacity == CHIPS["v6e"].hbm_bytes
        found = config.copy_and_resolve_references()
        found.batch_size = 4 * config.batch_size
        return found, step

    monkeypatch.setattr(compile, "fit", fit)
    file = tmp_path / "figures.json"
    recipe = f"--config={ROOT / 'configs' / 'pretrain_4m.py'}"
    assert compile.run([recipe, "--topology=v6e:2x2", "--fit", f"--json={file}", "--config.steps=4000"]) == 0
    figures = json.loads(file.read_text())
    assert figures["hours_estimate"] == pytest.approx(1000 * figures["step_seconds_estimate"] / 3600)
    printed = capsys.readouterr().out
    assert "hours for 1000 steps" in printed
    assert "remat none" in printed  # what `auto` is there, and not on the machine that compiles


@pytest.mark.parametrize(
    ("place", "writable", "reason"),
    [
        ("none/figures.json", True, "none does not exist"),
        (".", True, "is a directory; give the path of a file"),
        ("figures.json", False, "is not writable"),
    ],
)
def test_a_json_file_that_cannot_be_written_is_refused_first(
    described, monkeypatch, capsys, tmp_path, place, writable, reason
):
    if not writable:
        # Root may write anywhere.
        monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    demo = f"--config={ROOT / 'configs' / 'demo.py'}"
    assert compile.run([demo, "--topology=v5e:4x4", f"--json={tmp_path / place}"]) == 2
    assert reason in capsys.readouterr().err
    assert not described and not list(tmp_path.iterdir())
