"""Published encoders compute here what they compute in their own libraries, see make_goldens.py."""

from pathlib import Path

import numpy as np
import pytest
from encoders import image_encoder, text_encoder
from safetensors.numpy import load_file

GOLDEN = Path(__file__).with_name("golden")
SIZES = {"width": 16, "heads": 2, "layers": 2, "mlp_ratio": 2}
TEXT_SIZES = {"vocab_size": 48, "positions": 12, **SIZES}
TOLERANCE = 1e-5


def outputs(name):
    return load_file(GOLDEN / f"{name}.outputs.safetensors")


@pytest.mark.parametrize("name, epsilon", [("vit", 1e-12), ("timm", 1e-6)])
def test_image_encoders_agree(name, epsilon):
    encode, report, *_ = image_encoder(GOLDEN / name, image_size=16, patch=4, epsilon=epsilon, **SIZES)
    expected = outputs(name)
    np.testing.assert_allclose(encode(expected["pixels"]), expected["hidden"], atol=TOLERANCE)
    assert report.resized == []
    assert report.initial == ["image_encoder/mask_token"]


def test_positions_are_resized_as_transformers_resizes_them():
    encode, report, *_ = image_encoder(GOLDEN / "vit", image_size=24, patch=4, epsilon=1e-12, **SIZES)
    expected = outputs("vit")
    np.testing.assert_allclose(encode(expected["resized_pixels"]), expected["resized_hidden"], atol=TOLERANCE)
    [change] = report.resized
    assert "bicubic from 4x4 to 6x6 patches" in change


PADS = [("roberta", 1), ("bert", 0), ("distilbert", 0), ("mpnet", 1)]


@pytest.mark.parametrize("kind, pad", PADS)
def test_text_encoders_agree_wherever_there_is_no_padding(kind, pad):
    encode, report, *_ = text_encoder(GOLDEN / kind, kind=kind, **TEXT_SIZES)
    expected = outputs(kind)
    kept = expected["ids"] != pad
    assert sorted(kept.sum(axis=1)) == [2, 5, 7]
    np.testing.assert_allclose(encode(expected["ids"], kept)[kept], expected["hidden"][kept], atol=TOLERANCE)
    pooler = [] if kind == "distilbert" else ["the pooler, which only a classifier reads"]
    assert sorted(report.not_used) == pooler and report.initial == []


@pytest.mark.parametrize("kind, pad", PADS)
def test_a_position_table_is_cut_and_the_first_positions_stay(kind, pad):
    encode, report, *_ = text_encoder(GOLDEN / kind, kind=kind, **TEXT_SIZES | {"positions": 7})
    expected = outputs(kind)
    kept = expected["ids"] != pad
    np.testing.assert_allclose(encode(expected["ids"], kept)[kept], expected["hidden"][kept], atol=TOLERANCE)
    assert report.resized == ["position_embedding: cut from 12 to 7 positions"]
