import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny import demo_flags, prepare_shapes

from mvlm_jax import train, weights


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("data")
    prepare_shapes(directory)
    return directory


@pytest.fixture(scope="session")
def run(data_dir, tmp_path_factory):
    """A finished run of three steps."""
    workdir = tmp_path_factory.mktemp("runs") / "run"
    assert train.door(demo_flags(data_dir=data_dir, workdir=workdir, steps=3)) == 0
    return workdir


@pytest.fixture(scope="session")
def export(run, tmp_path_factory):
    """That run as `mvlm weights export` writes it."""
    folder = tmp_path_factory.mktemp("exports") / "export"
    assert weights.door(["export", f"--workdir={run}", f"--output={folder}"]) == 0
    return folder


@pytest.fixture(scope="session")
def published(export, tmp_path_factory):
    """Two folders as published ones are, with other numbers than any run here begins with."""
    folder = tmp_path_factory.mktemp("published")
    for name in ("image_encoder", "text_encoder"):
        (folder / name).mkdir()
        for file in (export / name).iterdir():
            (folder / name / file.name).write_bytes(file.read_bytes())
        tensors = {
            key: np.float32(1.5) * value for key, value in load_file(export / name / "model.safetensors").items()
        }
        save_file(tensors, folder / name / "model.safetensors", metadata={"format": "pt"})
    return folder
