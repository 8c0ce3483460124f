import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mvlm_jax.cli import weights


@pytest.fixture(scope="session")
def export(demo_run, tmp_path_factory):
    """The demo run as `mvlm weights export` writes it."""
    folder = tmp_path_factory.mktemp("exports") / "export"
    assert weights.run(["export", f"--workdir={demo_run}", f"--output={folder}"]) == 0
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
