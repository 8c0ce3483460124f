"""A published folder that is imported and written again holds the same tensors, bit for bit."""

import numpy as np
import pytest
from safetensors.numpy import load_file
from sources import GOLDEN, encoder_of, golden

from mvlm_jax.data.text import train_tokenizer
from mvlm_jax.files import read_json
from mvlm_jax.interop.families import text_family

CAPTIONS = ["a red square", "a blue disc above a red square"]


# What our export leaves out of a golden folder: heads and towers of others.
LEFT_OUT = ("pooler.", "head.", "text_model.", "visual_projection.", "text_projection.", "logit_scale")


def same_tensors(folder, name, *, prefix=""):
    written = load_file(folder / "model.safetensors")
    expected = {key: value for key, value in golden(name).items() if not key.startswith(LEFT_OUT)}
    expected = {prefix + key.removeprefix(prefix): value for key, value in expected.items()}
    assert set(written) == set(expected)
    for key, value in expected.items():
        assert written[key].dtype == np.float32
        np.testing.assert_array_equal(written[key], value, err_msg=key)


def same_config(folder, name, *fields):
    written, expected = read_json(folder / "config.json"), read_json(GOLDEN / name / "config.json")
    sizes = ("model_type", "architectures", "hidden_size", "num_hidden_layers", "num_attention_heads",
             "hidden_act", "layer_norm_eps")  # fmt: skip
    names = (*sizes, *fields)
    assert {name: written.get(name) for name in names} == {name: expected.get(name) for name in names}


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("vit", ("intermediate_size", "qkv_bias")),
        ("dinov2", ("mlp_ratio", "qkv_bias", "use_mask_token", "use_swiglu_ffn")),
        ("dinov2_registers", ("mlp_ratio", "qkv_bias", "num_register_tokens", "use_swiglu_ffn")),
        ("siglip", ("intermediate_size",)),
    ],
)
def test_an_image_encoder(name, fields, tmp_path):
    encoder_of(GOLDEN / name, name).write(tmp_path / name)
    same_tensors(tmp_path / name, name, prefix="vision_model." if name == "siglip" else "")
    same_config(tmp_path / name, name, "image_size", "patch_size", "num_channels", *fields)


def test_the_vision_tower_of_a_whole_clip(tmp_path):
    encoder_of(GOLDEN / "clip", "clip").write(tmp_path / "clip")
    same_tensors(tmp_path / "clip", "clip")
    written, whole = read_json(tmp_path / "clip" / "config.json"), read_json(GOLDEN / "clip" / "config.json")
    assert written["architectures"] == ["CLIPVisionModel"]
    for field in ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
                  "hidden_act", "layer_norm_eps", "image_size", "patch_size", "num_channels"):  # fmt: skip
        assert written[field] == whole["vision_config"][field], field


FIELDS = {
    "roberta": ["intermediate_size", "type_vocab_size"],
    "bert": ["intermediate_size", "type_vocab_size"],
    "distilbert": ["dim", "n_layers", "n_heads", "hidden_dim", "activation"],
    "mpnet": ["intermediate_size", "relative_attention_num_buckets"],
}


@pytest.mark.parametrize("kind", FIELDS)
def test_a_text_encoder(kind, tmp_path):
    tokenizer = train_tokenizer(CAPTIONS, kind=text_family(kind).tokenizer, vocab_size=300)
    encoder_of(GOLDEN / kind, kind).write(tmp_path / kind, tokenizer)
    written = load_file(tmp_path / kind / "model.safetensors")
    assert len(written["embeddings.position_embeddings.weight"]) == len(
        golden(kind)["embeddings.position_embeddings.weight"]
    )
    same_tensors(tmp_path / kind, kind)
    fields = ("vocab_size", "max_position_embeddings", "pad_token_id", *FIELDS[kind])
    same_config(tmp_path / kind, kind, *fields)


@pytest.mark.parametrize("name", ["timm", "dinov2_timm", "open_clip"])
def test_other_namings_and_that_of_transformers_give_the_same_parameters(name, tmp_path):
    """One encoder, written under the other naming, comes back as it was."""
    encoder = encoder_of(GOLDEN / name, name)
    params = encoder.params
    encoder.write(tmp_path / "again")
    again = encoder_of(tmp_path / "again", name).params
    assert set(again) == set(params)
    for path, value in params.items():
        np.testing.assert_array_equal(again[path], value, err_msg=path)


def test_open_clip_and_transformers_name_the_same_parameters():
    one, other = (encoder_of(GOLDEN / name, name).params for name in ("clip", "open_clip"))
    assert set(one) == set(other)
    for path, value in one.items():
        np.testing.assert_array_equal(other[path], value, err_msg=path)
