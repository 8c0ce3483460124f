"""The table of benchmarks/scaling.py, from figures that are there already."""

import importlib.util
import json
import sys

import pytest
from tiny import ROOT, recipe

FIGURES = {
    "chips": 16,
    "params": 7,
    "hbm_bytes_per_chip": {"arguments": 2**30, "temporaries": 2**30, "total": 2 * 2**30, "capacity": 4 * 2**30},
    "model_flops_per_chip": 2e12,
    "compiled_flops_per_chip": 2e12,
    "collective_bytes_per_chip": {"all-reduce": 2**20},
    "step_seconds_estimate": 0.5,
    "hours_estimate": 1.0,
    "fits": True,
}


@pytest.fixture(scope="module")
def scaling():
    spec = importlib.util.spec_from_file_location("scaling", ROOT / "benchmarks" / "scaling.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write(directory, name, **changes):
    (directory / f"{name.replace(':', '_')}.json").write_text(json.dumps(FIGURES | changes))


def test_hours_are_those_of_the_recipes_pairs(scaling):
    config = recipe("pretrain_4m")
    few = scaling.row(scaling.CASES["v6e:4x4"], FIGURES)
    assert float(few[-1]) == pytest.approx(0.5 * config.steps / 3600, rel=1e-3)
    # Sixteen times the chips, each with as many pairs: a sixteenth of the steps.
    many = scaling.row(scaling.CASES["v6e:16x16"], FIGURES)
    assert float(many[-1]) == pytest.approx(0.5 * config.steps / 16 / 3600, rel=0.03)
    assert len(few) == len(many) == len(scaling.COLUMNS)


def test_growth_is_told_where_both_sizes_are_there(scaling, tmp_path):
    write(tmp_path, "v6e:4x4")
    assert not list(scaling.growth(tmp_path))
    total = {"arguments": 2**30, "temporaries": 2**30, "total": 2.02 * 2**30, "capacity": 4 * 2**30}
    write(tmp_path, "v6e:16x16", hbm_bytes_per_chip=total, compiled_flops_per_chip=1.99e12)
    assert list(scaling.growth(tmp_path)) == ["v6e, from 16 to 256 chips: HBM a chip +1.00%, FLOPs a chip -0.50%"]
    write(tmp_path, "v6e:16x16", compiled_flops_per_chip=None)
    assert list(scaling.growth(tmp_path)) == ["v6e, from 16 to 256 chips: HBM a chip +0.00%"]


def test_a_compilation_that_fails_does_not_take_the_other_rows_along(scaling, tmp_path, monkeypatch, capfd):
    write(tmp_path, "v6e:4x4")
    # A Python that fails at once, in place of `python -m mvlm_jax compile`.
    monkeypatch.setattr(sys, "executable", "false")
    monkeypatch.setattr(sys, "argv", ["scaling.py", f"--directory={tmp_path}", "v5e:4x4", "v6e:4x4"])
    assert scaling.main() == 1
    shown = capfd.readouterr()
    assert shown.err.splitlines()[-1] == "v5e:4x4: mvlm compile ended with status 1"
    assert "| base | v6e:4x4 |" in shown.out and "v5e:4x4" not in shown.out
