"""The golden encoders as sources to be changed, and their import into a model of their size."""

import json
import shutil
from pathlib import Path

import pytest
from encoders import image_encoder, text_encoder
from safetensors.numpy import load_file, save_file

GOLDEN = Path(__file__).with_name("golden")
SIZES = {"width": 16, "heads": 2, "layers": 2, "mlp_ratio": 2}
IMAGE = {"image_size": 16, "patch": 4, **SIZES}
TEXT = {"vocab_size": 48, "positions": 12, **SIZES}
EPSILON = {"vit": 1e-12, "timm": 1e-6}


def golden(name):
    return load_file(GOLDEN / name / "model.safetensors")


def folder_of(path, name, *, tensors=None, **config):
    """A copy of a golden folder with other tensors, or with other fields in its config.json."""
    shutil.copytree(GOLDEN / name, path)
    if tensors is not None:
        save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    if config:
        said = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps(said | config))
    return path


def file_of(path, tensors):
    save_file(tensors, path)
    return path


def encoder_of(path, name, **changes):
    """The import of a source as `name`: vit, timm or a kind of text encoder."""
    if name in EPSILON:
        return image_encoder(path, **{**IMAGE, "epsilon": EPSILON[name], **changes})
    return text_encoder(path, kind=name, **{**TEXT, **changes})


def imported(path, name, **changes):
    return encoder_of(path, name, **changes).report


def refusal(error: pytest.ExceptionInfo) -> str:
    """The message, which is one line that begins with the source or names it."""
    message = str(error.value)
    assert "\n" not in message
    return message
