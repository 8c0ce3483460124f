"""Published encoders compute here what they compute in their own libraries, see make_goldens.py."""

import numpy as np
import pytest
from encoders import text_encoder
from safetensors.numpy import load_file
from sources import GOLDEN, IMAGES, encoder_of

SIZES = {"width": 16, "heads": 2, "layers": 2, "mlp_ratio": 2}
TEXT_SIZES = {"vocab_size": 48, "positions": 12, **SIZES}
TOLERANCE = 1e-5


def outputs(name):
    return load_file(GOLDEN / f"{name}.outputs.safetensors")


@pytest.mark.parametrize("name", IMAGES)
def test_image_encoders_agree(name):
    encode, report, *_ = encoder_of(GOLDEN / name, name)
    expected = outputs(name)
    np.testing.assert_allclose(encode(expected["pixels"]), expected["hidden"], atol=TOLERANCE)
    moved = ["position_embedding: the class token's position is 0, as the source has none"]
    assert report.resized == (moved if name == "dinov2_timm" else [])
    own_mask = name in ("dinov2", "dinov2_registers")
    assert report.initial == ([] if own_mask else ["image_encoder/mask_token"])


@pytest.mark.parametrize("name", [name for name in IMAGES if name != "timm"])
def test_positions_are_resized_as_transformers_resizes_them(name):
    encode, report, *_ = encoder_of(GOLDEN / name, name, image_size=24)
    expected = outputs(name)
    np.testing.assert_allclose(encode(expected["resized_pixels"]), expected["resized_hidden"], atol=TOLERANCE)
    [change] = report.resized
    how = "bicubic, smoothed," if "registers" in IMAGES[name] else "bicubic"
    assert f"{how} from 4x4 to 6x6 patches" in change
    assert ("as it was" in change) == (name not in ("siglip", "dinov2_timm"))


@pytest.mark.parametrize("name", ["dinov2", "dinov2_registers"])
def test_a_mask_token_of_the_source_is_seen_where_patches_are_hidden(name):
    expected = outputs(name)
    seen = encoder_of(GOLDEN / name, name).encode(expected["pixels"], expected["hidden_patches"])
    np.testing.assert_allclose(seen, expected["masked_hidden"], atol=TOLERANCE)
    assert np.abs(expected["masked_hidden"] - expected["hidden"]).max() > 0.01


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
