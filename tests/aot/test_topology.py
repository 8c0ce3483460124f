import importlib.util
import json
import os
import subprocess
import sys

import pytest
from tiny import ROOT

from mvlm_jax.aot.topology import CHIPS
from mvlm_jax.cli import compile
from mvlm_jax.training.throughput import peak_flops

DEMO = f"--config={ROOT / 'configs' / 'demo.py'}"
LIBTPU = importlib.util.find_spec("libtpu") is not None
needs_libtpu = pytest.mark.skipif(not LIBTPU, reason="needs libtpu (pip install -e .[tpu])")


def without_flags():
    """The environment without the tests' flags and cache, which are for a CPU."""
    left_out = ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR")
    return {name: value for name, value in os.environ.items() if name not in left_out}


@pytest.mark.parametrize("name", ["v9:4x4", "v5e", "v5e:", "v5e:4", "v5e:4x", "4x4"])
def test_an_unknown_topology_is_one_line_with_examples(name, capsys):
    assert compile.run([DEMO, f"--topology={name}"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"mvlm compile: --topology={name} is not one of") and "v5e:4x4" in error


@pytest.mark.skipif(LIBTPU, reason="libtpu is installed")
def test_without_libtpu_one_line_says_how_to_get_it(capsys, tmp_path):
    assert compile.run([DEMO, "--topology=v5e:4x4", f"--json={tmp_path / 'figures.json'}"]) == 2
    assert capsys.readouterr().err.strip().endswith("pip install 'mvlm-jax[tpu]'")
    assert not (tmp_path / "figures.json").exists()


def test_every_family_has_a_peak():
    kinds = {"v4": "TPU v4", "v5e": "TPU v5 lite", "v5p": "TPU v5", "v6e": "TPU v6 lite"}
    assert set(kinds) == set(CHIPS)
    assert all(peak_flops(kind) for kind in kinds.values())


def test_no_accelerator_of_this_machine_is_used():
    program = (
        "import importlib.util; from types import SimpleNamespace as Found\n"
        "from mvlm_jax.cli import compile; import jax; from jax.experimental import topologies\n"
        "importlib.util.find_spec = lambda name: Found()\n"
        "topologies.get_topology_desc = lambda *names, **options: Found(devices=[jax.config.jax_platforms])\n"
        "print(compile.describe('v5e:4x4').devices)"
    )
    environment = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.split() == ["['cpu']"], done.stderr


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "chips"),
    [(("v4:2x2x2",), 8), (("v5e:1x1",), 1), (("v5p:2x2x2",), 8), (("v6e:16x16",), 256), (("v5e:4x4", 2), 32)],
)
def test_topologies_have_a_device_for_each_chip(arguments, chips):
    program = (
        "import sys, json; from mvlm_jax.aot.topology import describe\n"
        "name, slices = json.loads(sys.argv[1]); print(len(describe(name, slices=slices).devices))"
    )
    name, slices = (*arguments, 1)[:2]
    environment = without_flags()
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps([name, slices])],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.stdout.split() == [str(chips)], done.stderr


@needs_libtpu
@pytest.mark.slow
def test_the_step_of_a_tiny_model_is_compiled_for_a_tpu(tmp_path):
    file = tmp_path / "figures.json"
    small = [
        "batch_size=32",
        "matching.group=8",
        "image_encoder.layers=1",
        "text_encoder.layers=1",
        "cross.layers=1",
        "image.size=32",
    ]
    command = [sys.executable, "-m", "mvlm_jax", "compile", DEMO, "--topology=v5e:2x2", f"--json={file}"]
    command += [f"--config.{field}" for field in small]
    environment = without_flags()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    figures = json.loads(file.read_text())
    assert figures["chips"] == 4 and figures["fits"]
    assert 0 < figures["compiled_flops_per_chip"] <= 1.05 * figures["model_flops_per_chip"]
    assert "fits" in done.stdout
